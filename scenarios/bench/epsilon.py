"""Parts of `veilfed bench dp`: how long a run's epsilon takes, and how far it lies above dp-accounting's own."""

import time
from collections.abc import Callable
from typing import Any

from common.dp import accounting
from common.dp.events import PoissonGaussian

ROUND = PoissonGaussian(1.0, 0.01, 50)
ROUNDS, DELTA = 200, 1e-5


def parts() -> list[dict[str, Any]]:
    """One question at the end of the run, beside dp-accounting at its defaults; then a question after every round.

    The reference is told of all steps at once: told of every round, it takes minutes. `excess`: our epsilon less
    theirs. Nothing is remembered from before; the library is loaded.
    """
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    def reference() -> float:
        accountant = PLDAccountant()
        step = dp_event.PoissonSampledDpEvent(ROUND.sample_rate, dp_event.GaussianDpEvent(ROUND.noise_multiplier))
        accountant.compose(step, ROUNDS * ROUND.steps)
        return float(accountant.get_epsilon(DELTA))

    def ours() -> float:
        return accounting.epsilon([ROUND] * ROUNDS, DELTA)

    def every_round() -> float:
        return max(accounting.epsilon([ROUND] * done, DELTA) for done in range(1, ROUNDS + 1))

    accounting.epsilon([PoissonGaussian(2.0, 0.1, 1)], DELTA)
    timed, theirs, often = _fresh(ours), _fresh(reference), _fresh(every_round)
    steps = f"{ROUNDS * ROUND.steps:,} steps in {ROUNDS} rounds"
    return [
        {
            "part": f"epsilon of {steps}, dp-accounting",
            "veilfed_ms": timed[0],
            "reference_ms": theirs[0],
            "ratio": round(timed[0] / theirs[0], 3),
            "excess": timed[1] - theirs[1],
        },
        {"part": f"epsilon after each of {ROUNDS} rounds, all in all", "veilfed_ms": often[0]},
    ]


def _fresh(ask: Callable[[], float]) -> tuple[float, float]:
    """Milliseconds and the answer, when nothing was asked before."""
    for remembered in (accounting._epsilon, accounting._composed, accounting._loss):
        remembered.cache_clear()
    started = time.perf_counter()
    answer = ask()
    return 1e3 * (time.perf_counter() - started), answer
