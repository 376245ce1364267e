"""What acting on an order may take of this machine. What each cap counts: `Resources` in `policy.py`.

Caps hold the process that runs the worker, not a container around it. Code in C that a memory cap stops may end the
process instead of refusing; then the supervisor starts it again, and nothing was released or paid twice.
"""

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from client.policy import Resources
from common.errors import NotNow, ProtocolError

_MB = 10**6


@contextmanager
def held_to(caps: Resources) -> Iterator[None]:
    """Within, the process keeps to the caps; afterwards it may take what it could before.

    Raises ProtocolError when memory ran out under a cap.
    """
    with ExitStack() as stack:
        if caps.memory_mb:
            stack.enter_context(_memory(caps.memory_mb * _MB))
        if caps.cpu_cores:
            stack.enter_context(_cores(caps.cpu_cores))
        if caps.gpu_memory_fraction < 1 and torch.cuda.is_available():
            for device in range(torch.cuda.device_count()):
                torch.cuda.set_per_process_memory_fraction(caps.gpu_memory_fraction, device)
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not _ran_out_of_memory(error):
                raise
            raise ProtocolError("policy.resources: this order needs more memory than this site gives it") from error


def require_free_disk(caps: Resources, directory: Path) -> None:
    """Raises NotNow when less than the policy's share of the site's disk is free."""
    free = shutil.disk_usage(directory).free // _MB
    if free < caps.free_disk_mb:
        raise NotNow(
            f"policy.resources.free_disk_mb: {free} MB are free on this site's disk, {caps.free_disk_mb} are kept free",
            "ask again later",
        )


def cpu_allowance(caps: Resources) -> Callable[[], None]:
    """Starts the clock of one round's training; call it between steps. Raises ProtocolError once too much was used."""
    allowed = caps.cpu_seconds_per_round
    ends = time.process_time() + allowed

    def require() -> None:
        if allowed and time.process_time() > ends:
            raise ProtocolError(
                f"policy.resources.cpu_seconds_per_round: a round of this plan takes over {allowed:g} CPU seconds here"
            )

    return require


@contextmanager
def _memory(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    capped = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (capped, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Every thread of the process, those that torch started among them, on the first `count` of its cores."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    chosen = set(sorted(before)[:count])
    _move_threads(chosen)
    torch.set_num_threads(min(threads, len(chosen)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _move_threads(before)


def _move_threads(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it ended in the meantime
            continue


def _ran_out_of_memory(error: BaseException) -> bool:
    told = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return told or "can't allocate memory" in str(error) or "not enough memory" in str(error)
