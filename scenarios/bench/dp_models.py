"""The models that `veilfed bench dp` trains: one of each kind that people train with DP, and large ones for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RANK = 8


@dataclass(frozen=True)
class _Sizes:
    vocabulary: int
    tokens: int
    width: int
    heads: int
    blocks: int
    tied: bool = False  # the head's weights are the tokens'


_SMALL = _Sizes(1024, 64, 128, 4, 4)
_GPT2_124M = _Sizes(50257, 1024, 768, 12, 12, tied=True)
_TRAINED_TOKENS = 256  # of the 1024 that its positions allow


@dataclass(frozen=True)
class Work:
    """`build` gives the model, `draw` a batch of features and labels, `losses` one loss per record (n,)."""

    name: str
    batch: int
    build: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    losses: Callable[[Tensor, Tensor], Tensor]
    note: str = ""
    gpu_only: bool = False


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def cnn() -> nn.Module:
    """For images of CIFAR's size."""
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 224), nn.ReLU(), nn.Linear(224, 10))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.before_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(2, 3) * self.scale
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(3) @ heads[2]
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.narrower(F.gelu(self.wider(self.before_mlp(x)), approximate="tanh"))


class _Gpt2(nn.Module):
    """GPT-2's layers in GPT-2's order, without dropout."""

    def __init__(self, sizes: _Sizes) -> None:
        super().__init__()
        self.tokens, self.positions = (nn.Embedding(n, sizes.width) for n in (sizes.vocabulary, sizes.tokens))
        self.blocks = nn.Sequential(*(_Block(sizes.width, sizes.heads) for _ in range(sizes.blocks)))
        self.last, self.head = nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        if sizes.tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)  # once per record, for Opacus
        return self.head(self.last(self.blocks(self.tokens(x) + self.positions(places))))


def gpt2() -> nn.Module:
    return _Gpt2(_SMALL)


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
    return _with_lora(_Gpt2(_SMALL))


def lora_of_gpt2() -> nn.Module:
    return _with_lora(_Gpt2(_GPT2_124M))


def _with_lora(model: _Gpt2) -> nn.Module:
    model.requires_grad_(False)
    for block in model.blocks:
        block.attention, block.wider = _Lora(block.attention), _Lora(block.wider)
    return model


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.GroupNorm(32, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.GroupNorm(32, out),
        )
        shorter = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.GroupNorm(32, out))
        self.beside = nn.Identity() if channels == out else shorter

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.beside(x))


def resnet18() -> nn.Module:
    """For images of CIFAR's size: a first kernel of 3 pixels and no first pooling; GroupNorm for BatchNorm.

    Reference: He et al. 2015, arXiv:1512.03385.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    for channels, out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [_Residual(channels, out, stride), _Residual(out, out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


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
    tokens = torch.randint(0, _SMALL.vocabulary, (n, _SMALL.tokens))
    return tokens, tokens


def _long_text(n: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, _GPT2_124M.vocabulary, (n, _TRAINED_TOKENS))
    return tokens, tokens


_OWN = "layers and sizes of GPT-2, written here from torch.nn"
WORKS = {
    work.name: work
    for work in (
        Work("mlp-105k", 256, mlp, _flat, classification),
        Work("cnn-555k", 128, cnn, _images, classification),
        Work("gpt2-1m", 16, gpt2, _text, next_token, _OWN),
        Work("lora-37k", 16, lora, _text, next_token, _OWN),
        Work("resnet18-11m", 512, resnet18, _images, classification, "GroupNorm(32)", gpu_only=True),
        Work("lora-of-gpt2-124m", 16, lora_of_gpt2, _long_text, next_token, _OWN, gpu_only=True),
    )
}
