"""What the same records give without the federation: all in one place, with noise or without, or each site alone.

Straight loops over the same training code. They play no protocol and charge no ledger; a report shows them as
what a simulation may know and a real consortium would not.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from client.datasets import Records
from client.train import train
from common.dp.cost import noise_share, noise_shares
from common.evaluators.utility import log_loss
from common.fair_update import step, weighted
from common.federation import Plan, require
from common.model_state import ModelState, advance
from common.models import build, load_parameters, parameters_of, predict
from common.randomness import Randomness
from common.updates import Vector, clip
from server.aggregate_clear import mean


def non_private(plan: Plan, sites: list[Records]) -> ModelState:
    """The federation's model had every site sent its update without clipping, noise or encryption."""
    return _rounds(replace(plan, privacy=replace(plan.privacy, mode="none")), sites)


def central(plan: Plan, sites: list[Records]) -> ModelState:
    """A trusted centre's model, had it been given all records: central DP, what noise in shares is measured by.

    It draws every record with the same chance, in lots as large as all sites' together, and takes as many steps with
    the same noise multiplier; so a record loses what one loses in the plan's run when every site is summed in every
    round. Where whole sites are protected the centre is another mechanism. Raises ConfigError for that mode.
    """
    require(plan.privacy.mode in ("local", "distributed"), "privacy.mode", plan.privacy.mode, "local, distributed")
    # What never travels needs no bound.
    privacy = replace(plan.privacy, mode="local", max_update_norm=sys.float_info.max)
    training = replace(plan.training, lot_size=plan.training.lot_size * len(sites))
    return _rounds(replace(plan, privacy=privacy, training=training), [pooled(sites)])


def alone(plan: Plan, site: Records) -> ModelState:
    """One site's model, trained alone with the same steps, the same noise and so the same budget.

    Nobody shares the noise of a site alone: with `distributed` it adds all of it itself. Where whole sites are what is
    protected, one alone has no model to give. Raises ConfigError for that mode.
    """
    require(
        plan.privacy.mode != "site", "privacy.mode", plan.privacy.mode, "local, distributed, none, for a site alone"
    )
    mode: Literal["local", "none"] = "none" if plan.privacy.mode == "none" else "local"
    return _rounds(replace(plan, privacy=replace(plan.privacy, mode=mode)), [site])


def together(plan: Plan, sites: list[Records]) -> ModelState:
    """What the run itself gives when every site is summed in every round, up to the rounding to integers.

    Shares of noise add up to a little more than a centre's noise: that of the colluding is not counted on.
    """
    if plan.privacy.mode != "distributed":
        return _rounds(plan, sites)
    noise = noise_shares(plan, len(sites)).share(plan.privacy.noise_multiplier) * math.sqrt(len(sites))
    return central(replace(plan, privacy=replace(plan.privacy, noise_multiplier=noise)), sites)


def pooled(parts: Sequence[Records]) -> Records:
    """All records in one place, as only a simulation can have them; with the groups that every site knows."""
    known = set.intersection(*(set(part.groups) for part in parts))
    return Records(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: np.concatenate([part.groups[name] for part in parts]) for name in sorted(known)},
    )


@dataclass(frozen=True, eq=False)
class Played:
    """One round: the state before it, and what each site would send, before it is made integers."""

    before: ModelState
    updates: tuple[Vector, ...]

    def after(self, plan: Plan, sites: Sequence[int]) -> ModelState:
        """The state when these sites, by their places, are summed."""
        average = mean([self.updates[place] for place in sites])
        average = step(average) if plan.training.q else average
        return advance(self.before, average, plan.training, plan.federation.rounds)


def played(plan: Plan, sites: Sequence[Records]) -> Iterator[Played]:
    """Round after round of the plan with every site summed, in a straight loop; noise that comes in shares as well."""
    network, randomness, share = build(plan.model), Randomness.from_os(), noise_share(plan, len(sites))
    state = ModelState.initial(parameters_of(network))
    private, q = plan.privacy.mode != "none", plan.training.q
    for number in range(1, plan.federation.rounds + 1):
        updates = []
        for records in sites:
            load_parameters(network, state.model)
            loss = log_loss(predict(network, records.features), records.labels).value if q else 0.0
            trained = train(
                network,
                records.features,
                records.labels,
                plan.training,
                plan.privacy,
                plan.privacy.noise_multiplier,
                randomness,
                number,
                plan.federation.rounds,
            )
            update = clip(trained.update, plan.privacy.max_update_norm).values if private else trained.update
            if q:
                update = weighted(update, loss, q, plan.training.learning_rate)
            noise = randomness.gaussian(update.size, share, np.float64) if share else 0.0
            updates.append((update + noise).astype("float32"))
        this = Played(state, tuple(updates))
        yield this
        state = this.after(plan, range(len(updates)))


def _rounds(plan: Plan, sites: Sequence[Records]) -> ModelState:
    *_, last = played(plan, sites)
    return last.after(plan, range(len(sites)))
