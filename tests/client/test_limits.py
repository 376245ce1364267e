"""Proves: caps hold while an order is acted on, and are gone afterwards."""

import os
import resource
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from client.limits import cpu_allowance, held_to, require_free_disk
from client.policy import Resources
from common.errors import NotNow, ProtocolError

_HUNGRY = """
import numpy as np, torch
from client.limits import held_to
from client.policy import Resources
from common.errors import ProtocolError
ask = {"numpy": lambda: np.ones(10**9, np.uint8), "torch": lambda: torch.ones(10**9, dtype=torch.uint8),
       "bytes": lambda: b"x" * 10**9}["KIND"]
ask()
before = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) // 1000
try:
    with held_to(Resources(memory_mb=before + 500)):
        np.ones(10**8, np.uint8)
        ask()
except ProtocolError as error:
    print(error.message)
ask()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numpy", "torch", "bytes"])
def test_memory_beyond_the_cap_is_a_refusal_and_later_there_again(kind):
    script = _HUNGRY.replace("KIND", kind)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "policy.resources: this order needs more memory than this site gives it\n"


def test_another_error_within_is_what_it_was():
    with pytest.raises(RuntimeError, match="something else"), held_to(Resources(memory_mb=2**30)):
        raise RuntimeError("something else")


def cores_by_thread() -> dict[int, set[int]]:
    """Of all threads of this process; one that an earlier test left may end at any time."""
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):
            found[thread] = os.sched_getaffinity(thread)
    return found


def test_every_thread_keeps_to_its_cores_and_gets_them_back():
    before = cores_by_thread()
    mine, threads = os.sched_getaffinity(0), torch.get_num_threads()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    with held_to(Resources(cpu_cores=1, memory_mb=2**30)):
        assert {len(cores) for cores in cores_by_thread().values()} == {1}
        assert torch.get_num_threads() == 1
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 2**30 * 10**6
    assert os.sched_getaffinity(0) == mine
    assert all(cores == before.get(thread, cores) for thread, cores in cores_by_thread().items())
    assert torch.get_num_threads() == threads
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


def test_training_stops_once_its_cpu_seconds_are_used():
    require, started = cpu_allowance(Resources(cpu_seconds_per_round=0.2)), time.process_time()
    while time.process_time() < started + 0.1:
        require()
    while time.process_time() < started + 0.3:
        pass
    with pytest.raises(ProtocolError, match=r"policy\.resources\.cpu_seconds_per_round"):
        require()


def test_without_a_cap_it_never_stops():
    require = cpu_allowance(Resources())
    assert require() is None


def test_a_disk_that_fills_up_is_a_reason_to_wait(tmp_path):
    assert require_free_disk(Resources(free_disk_mb=0), tmp_path) is None
    with pytest.raises(NotNow, match=r"policy\.resources\.free_disk_mb: \d+ MB are free"):
        require_free_disk(Resources(free_disk_mb=2**39), tmp_path)
