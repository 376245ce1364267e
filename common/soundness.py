"""Plans that no analysis covers are refused, with the reason and where to read about it. Pure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.breakdown import fewest_vectors, tolerated
from common.errors import ConfigError

if TYPE_CHECKING:
    from common.federation import Plan

_SHARES = "Kairouz, Liu and Steinke 2021, arXiv:2102.06387"
_OVERSAMPLING = "Rosenblatt et al. 2025, arXiv:2411.05733"
_SAMPLING = "Zhu and Wang 2019, arXiv:1812.00984"
_BUCKETS = "Karimireddy, He and Jaggi 2022, arXiv:2006.09365"
_SUMS = "Bonawitz et al. 2017, doi:10.1145/3133956.3133982"
_KRUM = "Blanchard et al. 2017, arXiv:1703.02757"


def refuse_unsound(plan: "Plan") -> None:
    """Raise ConfigError naming the first combination of settings whose privacy nobody has proved."""
    for what, allowed, source in _unsound(plan):
        raise ConfigError(f"{what} is not possible with privacy.mode = {plan.privacy.mode!r}", f"{allowed} ({source})")
    for what, allowed, source in _unsound_rule(plan):
        raise ConfigError(f"{what} is not possible", f"{allowed} ({source})")


def _unsound_rule(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    """As `_unsound`, of what a robust rule is applied to and what it bears."""
    rule, bad, buckets = plan.robustness.rule, plan.robustness.byzantine, plan.robustness.buckets
    encrypted = plan.encryption.preset != "none"
    if rule == "mean" and bad:
        yield (
            f"robustness.byzantine = {bad} with rule = 'mean'",
            "allowed: 0, or another rule; one bad vector moves a mean anywhere",
            f"{_KRUM}, lemma 1",
        )
    if rule == "mean" and buckets:
        yield (
            f"robustness.buckets = {buckets} with rule = 'mean'",
            "allowed: 0, or another rule; the mean of bucket means is the mean, and each opened bucket tells more of "
            "fewer sites",
            _BUCKETS,
        )
    if rule != "mean" and not bad:
        yield (
            f"robustness.byzantine = 0 with rule = {rule!r}",
            "allowed: 1 or more, so many as the rule is to bear; against none the mean is best",
            _KRUM,
        )
    if rule != "mean" and encrypted and not buckets:
        yield (
            f"robustness.rule = {rule!r} on ciphertexts",
            "allowed: with robustness.buckets; whoever adds up ciphertexts can neither compare nor sort them, and "
            "sites open sums only: the rule can pick among bucket sums",
            _BUCKETS,
        )
    if rule != "mean" and plan.training.q:
        yield (
            f"training.q = {plan.training.q} with robustness.rule = {rule!r}",
            "allowed: 0; a site that the model serves worse weighs more, and whoever lies can say so",
            "Li et al. 2021, arXiv:2012.04221, section 2",
        )
    if buckets and bad > tolerated(rule, buckets):
        yield (
            f"robustness.buckets = {buckets} with byzantine = {bad} and rule = {rule!r}",
            f"allowed: {fewest_vectors(rule, bad)} or more; each bad site may spoil a bucket, and of {buckets} this "
            f"rule bears {tolerated(rule, buckets)}",
            f"{_BUCKETS}; {_KRUM}",
        )


def _unsound(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    """(setting, what is allowed and why, source) of everything that does not go together."""
    training, privacy, encryption = plan.training, plan.privacy, plan.encryption
    if privacy.mode in ("local", "distributed") and training.sampling != "poisson":
        yield (
            f"training.sampling = {training.sampling!r}",
            "allowed: 'poisson', the sampling that the accountant's amplification theorem is about",
            _SAMPLING,
        )
    if privacy.mode in ("local", "distributed") and training.oversampling != "none":
        yield (
            f"training.oversampling = {training.oversampling!r}",
            "allowed: 'none'; how many records are made up, and of which, follows from all records, so one moves any "
            "number of those, and noise for one hides none",
            _OVERSAMPLING,
        )
    if privacy.in_shares and encryption.preset == "none":
        yield (
            "encryption.preset = 'none'",
            "allowed: compact, precise; a readable update carries a share of the noise only, and protects nothing",
            _SHARES,
        )
    if plan.metrics.every and encryption.preset == "none":
        yield (
            f"metrics.every = {plan.metrics.every} with encryption.preset = 'none'",
            "allowed: 0; counts travel in encrypted sums only, as those of one site would tell of its records",
            _SUMS,
        )
    where = "in a bucket, as all that collude may sit in one" if plan.robustness.buckets else "in a sum"
    if privacy.in_shares and plan.federation.min_cohort <= privacy.colluding:
        yield (
            f"privacy.colluding = {privacy.colluding}",
            f"allowed: below federation.min_cohort = {plan.federation.min_cohort}; else no honest share may be left "
            f"{where}",
            _SHARES,
        )
    if privacy.in_shares and plan.robustness.byzantine > privacy.colluding:
        yield (
            f"robustness.byzantine = {plan.robustness.byzantine} with privacy.colluding = {privacy.colluding}",
            "allowed: as many colluding at least; a site that may send anything may leave out its share of the noise",
            _SHARES,
        )
    if training.q and (privacy.mode != "none" or encryption.preset != "none"):
        yield (
            f"training.q = {training.q} with encryption.preset = {encryption.preset!r}",
            "allowed: 0, or both 'none'; a weight that follows from a site's loss is a release about its records that "
            "no noise covers, and it has no bound that integers could be scaled by",
            "Li et al. 2020, arXiv:1905.10497, algorithm 2; Mohri et al. 2019, arXiv:1902.00146",
        )
    if privacy.in_shares and encryption.layer_scales:
        yield (
            f"encryption.layer_scales = {encryption.layer_scales}",
            "allowed: none; a share of noise is equal in all coordinates: use encryption.largest or encryption.rotate",
            _SHARES,
        )
    if privacy.in_shares and encryption.rounding != "stochastic":
        yield (
            f"encryption.rounding = {encryption.rounding!r}",
            "allowed: 'stochastic'; a share of noise is rounded with the value, and no rounding is tried again",
            _SHARES,
        )
    if privacy.mode == "distributed" and training.local_steps != 1:
        yield (
            f"training.local_steps = {training.local_steps}",
            "allowed: 1; noise that only the sum carries protects a sum over records, and a second local step would "
            "start from gradients without noise",
            _SHARES,
        )
    if privacy.mode == "distributed" and training.momentum:
        yield (
            f"training.momentum = {training.momentum}",
            "allowed: 0; there is one local step: use training.server_momentum, which all sites apply to the sum",
            "Reddi et al. 2021, arXiv:2003.00295",
        )
    plain = (training.optimizer, training.schedule, training.warmup_steps) == ("sgd", "constant", 0)
    if privacy.mode == "distributed" and not plain:
        yield (
            f"training.optimizer = {training.optimizer!r} with schedule {training.schedule!r}",
            "allowed: 'sgd' at a constant rate without warm-up; the noise is scaled to how far one plain step lets a "
            "record move the sum: use training.server_optimizer, which all sites apply to it",
            "Reddi et al. 2021, arXiv:2003.00295",
        )
    if privacy.in_shares and privacy.clipping == "adaptive":
        yield (
            "privacy.clipping = 'adaptive'",
            "allowed: 'flat', 'per-layer'; the bound adapts to a count that each site would have to release by itself",
            "Andrew et al. 2021, arXiv:1905.03871",
        )
    if privacy.mode == "site" and plan.metrics.every:
        yield (
            f"metrics.every = {plan.metrics.every}",
            "allowed: 0; counts that hide one record say a lot about a whole site",
            "McMahan et al. 2018, arXiv:1710.06963, section 2",
        )
