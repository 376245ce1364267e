"""Coordinators that are curious, that have a friend among the sites, or that lie with their own true key."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from client.runs import SiteRun
from common.config import fill, to_table
from common.errors import FederationError
from common.federation import Plan
from common.he.ciphertexts import Aggregate, Ciphertext
from common.he.scheme import expand_seeds
from common.signing import Identity
from common.wire import Kind, plan_hash
from scenarios import pictures
from scenarios.by_hand import Coordinator, restart
from scenarios.plays.spying import Overheard, likeness, with_key_and_mask, with_the_key
from scenarios.simulate import simulate
from scenarios.stage import Picture, Played, Stage, Table


def curious(stage: Stage) -> Played:
    """It does all that it should, keeps every byte, and takes them for numbers; the truth is a readable twin run."""
    fixed = ("simulation.insecure_randomness=7",)
    readable, sealed = stage.set_up("readable", "encryption.preset=none", *fixed), stage.set_up("sealed", *fixed)
    truth, heard = Overheard(readable), Overheard(sealed)
    simulate(readable, deliver=truth)
    report = simulate(sealed, deliver=heard)
    keys = sorted(truth.updates)
    true = {key: truth.guessed(*key, 0) for key in keys}
    told = {key: heard.guessed(*key, len(true[key])) for key in keys}
    joined, guess = (np.concatenate([_even(each[key]) for key in keys]) for each in (true, told))
    again = np.concatenate([_even(truth.guessed(*key, 0)) for key in keys])
    figures = {
        "likeness": likeness(guess, joined),
        "readable_likeness": likeness(again, joined),
        "byte_surprise": heard.byte_surprise(),
        "updates_heard": float(len(heard.updates)),
    }
    compared = {"readable update": figures["readable_likeness"], "what travels encrypted": figures["likeness"]}
    alt = "; ".join(f"{name}: correlation {value:.2f}" for name, value in compared.items())
    shown = [
        heard.histogram(),
        Picture("Likeness to the true updates", pictures.bars(compared, "correlation", alt)),
    ]
    return Played(figures, shown, facts={"sites": report["sites"], "numbers": len(joined)})


def colluding(stage: Stage) -> Played:
    """A site with the cohort's key is given the ciphertexts of the others, and both ask for what lifts the masks."""
    played = Coordinator.prepared(stage.set_up("run"))
    insider, *others = played.names
    made = played.offers(1)
    updates = played.train(1, made)
    run = SiteRun.open(played.directories[insider] / "runs", played.store.run)
    opened, true = [], []
    for name in others:
        body = bytes(played.read(updates[name]).body)
        own = SiteRun.open(played.directories[name] / "runs", played.store.run)
        opened.append(_even(with_the_key(run, 1, body)))
        true.append(_even(with_key_and_mask(played.site(name), own, 1, body)))
    rows, lifted, aside = [], 0, played.copy(stage.out / "aside")
    for name in others:
        pair = sorted((insider, name))
        wanted = aside.wanted(pair, aside.total(updates[each] for each in pair))
        done, said = _asked(partial(aside.refused, name, "agree", 1, wanted))
        lifted += done
        rows.append((f"{name}, to agree on the sum of itself and {insider}", said))
    restart()
    total = played.total(updates.values())
    played.apply(1, played.publish(1, made, played.names, total))
    figures = {
        "likeness": likeness(np.concatenate(opened), np.concatenate(true)),
        "lifted": float(lifted),
        "sum_opens": float(run.version().round_number == 1),
    }
    samples = {"with the key": np.concatenate(opened), "and the site's own mask": np.concatenate(true)}
    alt = "Values of updates as the colluding site decrypts them, and as they are behind their masks"
    return Played(
        figures,
        [Picture("Under the masks", pictures.histograms(samples, "value, in its own deviations", alt))],
        [Table("What the others were asked for", ("who was asked", "answer"), tuple(rows))],
        [f"{insider} is the one that colludes; it holds the key under which all updates are encrypted."],
    )


def malicious(stage: Stage) -> Played:
    """Every order is signed with its true key. What the sites do as asked is counted."""
    played = Coordinator.prepared(stage.set_up("run"))
    first, second, *_, last = played.names
    tried: list[tuple[str, int, str]] = []

    def attempt(what: str, asked: Callable[[], tuple[str, str]]) -> None:
        tried.append((what, *_asked(asked)))

    changed = to_table(replace(played.store.plan.privacy, epsilon=100.0, noise_multiplier=0.05))
    body = played.join_order(privacy=changed)
    other = plan_hash(fill(Plan, body["plan"]))
    attempt("joins sites to a plan with hardly any noise", lambda: played.refused(first, "join", 0, body, plan=other))
    forged = Identity.generate()
    attempt("signs an order with another key", lambda: played.refused(first, "offer", 1, identity=forged))
    attempt("skips a round", lambda: played.refused(first, "offer", 2))
    opened = played.whole_round(1)
    made = played.offers(2)
    led = {**played.training(first, made), "model_hash": "00" * 32}
    attempt("has a site train another model", lambda: played.refused(first, "train", 2, led))
    updates = played.train(2, made)
    total = played.total(updates.values())
    lists = {
        "opens the update of one site as a sum": (first, played.wanted([first], played.total([updates[first]]))),
        "puts a stranger on the list": (first, played.wanted([*played.names, "zz-mallory"], total)),
        "leaves out a site that has sent": (last, played.wanted(played.names[:-1], total)),
    }
    for what, (site, wanted) in lists.items():  # each in a federation of its own, lest one attack stops the next
        aside = played.copy(stage.out / f"aside-{len(tried)}")
        attempt(what, partial(aside.refused, site, "agree", 2, wanted))
    every = played.wanted(played.names, total)
    aside = played.copy(stage.out / "unmask")
    bare = {**every, "agreed": []}
    attempt("asks for masks that nobody agreed to lift", partial(aside.refused, first, "unmask", 2, bare))
    aside = played.copy(stage.out / "again")
    old = opened.encode()
    attempt("shows an earlier sum again", partial(aside.refused, first, "apply", 2, old, kind=Kind.AGGREGATE))
    aside = played.copy(stage.out / "second-list")
    aside.agree(2, every, [first])
    fewer = played.wanted(played.names[:-1], total)
    attempt("asks for a second list in the same round", partial(aside.refused, first, "agree", 2, fewer))
    aside = played.copy(stage.out / "unseen")
    alone = _as_many(aside, first, bytes(played.read(updates[first]).body), len(played.names))
    shown = aside.publish(2, made, aside.names, alone).encode()
    attempt(
        "has all agree, unseen, on a sum that is one site's",
        partial(aside.refused, second, "apply", 2, shown, kind=Kind.AGGREGATE),
    )
    figures = {"done_as_asked": float(sum(done for _, done, _ in tried)), "attacks": float(len(tried))}
    rows = tuple((what, said) for what, _, said in tried)
    notes = ["Each refusal is signed by the site, and written in its audit log word for word."]
    return Played(figures, [], [Table("What it tries", ("the coordinator", "the site answers"), rows)], notes)


def _asked(refused: Callable[[], tuple[str, str]]) -> tuple[int, str]:
    """Whether the site did as it was asked, and what it said."""
    try:
        code, message = refused()
    except FederationError as error:
        return 1, f"done: {error.message}"
    return 0, f"{code}: {message}"


def _as_many(played: Coordinator, name: str, body: bytes, sites: int) -> bytes:
    """One site's ciphertext, dressed as the sum of `sites`."""
    sent = Ciphertext.decode(played.scheme, played.length, body[32:])
    c1 = b"".join(expand_seeds(played.scheme, [bytes(sent.seeds)]))
    return Aggregate(played.scheme, played.length, sites, sent.c0, c1=c1).encode()


def _even(values: np.ndarray) -> np.ndarray:
    """Centred and scaled, so that no update outweighs another."""
    return np.asarray((values - values.mean()) / (values.std() or 1.0))
