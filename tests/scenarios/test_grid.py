"""The in-process grid stands on a few private names of Flower. This is where a new release shows that they moved."""

import importlib

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from scenarios.grid import LocalGrid

PRIVATE = {
    "flwr.supercore.run": "Run",
    "flwr.supercore.task_identity": "TaskIdentity",
}


@pytest.mark.parametrize(("module", "name"), PRIVATE.items())
def test_flowers_private_names_are_where_we_import_them(module, name):
    """If this fails after an upgrade of flwr: search the new release for the class, change the import in
    scenarios/grid.py and the entry above, run tests/scenarios, and widen or narrow the flwr range in pyproject.toml.
    """
    assert hasattr(importlib.import_module(module), name)


def test_the_grid_implements_all_that_flower_asks_of_one():
    assert LocalGrid.__abstractmethods__ == frozenset()
    assert issubclass(LocalGrid, Grid)


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query()
    def echo(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def contexts(*nodes: int) -> list[Context]:
    return [Context(1, node, {}, RecordDict(), {}) for node in nodes]


def test_every_order_has_its_reply_from_its_own_node():
    grid = LocalGrid(echo_app(), contexts(2, 3))
    orders = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(orders))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1", "2"]


def test_a_node_that_is_not_there_is_an_error_reply_not_silence():
    grid = LocalGrid(echo_app(), contexts(2))
    (reply,) = grid.send_and_receive([Message(RecordDict(), dst_node_id=9, message_type="query")])
    assert reply.has_error()


def test_the_network_may_lose_and_double():
    for deliver, count in ((lambda reply: (), 0), (lambda reply: (reply, reply), 2)):
        grid = LocalGrid(echo_app(), contexts(2), deliver)
        assert len(list(grid.send_and_receive([Message(RecordDict(), dst_node_id=2, message_type="query")]))) == count
