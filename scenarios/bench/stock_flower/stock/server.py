"""The coordinator: FedAvg, with an evaluation at the sites each round, as is the default."""

import time

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from stock.model import network, tell

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    told, last = str(context.run_config["told"]), [time.time()]

    def closed(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number:
            tell(told, {"time": time.time(), "seconds": time.time() - last[0]})
        last[0] = time.time()
        return MetricRecord({})

    strategy = FedAvg(min_available_nodes=4)
    strategy.start(
        grid, ArrayRecord(network().state_dict()), num_rounds=int(context.run_config["rounds"]), evaluate_fn=closed
    )
