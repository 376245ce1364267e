"""What every party of a federation agrees on: the settings an order carries, checked at birth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from common.alerts import AlertRule
from common.breakdown import RuleName, fewest_vectors
from common.errors import ConfigError
from common.soundness import refuse_unsound

MOST_HOLDERS = 16  # sites that keep shares of one site's secrets: see `common/masking.py`
_MOST_GROUPS = 256  # each adds cells to every site's vector, and few records are left in any
_MOST_FEATURES = 256  # each takes a look at all held-out records of every site
_MOST_TIMES = 100_000  # a plan is somebody else's word: how long it can keep a site busy is bounded


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError naming key, value and allowed range unless `holds` (NaN never holds)."""
    if not holds:
        raise ConfigError(f"{key} = {value!r} is not possible", f"allowed: {allowed}")


@dataclass(frozen=True)
class ModelSettings:
    """`factory` is a built-in name (logistic, mlp, cnn) or `package.module:function`.

    A factory is called as `factory(inputs, classes)` and returns an untrained `torch.nn.Module` that maps
    a float32 batch (n, *inputs) to logits (n, classes). `inputs` and `classes` left at their defaults are
    filled from the data loader. `seed` fixes the public initial weights.
    """

    factory: str = "logistic"
    inputs: tuple[int, ...] = ()
    classes: int = 0
    hidden: tuple[int, ...] = (128,)
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.factory), "model.factory", self.factory, "logistic, mlp, cnn or package.module:function")
        require(all(n > 0 for n in self.inputs), "model.inputs", self.inputs, "positive sizes")
        require(self.classes == 0 or self.classes >= 2, "model.classes", self.classes, "2 or more (0: ask the loader)")
        require(all(n > 0 for n in self.hidden), "model.hidden", self.hidden, "positive sizes")
        require(0 <= self.seed < 2**53, "model.seed", self.seed, "0 to 2^53 - 1")

    @property
    def dense_weights(self) -> int:
        """What a built-in architecture allocates for its dense layers, about, known before it does."""
        widths = (math.prod(self.inputs), *(self.hidden if self.factory == "mlp" else ()), self.classes)
        return sum(before * after for before, after in pairwise(widths))


@dataclass(frozen=True)
class TrainingSettings:
    """What one site does in one round, and how all sites apply the mean update.

    sampling: `poisson` draws each record with chance `sample_rate` at each of `local_steps` steps and divides
    the sum of gradients by the public `lot_size`; `shuffle` runs `local_epochs` over batches of `batch_size`
    (only without DP). oversampling: `smote` makes records up for rarer classes, see `client/oversampling.py` (not where
    records are what is protected). optimizer: within a round, see `client/descent.py`; `adam` takes `momentum` and
    `second_momentum` as its decays and keeps the second moment above `adam_floor`. schedule: of the learning rate
    over all steps of the run, after `warmup_steps`. proximal_mu: FedProx's pull to the round's first weights.
    q: how much more a site weighs the worse the model serves it (0: all alike), see `common/fair_update.py`; only in
    runs without privacy and without encryption.

    Applied by every site alike to the opened aggregate, hence free post-processing: server_optimizer (`adam` takes
    `server_momentum` and `server_second_momentum` as its decays, and `server_adaptivity` is what it adds to the root),
    and which models the release averages: `tail_average` is the fraction of rounds, counted from the end, or
    `ema_decay` what each round leaves of the weight of those before.
    """

    sampling: Literal["poisson", "shuffle"] = "poisson"
    oversampling: Literal["none", "smote"] = "none"
    local_steps: int = 5
    sample_rate: float = 0.2
    lot_size: float = 32.0
    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1.0
    momentum: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    second_momentum: float = 0.999
    adam_floor: float = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    proximal_mu: float = 0.0
    q: float = 0.0
    server_learning_rate: float = 1.0
    server_optimizer: Literal["momentum", "adam"] = "momentum"
    server_momentum: float = 0.0
    server_second_momentum: float = 0.99
    server_adaptivity: float = 1e-3
    tail_average: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.local_steps <= _MOST_TIMES, "training.local_steps", self.local_steps, f"1 to {_MOST_TIMES}")
        require(1e-9 <= self.sample_rate <= 1, "training.sample_rate", self.sample_rate, "above 0, at most 1")
        require(0 < self.lot_size < math.inf, "training.lot_size", self.lot_size, "positive")
        require(
            1 <= self.local_epochs <= _MOST_TIMES, "training.local_epochs", self.local_epochs, f"1 to {_MOST_TIMES}"
        )
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "1 or more")
        require(0 < self.learning_rate < math.inf, "training.learning_rate", self.learning_rate, "positive")
        for name in ("momentum", "second_momentum", "server_momentum", "server_second_momentum", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"training.{name}", value, "0 up to, not including, 1")
        for name in ("adam_floor", "server_adaptivity"):
            value = getattr(self, name)
            require(1e-30 <= value < math.inf, f"training.{name}", value, "positive")
        require(self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.proximal_mu < math.inf, "training.proximal_mu", self.proximal_mu, "0 or more")
        require(0 <= self.q <= 10, "training.q", self.q, "0 to 10")
        require(
            0 < self.server_learning_rate < math.inf,
            "training.server_learning_rate",
            self.server_learning_rate,
            "positive",
        )
        require(0 <= self.tail_average <= 1, "training.tail_average", self.tail_average, "0 to 1")
        require(
            not (self.tail_average and self.ema_decay), "training.ema_decay", self.ema_decay, "0 with a tail_average"
        )
        for name, plain in (("optimizer", "sgd"), ("schedule", "constant"), ("warmup_steps", 0), ("proximal_mu", 0.0)):
            value = getattr(self, name)
            known = self.sampling == "poisson" or value == plain
            require(known, f"training.{name}", value, f"{plain!r} with training.sampling = 'shuffle'")


@dataclass(frozen=True)
class PrivacySettings:
    """Differential privacy: what is protected, and who adds the noise.

    mode `local`: each site noises each of its steps by itself, so that its update protects its records from everybody.
    `distributed`: each site adds a share of the noise to the clipped gradients of one step, and only the sum protects
    them: less noise, as much as a trusted centre would add. `site`: shares again, for whole sites; the unit is one
    site's data set, replaced by any other. `none`: nothing is protected.
    epsilon, delta: what one unit may lose over the whole run. `noise_multiplier` 0 means: calibrate the
    smallest one that fits. max_grad_norm: L2 bound of one record's gradient. max_update_norm: L2 bound of
    one site's update; it also fixes the public scale of the integers that travel.
    colluding: with shares, how many sites may tell theirs to one another; each always knows its own.

    clipping: `flat` bounds a record's whole gradient; `per-layer` each layer's by its own share of max_grad_norm, in
    proportion to layer_weights (none: all alike); `adaptive` starts at max_grad_norm in every round and moves, by
    clip_learning_rate, to the target_quantile of the norms. All three cost the same.
    """

    mode: Literal["local", "distributed", "site", "none"] = "local"
    epsilon: float = 3.0
    delta: float = 1e-3
    noise_multiplier: float = 0.0
    max_grad_norm: float = 1.0
    max_update_norm: float = 10.0
    colluding: int = 1
    clipping: Literal["flat", "per-layer", "adaptive"] = "flat"
    layer_weights: tuple[float, ...] = ()
    target_quantile: float = 0.5
    clip_learning_rate: float = 0.2

    def __post_init__(self) -> None:
        weights, rate = self.layer_weights, self.clip_learning_rate
        require(all(1e-6 <= w <= 1e6 for w in weights), "privacy.layer_weights", weights, "numbers from 1e-6 to 1e6")
        known = not weights or self.clipping == "per-layer"
        require(known, "privacy.layer_weights", weights, "none, unless privacy.clipping is 'per-layer'")
        require(0 < self.target_quantile < 1, "privacy.target_quantile", self.target_quantile, "between 0 and 1")
        require(0 < rate <= 10, "privacy.clip_learning_rate", rate, "above 0, at most 10")
        require(0 < self.epsilon < math.inf, "privacy.epsilon", self.epsilon, "positive and finite")
        require(0 < self.delta < 0.1, "privacy.delta", self.delta, "above 0, below 1 / records of the smallest site")
        require(
            0 <= self.noise_multiplier < math.inf,
            "privacy.noise_multiplier",
            self.noise_multiplier,
            "positive and finite (0: calibrate)",
        )
        require(0 < self.max_grad_norm < math.inf, "privacy.max_grad_norm", self.max_grad_norm, "positive and finite")
        require(
            0 < self.max_update_norm < math.inf, "privacy.max_update_norm", self.max_update_norm, "positive and finite"
        )
        require(self.colluding >= 1, "privacy.colluding", self.colluding, "1 or more: a site knows its own share")

    @property
    def in_shares(self) -> bool:
        """Whether one site's noise is not enough by itself."""
        return self.mode in ("distributed", "site")


@dataclass(frozen=True)
class EncryptionSettings:
    """preset `none` sends readable updates: for baselines; the report says so in its first line.

    threshold: how many sites must agree on the list of a round before anything that lifts a mask is revealed, and
    how many can stand in for one that vanishes then. 0: two thirds of the cohort, rounded down, plus one.
    rotate: turn updates into a public random basis in which no coordinate stands out, for a finer scale.
    rounding: `conditional` rounds again until the norm stays close to its bound, which discrete noise must cover.
    largest: the coordinate, in model units, that the largest integer stands for; larger ones saturate. 0:
    `privacy.max_update_norm` or, with rotate, what no rotated coordinate exceeds but for one chance in a million.
    layer_scales: the same for each trainable tensor in the model's order.
    key_rounds: after so many rounds the sites take a new key, made by another of them; 0: one key for the whole run.
    The rounds that share a key are an epoch, counted from 1.
    """

    preset: Literal["compact", "precise", "none"] = "compact"
    threshold: int = 0
    rotate: bool = False
    rounding: Literal["stochastic", "conditional"] = "stochastic"
    largest: float = 0.0
    layer_scales: tuple[float, ...] = ()
    key_rounds: int = 0

    def __post_init__(self) -> None:
        require(
            self.threshold == 0 or self.threshold >= 2, "encryption.threshold", self.threshold, "2 or more (0: choose)"
        )
        require(0 <= self.key_rounds <= _MOST_TIMES, "encryption.key_rounds", self.key_rounds, f"0 to {_MOST_TIMES}")
        require(0 <= self.largest < math.inf, "encryption.largest", self.largest, "positive and finite (0: choose)")
        require(
            all(0 < scale < math.inf for scale in self.layer_scales),
            "encryption.layer_scales",
            self.layer_scales,
            "positive and finite",
        )
        require(
            not self.layer_scales or not (self.rotate or self.largest),
            "encryption.layer_scales",
            self.layer_scales,
            "without rotate, which mixes the layers, and without largest, which it replaces",
        )

    def share_threshold_of(self, sites: int) -> int:
        """How many holders of shares give a vanished site's secret back: `threshold`, or its like of MOST_HOLDERS."""
        return self.threshold_of(sites) if sites <= MOST_HOLDERS else EncryptionSettings().threshold_of(MOST_HOLDERS)

    def threshold_of(self, sites: int) -> int:
        """For a cohort of that many sites. Over half of them, so that two lists can never both be agreed on."""
        threshold = self.threshold or 2 * sites // 3 + 1
        require(sites < 2 * threshold <= 2 * sites, "encryption.threshold", threshold, f"{sites // 2 + 1} to {sites}")
        return threshold

    def epoch_of(self, round_number: int) -> int:
        """Whose key serves that round: it follows from the plan, so no message needs to name it."""
        return 1 + (round_number - 1) // self.key_rounds if self.key_rounds else 1

    def first_round(self, epoch: int) -> int:
        return 1 + (epoch - 1) * self.key_rounds


@dataclass(frozen=True)
class FederationSettings:
    """Who must be there, for how long, and what the coordinator may see of the model.

    reveal: `never` (the coordinator holds encrypted aggregates only), `final` (the sites sign a release of the
    last model to its registry) or `every-round`. public: the numbers that sites may send readable beside their
    sealed answers (`metrics`: the opened sums, never one site's); everything else stays at the site.
    tuning: how the settings of this plan came about. `none`: nobody's records had a part in it. `trial`: this run is an
    attempt at it, charged as such. `counted`: by trials that the same ledgers hold. `not counted`: by looking at the
    records outside of any ledger; then every report says so. Nobody can check this, so it is agreed on and signed.
    """

    name: str = "federation"
    rounds: int = 10
    min_cohort: int = 2
    reveal: Literal["never", "final", "every-round"] = "final"
    public: tuple[Literal["seconds", "epsilon", "metrics"], ...] = ("seconds", "epsilon", "metrics")
    tuning: Literal["unstated", "none", "trial", "counted", "not counted"] = "unstated"

    def __post_init__(self) -> None:
        require(bool(self.name), "federation.name", self.name, "a non-empty name")
        require(1 <= self.rounds <= _MOST_TIMES, "federation.rounds", self.rounds, f"1 to {_MOST_TIMES}")
        require(self.min_cohort >= 2, "federation.min_cohort", self.min_cohort, "2 or more")


@dataclass(frozen=True)
class MetricsSettings:
    """Counts of right and wrong predictions on held-out records, summed under encryption beside the updates.

    every: measure the model after every so many rounds, and the final one in a round of its own (0: never).
    noise_multiplier: noise standard deviation over what one record changes in all counts together.
    largest_count: a count at one site saturates here; it fixes the public scale of the integers that travel.
    groups: protected attributes and the levels of each; records are counted by all of them together, beside the rest
    and at the same price. Of two classes only. group_bins: of the probability of class 1 in each group: 2 give
    confusion counts, more also calibration and thresholds by group.
    importance: features, as the sites' records name them; with the final model's counts each is given other records'
    values, to tell how much accuracy hangs on it, see `common/evaluators/importance.py`. At the same price as well, but
    the more features, the more noise on each, and up to twice as much on that round's other counts.
    """

    every: int = 0
    noise_multiplier: float = 10.0
    largest_count: int = 1000
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group_bins: int = 2
    importance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.every >= 0, "metrics.every", self.every, "0 or more")
        require(
            0.01 <= self.noise_multiplier <= 1e5,
            "metrics.noise_multiplier",
            self.noise_multiplier,
            "0.01 to 100,000",
        )
        require(self.largest_count >= 1, "metrics.largest_count", self.largest_count, "1 or more")
        for name, levels in self.groups.items():
            distinct = len(set(levels)) == len(levels) >= 2
            require(distinct, f"metrics.groups.{name}", levels, "two levels or more, all different")
        even, groups = self.group_bins % 2 == 0, math.prod(map(len, self.groups.values()))
        require(2 <= self.group_bins <= 100 and even, "metrics.group_bins", self.group_bins, "an even number, 2 to 100")
        require(
            groups <= _MOST_GROUPS, "metrics.groups", groups, f"{_MOST_GROUPS} groups at most, all attributes together"
        )
        features, named = self.importance, len(set(self.importance) - {""})
        distinct = named == len(features) <= _MOST_FEATURES
        require(distinct, "metrics.importance", features, f"names of {_MOST_FEATURES} features at most, none twice")
        measured = self.every > 0 or not features
        require(measured, "metrics.importance", features, "none while metrics.every = 0: nothing is measured then")

    @property
    def asked(self) -> tuple[str, ...]:
        """The attributes and features that are asked about by name."""
        return tuple(dict.fromkeys((*self.groups, *self.importance)))


@dataclass(frozen=True)
class RobustnessSettings:
    """What bad sites can do to the model. Without `rule`, anything: one of them moves a mean anywhere.

    byzantine: sites that may send whatever they like, together, knowing all; the rule bears as many.
    buckets: nobody can pick among updates that nobody can read, so an encrypted cohort is shuffled into so many
    buckets, new in every round; each is summed and opened by itself, and the rule is applied to their means. Each has
    `federation.min_cohort` sites at least, or is left out. 0: one sum of all; in a readable run, each update alone.
    """

    rule: RuleName = "mean"
    byzantine: int = 0
    buckets: int = 0

    def __post_init__(self) -> None:
        for name in ("byzantine", "buckets"):
            require(0 <= getattr(self, name) <= _MOST_TIMES, f"robustness.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class MonitoringSettings:
    """What the coordinator is to raise an alert about: figures that it sees anyway. It asks nothing of any site."""

    alerts: tuple[AlertRule, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(set(self.alerts)) == len(self.alerts) <= 50, "monitoring.alerts", len(self.alerts), "50, none twice"
        )


@dataclass(frozen=True)
class Plan:
    """All that the parties of one run agree on. Its hash is in every message."""

    federation: FederationSettings = field(default_factory=FederationSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    encryption: EncryptionSettings = field(default_factory=EncryptionSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)

    def __post_init__(self) -> None:
        classes, grouped = self.model.classes, bool(self.metrics.groups)
        require(not grouped or classes in (0, 2), "model.classes", classes, "2, where metrics.groups counts by group")
        refuse_unsound(self)

    @property
    def last_round(self) -> int:
        """Rounds of training, and one more where the final model is measured."""
        return self.federation.rounds + (self.metrics.every > 0)

    @property
    def training_purpose(self) -> str:
        """What training is charged as in the ledgers."""
        return "tuning" if self.federation.tuning == "trial" else "train"

    def trains(self, round_number: int) -> bool:
        return round_number <= self.federation.rounds

    def measures(self, round_number: int) -> bool:
        """Whether that round carries counts: of the model as it was before the round."""
        if not self.metrics.every:
            return False
        done = round_number - 1
        return done == self.federation.rounds or (done > 0 and done % self.metrics.every == 0)

    def explains(self, round_number: int) -> bool:
        """Whether that round says what the model looks at: the one that measures the final model."""
        return bool(self.metrics.importance) and round_number == self.last_round

    def smallest_sum(self, cohort: int) -> int:
        """The fewest of `cohort` sites whose sum is ever opened: of one bucket, where there are buckets."""
        smallest = self.federation.min_cohort
        return smallest if self.robustness.buckets else max(smallest, self.encryption.threshold_of(cohort))

    def whole_sum(self, cohort: int) -> int:
        """How many sites are in a sum, at least, when all of `cohort` are there."""
        return cohort // max(1, self.robustness.buckets)

    @property
    def fewest_vectors(self) -> int:
        """The fewest that the rule can be applied to: means of buckets, readable updates, or one sum."""
        return fewest_vectors(self.robustness.rule, self.robustness.byzantine)

    def fewest_sites(self, cohort: int) -> int:
        """Of `cohort`, without whom there is no round: enough to lift masks, and to give the rule what it needs."""
        smallest = self.federation.min_cohort
        enough = max(smallest, self.fewest_vectors * (smallest if self.robustness.buckets else 1))
        return enough if self.encryption.preset == "none" else max(enough, self.encryption.threshold_of(cohort))
