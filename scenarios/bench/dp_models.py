"""The models that `veilfed bench dp` trains: small ones of each kind that people train with DP."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_VOCABULARY, _TOKENS, _WIDTH, _HEADS, _BLOCKS, _RANK = 1024, 64, 128, 4, 4, 8


@dataclass(frozen=True)
class Work:
    """`build` gives the model, `draw` a batch of features and labels, `losses` one loss per record (n,)."""

    name: str
    batch: int
    build: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    losses: Callable[[Tensor, Tensor], Tensor]
    note: str = ""


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def cnn() -> nn.Module:
    """For images of CIFAR's size."""
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 224), nn.ReLU(), nn.Linear(224, 10))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention, self.projection = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.wider, self.narrower = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.before_attention(x)).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(2, 3) * (_WIDTH // _HEADS) ** -0.5
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(3) @ heads[2]
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.narrower(F.gelu(self.wider(self.before_mlp(x)), approximate="tanh"))


class _Gpt2(nn.Module):
    """GPT-2's layers in GPT-2's order, with an untied head and no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(_VOCABULARY, _WIDTH), nn.Embedding(_TOKENS, _WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_BLOCKS)))
        self.last, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)  # once per record, for Opacus
        return self.head(self.last(self.blocks(self.tokens(x) + self.positions(places))))


class _Lora(nn.Module):
    """A frozen linear layer with a trainable one of low rank beside it. Reference: Hu et al. 2021, arXiv:2106.09685."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, _RANK, bias=False)
        self.up = nn.Linear(_RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def lora() -> nn.Module:
    model = _Gpt2().requires_grad_(False)
    for block in model.blocks:
        block.attention, block.wider = _Lora(block.attention), _Lora(block.wider)
    return model


def classification(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels, reduction="none")


def next_token(output: Tensor, labels: Tensor) -> Tensor:
    """(n,): each record's mean loss over its tokens but the first."""
    return F.cross_entropy(output[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").mean(1)


def _flat(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 784), torch.randint(0, 10, (n,))


def _images(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 32, 32), torch.randint(0, 10, (n,))


def _text(n: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, _VOCABULARY, (n, _TOKENS))
    return tokens, tokens


_OWN = "layers and sizes of GPT-2, written here from torch.nn"
WORKS = {
    work.name: work
    for work in (
        Work("mlp-105k", 256, mlp, _flat, classification),
        Work("cnn-555k", 128, cnn, _images, classification),
        Work("gpt2-1m", 16, _Gpt2, _text, next_token, _OWN),
        Work("lora-37k", 16, lora, _text, next_token, _OWN),
    )
}
