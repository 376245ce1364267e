"""Public data sets and how to divide them between simulated sites: the only place where records are ever pooled.

A real site never partitions anything; it has its own loader. A simulated site's `site.toml` names
`scenarios.data:simulated_site`, which plays that loader: it hands out that one site's records and no others.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from client.datasets import Records, read_heart
from common.errors import ConfigError
from common.federation import require
from common.roster import COORDINATOR, require_name
from scenarios.public_sets import EXTRACTED_INPUTS, HEART_TABLE, PUBLIC_SETS, Features, Pool, PublicSet, pool

Partition = Literal["natural", "iid", "dirichlet", "quantity"]
Option = str | int | float | bool

_FEWEST = 2  # records that a simulated site must have: one to train on, one to hold out


@dataclass(frozen=True)
class DataSettings:
    """Which records, and which site has them.

    loader: a public data set (heart, digits, breast-cancer, mnist, adult) or `package.module:function`, which gives
    the records of each of `site_names` itself, called with `options`. sites: how many share a public data set; 0
    for its natural ones. alpha: the smaller, the more the sites differ (dirichlet: in labels, quantity: in size).
    holdout: share of each site's records kept for testing; mnist and adult keep to their publishers' test records.
    directory: where mnist or adult lie; empty to look in VEILFED_DATA and the cache. features: of mnist's images.
    """

    loader: str = "heart"
    partition: Partition = "natural"
    sites: int = 0
    site_names: tuple[str, ...] = ()
    alpha: float = 0.5
    holdout: float = 0.3
    directory: str = ""
    features: Features = "none"
    seed: int = 0
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = PUBLIC_SETS.get(self.loader)
        loaders = _either((*PUBLIC_SETS, "package.module:function"))
        require(known is not None or ":" in self.loader, "data.loader", self.loader, loaders)
        require(self.partition in get_args(Partition), "data.partition", self.partition, _either(get_args(Partition)))
        require(self.features in get_args(Features), "data.features", self.features, _either(get_args(Features)))
        require(0 < self.alpha < math.inf, "data.alpha", self.alpha, "positive and finite")
        require(0 <= self.holdout < 1, "data.holdout", self.holdout, "0 up to, not including, 1")
        require(0 <= self.seed < 2**63, "data.seed", self.seed, "0 to 2^63 - 1")
        require(
            self.features == "none" or self.loader == "mnist", "data.features", self.features, "none, except for mnist"
        )
        if known is None:
            self._check_custom()
        else:
            self._check_public(known)

    def _check_custom(self) -> None:
        require(self.partition == "natural", "data.partition", self.partition, "natural: the loader knows its sites")
        names = self.site_names
        require(len(names) >= 2, "data.site_names", names, "two or more sites, where the loader is your own")
        require(all(names) and len(set(names)) == len(names), "data.site_names", names, "different, non-empty names")
        require(COORDINATOR not in names, "data.site_names", names, f"names of sites; {COORDINATOR!r} is none")
        for name in names:
            require_name(name)
        require(self.sites in (0, len(names)), "data.sites", self.sites, f"{len(names)}, as data.site_names, or 0")

    def _check_public(self, known: PublicSet) -> None:
        require(not self.site_names, "data.site_names", self.site_names, "none, except where the loader is your own")
        require(not self.options, "data.options", dict(self.options), "none, except where the loader is your own")
        if self.partition == "natural":
            require(
                bool(known.natural),
                "data.partition",
                self.partition,
                f"iid, dirichlet or quantity: {self.loader} has no natural sites",
            )
            sizes = (0, len(known.natural))
            require(self.sites in sizes, "data.sites", self.sites, f"{sizes[1]}, the natural sites, or 0")
        else:
            most = known.records // _FEWEST
            require(2 <= self.sites <= most, "data.sites", self.sites, f"2 to {most} for {self.loader}")


_PLAIN = ("loader", "partition", "sites", "alpha", "holdout", "directory", "features", "seed")


def _either(names: Iterable[str]) -> str:
    return ", ".join(names)


def site_names(settings: DataSettings) -> tuple[str, ...]:
    """The sites, in order: the data set's own or the loader's, else site-01, site-02, ..."""
    if ":" in settings.loader:
        return settings.site_names
    if settings.partition == "natural":
        return PUBLIC_SETS[settings.loader].natural
    digits = max(2, len(str(settings.sites)))
    return tuple(f"site-{number:0{digits}}" for number in range(1, settings.sites + 1))


def public_shape(settings: DataSettings) -> tuple[tuple[int, ...], int]:
    """`inputs` of one record and `classes`, known before anybody reads a record; ((), 0) for a loader of one's own."""
    if ":" in settings.loader:
        return (), 0
    known = PUBLIC_SETS[settings.loader]
    return EXTRACTED_INPUTS.get(settings.features, known.inputs), known.classes


def site_loader(settings: DataSettings, site: str) -> tuple[str, dict[str, Option]]:
    """The loader and its options that go into `site`'s own configuration: plain TOML values."""
    require(site in site_names(settings), "site", site, _either(site_names(settings)))
    if ":" in settings.loader:
        return settings.loader, dict(settings.options)
    values = asdict(settings)
    return "scenarios.data:simulated_site", {key: values[key] for key in _PLAIN}


def simulated_site(site: str, **options: Option) -> Records:
    """The records of one simulated site, and no others. The options are those of `site_loader`."""
    unknown = set(options) - set(_PLAIN)
    require(not unknown, "options", sorted(unknown), _either(_PLAIN))
    settings = DataSettings(**options)  # type: ignore[arg-type]  # checked at its birth
    names = site_names(settings)
    require(site in names, "site", site, _either(names))
    if settings.partition == "natural":
        return read_heart(HEART_TABLE, site)
    whole = pool(settings.loader, settings.directory, settings.features)
    shares = _shares(whole, settings.sites, settings.partition, settings.alpha, settings.seed)
    return whole.records(shares[names.index(site)])


@lru_cache(maxsize=2)
def _shares(whole: Pool, sites: int, law: Partition, alpha: float, seed: int) -> tuple[NDArray[np.int64], ...]:
    return partition(whole.labels, whole.reserved, sites, law, alpha, seed)


def partition(
    labels: NDArray[np.int64], reserved: NDArray[np.bool_], sites: int, law: Partition, alpha: float, seed: int
) -> tuple[NDArray[np.int64], ...]:
    """The places of every site's records: disjoint, complete, ascending; the same for the same seed everywhere.

    iid: equal shares. quantity: shares drawn once from Dirichlet(alpha). dirichlet: for every label its own.
    Training and reserved records are dealt out separately by the same shares, so every site has some of both.
    """
    rng = np.random.default_rng(seed)
    kinds = labels if law == "dirichlet" else np.zeros_like(labels)
    for _ in range(100):
        rows = int(kinds.max()) + 1
        shares = np.full((rows, sites), 1 / sites) if law == "iid" else rng.dirichlet([alpha] * sites, rows)
        places: list[list[NDArray[np.int64]]] = [[] for _ in range(sites)]
        for part in (~reserved, reserved):
            for kind, share in enumerate(shares):
                dealt = rng.permutation(np.flatnonzero(part & (kinds == kind)))
                cuts = np.rint(np.cumsum(share)[:-1] * len(dealt)).astype(np.int64)
                for mine, new in zip(places, np.split(dealt, cuts), strict=True):
                    mine.append(new)
        result = tuple(np.sort(np.concatenate(mine)) for mine in places)
        if min(map(len, result)) >= _FEWEST:
            return result
    raise ConfigError(
        f"data.alpha = {alpha!r} leaves one of {sites} sites with under {_FEWEST} records, 100 draws in a row",
        "allowed: a larger alpha or fewer sites",
    )
