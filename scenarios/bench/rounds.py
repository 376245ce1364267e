"""The same federated work by other means, each in a process of its own: `python -m scenarios.bench.rounds SYSTEM WORK`.

Digits in equal parts, a fifth held out, SGD with momentum, one epoch of batches of 32, accuracy after every
round. Prints `round N SECONDS` when a round is done.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from client.datasets import load_records, split
from scenarios.data import DataSettings, site_loader, site_names


@dataclass(frozen=True)
class Work:
    sites: int
    rounds: int
    hidden: tuple[int, ...]


WORKS = {
    "digits-10": Work(10, 10, (128,)),
    "digits-100": Work(100, 10, (128,)),
    "1m-5": Work(5, 5, (960, 960)),
}
LEARNING_RATE, MOMENTUM, BATCH = 0.1, 0.9, 32


def network(work: Work) -> nn.Module:
    torch.manual_seed(0)
    widths = (64, *work.hidden)
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


Part = tuple[torch.Tensor, torch.Tensor]


def records(work: Work) -> tuple[list[Part], Part]:
    """Every site's training records, and all held-out ones: the very parts that Veilfed's sites have."""
    settings = DataSettings("digits", "iid", work.sites, holdout=0.2)
    parts = []
    for site in site_names(settings):
        loader, options = site_loader(settings, site)
        parts.append(split(load_records(loader, site, options), settings.holdout, settings.seed))
    training = [(torch.from_numpy(part.features), torch.from_numpy(part.labels)) for part, _ in parts]
    features = np.concatenate([part.features for _, part in parts])
    labels = np.concatenate([part.labels for _, part in parts])
    return training, (torch.from_numpy(features), torch.from_numpy(labels))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    loss_of = nn.CrossEntropyLoss()
    order = torch.randperm(len(x))
    for batch in order.split(BATCH):
        optimizer.zero_grad()
        loss_of(model(x[batch]), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def bare_loop(work: Work, done: Callable[[int, float], None]) -> None:
    """No framework: copy weights, train, mean, evaluate."""
    parts, test = records(work)
    model = network(work)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for number in range(1, work.rounds + 1):
        started = time.perf_counter()
        total = {key: torch.zeros_like(value) for key, value in state.items()}
        for part in parts:
            model.load_state_dict(state)
            train(model, *part)
            for key, value in model.state_dict().items():
                total[key].add_(value)
        state = {key: value / len(parts) for key, value in total.items()}
        model.load_state_dict(state)
        accuracy(model, *test)
        done(number, time.perf_counter() - started)


def flower_ray(work: Work, done: Callable[[int, float], None]) -> None:
    """Stock Flower: FedAvg on its simulation runtime, which runs sites in Ray processes."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    parts, test = records(work)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def local(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model, place = network(work), int(context.node_config["partition-id"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train(model, *parts[place])
        counts = MetricRecord({"num-examples": len(parts[place][0])})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": counts})
        return Message(content, reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        model, last = network(work), [time.perf_counter()]

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            value = accuracy(model, *test)
            if number:
                done(number, time.perf_counter() - last[0])
            last[0] = time.perf_counter()
            return MetricRecord({"accuracy": value})

        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=work.sites)
        arrays = ArrayRecord(model.state_dict())
        strategy.start(grid, arrays, num_rounds=work.rounds, evaluate_fn=evaluate)

    backend = {"init_args": {"include_dashboard": False, "log_to_driver": False}}
    run_simulation(server_app, client_app, work.sites, backend_config=backend)


SYSTEMS = {"bare-loop": bare_loop, "flower-ray": flower_ray}

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    SYSTEMS[sys.argv[1]](WORKS[sys.argv[2]], lambda number, seconds: out.write(f"round {number} {seconds}\n") and None)
