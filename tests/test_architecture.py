"""The arrows between rooms, the homes of heavy libraries, and a docstring on every door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"client", "common", "scenarios", "server"}
MAY_USE = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "scenarios": OURS,
}
HOMES = {
    "flwr": {
        "client/app.py",
        "client/courier.py",
        "client/fleet.py",
        "client/node.py",
        "common/bundle.py",
        "common/messages.py",
        "common/parts.py",
        "server/app.py",
        "server/conductor.py",
        "server/control.py",
        "server/coordinate.py",
        "server/executor.py",
        "server/polling.py",
        "server/superlink.py",
        "server/links.py",
        "server/nodes.py",
        "server/strategy.py",
        "server/encrypted_rounds.py",
        "scenarios/grid.py",
    }
    | {"scenarios/engines.py"},
    "tenseal": {"common/he/scheme.py"},
    "dp_accounting": {"common/dp/accounting.py"},
    "ray": {"scenarios/engines.py"},
    "prometheus_client": {"common/monitoring.py"},
    "opentelemetry": {"common/tracing.py"},
    "captum": {"common/attributions.py"},
}
FOLDERS_OF = {
    "opacus": ("client/",),
    "torch": ("client/", "common/models.py", "common/gradients.py", "common/attributions.py", "common/randomness.py"),
    "safetensors": ("common/", "server/"),
}
FORBIDDEN = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
PURE_NEVER_IMPORTS = {"app", "cli"}
MODULES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> set[tuple[str, str]]:
    """(first part, full name) of every import, lazy ones included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {(name.split(".")[0], name) for name in names}


def broken_arrows(path: str, imported: set[tuple[str, str]]) -> set[str]:
    allowed = MAY_USE[path.split("/")[0]]
    bench = path.startswith("scenarios/bench/")
    broken = set()
    for first, name in imported:
        if first in OURS and first not in allowed:
            broken.add(name)
        if not bench and first in HOMES and path not in HOMES[first]:
            broken.add(name)
        if not bench and first in FOLDERS_OF and not path.startswith(FOLDERS_OF[first]):
            broken.add(name)
        if first in FORBIDDEN:
            broken.add(name)
        if first in OURS and name.split(".")[-1] in PURE_NEVER_IMPORTS and path.split("/")[0] != "scenarios":
            broken.add(name)
    return broken


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_keeps_to_the_arrows_and_says_what_it_is(path: Path):
    name = str(path.relative_to(ROOT))
    assert broken_arrows(name, imports_of(path)) == set()
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"


def test_broken_arrows_are_seen():
    assert broken_arrows("client/round.py", {("server", "server.round")}) == {"server.round"}
    assert broken_arrows("common/wire.py", {("client", "client.site")}) == {"client.site"}
    assert broken_arrows("common/dp/ledger.py", {("tenseal", "tenseal")}) == {"tenseal"}
    assert broken_arrows("client/round.py", {("client", "client.app")}) == {"client.app"}
    assert broken_arrows("server/store.py", {("pickle", "pickle")}) == {"pickle"}


def test_nothing_at_the_top_but_the_parties():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert folders - {"build", "dist", "runs", "veilfed.egg-info"} == OURS | {"tests"}


def test_a_bundle_carries_no_tests_scenarios_or_data():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert {"tests/**", "scenarios/**"} <= set(settings["fab-exclude"])
    assert settings["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
