"""One hospital: a few steps of SGD on records like its own."""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from stock.model import network, tell

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    tell(str(context.run_config["told"]), {"step": time.time()})
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    drawn = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    features, labels = torch.randn(230, 20, generator=drawn), torch.randint(0, 2, (230,), generator=drawn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(labels)})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 230, "loss": 0.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
