"""Proves: a site does one thing at a time and releases one thing a round, however orders come and whatever was lost."""

import contextlib
import shutil
import threading

import numpy as np
import pytest

from client import round as local_round
from client.agent import answer
from client.runs import SiteRun
from common.wire import Envelope, Kind, encode, from_json
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER = NAMES[0]


def run_of(played: Coordinator) -> SiteRun:
    return SiteRun.open(played.directories[ADLER] / "runs", played.store.run)


def both(*work) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_same_order_twice_at_once_is_one_release(tmp_path, monkeypatch):
    """Training is held up until both orders are there, or as good as: without turns both would train."""
    played = Coordinator.ready(tmp_path / "run")
    made = played.offers(1)
    order = played.order(1, played.training(ADLER, made))
    waiting, trained = threading.Barrier(2), []
    train = local_round.train

    def slow(*arguments, **named):
        trained.append(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            waiting.wait(0.5)  # does the other one train as well?
        return train(*arguments, **named)

    monkeypatch.setattr(local_round, "train", slow)
    said: list[bytes] = []
    site = played.site(ADLER)
    both(*(lambda: said.append(answer(site, "train", order).data),) * 2)
    assert len(trained) == 1
    assert said[0] == said[1]
    assert played.read(said[0]).kind is Kind.UPDATE


def test_two_lists_at_once_get_one_signature(tmp_path):
    """Each of many times; without turns both pass the check before either is written."""
    played = Coordinator.ready(tmp_path / "run")
    made = played.offers(1)
    total = played.total(played.train(1, made).values())
    orders = [played.order(1, played.wanted(names, total)) for names in (NAMES, NAMES[:3])]
    said: list[bytes] = []
    site = played.site(ADLER)
    both(*((lambda order=order: said.append(answer(site, "agree", order).data)) for order in orders * 4))
    lists = {played.body(data)["list"] for data in said if played.read(data).kind is Kind.ANSWER}
    assert len(lists) == 1


def test_a_lost_run_directory_is_no_free_release(tmp_path):
    """The ledger knows that an update was made; the directory that held it is gone, so nothing is made again."""
    played = Coordinator.ready(tmp_path / "run")
    made = played.offers(1)
    played.train(1, made)
    for name in NAMES:
        shutil.rmtree(played.directories[name] / "runs")
    restart()
    played.join()
    played.share_key()
    again = played.offers(1)
    code, message = played.refused(ADLER, "train", 1, played.training(ADLER, again))
    assert (code, message) == ("PrivacyError", "round 1 has left this site once, and what was sent is no longer here")
    assert len(played.site(ADLER).ledger.entries) == 1


def test_a_crash_between_keeping_and_noting_an_update_sends_the_kept_one(tmp_path, monkeypatch):
    played = Coordinator.ready(tmp_path / "run")
    made = played.offers(1)
    with monkeypatch.context() as crash:
        crash.setattr(local_round, "_mark_sealed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            played.send(ADLER, "train", played.order(1, played.training(ADLER, made)))
    restart()
    kept = run_of(played).sealed_update(1)
    assert played.ask(ADLER, "train", 1, played.training(ADLER, made)) == kept
    assert played.site(ADLER).ledger.sealed(played.store.run.hex(), 1)


def readable(played: Coordinator, number: int) -> tuple[Kind, bytes]:
    model = np.zeros(played.length, "<f4").tobytes()
    order = Envelope(Kind.READABLE_ORDER, played.store.run, number, played.store.plan_hash, "coordinator", model)
    restart()
    said = played.read(played.send(ADLER, "train", encode(order)))
    return said.kind, said.body


def test_readable_rounds_are_released_once_and_only_where_the_plan_trains(tmp_path):
    played = Coordinator(workplace(tmp_path / "run", NAMES, "encryption.preset=none"))
    played.join()
    first, second = readable(played, 1), readable(played, 2)
    assert {first[0], second[0]} == {Kind.READABLE_UPDATE}
    assert readable(played, 2) == second
    kind, body = readable(played, 1)
    assert (kind, from_json(body)["code"]) == (Kind.REFUSAL, "PrivacyError")
    kind, body = readable(played, 4)
    assert (kind, from_json(body)["code"]) == (Kind.REFUSAL, "WrongRound")
    assert [charge.round_number for charge in played.site(ADLER).ledger.entries] == [1, 2]


def test_mask_secrets_go_even_if_the_site_stopped_right_after_applying(tmp_path, monkeypatch):
    played = Coordinator.ready(tmp_path / "run")
    made = played.offers(1)
    published = played.publish(1, made, NAMES, played.total(played.train(1, made).values()))
    with monkeypatch.context() as crash:
        crash.setattr(local_round.masking, "forget", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            played.send(ADLER, "apply", played.order(1, published.encode(), kind=Kind.AGGREGATE))
    restart()
    assert list(run_of(played).directory.glob("masks-000001*"))
    played.apply(1, published, [ADLER])
    assert not list(run_of(played).directory.glob("masks-000001*"))
