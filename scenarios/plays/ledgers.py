"""What outlives a run: a budget that is spent, and a disk that is put back to where it was."""

import shutil
from contextlib import suppress

from client.site import Site
from common.errors import FederationError
from scenarios import pictures
from scenarios.by_hand import restart
from scenarios.plays.models import kept
from scenarios.simulate import simulate
from scenarios.stage import Picture, Played, Stage, Table
from server.store import RunStore


def exhausted(stage: Stage) -> Played:
    """The same sites are asked for the same run twice."""
    place = stage.set_up("run")
    report = simulate(place)
    before = [len(Site.open(path).ledger.entries) for path in place.sites]
    again, said = stage.set_up("run"), ""
    try:
        simulate(again)
    except FederationError as error:
        said = f"{error.code}: {error.message}"
    ledgers = {path.name: Site.open(path).ledger for path in again.sites}
    figures = {
        "refused": float(bool(said)),
        "epsilon": max(ledger.epsilon for ledger in ledgers.values()),
        "charged": float(sum(len(ledger.entries) for ledger in ledgers.values()) - sum(before)),
        "first_run": float(len(report["rounds"])),
    }
    spent = {name: ledger.epsilon for name, ledger in ledgers.items()}
    limit = stage.simulation().privacy.epsilon
    alt = f"epsilon in {len(spent)} ledgers after both runs, the limit is {limit:g}"
    return Played(
        figures,
        [Picture("After both runs", pictures.bars(spent, "ε spent", alt, limit, f"limit {limit:g}"))],
        [Table("The second run", ("asked", "answer"), (("the same again", said or "it trains"),))],
        facts=kept(report),
    )


def rolled_back(stage: Stage) -> Played:
    """A site's ledger is put back to where it was before a run, from a backup, and the site is asked for another."""
    place = stage.set_up("run")
    victim = place.sites[0]
    simulate(place)
    backup = victim / "backup"
    shutil.copytree(victim / "ledgers", backup)
    second = stage.set_up("run")
    simulate(second)
    spent = Site.open(victim).ledger.epsilon
    shutil.rmtree(victim / "ledgers")
    shutil.copytree(backup, victim / "ledgers")
    restart()
    noticed = ""
    try:
        Site.open(victim).ledger  # noqa: B018 - opening it is the question
    except FederationError as error:
        noticed = f"{error.code}: {error.message}"
    third = stage.set_up("run")
    with suppress(FederationError):  # no report of that run: it would have to tell what that ledger has spent
        simulate(third)
    store = RunStore.open(third.run)
    summed = {site for record in store.rounds() for site in record["sites"]}
    gathered = [entry.record for entry in store.audit.entries() if entry.record["event"] == "SitesGathered"]
    said = "; ".join(gathered[-1]["refused"])
    figures = {
        "noticed": float(bool(noticed)),
        "trained_again": float(victim.name in summed),
        "spent_before": spent,
    }
    rows = (
        ("opens its ledger", noticed or "as if nothing had happened"),
        ("is asked for a third run", said or "it trains"),
    )
    return Played(figures, [], [Table(f"What {victim.name} does", ("it", "answer"), rows)])
