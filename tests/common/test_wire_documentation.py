"""common/README.md lists every field that crosses a border, and none that does not."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from client.app import QUERIES
from client.runs import SiteRun
from common.errors import WireError
from common.masking import Published
from common.wire import Kind, from_json
from tests.by_hand import NAMES, Coordinator, workplace

TEXT = (Path(__file__).parents[2] / "common" / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))


def fields(cell: str) -> set[str]:
    """The names before their explanation; what stands in brackets or after a semicolon's "for" explains."""
    plain = re.sub(r"\([^)]*\)|: where the site stands|Flower calls it `\w+`", "", cell)
    return set(re.findall(r"`(\w+)`", plain))


class Overheard(Coordinator):
    """All that an honest run says, by action."""

    def __init__(self, place):
        super().__init__(place)
        self.orders, self.answers = defaultdict(set), defaultdict(set)

    @property
    def length(self):
        run = SiteRun.open(self.directories[NAMES[0]] / "runs", self.store.run)
        return run.layout(self.number).length

    def send(self, name, action, data):
        said = super().send(name, action, data)
        for heard, envelope in ((self.orders, self.read(data)), (self.answers, self.read(said))):
            if envelope.kind in (Kind.ORDER, Kind.ANSWER):
                heard[action] |= set(from_json(envelope.body))
        return said


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    overrides = ("encryption.key_rounds=2", "federation.min_cohort=3", "metrics.every=1", "federation.reveal=final")
    played = Overheard(workplace(tmp_path_factory.mktemp("heard") / "run", NAMES, *overrides))
    played.join()
    for epoch, rounds in ((1, (1, 2)), (2, (3, 4))):
        played.share_key(epoch)
        for number in rounds:
            made, there = played.offers(number), NAMES[:3] if number == 2 else NAMES
            updates = played.train(number, made)
            played.number = number
            total = played.total(updates[name] for name in there)
            silent = [NAMES[0]] if number == 1 else []
            played.apply(number, played.publish(number, made, there, total, silent))
    played.ask(NAMES[0], "release", 4)
    return played


def test_every_action_and_kind_is_listed():
    assert set(ROWS) >= {*QUERIES, "train", "apply"}
    for kind in Kind:
        assert f"{kind.value} {kind.name.lower().replace('_', ' ')}" in TEXT


@pytest.mark.parametrize("action", [*QUERIES, "train", "apply"])
def test_the_fields_of_every_order_and_answer_are_listed(heard, action):
    order, answer = ROWS[action].split(" | ")
    assert fields(order) == heard.orders[action]
    assert fields(answer) == heard.answers[action]


def test_the_head_of_an_aggregate_is_listed():
    (row,) = re.findall(r"^\| 5 aggregate \| (.*) \|$", TEXT, re.MULTILINE)
    head = fields(row.split("Head:")[1])
    assert head == {"sites", "agreed", "self", "pairs"}
    with pytest.raises(WireError):
        Published.decode(b"\0\0\0\2{}")
