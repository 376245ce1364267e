"""One site's part in the key ceremonies: the same answer after a restart, and nothing left of an epoch that is over."""

import pytest

from client import cohort_keys
from client.runs import SiteRun
from common.errors import ProtocolError
from common.wire import digest, from_hex
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER, BIRKE, CEDAR, DORN = NAMES


def run_of(coordinator: Coordinator, name: str = ADLER) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


def secret_files(coordinator: Coordinator, name: str = ADLER) -> set[str]:
    kinds = ("exchange", "cohort", "peers", "made")
    return {path.name for path in run_of(coordinator, name).directory.iterdir() if path.name.startswith(kinds)}


def test_a_key_is_made_once_for_the_same_sites_and_repeated_word_for_word(tmp_path):
    coordinator = Coordinator(workplace(tmp_path))
    coordinator.join()
    first = coordinator.ask(ADLER, "make_key", 1, {"joined": coordinator.joined})
    restart()
    assert coordinator.ask(ADLER, "make_key", 1, {"joined": coordinator.joined}) == first
    fewer = {name: coordinator.joined[name] for name in (ADLER, BIRKE, CEDAR)}
    other = coordinator.ask(ADLER, "make_key", 1, {"joined": fewer})
    assert coordinator.body(other)["wrapped"] != coordinator.body(first)["wrapped"]
    order = {"joined": coordinator.joined, "made": first.hex()}
    said = coordinator.ask(BIRKE, "install_key", 1, order)
    restart()
    assert coordinator.ask(BIRKE, "install_key", 1, order) == said


def test_an_epoch_that_is_over_leaves_only_the_hash_of_its_key(tmp_path):
    played = Coordinator.ready(tmp_path, NAMES, "encryption.key_rounds=2", "federation.rounds=5")
    keys = [run_of(played).cohort_key(1).export_for_wrapping()]
    assert secret_files(played) == {"cohort-000001.key", "exchange-000001.key", "exchange-000002.key", "peers-000001"}
    for number in (1, 2):
        assert run_of(played).due_epoch == 1
        played.whole_round(number)
    assert secret_files(played) == {"cohort-000001.hash", "exchange-000002.key"}
    with pytest.raises(ProtocolError, match="no cohort key of epoch 1"):
        run_of(played).cohort_key(1)
    for epoch, rounds in ((2, (3, 4)), (3, (5,))):
        played.share_key(epoch)
        keys.append(run_of(played).cohort_key(epoch).export_for_wrapping())
        for number in rounds:
            played.whole_round(number)
    assert secret_files(played) == {f"cohort-00000{epoch}.hash" for epoch in (1, 2, 3)}
    assert len(set(keys)) == 3
    hashes = [(run_of(played).directory / f"cohort-00000{epoch}.hash").read_bytes() for epoch in (1, 2, 3)]
    assert hashes == [digest(key) for key in keys]
    for path in run_of(played).directory.rglob("*"):
        assert not path.is_file() or not any(key in path.read_bytes() for key in keys)
    assert played.coming == {name: data for name, data in played.coming.items() if not played.body(from_hex(data))}
    assert set(played.body(played.ask(ADLER, "join", 0, played.join_order()))) == {"round", "model_hash"}


def test_what_a_key_is_wrapped_for_names_run_plan_epoch_and_maker(tmp_path):
    """Laid out as common/README.md says; new exchange keys alone would refuse most mistakes here already."""
    run = run_of(Coordinator.ready(tmp_path, NAMES, "encryption.key_rounds=1"))
    expected = b"veilfed.cohort-key.v1|" + run.run + run.plan_hash + b"\0\0\0\3" + b"adler"
    assert cohort_keys._context(run, 3, ADLER) == expected


def test_a_site_that_is_behind_keeps_the_old_key_until_it_has_caught_up(tmp_path):
    played = Coordinator.ready(tmp_path, NAMES, "encryption.key_rounds=1")
    made = played.offers(1)
    published = played.publish(1, made, NAMES, played.total(played.train(1, made).values()))
    played.apply(1, published, NAMES[:3])
    played.joined = played.coming
    first = played.ask(BIRKE, "make_key", 2, {"joined": played.joined}).hex()
    order = {"joined": played.joined, "made": first}
    assert played.refused(DORN, "install_key", 2, order)[0] == "WrongRound"
    assert run_of(played, DORN).has_cohort_key(1)
    played.apply(1, published, [DORN])
    assert not run_of(played, DORN).has_cohort_key(1)
    played.ask(DORN, "install_key", 2, order)


def test_a_crash_while_keys_are_destroyed_is_made_good(tmp_path):
    """The model is on disk, the key is still there: the next word to the site takes it away."""
    played = Coordinator.ready(tmp_path, NAMES, "encryption.key_rounds=1")
    directory = run_of(played).directory
    kept = {name: (directory / name).read_bytes() for name in secret_files(played)}
    played.whole_round(1)
    for name, data in kept.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)
    restart()
    played.ask(ADLER, "join", 0, played.join_order())
    assert secret_files(played) == {"cohort-000001.hash", "exchange-000002.key"}
