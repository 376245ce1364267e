"""What the same records give without the federation: all sites together in the clear, and each site on its own.

Straight loops over the same training code. They play no protocol and charge no ledger; a report shows them as
what a simulation may know and a real consortium would not.
"""

from dataclasses import replace
from typing import Literal

from client.datasets import Records
from client.train import train
from common.federation import Plan, require
from common.model_state import ModelState, advance
from common.models import build, load_parameters, parameters_of
from common.randomness import Randomness
from common.updates import clip
from server.aggregate_clear import mean


def non_private(plan: Plan, sites: list[Records]) -> ModelState:
    """The federation's model had every site sent its update without clipping, noise or encryption."""
    return _rounds(replace(plan, privacy=replace(plan.privacy, mode="none")), sites)


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


def _rounds(plan: Plan, sites: list[Records]) -> ModelState:
    network = build(plan.model)
    state = ModelState.initial(parameters_of(network))
    private = plan.privacy.mode != "none"
    for number in range(1, plan.federation.rounds + 1):
        updates = []
        for records in sites:
            load_parameters(network, state.model)
            trained = train(
                network,
                records.features,
                records.labels,
                plan.training,
                plan.privacy,
                plan.privacy.noise_multiplier,
                Randomness.from_os(),
                number,
                plan.federation.rounds,
            )
            update = clip(trained.update, plan.privacy.max_update_norm).values if private else trained.update
            updates.append(update.astype("float32"))
        state = advance(state, mean(updates), plan.training, plan.federation.rounds)
    return state
