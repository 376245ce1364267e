"""What each site adds to the model that they train together: Shapley values, and what is lost without one. Pure.

A game says what each coalition of sites reaches. Where updates are readable (a simulation) any coalition can be tried.
Where they are masked none may be, but the one that was summed: what is opened for a coalition with a site and without
it differs by that site's own update, so a second sum undoes what masks are for, and no site here opens one. Even where
updates protect records by themselves (`local`) a coalition's score on held-out records is one more release of those;
where only the sum does, a coalition's has fewer shares of the noise and costs its records more than the whole did. Each
has to be charged. A value tells of the sites' data, that is what it is for: no noise for records hides a whole site.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import numpy as np
from scipy.special import comb

from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate
from common.federation import require

MOST_EXACT = 10  # sites of whom all 2^n coalitions are tried
_PERMUTATIONS = 200
_NEGLIGIBLE = 0.01
_MISSED = 0.05

Coalition = frozenset[str]


@dataclass(frozen=True, eq=False)
class Game:
    """sites: the players. utility: of a coalition of them, also of none; asked once for each, as it may be random.

    span: no two coalitions differ by more.
    """

    sites: tuple[str, ...]
    utility: Callable[[Coalition], float] = field(repr=False)
    span: float = 1.0

    def __post_init__(self) -> None:
        distinct = len(self.sites) >= 2 and len(set(self.sites)) == len(self.sites)
        require(distinct, "sites of a game", self.sites, "two or more, all different")
        require(0 < self.span < math.inf, "span of a game", self.span, "positive and finite")
        object.__setattr__(self, "utility", cache(self.utility))

    @property
    def everybody(self) -> Coalition:
        return frozenset(self.sites)


@dataclass(frozen=True)
class Valuation:
    """shapley: what each site adds to a coalition of others on average. left_out: what all lose without it alone.

    nothing, whole: what no site and all of them reach. exact: whether all coalitions were tried; else the intervals
    hold for all sites at once in 95 % of cases.
    """

    shapley: Mapping[str, Estimate]
    left_out: Mapping[str, float]
    nothing: float
    whole: float
    exact: bool


def valued(game: Game, rng: np.random.Generator) -> Valuation:
    """Exact for up to MOST_EXACT sites, else sampled, orders ending when a hundredth of all that is gained is left.

    `shapley`, `sampled_shapley` and `leave_one_out` say how.
    """
    exact = len(game.sites) <= MOST_EXACT
    whole, nothing = game.utility(game.everybody), game.utility(frozenset())
    if exact:
        values = {site: Estimate(value, value, value) for site, value in shapley(game).items()}
    else:
        values = sampled_shapley(game, rng, tolerance=_NEGLIGIBLE * abs(whole - nothing))
    return Valuation(values, leave_one_out(game), nothing, whole, exact)


def shapley(game: Game) -> dict[str, float]:
    """What each site adds to a coalition of others, averaged over sizes and over coalitions of a size. Shapley 1953.

    The only values that add up to what all gain, treat equal sites alike and give nothing for nothing. Tries all 2^n
    coalitions. Raises ConfigError for more than MOST_EXACT sites.
    """
    n = len(game.sites)
    require(n <= MOST_EXACT, "sites of a game", n, f"at most {MOST_EXACT}, or a sample of orders")
    masks = np.arange(1 << n)
    members = ([site for place, site in enumerate(game.sites) if mask >> place & 1] for mask in masks)
    worth = np.array([game.utility(frozenset(coalition)) for coalition in members])
    values = {}
    for place, site in enumerate(game.sites):
        without = masks[masks >> place & 1 == 0]
        weights = 1 / (n * comb(n - 1, np.bitwise_count(without)))
        values[site] = float(weights @ (worth[without | 1 << place] - worth[without]))
    return values


def sampled_shapley(
    game: Game, rng: np.random.Generator, permutations: int = _PERMUTATIONS, tolerance: float = 0.0
) -> dict[str, Estimate]:
    """Shapley values from sites that come in random orders, each with what it adds to those before it.

    An order ends early where what there is differs from the whole by less than `tolerance`; the rest then add nothing.
    Intervals: 95 %, normal, Bonferroni over the sites, and `tolerance` further up: so much an early end takes from a
    value at most, where no site ever does harm. They rest on the spread of what was seen, so a site that matters in
    very few orders only can lie outside; `error_bound` holds whatever the game.
    Reference: Ghorbani and Zou 2019, arXiv:1904.02868, algorithm 1.
    """
    require(permutations >= 2, "permutations", permutations, "2 or more")
    require(0 <= tolerance < math.inf, "tolerance", tolerance, "0 or more")
    gains = np.zeros((permutations, len(game.sites)))
    whole = game.utility(game.everybody)
    for row in gains:
        coalition: Coalition = frozenset()
        reached = game.utility(coalition)
        for place in rng.permutation(len(row)):
            if abs(whole - reached) < tolerance:
                break
            coalition |= {game.sites[place]}
            before, reached = reached, game.utility(coalition)
            row[place] = reached - before
    most = float(np.abs(gains).max())
    require(most <= game.span, "span of a game", game.span, f"at least {most:g}, as coalitions differ by that")
    z = NormalDist().inv_cdf(1 - _MISSED / (2 * len(game.sites)))
    means, reach = gains.mean(axis=0), z * gains.std(axis=0, ddof=1) / math.sqrt(permutations)
    return {
        site: Estimate(float(mean), float(mean - far), float(mean + far + tolerance))
        for site, mean, far in zip(game.sites, means, reach, strict=True)
    }


def error_bound(span: float, sites: int, permutations: int = _PERMUTATIONS) -> float:
    """No sampled value is further from the true one with a chance of 95 %, for all sites at once and any such game.

    Hoeffding 1963, as what a site adds in one order lies within `span` of nothing: Maleki et al. 2013, arXiv:1306.4265.
    An early end is not in it.
    """
    return span * math.sqrt(2 * math.log(2 * sites / _MISSED) / permutations)


def leave_one_out(game: Game) -> dict[str, float]:
    """What all lose without each site alone: nothing where another has the like. Cook 1977, of a site for a record."""
    whole = game.utility(game.everybody)
    return {site: whole - game.utility(game.everybody - {site}) for site in game.sites}


class Contribution:
    """Shapley value and leave-one-out of every site. References: those of `shapley` and `sampled_shapley`."""

    name = "contribution"
    needs = frozenset({"game"})

    def evaluate(self, material: Material) -> Findings:
        game = needed(material.game, "game", self.name)
        found = valued(game, material.rng)
        figures = {f"{site}: shapley": value for site, value in found.shapley.items()}
        figures |= {f"{site}: leave_one_out": Estimate(*(3 * (lost,))) for site, lost in found.left_out.items()}
        bound = error_bound(game.span, len(game.sites))
        how = "all coalitions were tried" if found.exact else f"whatever the game, none is off by more than {bound:.2g}"
        return Findings(
            self.name,
            figures,
            (f"values add up to {found.whole - found.nothing:g}, from {found.nothing:g} to {found.whole:g}; {how}",),
        )
