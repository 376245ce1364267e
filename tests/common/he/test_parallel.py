"""Work spread over processes gives what one process gives, fails as it does, and leaves nothing behind."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, ProtocolError
from common.he import parallel, scheme
from common.he.packing import blocks
from common.he.parallel import Piece, spread
from common.he.scheme import PRESETS, CohortKey, encrypt, expand_seeds, open_sum
from server.aggregate_encrypted import BlindSum

COMPACT = CohortKey.generate(PRESETS["compact"])
PRECISE = CohortKey.generate(PRESETS["precise"])
LONG = 40 * COMPACT.scheme.values_per_ciphertext  # long enough for helpers


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three processes, however many cores there are; ended afterwards."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    yield
    parallel.stop()


def helpers() -> list[parallel._Helper]:
    """Those of this process, ready to work: else a short vector would be done before they are."""
    with parallel._helpers.borrowed(1000) as found:
        for helper in found:
            while not helper.ready:
                helper.hear()
        return found


def values(length: int, key: CohortKey = COMPACT) -> np.ndarray:
    half = 1 << (key.scheme.value_bits - 1)
    return np.random.default_rng().integers(-half, half, length)


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 3 * LONG // 2),
    key=st.sampled_from([COMPACT, PRECISE]),
    processes=st.integers(1, 3),
    sites=st.integers(1, 3),
)
def test_any_number_of_processes_opens_the_same_sum(length, key, processes, sites):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEILFED_PROCESSES", str(processes))
        helpers()
        vectors = [values(length, key) for _ in range(sites)]
        total = BlindSum(key.scheme, length)
        for vector in vectors:
            total.add(encrypt(vector, key))
        many = total.message()
        opened = open_sum(total.result(), key)
        patch.setenv("VEILFED_PROCESSES", "1")
        assert total.message() == many  # growing seeds has one right answer, byte for byte
        assert np.array_equal(opened, open_sum(total.result(), key))
        assert np.array_equal(opened, sum(vectors))


def test_helpers_do_their_part():
    """Both take pieces: a vector of 200 waits for them at the end, if nothing else."""
    busy = dict.fromkeys(helpers(), 0)
    assert len(busy) == 2
    for helper in busy:
        take = helper.take

        def counted(place, helper=helper, take=take):
            busy[helper] += 1
            take(place)

        helper.take = counted  # type: ignore[method-assign]
    encrypt(values(200 * COMPACT.scheme.values_per_ciphertext), COMPACT)
    assert min(busy.values()) > 0


def test_results_keep_the_order_of_their_pieces_and_few_are_ahead_of_them():
    ready, taken = helpers(), 0

    def pieces() -> Iterator[Piece]:
        nonlocal taken
        for number in range(300):
            taken += 1
            yield Piece(1, 1, number.to_bytes(64, "big") * 3)

    seeds = [secrets.token_bytes(64) for _ in range(300)]
    alone = [b"".join(expand_seeds(COMPACT.scheme, [seed])) for seed in seeds]
    assert b"".join(expand_seeds(COMPACT.scheme, [b"".join(seeds)])) == b"".join(alone)

    def task() -> bytes:
        return scheme._task(scheme._grow, COMPACT.scheme)

    for helper in ready:  # the first piece is long in coming
        os.kill(helper._process.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (helper._process.pid, signal.SIGCONT)).start()
    results = spread(scheme.work_on(task()), task, pieces(), 300)
    next(results)
    assert taken <= 1 + (parallel._SLOTS + 1) * (len(ready) + 1)
    results.close()
    assert not any(helper.busy for helper in ready)


def test_a_short_vector_never_starts_a_helper():
    encrypt(values(8 * COMPACT.scheme.values_per_ciphertext), COMPACT)
    assert parallel._helpers._started is None


def test_one_process_starts_none(monkeypatch):
    monkeypatch.setenv("VEILFED_PROCESSES", "1")
    encrypt(values(LONG), COMPACT)
    assert parallel._helpers._started is None


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", ""])
def test_a_senseless_number_of_processes_is_refused(monkeypatch, wrong):
    monkeypatch.setenv("VEILFED_PROCESSES", wrong)
    with pytest.raises(ConfigError, match="VEILFED_PROCESSES"):
        encrypt(values(LONG), COMPACT)


def test_helpers_that_are_killed_are_named_and_missed_by_nobody(caplog):
    found, vector = helpers(), values(LONG)
    for helper in found:
        os.kill(helper._process.pid, signal.SIGKILL)
    total = BlindSum(COMPACT.scheme, LONG)
    total.add(encrypt(vector, COMPACT))
    assert np.array_equal(open_sum(total.result(), COMPACT), vector)
    assert "a helper process for encryption ended with -9; going on without it" in caplog.text
    assert not any(helper.alive for helper in found)


def test_a_helper_killed_while_it_works_loses_nothing():
    (helper, _), vector = helpers(), values(LONG)
    take = helper.take

    def killed(place: parallel._Place) -> None:
        take(place)
        os.kill(helper._process.pid, signal.SIGKILL)

    helper.take = killed  # type: ignore[method-assign]
    sent = encrypt(vector, COMPACT)
    total = BlindSum(COMPACT.scheme, LONG)
    total.add(sent)
    assert np.array_equal(open_sum(total.result(), COMPACT), vector)


def test_what_a_helper_fails_at_raises_what_one_process_raises(monkeypatch):
    """A sum of words that are no ciphertexts of this key, and a piece that is nothing at all."""
    total = BlindSum(COMPACT.scheme, LONG)
    total.add(encrypt(values(LONG), COMPACT))
    other, errors = CohortKey.generate(COMPACT.scheme), []
    pieces = [Piece(1, 4096, b"not a ciphertext")] * 40
    for processes in ("1", "3"):
        monkeypatch.setenv("VEILFED_PROCESSES", processes)
        if processes == "3":
            helpers()
        work = scheme.work_on(scheme._task(scheme._encrypt, COMPACT))
        results = spread(work, lambda: scheme._task(scheme._encrypt, COMPACT), pieces, 40)
        with pytest.raises(ProtocolError, match=r"^the aggregate does not open$") as refused:
            open_sum(total.result(), other)
        assert refused.tb  # whoever keeps the error does not keep the helpers, nor they the key
        assert not parallel._helpers._turn.locked()
        with pytest.raises(ValueError, match="cannot reshape") as caught:
            list(results)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    vector = values(LONG)
    total = BlindSum(COMPACT.scheme, LONG)
    total.add(encrypt(vector, COMPACT))  # and they work on afterwards
    assert np.array_equal(open_sum(total.result(), COMPACT), vector)


def test_what_helpers_cannot_do_is_done_by_this_process():
    for helper in helpers():
        assert helper.ready
    seeds = [secrets.token_bytes(64) for _ in range(40)]
    pieces = [Piece(1, 4096, seed) for seed in seeds]
    work = scheme.work_on(scheme._task(scheme._grow, COMPACT.scheme))
    results = list(spread(work, lambda: b"no such task", pieces, 40))
    assert results == [work(piece) for piece in pieces]


def test_no_secret_stands_in_arguments_environment_or_files_and_none_is_kept():
    secret = COMPACT.export_for_wrapping()
    found = helpers()
    encrypt(values(LONG), COMPACT)
    for helper in found:
        place = Path("/proc", str(helper._process.pid))
        shown = place.joinpath("cmdline").read_bytes() + place.joinpath("environ").read_bytes()
        assert secret not in shown
        assert secret.hex().encode() not in shown
        opened = {os.readlink(file) for file in place.joinpath("fd").iterdir()}
        assert all(name.startswith(("socket:", "/dev/null", "/memfd:")) for name in opened), opened
    assert secret not in scheme._task(scheme._grow, COMPACT.scheme)  # growing seeds needs no key, and gets none
    piece = Piece(1, 4096, bytes(8 * 4096))
    scheme.work_on(scheme._task(scheme._encrypt, COMPACT))(piece)  # the key is all that it takes
    (helper, _) = found
    helper.take(place := parallel._Place(piece))
    assert helper.hear() == [place]  # and that was taken back when the vector was done


_PARENT = """
import os, signal, time, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
os.sched_getaffinity = lambda process: {0, 1}
from common.he import parallel
from common.he.scheme import PRESETS, CohortKey, encrypt
key = CohortKey.generate(PRESETS["compact"])
encrypt(np.zeros(400_000, np.int64), key)
print(parallel._helpers._started[0]._process.pid, flush=True)
time.sleep(float(__import__("sys").argv[1]))
"""


def gone(process: int) -> bool:
    for _ in range(200):
        try:
            state = Path("/proc", str(process), "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", ["by itself", signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_helper_outlives_the_process_that_started_it(end):
    root = Path(parallel.__file__).parents[2]
    seconds = "0" if end == "by itself" else "60"
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, seconds], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root
    )
    assert parent.stdout is not None
    helper = int(parent.stdout.readline())
    if isinstance(end, signal.Signals):
        parent.send_signal(end)
    parent.wait(30)
    assert gone(helper)


def test_a_forked_process_leaves_its_parents_helpers_alone():
    found = helpers()
    child = os.fork()
    if not child:  # no helper is known here, and the parent's sockets are closed
        os._exit(0 if parallel._helpers._started is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    vector = values(LONG)
    assert all(helper.alive for helper in found)
    total = BlindSum(COMPACT.scheme, LONG)
    total.add(encrypt(vector, COMPACT))
    assert np.array_equal(open_sum(total.result(), COMPACT), vector)


def test_blocks_cover_a_vector_in_pieces_that_fit_a_helper():
    for preset in PRESETS.values():
        for block in blocks(preset, 3 * LONG + 5):
            rows, used = block.shape
            assert rows * used * 8 * len(preset.primes) * 2 <= parallel._SLOT_BYTES
