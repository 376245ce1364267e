"""The commands of one site's administrator: `veilfed site ...`. They act on that site's own directory alone."""

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.commands import (
    Declined,
    NotReady,
    NotVerified,
    command,
    confirm,
    group,
    positive,
    printable,
    show_fields,
    show_rows,
)
from common.errors import ConfigError, FederationError

if TYPE_CHECKING:
    from client.approvals import Ask
    from client.site import Site
    from common.certificates import Root
    from common.dp.ledger import Ledger
    from common.enrolment import Request

_LOCK_EXAMPLES = """examples:
  (umask 077; openssl rand -base64 32 > /media/keys/cleveland.pass)
  veilfed site lock /srv/veilfed/cleveland --passphrase-file /media/keys/cleveland.pass
stopped half way: give the same command again; another passphrase: unlock, then lock
"""
_INIT_EXAMPLES = """examples:
  veilfed site init /srv/veilfed/cleveland --name cleveland --server fl.example.org:8443
  veilfed site init /srv/veilfed/cleveland --name cleveland --server fl.example.org:8443 \\
    --passphrase-file /media/keys/cleveland.pass
Send request.json to the coordinator, read the fingerprint out to its people by phone, and fill in site.toml.
"""
_JOIN_EXAMPLES = """examples:
  veilfed site join /srv/veilfed/cleveland kit.json
  veilfed site join /srv/veilfed/cleveland kit.json --root-fingerprint "01234 56789 01234 56789 01234 56789 01234 56789"
The first time, the root's fingerprint is compared with what the coordinator's people say by phone. Later kits, of
renewals, are checked against that root, and may be installed while a federation runs.
"""
_RENEW_EXAMPLES = """example: veilfed site renew /srv/veilfed/cleveland
The keys stay. Send the new request.json to the coordinator and install the kit that comes back.
"""
_CHECK_EXAMPLES = """examples:
  veilfed site check /srv/veilfed/cleveland
  veilfed site check /srv/veilfed/cleveland --order study.toml --sites 12     what that plan would cost; writes nothing
exit code 2 with every problem when the site is not ready, 3 with every reason when it would refuse the plan
"""
_DRIFT_EXAMPLES = """examples:
  veilfed site drift /srv/veilfed/cleveland --keep     after a release: from now on compare with the records as they are
  veilfed site drift /srv/veilfed/cleveland            each night: what moved since; also among the site's own numbers
Nothing of it leaves the site.
"""
_APPROVE_EXAMPLES = """examples:
  veilfed site approve /srv/veilfed/cleveland --list
  veilfed site approve /srv/veilfed/cleveland 3f0a
an approval holds for one run with the plan and the sites that were shown
"""
_PLAN_EXAMPLES = """examples:
  veilfed site ledger plan /srv/veilfed/cleveland study.toml
  veilfed site ledger plan /srv/veilfed/cleveland study.toml --sites 12
exit code 3 when the budget cannot bear it
"""
_START_EXAMPLES = """example: veilfed site start /srv/veilfed/cleveland
Runs until it gets SIGTERM: the worker, which has the records and no network, and the node, which has the network and no
records. What they say is in DIR/logs. A renewed certificate is taken up by itself.
"""


def add_commands(commands: Any) -> None:
    """Put `site` and what is under it among the commands of `veilfed`."""
    site = group(commands, "site", "what one site knows of itself, and keeps")
    about = "run this site: its worker and its node, restarted when they fail"
    _on_directory(command(site, "start", _start, show_fields, about, _START_EXAMPLES))
    about, example = "whether all of it runs: exit code 0 if so, 2 if not", "veilfed site status DIR --json"
    _on_directory(command(site, "status", _status, show_rows, about, f"example: {example}"))

    about = "make this site's keys, which never leave it, and the request to be let in"
    init = command(site, "init", _init, show_fields, about, _INIT_EXAMPLES)
    _on_directory(init)
    init.add_argument("--name", required=True, metavar="NAME", help="what the consortium calls this site")
    init.add_argument("--server", required=True, metavar="HOST:PORT", help="the coordinator's gateway")
    _passphrase_file(init, required=False)
    join = command(site, "join", _join, show_fields, "install the coordinator's kit", _JOIN_EXAMPLES)
    _on_directory(join)
    join.add_argument("kit", type=Path, metavar="KIT", help="the file that came from the coordinator")
    join.add_argument("--root-fingerprint", metavar="DIGITS", help="of the root, as told by phone: 40 digits")
    renew = command(site, "renew", _renew, show_fields, "ask for a new certificate", _RENEW_EXAMPLES)
    _on_directory(renew)
    renew.add_argument("--server", metavar="HOST:PORT", help="the coordinator's gateway, where that changed")

    ledger = group(site, "ledger", "what the records of this site have lost by now", "ACTION")
    for name, run, show, about, examples in (
        ("show", _show, _told, "verify the chain and print what was spent", "veilfed site ledger show DIR"),
        ("verify", _verify, _verdict, "every line, signature and the witness", "veilfed site ledger verify DIR --json"),
        ("export", _export, _lines, "every entry, verified, one line of JSON each", "veilfed site ledger export DIR"),
        ("remaining", _remaining, _told, "what may still be spent", "veilfed site ledger remaining DIR"),
    ):
        _on_directory(command(ledger, name, run, show, about, f"example: {examples}"))
    plan = command(
        ledger, "plan", _plan, show_fields, "what a federation file would cost, before anyone says yes", _PLAN_EXAMPLES
    )
    _on_directory(plan)
    plan.add_argument("federation", type=Path, metavar="FEDERATION.toml", help="the plan to be agreed on")
    plan.add_argument("--sites", type=positive, help="how many sites take part (default: all on the roster)")

    about = "whether this site is ready, and what it would agree to; or what one plan would cost"
    check = command(site, "check", _check, _show_check, about, _CHECK_EXAMPLES)
    _on_directory(check)
    check.add_argument("--order", type=Path, metavar="FEDERATION.toml", help="a plan: its price, and what policy says")
    check.add_argument("--sites", type=positive, help="with --order: how many take part (default: all on the roster)")

    about = "whether the records, and what the model of the run kept with them says, are still as they were"
    drift = command(site, "drift", _drift, _show_drift, about, _DRIFT_EXAMPLES)
    _on_directory(drift)
    drift.add_argument("--keep", action="store_true", help="compare with the records as they are now, from now on")

    approve = command(
        site, "approve", _approve, _show_approvals, "say yes to a run that waits; or list them", _APPROVE_EXAMPLES
    )
    _on_directory(approve)
    which = approve.add_mutually_exclusive_group(required=True)
    which.add_argument("run", nargs="?", default="", metavar="RUN", help="its name, or the beginning of it")
    which.add_argument("--list", action="store_true", help="every run that was put before you and is not over")
    about, example = "say no to a run, also to one that has begun", "example: veilfed site deny DIR 3f0a"
    deny = command(site, "deny", _deny, _show_approvals, about, example)
    _on_directory(deny)
    deny.add_argument("run", metavar="RUN", help="its name, or the beginning of it")

    about = "what the model of a run can do on this site's held-out records; nothing of it leaves the site"
    example = "example: veilfed site evaluate /srv/veilfed/cleveland 3f0a"
    evaluation = command(site, "evaluate", _evaluate, _show_evaluation, about, example)
    _on_directory(evaluation)
    evaluation.add_argument("run", metavar="RUN", help="the first digits of its number")

    about = "keep this site's keys encrypted under a passphrase, while its worker is stopped"
    lock = command(site, "lock", _lock, _show_lock, about, _LOCK_EXAMPLES)
    _on_directory(lock)
    _passphrase_file(lock, required=True)
    about, example = "leave this site's keys to their files' permissions again", "veilfed site unlock DIR"
    _on_directory(command(site, "unlock", _unlock, _show_lock, about, f"example: {example}"))


def _on_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the site's directory")


def _passphrase_file(parser: argparse.ArgumentParser, required: bool) -> None:
    about = "its first line opens the keys; mode 0600, on another disk than DIR; site.toml will name it"
    parser.add_argument("--passphrase-file", type=Path, required=required, metavar="FILE", help=about)


def _start(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.start import start

    start(chosen.directory, lambda line: print(f"veilfed: {line}", file=sys.stderr, flush=True))
    return {"stopped": str(chosen.directory)}


def _status(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.start import known

    return known(chosen.directory)


def _init(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.enroll import initialise
    from common.addresses import Address

    asked = initialise(chosen.directory, chosen.name, Address.parse(chosen.server), chosen.passphrase_file)
    return _asked(chosen.directory, asked)


def _renew(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.enroll import renew
    from common.addresses import Address

    return _asked(chosen.directory, renew(chosen.directory, Address.parse(chosen.server) if chosen.server else None))


def _asked(directory: Path, request: "Request") -> Mapping[str, Any]:
    return {
        "site": request.name,
        "server": str(request.server),
        "fingerprint": request.fingerprint,
        "request": str(directory / "request.json"),
    }


def _join(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.enroll import join
    from common.certificates import now_utc

    try:
        data = chosen.kit.read_bytes()
    except OSError as error:
        raise ConfigError(f"{chosen.kit}: {error.strerror}", "give the file that came from the coordinator") from None
    kit = join(chosen.directory, data, chosen.root_fingerprint, _confirm_root, now_utc())
    return {
        "site": kit.name,
        "consortium": kit.consortium,
        "server": str(kit.server),
        "roster_version": kit.roster.version,
        "sites": ", ".join(kit.roster.sites),
        "certificate_ends": f"{kit.certificate.ends:%Y-%m-%d}",
        "root_fingerprint": kit.roots[0].fingerprint,
    }


def _confirm_root(root: "Root") -> None:
    facts = {"consortium": root.consortium, "root_fingerprint": root.fingerprint}
    confirm(facts, "Do the coordinator's people, by phone, read out the same fingerprint?")


def _show(chosen: argparse.Namespace) -> Mapping[str, Any]:
    return _one_or_all([ledger.to_report() for ledger in _ledgers(chosen.directory)])


def _export(chosen: argparse.Namespace) -> Mapping[str, Any]:
    return _one_or_all([ledger.export() for ledger in _ledgers(chosen.directory)])


def _lines(result: Mapping[str, Any]) -> str:
    """As the files have them."""
    import rfc8785

    entries = (entry for ledger in result.get("ledgers", [result]) for entry in ledger["entries"])
    return "\n".join(rfc8785.dumps(entry).decode() for entry in entries)


def _verify(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.site import Site

    site = Site.open(chosen.directory)
    try:
        ledgers = site.read_ledgers()
    except FederationError as error:
        raise NotVerified(error.message, str(chosen.directory / "ledgers")) from error
    if not ledgers:
        raise NotVerified("there is no ledger", str(chosen.directory / "ledgers"))
    subject = ", ".join(f"{ledger.data_set}: {ledger.head.hex()}" for ledger in ledgers)
    return {"verified": True, "subject": subject, "signer": site.name}


def _verdict(result: Mapping[str, Any]) -> str:
    return f"verified: {result['subject']}, every entry signed by {result['signer']}"


def _remaining(chosen: argparse.Namespace) -> Mapping[str, Any]:
    return _one_or_all(
        [
            {
                "site": ledger.site,
                "data_set": ledger.data_set,
                "remaining_epsilon": ledger.remaining_epsilon,
                "budget_epsilon": ledger.budget.epsilon,
                "delta": ledger.budget.delta,
            }
            for ledger in _ledgers(chosen.directory)
        ]
    )


def _plan(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """Raises BudgetExceeded when the policy's budget cannot bear the plan."""
    from client.dry_run import priced, read_plan
    from client.pricing import over_budget

    site = _site(chosen.directory)
    sites = chosen.sites or len(site.roster.sites)
    plan, cost = priced(site, read_plan(chosen.federation), sites)
    for error in over_budget(site.policy, cost):
        raise error
    return {
        "data_set": site.settings.data.name,
        "fits": True,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "rounds": plan.last_round,
        "sites": sites,
        "epsilon_of_plan": cost.of_run,
        "epsilon_before": cost.before,
        "epsilon_after": cost.reserved,
        "budget_epsilon": site.policy.epsilon,
        "delta": site.policy.delta,
    }


def _check(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """Raises NotReady with all that is wrong, or, about a plan, Declined with every reason."""
    if chosen.order:
        from client.dry_run import dry_run, read_plan

        site = _site(chosen.directory)
        answer = dry_run(site, read_plan(chosen.order), chosen.sites or len(site.roster.sites)).to_report()
        if not answer["agreed"]:
            raise Declined(f"this site would refuse the plan: {answer['reasons'][0]}", answer, _show_check(answer))
        return answer
    if chosen.sites:
        raise ConfigError("--sites is about a plan", "give it with --order FEDERATION.toml")
    from client.check import check

    answer = check(chosen.directory, datetime.now(UTC)).to_report()
    if answer["problems"]:
        raise NotReady(
            f"{len(answer['problems'])} problems keep this site from taking part", answer, _show_check(answer)
        )
    return answer


def _drift(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.drift import compare, keep

    site = _site(chosen.directory)
    return keep(site, datetime.now(UTC).isoformat(timespec="seconds")) if chosen.keep else compare(site)


def _show_drift(answer: Mapping[str, Any]) -> str:
    rows = [
        f"{kind} {row[kind]}: shift {row['shift']:.3f}, p {row['p']:.2g}"
        for key, kind in (("moved", "column"), ("outputs", "class"))
        for row in answer.get(key, ())
    ]
    return "\n".join([show_fields({k: v for k, v in answer.items() if k not in ("moved", "outputs")}), *rows])


_LISTS = {
    "agrees_to": "it would agree to",
    "problems": "PROBLEM",
    "notes": "note",
    "reasons": "it would refuse",
}


def _show_check(answer: Mapping[str, Any]) -> str:
    facts = show_fields({key: value for key, value in answer.items() if key not in _LISTS})
    return "\n".join(
        [facts, *(printable(f"{word}: {line}") for key, word in _LISTS.items() for line in answer.get(key, ()))]
    )


def _approve(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.approvals import decide, waiting

    site = _site(chosen.directory)
    if chosen.list:
        return {"site": site.name, "runs": [_about(ask, state) for ask, state in waiting(site)]}
    return {"site": site.name, "runs": [_about(decide(site, chosen.run, agreed=True), "approved")]}


def _deny(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.approvals import decide

    site = _site(chosen.directory)
    return {"site": site.name, "runs": [_about(decide(site, chosen.run, agreed=False), "denied")]}


def _about(ask: "Ask", state: str) -> dict[str, Any]:
    plan = ask.plan
    return {
        "run": ask.run,
        "state": state,
        "asked": ask.asked,
        "name": plan.federation.name,
        "cohort": list(ask.cohort),
        "rounds": plan.last_round,
        "model": plan.model.factory,
        "privacy": plan.privacy.mode,
        "encryption": plan.encryption.preset,
        "reveal": plan.federation.reveal,
        "epsilon_of_run": ask.cost.of_run,
        "epsilon_before": ask.cost.before,
        "epsilon_after": ask.cost.after,
        "plan_hash": ask.plan_hash,
    }


def _show_approvals(result: Mapping[str, Any]) -> str:
    return "\n\n".join(map(show_fields, result["runs"])) or f"no run waits for {printable(result['site'])}"


def _site(directory: Path) -> "Site":
    from client.site import Site

    return Site.open(directory)


def _ledgers(directory: Path) -> "list[Ledger]":
    ledgers = _site(directory).read_ledgers()
    if not ledgers:
        raise ConfigError(f"{directory} holds no ledger", "give a site's directory, e.g. OUT/sites/NAME")
    return ledgers


def _one_or_all(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    return rows[0] if len(rows) == 1 else {"ledgers": rows}


def _told(result: Mapping[str, Any]) -> str:
    return "\n\n".join(show_fields(row) for row in result.get("ledgers", [result]))


def _evaluate(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.evaluation import evaluate_run
    from client.site import Site

    findings = evaluate_run(Site.open(chosen.directory), chosen.run)
    return {
        "rows": [row for each in findings for row in each.rows],
        "remarks": {each.evaluator: list(each.remarks) for each in findings},
    }


def _show_evaluation(result: Mapping[str, Any]) -> str:
    remarks = [f"{name}: {remark}" for name, said in result["remarks"].items() for remark in said]
    return "\n".join([show_rows(result), *remarks])


def _lock(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.lock import lock

    changed = lock(chosen.directory, chosen.passphrase_file)
    return {"directory": str(chosen.directory), "locked": True, "files_changed": changed}


def _unlock(chosen: argparse.Namespace) -> Mapping[str, Any]:
    from client.lock import unlock

    return {"directory": str(chosen.directory), "locked": False, "files_changed": unlock(chosen.directory)}


def _show_lock(result: Mapping[str, Any]) -> str:
    state = "locked" if result["locked"] else "unlocked"
    return f"{result['directory']} is {state}: {result['files_changed']} key files were rewritten"
