"""The Flower ClientApp of simulations: a courier between Flower's messages and the site. It decides nothing.

A deployed site runs no ClientApp: its node (`node.py`) hands orders to its worker (`worker.py`).
"""

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.agent import answer
from client.courier import QUERIES, order_of, reply_to
from client.site import open_site, settings_stamp
from common.errors import ConfigError

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    return _relay(message, context)


@app.evaluate()
def apply_aggregate(message: Message, context: Context) -> Message:
    return _relay(message, context)


for name in QUERIES:
    app.query(name)(lambda message, context: _relay(message, context))


def _relay(message: Message, context: Context) -> Message:
    directory = _site_directory(context)
    said = answer(open_site(directory, settings_stamp(directory)), *order_of(message))
    return reply_to(message, said.data, said.metrics)


def _site_directory(context: Context) -> Path:
    """`site-directory` of this node; or, in a simulation, the partition's place in `VEILFED_SITES`."""
    config = context.node_config
    if directory := config.get("site-directory"):
        return Path(str(directory))
    if sites := os.environ.get("VEILFED_SITES"):
        return sorted(path for path in Path(sites).iterdir() if path.is_dir())[int(config["partition-id"])]
    raise ConfigError("this node has no site-directory", "start it with --node-config 'site-directory=\"DIR\"'")
