"""`veilfed bench dp`: a private step beside a plain one and beside Opacus, in one process and one thread.

A step is forward, backward, clipping, noise and the move of the weights on one batch that stays the same. The modes
take turns, so that a busy machine slows all alike; medians of wall seconds. Memory is the growth of a fresh child
process over three steps, above what it held when model and batch were ready (on a GPU: the allocator's peak; on
several, the first one's).
"""

import gc
import itertools
import json
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.clipping import PROBES, clipped_sum_for
from client.clipping_modes import OneByOne
from client.descent import Descent
from client.releases import noised_sum
from client.replicas import SpreadClipped
from client.sampling import poisson_batch
from common.federation import TrainingSettings, require
from common.randomness import Randomness
from scenarios.bench import epsilon
from scenarios.bench.dp_models import WORKS, Work

Step = Callable[[], object]
Make = Callable[[Work, nn.Module, Tensor, Tensor], Step]
Modes = dict[str, Make]
_OPACUS = {f"opacus-{mode}": mode for mode in ("hooks", "ghost", "ew", "functorch")}
_LEARNING_RATE = 1e-3
_RARELY = ("loop", "opacus-functorch")  # slow ones are timed at every fifth turn


def run(device: str = "cpu", models: Sequence[str] | None = None, seconds_per_model: float = 20.0) -> dict[str, Any]:
    """One row per model and mode that works; `ratios` says how many plain steps each costs.

    device: of several, as in "cuda:0,cuda:1", the first; a mode "veilfed-x2" spreads the same lot over all.
    models: all that fit the device, unless named; the largest need a GPU.
    `parts` times the noise for a million parameters beside torch.normal, and the draw of a Poisson batch of about
    256 of 60,000 records beside Opacus' loader, and a run's epsilon beside dp-accounting's.
    """
    first, *others = (torch.device(name) for name in device.split(","))
    on_gpu = first.type == "cuda"
    modes = _MODES | ({f"veilfed-x{1 + len(others)}": partial(_spread, others)} if others else {})
    chosen = [name for name, work in WORKS.items() if on_gpu or not work.gpu_only] if models is None else list(models)
    require(set(chosen) <= set(WORKS), "--models", chosen, ", ".join(WORKS))
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    with _one_thread(), _same_digits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peaks = {name: _peaks(WORKS[name], modes, first) for name in chosen}  # before this process has grown
        for name in chosen:
            found, failed = _measure(WORKS[name], modes, first, seconds_per_model, peaks[name])
            rows += found
            skipped += failed
        parts = [*_parts(), *epsilon.parts()]
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        plain = next(r["step_ms"] for r in rows if (r["model"], r["mode"]) == (row["model"], "sgd"))
        ratios.setdefault(row["model"], {})[row["mode"]] = round(row["step_ms"] / plain, 3)
    where = torch.cuda.get_device_name(first) if on_gpu else "cpu, one thread"
    return {"bench": "dp", "device": where, "rows": rows, "ratios": ratios, "parts": parts, "skipped": skipped}


def _peaks(work: Work, modes: Modes, device: torch.device) -> dict[str, float | Exception]:
    """By mode: MiB, or why there are none."""
    found: dict[str, float | Exception] = {}
    for mode, make in modes.items():
        try:
            found[mode] = _peak_mb(work, mode, make, device)
        except Exception as error:  # a peer that cannot take this model; its own words say why
            found[mode] = error
    return found


def _measure(
    work: Work, modes: Modes, device: torch.device, seconds: float, peaks: dict[str, float | Exception]
) -> tuple[list[dict[str, Any]], list[str]]:
    failed = {mode: peak for mode, peak in peaks.items() if isinstance(peak, Exception)}
    steps = {mode: modes[mode](work, *_model_and_batch(work, device)) for mode in peaks if mode not in failed}
    times = _take_turns(steps, device, seconds)
    rows = [
        {"model": work.name, "batch": work.batch, "mode": mode, "step_ms": 1e3 * times[mode], "peak_mb": peaks[mode]}
        | ({"note": work.note} if work.note else {})
        for mode in steps
    ]
    return rows, [f"{work.name} {mode}: {error}".splitlines()[0][:200] for mode, error in failed.items()]


def _take_turns(steps: dict[str, Step], device: torch.device, seconds: float) -> dict[str, float]:
    """Median seconds per step: five turns at least, more as time allows."""
    times: dict[str, list[float]] = {mode: [] for mode in steps}
    start, turn = time.perf_counter(), -1  # one turn to warm up
    while turn < 5 or time.perf_counter() - start < seconds:
        for mode, step in steps.items():
            if mode in _RARELY and turn % 5:
                continue
            _finish(device)
            before = time.perf_counter()
            step()
            _finish(device)
            times[mode].append(time.perf_counter() - before)
        turn += 1
    return {mode: statistics.median(each[1:] or each) for mode, each in times.items()}


def _model_and_batch(work: Work, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    features, labels = work.draw(work.batch)
    return work.build().to(device), features.to(device), labels.to(device)


def _plain(work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(_trainable(model), lr=_LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        work.losses(model(features), labels).mean().backward()
        optimizer.step()

    return step


def _veilfed(work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
    clipped = clipped_sum_for(model, 1.0, features, labels, work.losses)
    return _private(clipped.__enter__(), work, model, features, labels)  # left open: the bench ends with the process


def _spread(also_on: Sequence[torch.device], work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
    """From the host, as in training; its threads are left open like the hooks of `_veilfed`."""
    features, labels = features.cpu(), labels.cpu()
    probes = {"features": features[:PROBES], "labels": labels[:PROBES]}
    sum_for = partial(clipped_sum_for, max_grad_norm=1.0, losses=work.losses, **probes)
    clipped = SpreadClipped(model, also_on, sum_for, **probes)
    return _private(clipped.__enter__(), work, model, features, labels)


def _loop(work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
    return _private(OneByOne(model, 1.0, work.losses), work, model, features, labels)


def _private(clipped: Any, work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
    randomness = Randomness.from_os()
    descent = Descent(model, TrainingSettings(lot_size=work.batch, learning_rate=_LEARNING_RATE))
    return lambda: descent.step(noised_sum(clipped, 1.0, randomness, features, labels))


def _opacus(mode: str) -> Make:
    def make(work: Work, model: nn.Module, features: Tensor, labels: Tensor) -> Step:
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        made = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=torch.optim.SGD(_trainable(model), lr=_LEARNING_RATE),
            data_loader=DataLoader(TensorDataset(torch.zeros(10 * work.batch, 1)), batch_size=work.batch),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
            grad_sample_mode=mode,
            criterion=nn.CrossEntropyLoss(),
        )
        private, optimizer = made[0], made[1]
        if mode == "ghost":
            made[2].criterion = _PerRecordLoss(work)

        def step() -> None:
            optimizer.zero_grad()
            output = private(features)
            loss = made[2](output, labels) if mode == "ghost" else work.losses(output, labels).mean()
            loss.backward()
            optimizer.step()

        return step

    return make


class _PerRecordLoss:
    """What Opacus' ghost mode asks of a criterion, over our losses."""

    reduction = "mean"

    def __init__(self, work: Work) -> None:
        self._losses = work.losses

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        return self._losses(output, labels)


_MODES: Modes = {
    "sgd": _plain,
    "veilfed": _veilfed,
    **{name: _opacus(mode) for name, mode in _OPACUS.items()},
    "loop": _loop,
}


def _peak_mb(work: Work, mode: str, make: Make, device: torch.device) -> float:
    if device.type == "cuda":
        return _peak_on_device(work, make, device)
    _import_opacus_once(mode)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _report_growth(work, make, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read() or '{"error": "the process died"}')
    os.waitpid(child, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return float(answer["peak_mb"])


def _import_opacus_once(mode: str) -> None:
    """In the parent, so that its import neither repeats nor counts as growth."""
    if mode in _OPACUS:
        import opacus  # noqa: F401


def _report_growth(work: Work, make: Make, writer: int) -> None:
    """In the child: three steps, the growth of the largest resident set, and out without any clean-up."""
    try:
        few = replace(work, batch=2)
        _plain(few, *_model_and_batch(few, torch.device("cpu")))()  # loads kernels, which are nobody's growth
        ready = _model_and_batch(work, torch.device("cpu"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step = make(work, *ready)
        for _ in range(3):
            step()
        answer = {"peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    os.write(writer, json.dumps(answer).encode()[:60_000])
    os._exit(0)


def _peak_on_device(work: Work, make: Make, device: torch.device) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    ready = _model_and_batch(work, device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = make(work, *ready)
    for _ in range(3):
        step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _parts() -> list[dict[str, Any]]:
    from opacus.data_loader import DPDataLoader
    from torch.utils.data import TensorDataset

    randomness, generator = Randomness.from_os(), torch.Generator()
    features, labels = torch.randn(60_000, 784), torch.randint(0, 10, (60_000,))
    rows, answers, rate = features.numpy(), labels.numpy(), 256 / 60_000
    loader = DPDataLoader(TensorDataset(features, labels), sample_rate=rate)
    batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch

    def own_batch() -> tuple[Tensor, Tensor]:
        chosen = poisson_batch(len(answers), rate, randomness)
        return torch.from_numpy(rows[chosen]), torch.from_numpy(answers[chosen])

    noise = {
        "veilfed": lambda: randomness.gaussian(1_000_000, 1.0, np.float32),
        "reference": lambda: torch.normal(0.0, 1.0, (1_000_000,), generator=generator),
    }
    batch = {"veilfed": own_batch, "reference": lambda: next(batches)}
    found = []
    for part, steps in (("noise for 1,000,000, torch.normal", noise), ("Poisson batch of 256, DPDataLoader", batch)):
        times = _take_turns(steps, torch.device("cpu"), 3.0 if steps is noise else 0.5)
        row = {"part": part, **{f"{name}_ms": 1e3 * seconds for name, seconds in times.items()}}
        found.append({**row, "ratio": round(times["veilfed"] / times["reference"], 3)})
    return found


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _same_digits() -> Iterator[None]:
    """No TF32 for anybody: our clipped sums never use it, so nobody else may gain by it."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
