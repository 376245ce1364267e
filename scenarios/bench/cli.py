"""`veilfed bench ...`: one command per measurement."""

import argparse
from collections.abc import Mapping
from typing import Any

from common.commands import command, group, positive, show_fields, show_rows


def add_commands(commands: Any) -> None:
    """Put `bench` and what is under it among the commands of `veilfed`."""
    bench = group(commands, "bench", "measurements beside peers, in one run", "WHAT")
    about, example = "encrypt, sum and open against TenSEAL's CKKS", "veilfed bench he --params 1000000 --sites 8"
    he = command(bench, "he", _he, show_rows, about, f"example: {example}")
    he.add_argument("--params", type=positive, default=1_000_000, help="numbers in a site's vector")
    he.add_argument("--sites", type=positive, default=8, help="sites that are summed")
    about, example = "a DP-SGD step against Opacus and plain SGD", "veilfed bench dp --device cpu"
    dp = command(bench, "dp", _dp, _show_dp, about, f"example: {example}")
    dp.add_argument(
        "--device", default="cpu", help="cpu; cuda for large models as well; cuda:0,cuda:1 for a lot on both"
    )
    about, example = "a round against a bare loop and Flower on Ray", "veilfed bench simulate"
    command(bench, "simulate", _simulate, show_rows, about, f"example: {example}")
    about = "a private round over the network against a plain one of stock Flower; or what a large model takes"
    example = "veilfed bench deploy; veilfed bench deploy --params 100000000 --json"
    deploy = command(bench, "deploy", _deploy, _show_deploy, about, f"example: {example}")
    deploy.add_argument("--rounds", type=positive, default=5, help="rounds of each")
    deploy.add_argument(
        "--params", type=positive, help="instead: one round of a model so large, and every peak of memory"
    )


def _he(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.bench.he import run

    return run(chosen.params, chosen.sites)


def _dp(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.device import devices_named
    from scenarios.bench.dp import run

    devices_named(chosen.device.split(","))
    return run(chosen.device)


def _show_dp(result: Mapping[str, Any]) -> str:
    """Steps, then the parts that a step and its batch are made of."""
    return f"{show_rows(result)}\n\n{show_rows({'rows': result['parts']})}"


def _simulate(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from scenarios.bench.simulate import run

    return run()


def _deploy(chosen: argparse.Namespace) -> Mapping[str, Any]:
    if chosen.params:
        from scenarios.bench.deploy_large import run as large

        return large(chosen.params)
    from scenarios.bench.deploy import run

    return run(chosen.rounds)


def _show_deploy(result: Mapping[str, Any]) -> str:
    """The rows, and of a large model what holds for all of them."""
    whole = {key: value for key, value in result.items() if key not in ("bench", "rows")}
    return "\n\n".join([*([show_fields(whole)] if whole else []), show_rows(result)])
