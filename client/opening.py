"""Opening a published sum: by each site for itself, or once for all sites that one process plays.

In a simulation many sites open the same sum with the same key and masks, which gives the same numbers every time.
Where there are buckets, that is one sum for each. `openings_shared` keeps the last result for as long as it is entered.
Nobody but a simulation enters it: a real site opens a sum once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.buckets import Buckets
from common.errors import ProtocolError
from common.he.ciphertexts import Aggregate
from common.he.masks import MaskStream
from common.he.scheme import CohortKey, open_sum
from common.masking import Published
from common.spans import span
from common.wire import from_hex, to_json


@dataclass
class _Shared:
    """The last sums that were opened here, and of what they are the result. Never shown."""

    made_of: bytes = field(default=b"", repr=False)
    totals: list[NDArray[np.int64]] = field(default_factory=list, repr=False)


_shared: list[_Shared] = []


@contextmanager
def openings_shared() -> Iterator[None]:
    """While entered, the sites of this process open one and the same sum once. It holds one sum, and then none."""
    _shared.append(_Shared())
    try:
        yield
    finally:
        _shared.pop()


@span("open")
def open_published(
    published: Published, buckets: Buckets, length: int, key: CohortKey, masks: Sequence[MaskStream]
) -> list[NDArray[np.int64]]:
    """Each bucket's sum of vectors of `length` integers, not to be written to. Raises as `open_sum` does.

    masks: what `published.lifting` gives for each bucket. The caller has checked that these sums may be opened.
    """
    if not _shared:
        return _opened(published, buckets, length, key, masks)
    made_of, last = _made_of(published, buckets, length, key), _shared[-1]
    if not last.totals or last.made_of != made_of:
        last.totals = []
        last.totals = _opened(published, buckets, length, key, masks)
        for total in last.totals:
            total.flags.writeable = False
        last.made_of = made_of
    return last.totals


def _opened(
    published: Published, buckets: Buckets, length: int, key: CohortKey, masks: Sequence[MaskStream]
) -> list[NDArray[np.int64]]:
    aggregates = Aggregate.decode_all(key.scheme, length, published.total)
    if [aggregate.sites for aggregate in aggregates] != [len(bucket) for bucket in buckets]:
        raise ProtocolError("the sum and the list of its sites do not agree")
    return [open_sum(aggregate, key, mask) for aggregate, mask in zip(aggregates, masks, strict=True)]


def _made_of(published: Published, buckets: Buckets, length: int, key: CohortKey) -> bytes:
    """SHA-256 over all that the result depends on: key, scheme, length, sums, their sites, what lifts their masks."""
    sites = [list(bucket) for bucket in buckets]
    lifting = to_json({"sites": sites, "length": length, **published.lifting.to_json()})
    secret = key.export_for_wrapping()  # of one length for one scheme
    return hashlib.sha256(key.scheme.fingerprint + secret + from_hex(published.sum_hash) + lifting).digest()
