"""How many bad vectors each rule of `robust_rules.py` bears. Pure."""

from typing import Literal, get_args

from common.errors import ConfigError

RuleName = Literal["mean", "median", "trimmed-mean", "geometric-median", "centred-clipping", "multi-krum", "norm-bound"]


def tolerated(rule: str, vectors: int) -> int:
    """The most bad vectors, of so many, that cannot move the rule's answer arbitrarily far from the good ones.

    0 for the mean. Above half, nothing helps: bad vectors are then the majority. References: Yin et al. 2018; Blanchard
    et al. 2017, proposition 1 (2f + 2 < n); Lopuhaa and Rousseeuw 1991 for the geometric median. A bounded error is not
    a small one: where good vectors lie far apart, a bad one among them does harm and stands out to no rule.
    """
    if rule not in get_args(RuleName):
        raise ConfigError(f"no rule {rule!r}", f"allowed: {', '.join(get_args(RuleName))}")
    if rule == "mean":
        return 0
    return max(0, (vectors - 3) // 2) if rule == "multi-krum" else (vectors - 1) // 2


def fewest_vectors(rule: str, bad: int) -> int:
    """The fewest vectors of which the rule bears so many bad; `bad` is 0 for the mean."""
    if not bad:
        return 1
    return 2 * bad + (3 if rule == "multi-krum" else 1)
