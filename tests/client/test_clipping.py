"""Proves: every way gives the same clipped sum as one backward pass per record, and what mixes records is refused."""

import contextlib
import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from client.clipped_sum import ClippedSum, layers_of
from client.clipping import clipped_sum_for, refuse_mixing_modules, shares_of
from client.clipping_modes import BookKeeping, NotThisWay, OneByOne, Vectorised
from common.errors import ConfigError

RECORDS, CLASSES = 6, 3


class Pooled(nn.Module):
    """body, then the mean over all but records and channels-or-features, then logits in float64."""

    def __init__(self, body: nn.Module, width: int, features_last: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.features_last = body, nn.Linear(width, CLASSES), features_last

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.body(x))
        y = y.movedim(-1, 1) if self.features_last else y
        return self.head(y.flatten(2).mean(2) if y.dim() > 2 else y)


class Conv1D(nn.Module):
    """As in transformers, which is not installed here: the weight is stored as (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Twice(nn.Module):
    """One module called twice in a pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(torch.tanh(self.module(x))) + x


class Attending(nn.Module):
    def __init__(self, masked: bool = False, records_first: bool = True, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=records_first, **options)
        self.masked, self.records_first = masked, records_first

    def forward(self, x: Tensor) -> Tensor:
        ways = x if self.records_first else x.transpose(0, 1)
        keys = ways * 0.5 if self.attention.kdim == 8 else torch.cat([ways, ways], 2)
        rows = x.shape[1]
        mask = torch.ones(rows, rows, dtype=torch.bool).triu(1) if self.masked else None
        ignored = (x[..., 0] > 1).index_fill(1, torch.tensor([0]), False) if self.masked else None
        seen, weights = self.attention(ways, keys, keys, key_padding_mask=ignored, attn_mask=mask)
        assert weights is not None
        return seen if self.records_first else seen.transpose(0, 1)


class Language(nn.Module):
    """Tokens and positions looked up once for all records, tied or untied head."""

    def __init__(self, tied: bool, **options: object) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 8, **options), nn.Embedding(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 7, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).unsqueeze(0)
        return self.head(self.block(self.tokens(x) + self.positions(places))).mean(1)


class Scaled(nn.Module):
    """Owns a parameter beside its children, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(1)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class Recurrent(nn.Module):
    """An LSTM can neither be kept by books nor vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x)[0][:, -1])


class Frozen(nn.Sequential):
    """LoRA-like: a frozen base, and of the adapter one weight and one bias only."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES))
        for parameter in (*self[0].parameters(), self[2].bias, self[3].weight, self[4].weight):
            parameter.requires_grad_(False)


class Centred(nn.Module):
    """Mixes the records without being a BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def images(channels: int = 4) -> tuple[int, ...]:
    return (channels, 7, 6)


def mlp(inplace: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 6, bias=False), nn.ReLU(inplace), nn.Linear(6, 3)
    )


TOKENS = (5,)
SUPPORTED = {
    "mlp, changed in place": (mlp, (4,)),
    "linear over rows": (lambda: Pooled(nn.Linear(4, 6), 6, True), (9, 4)),
    "linear over many rows": (lambda: Pooled(nn.Linear(40, 60), 60, True), (2, 40)),
    "linear over a grid of rows": (lambda: Pooled(nn.Linear(4, 6, bias=False), 6, True), (2, 3, 4)),
    "Conv1D of transformers": (lambda: Pooled(Conv1D(6, 4), 6, True), (9, 4)),
    "Conv1D of transformers, one row": (lambda: Pooled(Conv1D(6, 4), 6), (4,)),
    "conv2d": (lambda: Pooled(nn.Conv2d(4, 6, 3), 6), images()),
    "conv2d, few places": (lambda: Pooled(nn.Conv2d(40, 60, 3), 60), (40, 3, 4)),
    "conv2d, groups": (lambda: Pooled(nn.Conv2d(4, 6, 3, groups=2), 6), images()),
    "conv2d, groups, few places": (lambda: Pooled(nn.Conv2d(40, 40, 3, groups=2, bias=False), 40), (40, 3, 3)),
    "conv2d, depthwise": (lambda: Pooled(nn.Conv2d(4, 8, 3, groups=4, padding=1), 8), images()),
    "conv2d, stride and dilation": (lambda: Pooled(nn.Conv2d(4, 6, (2, 3), (2, 1), (1, 2), (2, 1)), 6), images()),
    "conv2d, padding same": (lambda: Pooled(nn.Conv2d(4, 6, (2, 3), padding="same", dilation=2), 6), images()),
    "conv2d, reflect": (lambda: Pooled(nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), 6), images()),
    "conv2d, circular": (lambda: Pooled(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), 6), images()),
    "conv2d, replicate": (lambda: Pooled(nn.Conv2d(4, 6, 3, padding=(0, 1), padding_mode="replicate"), 6), images()),
    "conv1d": (lambda: Pooled(nn.Conv1d(4, 6, 3, 2, 1), 6), (4, 9)),
    "conv1d, dilated, grouped, reflect": (
        lambda: Pooled(nn.Conv1d(4, 6, 3, 1, 2, 2, 2, padding_mode="reflect"), 6),
        (4, 9),
    ),
    "group norm": (lambda: Pooled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)), 6), images()),
    "group norm of rows": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)), (4,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,)),
    "layer norm over rows": (lambda: Pooled(nn.LayerNorm(4, bias=False), 4, True), (9, 4)),
    "layer norm over an image": (lambda: Pooled(nn.LayerNorm([7, 6]), 4), images()),
    "layer called twice": (lambda: Pooled(Twice(nn.Linear(4, 4)), 4, True), (9, 4)),
    "layer called twice, one row": (lambda: Pooled(Twice(nn.Linear(4, 4)), 4), (4,)),
    "conv called twice": (lambda: Pooled(Twice(nn.Conv2d(4, 4, 3, padding=1)), 4), images()),
    "norm called twice": (lambda: Pooled(Twice(nn.GroupNorm(2, 4)), 4), images()),
    "attention": (lambda: Pooled(Attending(), 8, True), (5, 8)),
    "attention, masked": (lambda: Pooled(Attending(masked=True), 8, True), (5, 8)),
    "attention, rows first": (lambda: Pooled(Attending(masked=True, records_first=False), 8, True), (5, 8)),
    "attention, other keys": (lambda: Pooled(Attending(kdim=16, vdim=16, bias=False), 8, True), (5, 8)),
    "transformer": (lambda: Language(tied=False), TOKENS),
    "transformer, padding": (lambda: Language(tied=False, padding_idx=1), TOKENS),
    "partly frozen": (Frozen, (4,)),
    "conv3d by its own rule for any layer": (lambda: Pooled(nn.Conv3d(2, 3, 2), 3), (2, 3, 4, 3)),
    "transposed convolution": (lambda: Pooled(nn.ConvTranspose2d(4, 3, 2), 3), images()),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)), (4,)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3)), (4,)),
    "instance norm": (lambda: Pooled(nn.InstanceNorm2d(4, affine=True), 4), images()),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = SUPPORTED[name]
    return with_batch(build, shape)


def with_batch(
    build: Callable[[], nn.Module], shape: tuple[int, ...], records: int = RECORDS
) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(7)
    model = build().double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no weight is 0 or 1 by construction
    if shape == TOKENS:
        return model, torch.randint(0, 7, (records, *shape)), torch.randint(0, 7, (records,))
    return model, torch.randn(records, *shape).double(), torch.randint(0, CLASSES, (records,))


def definition(model: nn.Module, features: Tensor, labels: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """The clipped sum and the norms, by nothing but autograd."""
    total, norms = 0.0, []
    for record, label in zip(features, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(record[None]), label[None]).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])
        norms.append(gradient.norm())
        total = total + gradient * min(1.0, max_grad_norm / float(norms[-1]))
    model.zero_grad()
    return total, torch.stack(norms)


@pytest.mark.parametrize("way", [BookKeeping, Vectorised, OneByOne])
@pytest.mark.parametrize("name", SUPPORTED)
def test_clipped_sums_equal_the_definition(name: str, way: type[ClippedSum]) -> None:
    model, features, labels = make(name)
    bound = float(definition(model, features, labels, 1.0)[1].median())  # some records are clipped, some are not
    expected, _ = definition(model, features, labels, bound)
    with way(
        model,
        bound,
    ) as clipped_sum:
        for _ in range(2):  # what one batch leaves behind must not reach the next
            assert float((clipped_sum.of(features, labels) - expected).abs().max()) <= 1e-10
        assert float(clipped_sum.of(features[:1], labels[:1]).norm()) <= bound * (1 + 1e-12)


def definition_by_layer(
    model: nn.Module, features: Tensor, labels: Tensor, max_grad_norm: float, weights: list[float]
) -> Tensor:
    """Each layer's gradient clipped to its share, by names and autograd; an attention is one layer."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    owners = [name.rpartition(".")[0].removesuffix(".out_proj") for name, _ in named]
    order = list(dict.fromkeys(owners))
    whole = sum(weight**2 for weight in weights) ** 0.5
    total = 0.0
    for record, label in zip(features, labels, strict=True):
        losses = F.cross_entropy(model(record[None]), label[None])
        gradients = torch.autograd.grad(losses, [p for _, p in named], allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, (_, p) in zip(gradients, named, strict=True)]
        norms = [sum(float(g.norm() ** 2) for g, o in zip(gradients, owners, strict=True) if o == own) for own in order]
        scales = [
            min(1.0, max_grad_norm * weight / whole / norm**0.5) if norm else 1.0
            for weight, norm in zip(weights, norms, strict=True)
        ]
        pieces = [(g * scales[order.index(o)]).reshape(-1) for g, o in zip(gradients, owners, strict=True)]
        total = total + torch.cat(pieces)
    return total


@pytest.mark.parametrize("way", [BookKeeping, Vectorised, OneByOne])
@pytest.mark.parametrize("name", SUPPORTED)
def test_layers_clipped_to_their_shares_equal_the_definition(name: str, way: type[ClippedSum]) -> None:
    model, features, labels = make(name)
    weights = [1.0 + place % 3 for place in range(len(layers_of(model)))]
    norms = definition(model, features, labels, 1.0)[1]
    for bound in (float(norms.median()), float(norms.min()) / 10):
        expected = definition_by_layer(model, features, labels, bound, weights)
        with way(model, bound, shares=shares_of(model, "per-layer", weights)) as clipped_sum:
            assert float((clipped_sum.of(features, labels) - expected).abs().max()) <= 1e-10


def test_shares_are_public_and_their_squares_add_up_to_one() -> None:
    model = mlp()
    assert shares_of(model, "flat", ()) == ()
    assert shares_of(model, "per-layer", ()) == pytest.approx([3**-0.5] * 3)
    assert shares_of(model, "per-layer", (1.0, 2.0, 2.0)) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    with pytest.raises(ConfigError, match="2 numbers for a model of 3 layers") as refusal:
        shares_of(model, "per-layer", (1.0, 2.0))
    assert "0, 2, 4" in refusal.value.hint


def test_a_shared_parameter_is_clipped_once() -> None:
    model, features, labels = with_batch(lambda: Language(tied=True), TOKENS)
    shares = shares_of(model, "per-layer", ())
    assert len(shares) == len([path for path in layers_of(model) if path != "head"])
    with clipped_sum_for(model, 0.1, features, labels, shares=shares) as clipped_sum:
        assert clipped_sum.mode == "vectorised"
        assert float(clipped_sum.of(features[:1], labels[:1]).norm()) <= 0.1 * (1 + 1e-9)


def test_the_count_within_the_bound_is_of_the_whole_batch_and_the_last_one() -> None:
    model, features, labels = make("conv2d")
    norms = definition(model, features, labels, 1.0)[1].sort().values
    for way in (BookKeeping, Vectorised, OneByOne):
        with way(model, float(norms[3] + norms[4]) / 2) as clipped_sum:
            for at_once in (RECORDS, 2):
                clipped_sum.records_at_once = at_once
                clipped_sum.of(features, labels)
                assert clipped_sum.inside == 4
            clipped_sum.of(features[:0], labels[:0])
            assert clipped_sum.inside == 0


@pytest.mark.parametrize("memory", ["ghost", "direct"])
@pytest.mark.parametrize("name", [name for name in SUPPORTED if "row" in name or "conv" in name or "trans" in name])
def test_both_ways_to_a_norm_agree(name: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.clipping_layers._DIRECT_BYTES", 0 if memory == "ghost" else 1 << 40)
    monkeypatch.setattr("client.clipping_layers._DIRECT_PENALTY", 0)
    monkeypatch.setattr("client.clipping_layers._CACHED_BYTES", 2000)  # windows come in several pieces
    model, features, labels = make(name)
    expected, _ = definition(model, features, labels, 0.1)
    with BookKeeping(model, 0.1) as clipped_sum:
        assert float((clipped_sum.of(features, labels) - expected).abs().max()) <= 1e-10


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_supported_model_is_kept_by_books(name: str) -> None:
    model, features, labels = make(name)
    assert clipped_sum_for(model, 1.0, features, labels).mode == "book-keeping"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 7), st.floats(1e-6, 1e6))
def test_parts_of_a_batch_add_up_to_the_batch(records: int, at_once: int, bound: float) -> None:
    model, features, labels = with_batch(mlp, (4,), records)
    with BookKeeping(model, bound) as clipped_sum:
        whole = clipped_sum.of(features, labels).clone()
        clipped_sum.records_at_once = at_once
        torch.testing.assert_close(clipped_sum.of(features, labels), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
@settings(max_examples=40, deadline=None)
@given(left_out=st.integers(0, RECORDS - 1), bound=st.floats(1e-3, 10))
def test_one_record_moves_the_sum_by_at_most_the_bound(clipping: str, left_out: int, bound: float) -> None:
    model, features, labels = make("conv2d")
    features = features * 100  # large gradients, so the bound bites
    kept = [i for i in range(RECORDS) if i != left_out]
    with BookKeeping(model, bound, shares=shares_of(model, clipping, ())) as clipped_sum:
        with_all = clipped_sum.of(features, labels).clone()
        without = clipped_sum.of(features[kept], labels[kept])
    assert float((with_all - without).norm()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("rest", [1.0, 1e-2, 1e-3, 1e-4, 1e-6, 0.0])
def test_rows_that_nearly_cancel_are_not_clipped_too_little(rest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a norm from pairs of rows may be rounded to nothing, and the record would pass unclipped."""
    monkeypatch.setattr("client.clipping_layers._DIRECT_BYTES", 0)
    rows = torch.randn(RECORDS, 32, 40, generator=torch.Generator().manual_seed(1))
    opposite = torch.cat([rows, -rows + rest * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))], 1)
    model = nn.Linear(40, CLASSES, bias=False)
    labels = torch.zeros(RECORDS, dtype=torch.int64)
    bound = 1e-6

    def losses(output: Tensor, _labels: Tensor) -> Tensor:
        return output.sum((1, 2))

    with BookKeeping(model, bound, losses) as clipped_sum:
        for record in range(RECORDS):
            alone = clipped_sum.of(opposite[record : record + 1], labels[:1])
            assert float(alone.norm()) <= bound * (1 + 1e-5)


def test_an_empty_batch_gives_zeros() -> None:
    model, features, labels = make("conv2d")
    for way in (BookKeeping, Vectorised, OneByOne):
        with way(model, 1.0) as clipped_sum:
            clipped_sum.of(features, labels)
            assert not clipped_sum.of(features[:0], labels[:0]).any()


@pytest.mark.parametrize("name", ["transformer", "mlp, changed in place"])
def test_the_model_is_as_it_was_afterwards(name: str) -> None:
    model, features, labels = make(name)
    before, output = copy.deepcopy(model.state_dict()), model(features)
    bytes_before = len(pickle.dumps(model))
    with contextlib.suppress(ZeroDivisionError), clipped_sum_for(model, 1.0, features, labels) as clipped_sum:
        clipped_sum.of(features, labels)
        raise ZeroDivisionError
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(features), output)
    assert all(p.grad is None for p in model.parameters())
    assert len(pickle.dumps(model)) == bytes_before
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "shape", "mode", "reason"),
    [
        (lambda: Language(tied=True), TOKENS, "vectorised", "head .Linear. shares a parameter"),
        (Scaled, (4,), "vectorised", "the model .Scaled. has no rule"),
        (Recurrent, (5, 4), "one by one", ""),
    ],
)
def test_what_books_cannot_keep_goes_another_way_and_is_right(
    build: Callable[[], nn.Module], shape: tuple[int, ...], mode: str, reason: str
) -> None:
    model, features, labels = with_batch(build, shape)
    expected, _ = definition(model, features, labels, 0.5)
    if reason:
        with pytest.raises(NotThisWay, match=reason):
            BookKeeping(model, 1.0)
    with clipped_sum_for(model, 0.5, features, labels) as clipped_sum:
        assert clipped_sum.mode == mode
        assert float((clipped_sum.of(features, labels) - expected).abs().max()) <= 1e-10


def test_a_wrong_rule_is_found_out_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the start is what stands between a mistake here and a promise broken silently."""
    from client import clipping
    from client.clipping_layers import MatrixLayer

    monkeypatch.setattr(clipping, "_chosen", {})
    right = MatrixLayer.squared_norms
    monkeypatch.setattr(MatrixLayer, "squared_norms", lambda self, calls: right(self, calls) * 0.98)
    model, features, labels = make("mlp, changed in place")
    assert clipped_sum_for(model, 1.0, features, labels).mode == "vectorised"


def test_records_not_first_are_found_out() -> None:
    """Rows first and as many rows as records: only the numbers can tell."""

    class RowsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.transpose(0, 1)).mean(0)

    for rows in (3, 5):
        model, features, labels = with_batch(RowsFirst, (rows, 4))
        expected, _ = definition(model, features, labels, 0.5)
        with clipped_sum_for(model, 0.5, features, labels) as clipped_sum:
            assert clipped_sum.mode == "vectorised"
            assert float((clipped_sum.of(features, labels) - expected).abs().max()) <= 1e-10


@pytest.mark.parametrize(
    ("module", "replacement"),
    [
        (nn.BatchNorm2d(12), "GroupNorm(4, 12)"),
        (nn.SyncBatchNorm(16), "GroupNorm(8, 16)"),
        (nn.LazyBatchNorm2d(), "GroupNorm(8, channels)"),
        (nn.InstanceNorm2d(12, track_running_stats=True), "GroupNorm(4, 12)"),
    ],
)
def test_modules_that_mix_records_are_refused_with_their_path_and_a_replacement(
    module: nn.Module, replacement: str
) -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 12, 3), module)})
    with pytest.raises(ConfigError, match=r"body\.1") as refusal:
        refuse_mixing_modules(model)
    assert replacement in refusal.value.hint


def test_an_unknown_way_of_mixing_records_is_found_and_named() -> None:
    model, features, labels = with_batch(lambda: nn.Sequential(nn.Linear(4, 5), Centred(), nn.Linear(5, 3)), (4,))
    with pytest.raises(ConfigError, match=r"1 \(|: 1 mixes"):
        clipped_sum_for(model, 1.0, features, labels)


def test_sums_are_never_rounded_to_tf32_on_a_gpu() -> None:
    """cuDNN does by default; a norm measured in float32 would then not bound what is summed."""
    seen = []

    def losses(output: Tensor, labels: Tensor) -> Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return F.cross_entropy(output, labels, reduction="none")

    model, features, labels = make("conv2d")
    before = torch.backends.cudnn.allow_tf32
    with clipped_sum_for(model, 1.0, features, labels, losses) as clipped_sum:
        seen.clear()
        clipped_sum.of(features, labels)
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32 is before is True


def test_dropout_is_no_obstacle() -> None:
    model, features, labels = with_batch(lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)), (4,))
    state = torch.get_rng_state()
    with clipped_sum_for(model, 1.0, features, labels) as clipped_sum:
        assert clipped_sum.mode == "book-keeping"
        assert model.training
        assert torch.equal(state, torch.get_rng_state())
        assert torch.isfinite(clipped_sum.of(features, labels)).all()
