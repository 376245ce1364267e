"""The Flower ServerApp of simulations. A deployed run is conducted by `conductor.py`."""

import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import FederationError
from server.coordinate import Outcome, coordinate
from server.store import RunStore
from server.strategy import OnRound

OnEnd = Callable[[Outcome], None]


def build_app(on_round: OnRound = lambda record: None, on_end: OnEnd = lambda outcome: None) -> ServerApp:
    """A ServerApp that reports each closed round to `on_round` and the end to `on_end`."""
    built = ServerApp()

    @built.main()
    def main(grid: Grid, context: Context) -> None:
        directory = context.run_config.get("run-directory") or os.environ.get("VEILFED_RUN", "")
        try:
            on_end(coordinate(grid, RunStore.open(Path(str(directory))), on_round))
        except FederationError as error:
            on_end(Outcome(error=error))
            raise

    return built


app = build_app()
