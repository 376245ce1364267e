"""Proves, on real sites: a readable run with q serves them more alike, and an update that weighs nothing is refused."""

from dataclasses import replace

import numpy as np

from common.evaluators.utility import log_loss
from common.models import load_parameters, predict
from common.wire import decode, encode
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Workplace
from tests.by_hand import envelope_of, with_envelope
from tests.scenarios.test_simulate import READABLE, Network, workplace


def spread(place: Workplace) -> float:
    """Between the sites' losses on their training records, by the run's last model."""
    observer = Observer(place)
    load_parameters(observer.network, observer.state().released)
    parts = [site.training_records for site in observer.sites]
    losses = [log_loss(predict(observer.network, part.features), part.labels).value for part in parts]
    return max(losses) - min(losses)


def test_with_q_the_sites_are_served_more_alike(tmp_path):
    """What Li et al. 2020 call fairer, definition 1. Deterministic: the draw of records is fixed, there is no noise."""
    found = []
    for q in ("0.0", "5.0"):
        place = workplace(tmp_path / q, *READABLE, "federation.rounds=20", f"training.q={q}")
        assert simulate(place)["outcome"] == "done"
        found.append(spread(place))
    assert found[1] < found[0] - 0.02


def test_an_update_that_weighs_nothing_is_left_out_with_its_reason(tmp_path):
    def weightless(reply):
        sent = envelope_of(reply)
        envelope = decode(sent, lambda name: b"")
        body = np.frombuffer(envelope.body, "<f4").copy()
        body[-1] = 0
        return (with_envelope(reply, encode(replace(envelope, body=body.tobytes()))),)

    place = workplace(tmp_path / "run", *READABLE, "training.q=1.0")
    report = simulate(place, deliver=Network(weightless, site=1))
    (left,) = report["rounds"][1]["left_out"]
    assert (left["reason"], "weighs nothing" in left["message"]) == ("InvalidUpdate", True)
