"""What the coordinator puts into Flower's hands, and what Flower makes of it on the way."""

import secrets

from flwr.app import Array

from server.links import packed

CHUNK = 5 * 2**20  # what Flower sends at once


def test_a_large_envelope_travels_in_chunks_and_arrives_whole():
    """One array of bytes is enough: Flower cuts it, and neither side needs a message of its size on the wire."""
    data = secrets.token_bytes(2 * CHUNK + 17)
    array = packed(data)["veilfed"]["envelope"]
    chunks = array.slice_array()
    assert [len(chunk.data) for _, chunk in chunks] == [CHUNK, CHUNK, 17]
    assert len(array.deflate()) < 10_000
    arrived = Array.inflate(array.deflate(), {name: type(chunk)(bytes(chunk.data)) for name, chunk in chunks})
    assert arrived.data == data
    assert (arrived.dtype, arrived.shape, arrived.stype) == (array.dtype, array.shape, array.stype)
