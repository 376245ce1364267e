"""The model of both ends, and where measurements are told."""

import json
from pathlib import Path
from typing import Any

import torch


def network() -> torch.nn.Module:
    return torch.nn.Linear(20, 2)


def tell(path: str, event: dict[str, Any]) -> None:
    with Path(path).open("a") as file:
        file.write(json.dumps(event) + "\n")
