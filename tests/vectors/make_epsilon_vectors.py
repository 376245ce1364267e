"""Write epsilon.json: what three accountants that are not ours say about the same events.

    python tests/vectors/make_epsilon_vectors.py            (about three minutes)

pld: dp-accounting's PLDAccountant, the reference.   rdp: Opacus' RDPAccountant, a looser bound.
prv: Opacus' PRVAccountant, an upper bound with an error of at most 0.01 in epsilon and 1/1000 in delta.
The last two only where all events are Poisson-sampled Gaussian releases.
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.dp.accounting import epsilon
from common.dp.events import DiscreteLaplace, DpEvent, Gaussian, PoissonGaussian, event_to_dict
from common.errors import UnknownEvent

PUBLISHED = [  # settings that papers and tutorials use
    ([PoissonGaussian(1.0, 0.01, 1000)], 1e-5),
    ([PoissonGaussian(1.0, 0.01, 10_000)], 1e-5),
    ([PoissonGaussian(0.5, 0.001, 10_000)], 1e-5),
    ([PoissonGaussian(2.0, 0.2, 200)], 1e-4),
    ([PoissonGaussian(1.1, 0.004, 15_000)], 1e-5),
    ([PoissonGaussian(3.06, 0.2, 200)], 1e-3),
    ([PoissonGaussian(4.0, 1.0, 100)], 1e-5),
    ([Gaussian(1.0)], 1e-5),
]


def second_opinion(events: Iterable[DpEvent], delta: float) -> float:
    """The same epsilon by Google's dp-accounting, slowly."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for event in events:
        match event:
            case PoissonGaussian(noise_multiplier, sample_rate, steps):
                release = dp_event.GaussianDpEvent(noise_multiplier)
                accountant.compose(dp_event.PoissonSampledDpEvent(sample_rate, release), steps)
            case Gaussian(noise_multiplier, count):
                accountant.compose(dp_event.GaussianDpEvent(noise_multiplier), count)
            case DiscreteLaplace(parameter, count):
                accountant.compose(dp_event.DiscreteLaplaceDpEvent(parameter, 1), count)
            case _:
                raise UnknownEvent(f"nobody can say what {event!r} costs")
    return float(accountant.get_epsilon(delta))


def random_setting(source: random.Random, kinds: int = 3) -> tuple[list[DpEvent], float]:
    """Events of up to `kinds` kinds and a delta, spread evenly over orders of magnitude."""

    def between(low: float, high: float) -> float:
        return float(low * (high / low) ** source.random())

    events: list[DpEvent] = []
    for _ in range(source.randint(1, kinds)):
        if source.random() < 0.8:
            events.append(PoissonGaussian(between(0.4, 10), between(1e-4, 1), int(between(1, 20_000))))
        else:
            events.append(Gaussian(between(0.5, 30), int(between(1, 100))))
    return events, between(1e-9, 1e-2)


def usual(setting: tuple[list[DpEvent], float]) -> bool:
    """Whether anybody would run it, and the reference can work it out in seconds."""
    return 0.05 < epsilon(*setting) < 40


def opacus(name: str, events: list[DpEvent], delta: float) -> float | None:
    from opacus.accountants import PRVAccountant, RDPAccountant

    if not all(isinstance(event, PoissonGaussian) for event in events):
        return None
    accountant = {"rdp": RDPAccountant, "prv": PRVAccountant}[name]()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    try:
        return float(accountant.get_epsilon(delta))
    except (RuntimeError, ValueError, MemoryError):  # PRV gives up on some extremes
        return None


def main() -> None:
    source = random.Random(20240229)
    settings = PUBLISHED + [setting for setting in (random_setting(source) for _ in range(150)) if usual(setting)][:40]
    vectors = []
    for events, delta in settings:
        vectors.append(
            {
                "events": [event_to_dict(event) for event in events],
                "delta": delta,
                "pld": second_opinion(events, delta),
                "rdp": opacus("rdp", events, delta),
                "prv": opacus("prv", events, delta) if len(events) == 1 else None,
            }
        )
        print(vectors[-1], file=sys.stderr)
    Path(__file__).with_name("epsilon.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
