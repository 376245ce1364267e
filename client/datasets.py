"""One site's records as arrays: the loader contract, the train/holdout split, readers of the usual file formats.

A loader is `package.module:function`, called as `function(site, **options)`. It returns that one site's `Records`
(or a pair `features, labels`), and nothing but the site's own process ever sees them.
"""

import csv
import gzip
import hashlib
import importlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.tables import ADULT, ADULT_COLUMNS, HEART, HEART_SITES, Column, Schema
from common.errors import ConfigError, FederationError

_LARGEST_FEATURE = 1e12  # so that no single record makes a gradient's norm overflow, which would show that it is there


@dataclass(frozen=True, eq=False)
class Records:
    """One site's records, checked at birth and hidden from `repr`.

    features: (n, *inputs) float32, of magnitude 1e12 at most.   labels: (n,) int64, each >= 0.
    groups: protected attributes by name, (n,) each; for fairness reports, never a training input by themselves.
    reserved: (n,) bool, the records that the data set's publisher set aside for testing; all False if nobody did.
    columns: public names of features, and the columns of each; {} where nobody named them.
    """

    features: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    reserved: NDArray[np.bool_] = field(default=None, repr=False)  # type: ignore[arg-type]  # filled at birth
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        reserved = np.zeros(len(labels), bool) if self.reserved is None else np.asarray(self.reserved, bool)
        with np.errstate(over="ignore"):  # becomes infinite, and is refused below
            features = np.ascontiguousarray(self.features, np.float32)
        groups = {name: np.asarray(values) for name, values in self.groups.items()}
        if labels.ndim != 1 or features.ndim < 2:
            raise ConfigError(
                f"records need features (n, *inputs) and labels (n,), got {features.shape}, {labels.shape}"
            )
        for name, values in {"features": features, **groups, "reserved": reserved}.items():
            if len(values) != len(labels):
                raise ConfigError(f"{len(labels)} labels but {len(values)} rows of {name}")
        if not (np.abs(features) <= _LARGEST_FEATURE).all():  # NaN fails too
            raise ConfigError(f"features hold NaN, infinite values, or magnitudes beyond {_LARGEST_FEATURE:g}")
        if labels.dtype.kind not in "iu" or (labels < 0).any():
            raise ConfigError("labels must be whole numbers, 0 or more")
        for name, places in self.columns.items():
            if features.ndim != 2 or not places or not set(places) <= set(range(features.shape[1])):
                raise ConfigError(f"feature {name!r} lies in columns {places} of features {features.shape[1:]}")
        for name, value in (("features", features), ("labels", labels.astype(np.int64)), ("groups", groups)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "reserved", reserved)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: ArrayLike) -> "Records":
        """The records that `index` (places or a mask) selects."""
        place = np.asarray(index)
        groups = {name: values[place] for name, values in self.groups.items()}
        return Records(self.features[place], self.labels[place], groups, self.reserved[place], self.columns)


def load_records(loader: str, site: str, options: Mapping[str, object]) -> Records:
    """`site`'s records from `loader` ("package.module:function"). ConfigError names the loader and the cause."""
    try:
        loaded = _resolve(loader)(site, **options)
        records = loaded if isinstance(loaded, Records) else Records(*loaded)
    except FederationError as error:
        raise ConfigError(f"data.loader = {loader!r}, site {site!r}: {error.message}", error.hint) from error
    except Exception as error:  # somebody else's code: whatever it raises, the operator learns whose it was
        raise ConfigError(f"data.loader = {loader!r}, site {site!r}: {type(error).__name__}: {error}") from error
    if not len(records):
        raise ConfigError(f"data.loader = {loader!r}, site {site!r}: gave no records")
    return records


def _resolve(loader: str) -> Callable[..., Any]:
    module, colon, function = loader.partition(":")
    if not (module and colon and function):
        raise ConfigError("not of the form package.module:function")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def split(records: Records, holdout: float, seed: int) -> tuple[Records, Records]:
    """Train and holdout records, the same for the same seed on every machine.

    Every record is held out with chance `holdout` by a coin that follows from `seed` and the record itself, so that
    adding or removing one moves no other: neighbouring data sets have neighbouring parts. Equal records share a coin.
    Where the publisher reserved records for testing, exactly those are held out, whatever `holdout` says.
    """
    if not 0 <= holdout < 1:
        raise ConfigError(f"data.holdout = {holdout!r} is not possible", "allowed: 0 up to, not including, 1")
    held = records.reserved
    if not held.any():
        held = np.array([coin < holdout for coin in _coins(records, seed)], bool)
    if held.all():
        raise ConfigError(f"data.holdout = {holdout!r} leaves no record to train on, of {len(records)}")
    return records.subset(~held), records.subset(held)


def _coins(records: Records, seed: int) -> Iterator[float]:
    """For every record a number that is uniform in [0, 1) over the seeds."""
    for features, label in zip(records.features, records.labels, strict=True):
        content = features.astype("<f4").tobytes() + label.astype("<i8").tobytes()
        digest = hashlib.blake2b(content, digest_size=8, key=f"veilfed.holdout.v1|{seed}".encode()).digest()
        yield int.from_bytes(digest, "big") / 2.0**64


def read_heart(path: Path, site: str | None = None) -> Records:
    """The UCI heart-disease table: disease (1) or none (0), of one hospital or, without `site`, of all four."""
    if site is not None and site not in HEART_SITES:
        raise ConfigError(f"{site!r} is not a hospital of {path}", f"allowed: {', '.join(HEART_SITES)}")
    table = _read_table(path)
    if site is not None:
        table = [row for row in table if row.cells.get("dataset") == HEART_SITES[site]]
    return _records(path, HEART, table)


def read_adult(path: Path, reserved: bool = False) -> Records:
    """The UCI adult table (`adult.data` or `adult.test`): income over 50K (1) or not (0).

    reserved: whether these are the publisher's test records.
    """
    records = _records(path, ADULT, _read_table(path, ADULT_COLUMNS))
    return replace(records, reserved=np.full(len(records), reserved))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes, as MNIST has them: images (n, height, width) or labels (n,)."""
    data = _content(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise ConfigError(f"{path}, byte 0: not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ConfigError(f"{path}, byte {len(data)}: ends inside its header")
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise ConfigError(f"{path}, byte {start}: {len(data) - start} values, the header promises {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked if it is gzip by its first bytes, whatever its name."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]


def _read_table(path: Path, header: Sequence[str] = ()) -> list[_Row]:
    """The rows of a CSV file, cells stripped, columns named by `header` or by its first line.

    Empty lines and those that begin with `|` (the comment that heads `adult.test`) are left out.
    """
    rows = []
    try:
        reader = csv.reader(_content(path).decode("utf-8-sig").splitlines(), strict=True)
        for cells in reader:
            if not cells or cells[0].startswith("|"):
                continue
            if not header:
                header = cells
            elif len(cells) != len(header):
                raise ConfigError(f"{path}, line {reader.line_num}: {len(cells)} columns, not {len(header)}")
            else:
                rows.append(_Row(reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}, line {len(rows) + 1} or later is not CSV: {error}") from error
    return rows


def _records(path: Path, schema: Schema, table: Sequence[_Row]) -> Records:
    if not table:
        raise ConfigError(f"{path}, line 1: no records")

    def read(column: Column) -> list[float]:
        if column.name not in table[0].cells:
            raise ConfigError(f"{path}, line 1: no column {column.name}")
        known: dict[str, float] = {}
        for row in table:
            text = row.cells[column.name]
            if text not in known:
                try:
                    known[text] = column.read(text)
                except ValueError as error:  # names no value: it is part of somebody's record
                    raise ConfigError(f"{path}, line {row.line}, column {column.name}: {error}") from None
        return [known[row.cells[column.name]] for row in table]

    return Records(
        schema.encode([read(column) for column in schema.columns]),
        np.array(read(schema.outcome), np.int64),
        {name: np.array([row.cells[name] for row in table]) for name in schema.groups},
        columns=schema.places,
    )
