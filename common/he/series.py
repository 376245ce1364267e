"""Long vectors that need not be in memory: an array, or something that computes a slice when it is read. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Series(Protocol):
    """Numbers in a row. Whoever reads one takes slices in order, each number once: it may draw randomness for them."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


class Joined:
    """One series after the other, as one."""

    def __init__(self, parts: Sequence[Series]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(len(self))
        found, first = [], 0
        for one in self._parts:
            inside = slice(max(0, start - first), max(0, min(len(one), stop - first)))
            if inside.start < inside.stop:
                found.append(one[inside])
            first += len(one)
        return found[0] if len(found) == 1 else np.concatenate(found)
