"""The cohort is who the roster says, and the plan is what was agreed to."""

import pytest

from common.config import fill, to_table
from common.federation import Plan
from common.keystore import load_secret
from common.roster import COORDINATOR
from common.signing import Identity
from common.wire import Kind, plan_hash
from tests.by_hand import NAMES, Coordinator

ADLER, BIRKE, CEDAR, DORN = NAMES


# The cohort is who the roster says.


@pytest.mark.parametrize(
    "cohort",
    [
        [*NAMES, "mallory"],
        [ADLER, "mallory", "trent"],
        [ADLER, ADLER, ADLER],
        [*NAMES, ADLER],
        [*NAMES, COORDINATOR],
        [BIRKE, CEDAR, DORN],
    ],
)
def test_a_cohort_padded_to_reach_the_minimum_is_refused(begun, cohort):
    body = {**begun.join_order(), "cohort": cohort}
    assert begun.refused(ADLER, "join", 0, body, run=bytes(16))[0] == "TrustError"


def test_a_cohort_smaller_than_the_sites_policy_is_refused(begun):
    code, message = begun.refused(ADLER, "join", 0, {**begun.join_order(), "cohort": [ADLER]}, run=bytes(16))
    assert code == "CohortTooSmall"
    assert "policy" in message


def test_a_stranger_speaks_for_nobody(begun):
    stranger = Identity.generate()
    for changes in (
        {"identity": stranger},
        {"identity": stranger, "sender": "mallory"},
        {"identity": stranger, "sender": ADLER},
    ):
        data = begun.order(0, begun.join_order(), **changes)
        assert begun.refuses(ADLER, "join", data)[0] == "TrustError"
    sites_own = Identity.from_private_bytes(load_secret(begun.directories[BIRKE] / "identity.key", None))
    data = begun.order(0, begun.join_order(), identity=sites_own, sender=BIRKE)
    assert begun.refuses(ADLER, "join", data) == ("TrustError", "an order must come from the coordinator")


# The plan is what was agreed to.


def test_the_plan_does_not_change_within_a_run(begun):
    table = to_table(begun.store.plan)
    table["federation"]["rounds"] = 9
    changed = fill(Plan, table)
    body = {**begun.join_order(), "plan": table}
    assert begun.refused(ADLER, "join", 0, body, plan=plan_hash(changed)) == (
        "ProtocolError",
        "the coordinator changed the plan or the cohort of a run that had begun",
    )
    assert begun.refused(ADLER, "join", 0, body) == (
        "ProtocolError",
        "the plan is not the one whose hash the order carries",
    )
    fewer = {**begun.join_order(), "cohort": [ADLER, BIRKE, CEDAR]}
    assert begun.refused(ADLER, "join", 0, fewer)[0] == "ProtocolError"
    for action in ("offer", "train", "agree", "unmask", "stand_in", "release", "make_key", "install_key"):
        assert begun.refused(ADLER, action, 1, plan=plan_hash(changed)) == (
            "TrustError",
            "the order carries another plan than the one this site joined",
        )


def test_code_that_the_sites_policy_does_not_name_is_never_imported(begun):
    """An import runs what it imports."""
    table = to_table(begun.store.plan)
    table["model"]["factory"] = "tests.common.bomb:build"
    body, plan = {"plan": table, "cohort": begun.names}, fill(Plan, table)
    code, message = begun.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert code == "PrivacyError"
    assert "'tests.common.bomb:build'" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"factory": "mlp", "hidden": [2**26, 2**26]}, "weights"),
        ({"inputs": [2**40]}, "weights"),
        ({"inputs": [4]}, "do not fit"),
        ({"inputs": []}, "do not fit"),
        ({"inputs": [3], "classes": 0}, "do not fit"),
    ],
)
def test_a_model_that_does_not_fit_is_never_built(tmp_path, joined, change, reason):
    """Neither a site's records nor its memory: nothing of the kind is allocated or trained."""
    table = to_table(joined.store.plan)
    table["model"] |= change
    attacked = joined.copy(tmp_path / "run")
    settings = attacked.directories[ADLER] / "policy.toml"
    settings.write_text(settings.read_text().replace("max_weights = 2147483648", "max_weights = 1000000"))
    body, plan = {"plan": table, "cohort": attacked.names}, fill(Plan, table)
    code, message = attacked.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert (code, reason in message) == ("ProtocolError", True), message


def test_scales_for_another_number_of_layers_are_refused_when_joining(begun):
    table = to_table(begun.store.plan)
    table["encryption"] |= {"layer_scales": [1.0]}
    body, plan = {"plan": table, "cohort": begun.names}, fill(Plan, table)
    code, message = begun.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert (code, "encryption.layer_scales" in message) == ("ConfigError", True)
    assert not (begun.directories[ADLER] / "runs" / bytes(16).hex()).exists()


def test_a_readable_order_gets_no_update_from_an_encrypted_plan(begun):
    model = bytes(4 * begun.length)
    code, message = begun.refused(ADLER, "train", 1, model, kind=Kind.READABLE_ORDER)
    assert (code, message) == ("ProtocolError", "the plan encrypts updates; a readable one is never sent")


def test_the_model_is_not_released_before_the_end(attack):
    for number in (0, 1, 2, 3):
        code, message = attack.refused(ADLER, "release", number)
        assert (code, message) == (
            "ProtocolError",
            "the plan does not reveal the model now (federation.reveal = 'final')",
        )


def test_nor_ever_where_the_plan_reveals_nothing(tmp_path):
    coordinator = Coordinator.ready(tmp_path / "run", NAMES, "federation.rounds=1", "federation.reveal=never")
    coordinator.whole_round(1)
    assert coordinator.refused(ADLER, "release", 0)[0] == "ProtocolError"
