"""What a site does when asked, top to bottom: join a run, train a round, apply the sum, release.

Every function takes the site and a verified order and returns what may leave. The order of the lines in
`run_local_round` is the privacy argument: the ledger is charged on disk before anything is sealed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from client import masking
from client.consent import require_budget, require_consent
from client.datasets import Records
from client.device import devices_named
from client.limits import cpu_allowance
from client.opening import open_published
from client.policy import consent, require_names, size_objection
from client.pricing import unpaid_rounds
from client.runs import SiteRun, signed_answer
from client.site import Site
from client.train import Trained, train
from common.buckets import Buckets, filled, require_room
from common.config import fill
from common.dp.cost import noise_shares, planned_events, round_events
from common.dp.events import DpEvent
from common.encoding import Encoding, public_scale
from common.errors import InvalidUpdate, PrivacyError, ProtocolError, TrustError, UnknownEvent, WrongRound
from common.evaluators import importance
from common.evaluators.counts import Counts, tally
from common.evaluators.utility import log_loss
from common.fair_update import weighted
from common.federation import ModelSettings, Plan
from common.he.packing import Integers
from common.he.parameters import choose_scheme
from common.he.scheme import encrypt
from common.he.series import Joined, Series
from common.layout import CountKind, group_cells, longest
from common.masking import Published
from common.metrics import MetricsCode
from common.model_state import ModelState, advance
from common.models import build, layer_sizes, load_parameters, parameters_of, predict
from common.robust_update import RobustUpdate, robust_update
from common.spans import span
from common.updates import clip
from common.wire import Envelope, Kind, digest, encode, from_json, names, plan_hash, table

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class SealedUpdate:
    """What leaves the site in a round. The seconds are public: a coordinator sees when answers come anyway."""

    data: bytes
    train_seconds: float
    encrypt_seconds: float
    epsilon: float


@dataclass(frozen=True)
class Applied:
    """sites: those of the sum that was opened now; () when it had been applied before."""

    data: bytes
    open_seconds: float
    sites: tuple[str, ...]


def join(site: Site, order: Envelope) -> bytes:
    """Order {plan, cohort} -> answer {round, model_hash, epoch, exchange}; or the site's own refusal.

    Refuses, before anything of the run is on disk, when the policy, the ledger or the administrator cannot bear all of
    it.
    """
    body = from_json(order.body)
    plan, cohort = fill(Plan, table(body, "plan")), tuple(sorted(names(body, "cohort")))
    if plan_hash(plan) != order.plan:
        raise ProtocolError("the plan is not the one whose hash the order carries")
    known = {*site.roster.sites, *(site.roster.revoked if SiteRun.has_begun(site, order.run) else ())}
    if site.name not in cohort or not set(cohort) <= known or len(set(cohort)) != len(cohort):
        raise TrustError("the cohort lists sites that are not on the roster, or one twice, or leaves this one out")
    records, held_out = site.training_records, site.held_out_records
    consent(site.policy, plan, cohort, len(records))
    require_room(plan, len(cohort))
    devices_named(site.settings.devices)
    if plan.privacy.in_shares:
        noise_shares(plan, len(cohort))
    require_names(site.policy, plan, records)
    largest_label = max(records.labels.max(), held_out.labels.max(initial=0))
    if records.features.shape[1:] != plan.model.inputs or largest_label >= plan.model.classes:
        raise ProtocolError("the plan's model.inputs or model.classes do not fit this site's records")
    network = build(plan.model)
    public_scale(plan, layer_sizes(network))
    initial = ModelState.initial(parameters_of(network))
    if too_large := size_objection(site.policy, initial.model.size):
        raise too_large
    _require_noise_that_fits(plan, order.run, len(cohort), layer_sizes(network))
    _require_budget_for_rest(site, order.run, plan, len(cohort))
    require_consent(site, order.run.hex(), plan, cohort)
    run = SiteRun.create(site, order.run, plan, cohort, initial)
    run.destroy_keys()
    return _position(site, run, run.announcement(run.due_epoch))


def offer_masks(site: Site, order: Envelope) -> bytes:
    """Order for the coming round -> this site's offer and its packages for the peers."""
    run = joined(site, order)
    if order.round_number != run.version().round_number + 1:
        raise WrongRound(f"round {order.round_number} is not the next one of this site")
    return signed_answer(site, run, order.round_number, masking.offer(site, run, order.round_number))


def run_local_round(site: Site, order: Envelope) -> SealedUpdate:
    """offers -> records -> DP training -> charge -> clip, encode -> mask -> encrypt -> seal -> on disk -> out."""
    run = joined(site, order)
    state, number = run.state(), order.round_number
    if kept := _kept(site, run, number):
        return kept
    if number != state.round_number + 1:
        raise WrongRound(f"asked to train round {number}, this site has applied {state.round_number}")
    _refuse_second_release(site, run, number)
    if from_json(order.body).get("model_hash") != state.model_hash.hex():
        raise TrustError("the coordinator expects another model than the one this site holds")
    masking.accept_offers(site, run, order)
    bill = round_events(run.plan, number, len(run.cohort), run.plan.smallest_sum(len(run.cohort)))
    _require_budget(site, run, number, bill)
    parts: list[Series] = []
    seconds = encrypt_seconds = 0.0
    if run.plan.trains(number):
        trained = train_and_charge(site, run, number, state.model, bill)
        seconds, started = trained.seconds, time.perf_counter()
        clipped = clip(trained.update, run.plan.privacy.max_update_norm)
        parts.append(_encoding(run, number).stream(clipped, site.randomness("rounding", number)))
        encrypt_seconds = time.perf_counter() - started
    if run.plan.measures(number):
        parts.append(count_and_charge(site, run, number, state, bill))
    started = time.perf_counter()
    values = parts[0] if len(parts) == 1 else Joined(parts)
    masks = masking.mask(site, run, number, len(values))
    with span("encrypt"):
        body = encrypt(values, run.cohort_key(run.plan.encryption.epoch_of(number)), masks).encode(state.model_hash)
        data = encode(Envelope(Kind.UPDATE, run.run, number, run.plan_hash, site.name, body), site.identity)
    run.keep_sealed_update(number, data)
    _mark_sealed(site, run, number, data)
    return SealedUpdate(data, seconds, encrypt_seconds + time.perf_counter() - started, spent(site, run))


def run_readable_round(site: Site, order: Envelope) -> SealedUpdate:
    """The same round without encryption, for baselines: the coordinator holds the model and reads the update."""
    run, number = joined(site, order), order.round_number
    if run.plan.encryption.preset != "none":
        raise ProtocolError("the plan encrypts updates; a readable one is never sent")
    if number < 1 or not run.plan.trains(number):
        raise WrongRound(f"round {number} of a plan that trains in rounds 1 to {run.plan.federation.rounds}")
    private = run.plan.privacy.mode != "none"
    if private and (kept := _kept(site, run, number)):
        return kept
    _refuse_second_release(site, run, number)
    if len(order.body) % 4:
        raise InvalidUpdate("the model in the order is no vector of float32")
    model = np.frombuffer(order.body, "<f4")
    bill = round_events(run.plan, number, len(run.cohort), len(run.cohort))
    _require_budget(site, run, number, bill)
    trained = train_and_charge(site, run, number, model, bill)
    update = clip(trained.update, run.plan.privacy.max_update_norm).values if private else trained.update
    if q := run.plan.training.q:
        loss = log_loss(_predicted(site, run, model, site.training_records), site.training_records.labels).value
        update = weighted(update, loss, q, run.plan.training.learning_rate)
    envelope = Envelope(Kind.READABLE_UPDATE, run.run, number, run.plan_hash, site.name, update.astype("<f4").tobytes())
    data = encode(envelope)
    if private:
        run.keep_sealed_update(number, data)
        _mark_sealed(site, run, number, data)
    return SealedUpdate(data, trained.seconds, 0.0, spent(site, run))


Bill = Mapping[str, tuple[DpEvent, ...]]


def train_and_charge(site: Site, run: SiteRun, number: int, model: np.ndarray, bill: Bill) -> Trained:
    """One round of local training, paid for on disk before it is returned.

    bill: what the round costs, by purpose; with noise in shares, at most. A round that is in the ledger has been paid
    but never left this site (else its sealed update would be there): it is trained again at no further charge.
    """
    plan, records = run.plan, site.training_records
    trained = train(
        _loaded(site, run, model),
        records.features,
        records.labels,
        plan.training,
        plan.privacy,
        plan.privacy.noise_multiplier,
        site.randomness("train", number),
        number,
        plan.federation.rounds,
        cpu_allowance(site.policy.resources),
        site.settings.precision == "bfloat16",
        devices_named(site.settings.devices)[1:],
    )
    _charge(site, run, number, bill, plan.training_purpose)
    return trained


def count_and_charge(site: Site, run: SiteRun, number: int, state: ModelState, bill: Bill) -> Integers:
    """How the model does on this site's held-out records: noised counts, paid for on disk before they are returned."""
    plan, records, layout = run.plan, site.held_out_records, run.layout(number)
    probabilities = _predicted(site, run, state.released, records)
    counted: dict[CountKind, Counts] = {"counts": tally(probabilities, records.labels)}
    if cells := group_cells(plan):
        counted["groups"] = cells.tally(probabilities, records.labels, records.groups)
    if layout.importance:
        counted["importance"] = _importance(site, run, number, state.released)
    normal = site.randomness("metrics", number).gaussian(layout.counted, 1.0, np.float64)
    _charge(site, run, number, bill, "metrics")
    codes = run.metrics_codes(number)
    return np.concatenate([codes[kind].encode(counted[kind], normal[place]) for kind, place in layout.kinds.items()])


def apply_aggregate(site: Site, order: Envelope) -> Applied:
    """Aggregate -> opened, applied -> answer {round, model hash, counts in it, broken buckets}."""
    run = joined(site, order)
    state = run.state()
    seconds, sites = 0.0, ()
    number = order.round_number
    if number == state.round_number + 1:
        published = Published.decode(order.body)
        masking.require_list(site, run, number, published.sites)
        summed = filled(run.buckets(number), published.sites)
        started = time.perf_counter()
        masks = masking.masks_in(site, run, order, published, summed)
        layout, key = run.layout(number), run.cohort_key(run.plan.encryption.epoch_of(number))
        _settle(site, run, number, summed)
        totals = open_published(published, summed, layout.length, key, masks)
        if layout.counts:
            run.keep_counts(number, np.sum([total[layout.update :] for total in totals], axis=0))
        if layout.update:
            found = _robust_update(run, number, summed, [total[: layout.update] for total in totals])
            seconds = time.perf_counter() - started
            if found.broken:
                run.keep_broken_buckets(number, found.broken)
            state = advance(state, found.values, run.plan.training, run.plan.federation.rounds)
        else:
            state = replace(state, round_number=number)
        run.keep_state(state)
        sites = published.sites
    elif number != state.round_number:
        raise WrongRound(f"the aggregate is of round {number}, this site has applied {state.round_number}")
    masking.forget(run, number)
    run.destroy_keys()
    said = {"counts": run.counts(number) if "metrics" in reported(site, run) else []}
    said["broken"] = run.broken_buckets(number)
    return Applied(_position(site, run, {key: numbers for key, numbers in said.items() if numbers}), seconds, sites)


def release(site: Site, order: Envelope) -> bytes:
    """The model, signed, when the plan says that the coordinator may have it."""
    run = joined(site, order)
    state, plan = run.state(), run.plan.federation
    if plan.reveal == "never" or (plan.reveal == "final" and state.round_number != run.plan.last_round):
        raise ProtocolError(f"the plan does not reveal the model now (federation.reveal = {plan.reveal!r})")
    body = state.released.astype("<f4").tobytes()
    envelope = Envelope(Kind.RELEASE, run.run, state.round_number, run.plan_hash, site.name, body)
    return encode(envelope, site.identity)


def spent(site: Site, run: SiteRun) -> float:
    """What the data set has lost by now, at the delta of the site's own policy; 0 in a run without privacy."""
    return site.ledger.epsilon if run.plan.privacy.mode != "none" else 0.0


def reported(site: Site, run: SiteRun) -> tuple[str, ...]:
    """The numbers that leave readable: those that the plan asks for and this site's policy lets go."""
    return tuple(name for name in run.plan.federation.public if name in site.policy.reports)


def joined(site: Site, order: Envelope) -> SiteRun:
    """The run that the order belongs to. Raises ProtocolError or TrustError when this site has not agreed to it."""
    run = SiteRun.open(site.directory / "runs", order.run, site.at_rest)
    if order.plan != run.plan_hash:
        raise TrustError("the order carries another plan than the one this site joined")
    if order.round_number > run.plan.last_round:
        raise WrongRound(f"round {order.round_number} of a plan for {run.plan.last_round} rounds")
    return run


@lru_cache(maxsize=4)
def _network(settings: ModelSettings, device: str = "cpu") -> "nn.Module":
    """One module per process, architecture and device; its parameters are overwritten before every use."""
    return build(settings).to(device)


def _predicted(site: Site, run: SiteRun, model: np.ndarray, records: Records) -> np.ndarray:
    """(n, classes): the probabilities that a model gives."""
    return predict(_loaded(site, run, model), records.features)


def _importance(site: Site, run: SiteRun, number: int, model: np.ndarray) -> Counts:
    """What features do for this site's held-out records, which take their values from its training records."""
    held_out, training = site.held_out_records, site.training_records
    coins = site.randomness("importance", number)
    takers, givers = importance.paired(coins.uniform(len(held_out)), coins.uniform(len(training)))
    network = _loaded(site, run, model)
    return importance.tally(
        lambda features: predict(network, features),
        held_out.features[takers],
        held_out.labels[takers],
        training.features[givers],
        [training.columns[name] for name in run.plan.metrics.importance],
    )


def _loaded(site: Site, run: SiteRun, model: np.ndarray) -> "nn.Module":
    """The network with these parameters, on the first of the devices that this site computes on."""
    network = _network(run.plan.model, str(devices_named(site.settings.devices)[0]))
    load_parameters(network, model)
    return network


def _position(site: Site, run: SiteRun, more: Mapping[str, Any] = {}) -> bytes:
    """Where this site stands: the round that it has applied, and the model that this gave."""
    version = run.version()
    body = {"round": version.round_number, "model_hash": version.model_hash.hex(), **more}
    return signed_answer(site, run, version.round_number, body)


def _encoding(run: SiteRun, number: int) -> Encoding:
    layers = layer_sizes(_network(run.plan.model))
    return Encoding.of(run.plan, run.run, number, run.scheme.value_bits, layers, len(run.cohort))


def _robust_update(run: SiteRun, number: int, summed: Buckets, totals: Sequence[Integers]) -> RobustUpdate:
    """What the plan's rule makes of the opened sums; of one sum, its mean."""
    encoding, max_norm = _encoding(run, number), run.plan.privacy.max_update_norm
    means = [encoding.decode(total) / len(bucket) for bucket, total in zip(summed, totals, strict=True)]
    if not run.plan.robustness.buckets:
        return RobustUpdate(means[0], ())
    longest = [encoding.longest_mean(max_norm, len(means[0]), len(bucket)) for bucket in summed]
    return robust_update(means, longest, run.plan.robustness)


def _require_noise_that_fits(plan: Plan, run: bytes, cohort: int, layers: Sequence[int]) -> None:
    """Raises ConfigError when noise would be too small for the integers that carry it."""
    if plan.encryption.preset != "none":
        scheme = choose_scheme(plan.encryption.preset, cohort, longest(plan, sum(layers)))
        Encoding.of(plan, run, 1, scheme.value_bits, layers, cohort)
        for number in (min(plan.metrics.every + 1, plan.last_round), plan.last_round):
            MetricsCode.of(plan, cohort, scheme.value_bits, number)


def _require_budget_for_rest(site: Site, run: bytes, plan: Plan, cohort: int) -> None:
    """Before a run is joined, or joined again: that all rounds which this site has not applied yet can be paid for."""
    if plan.privacy.mode != "none":
        unpaid = unpaid_rounds(site.ledger.entries, run.hex(), plan, cohort, SiteRun.applied(site, run))
        if events := planned_events(plan, cohort, unpaid):
            require_budget(site, run.hex(), events)


def _require_budget(site: Site, run: SiteRun, number: int, bill: Bill) -> None:
    """Before any work is done for it: that what is not yet paid of the round's bill can be."""
    unpaid = [event for purpose, events in bill.items() if not _paid(site, run, number, purpose) for event in events]
    if unpaid:
        require_budget(site, run.run.hex(), unpaid)


@span("charge")
def _charge(site: Site, run: SiteRun, number: int, bill: Bill, purpose: str) -> None:
    if run.plan.privacy.mode == "none":
        return
    if purpose not in bill:
        raise UnknownEvent(f"nobody has said what {purpose} of round {number} costs")
    if not _paid(site, run, number, purpose):
        privacy = run.plan.privacy
        premise = str(noise_shares(run.plan, len(run.cohort))) if privacy.in_shares else ""
        site.ledger.charge(run.run.hex(), number, bill[purpose], purpose, premise)


def _settle(site: Site, run: SiteRun, number: int, summed: Buckets) -> None:
    """Now that enough sites have signed the one list there is: what was reserved is paid for the sum this site is in.

    A site that is in none stays charged for the worst: its update may still turn up somewhere.
    """
    mine = [len(bucket) for bucket in summed if site.name in bucket]
    if run.plan.privacy.in_shares and mine:
        for purpose, events in round_events(run.plan, number, len(run.cohort), *mine).items():
            site.ledger.settle(run.run.hex(), number, events, purpose)


def _kept(site: Site, run: SiteRun, number: int) -> SealedUpdate | None:
    """What this site has sealed in that round, if it has: the same bytes again."""
    kept = run.sealed_update(number)
    if kept is None:
        return None
    _mark_sealed(site, run, number, kept)
    return SealedUpdate(kept, 0.0, 0.0, spent(site, run))


def _refuse_second_release(site: Site, run: SiteRun, number: int) -> None:
    """Raises PrivacyError when the ledger knows of an update that is not here any more: another would be free."""
    if run.plan.privacy.mode != "none" and site.ledger.sealed(run.run.hex(), number):
        raise PrivacyError(f"round {number} has left this site once, and what was sent is no longer here")


def _mark_sealed(site: Site, run: SiteRun, number: int, data: bytes) -> None:
    """In the ledger before it is sent, as the run's directory may be lost or put back to an older state."""
    if run.plan.privacy.mode != "none":
        site.ledger.seal(run.run.hex(), number, digest(data).hex())


def _paid(site: Site, run: SiteRun, number: int, purpose: str) -> bool:
    return site.ledger.charged(run.run.hex(), number, purpose)
