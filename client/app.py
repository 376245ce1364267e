"""The Flower ClientApp: a courier between Flower's messages and the site's worker. It decides nothing."""

import os
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.agent import answer
from client.site import open_site, settings_stamp
from common.errors import ConfigError

app = ClientApp()


QUERIES = ("join", "make_key", "install_key", "offer", "agree", "unmask", "stand_in", "release")


def _register(action: str) -> None:
    @app.query(action)
    def relay(message: Message, context: Context) -> Message:
        return _relay(action, message, context)


for name in QUERIES:
    _register(name)


@app.train()
def train(message: Message, context: Context) -> Message:
    return _relay("train", message, context)


@app.evaluate()
def apply_aggregate(message: Message, context: Context) -> Message:
    return _relay("apply", message, context)


def _relay(action: str, message: Message, context: Context) -> Message:
    order = message.content["veilfed"]["envelope"].data
    directory = _site_directory(context)
    said = answer(open_site(directory, settings_stamp(directory)), action, order)
    array = Array("uint8", (len(said.data),), "veilfed.envelope", said.data)
    content = RecordDict({"veilfed": ArrayRecord({"envelope": array})})
    if said.metrics:
        content["public"] = MetricRecord(dict(said.metrics))
    return Message(content, reply_to=message)


def _site_directory(context: Context) -> Path:
    """`site-directory` of this node; or, in a simulation, the partition's place in `VEILFED_SITES`."""
    config = context.node_config
    if directory := config.get("site-directory"):
        return Path(str(directory))
    if sites := os.environ.get("VEILFED_SITES"):
        return sorted(path for path in Path(sites).iterdir() if path.is_dir())[int(config["partition-id"])]
    raise ConfigError("this node has no site-directory", "start it with --node-config 'site-directory=\"DIR\"'")
