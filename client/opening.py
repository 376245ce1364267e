"""Opening a published sum: by each site for itself, or once for all sites that one process plays.

In a simulation many sites open the same sum with the same key and masks, which gives the same numbers every time.
`openings_shared` keeps the last result for as long as it is entered. Nobody but a simulation enters it: a real site
opens a sum once.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.he.ciphertexts import Aggregate
from common.he.masks import MaskStream
from common.he.scheme import CohortKey, open_sum
from common.masking import Published
from common.wire import from_hex, to_json


@dataclass
class _Shared:
    """The last sum that was opened here, and of what it is the result. Never shown."""

    made_of: bytes = field(default=b"", repr=False)
    total: NDArray[np.int64] | None = field(default=None, repr=False)


_shared: list[_Shared] = []


@contextmanager
def openings_shared() -> Iterator[None]:
    """While entered, the sites of this process open one and the same sum once. It holds one sum, and then none."""
    _shared.append(_Shared())
    try:
        yield
    finally:
        _shared.pop()


def open_published(published: Published, length: int, key: CohortKey, masks: MaskStream) -> NDArray[np.int64]:
    """The sum of the sites' vectors of `length` integers, not to be written to. Raises as `open_sum` does.

    masks: what `published.lifting` gives. The caller has checked that this sum may be opened.
    """
    if not _shared:
        return _opened(published, length, key, masks)
    made_of, last = _made_of(published, length, key), _shared[-1]
    if last.total is None or last.made_of != made_of:
        last.total = None
        last.total = _opened(published, length, key, masks)
        last.total.flags.writeable = False
        last.made_of = made_of
    return last.total


def _opened(published: Published, length: int, key: CohortKey, masks: MaskStream) -> NDArray[np.int64]:
    aggregate = Aggregate.decode(key.scheme, length, published.total)
    if aggregate.sites != len(published.sites):
        raise ProtocolError("the sum and the list of its sites do not agree")
    return open_sum(aggregate, key, masks)


def _made_of(published: Published, length: int, key: CohortKey) -> bytes:
    """SHA-256 over all that the result depends on: key, scheme, length, sum, its sites and what lifts their masks."""
    lifting = to_json({"sites": list(published.sites), "length": length, **published.lifting.to_json()})
    secret = key.export_for_wrapping()  # of one length for one scheme
    return hashlib.sha256(key.scheme.fingerprint + secret + from_hex(published.sum_hash) + lifting).digest()
