"""What this site agrees to: an order in, consent or a reasoned refusal out. Enforced here, whatever is asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import CohortTooSmall, PrivacyError, ProtocolError
from common.federation import Plan, require


@dataclass(frozen=True)
class SitePolicy:
    """The site administrator's own limits.

    epsilon, delta: what one record of this data set may lose over all runs together. min_cohort: fewest sites
    whose sum may be opened here. require_encryption, require_privacy: refuse plans that do without.
    model_factories: code (`package.module:function`) that a plan may have imported here to build its model; the
    built-in architectures need no leave. max_weights: the largest of those that is built here.
    """

    epsilon: float
    delta: float
    min_cohort: int = 2
    require_encryption: bool = True
    require_privacy: bool = True
    model_factories: tuple[str, ...] = ()
    max_weights: int = 50_000_000

    def __post_init__(self) -> None:
        require(0 < self.epsilon < math.inf, "policy.epsilon", self.epsilon, "positive and finite")
        require(0 < self.delta < 0.1, "policy.delta", self.delta, "above 0, below 1 / number of records")
        require(self.min_cohort >= 2, "policy.min_cohort", self.min_cohort, "2 or more")


def consent(policy: SitePolicy, plan: Plan, cohort: Sequence[str], records: int) -> None:
    """Returns when the plan keeps within the policy. Raises PrivacyError, CohortTooSmall or ProtocolError.

    Says nothing about what is left of the budget: the ledger answers that (`Ledger.require`).
    """
    if ":" in plan.model.factory and plan.model.factory not in policy.model_factories:
        raise PrivacyError(f"this site's policy names no code {plan.model.factory!r} to build a model from")
    if plan.model.dense_weights > policy.max_weights:
        raise ProtocolError(f"a model of {plan.model.dense_weights} weights; this site builds {policy.max_weights}")
    if policy.require_encryption and plan.encryption.preset == "none":
        raise PrivacyError("this site's policy requires encrypted updates, the plan sends readable ones")
    if policy.require_privacy and plan.privacy.mode == "none":
        raise PrivacyError("this site's policy requires differential privacy, the plan has none")
    if plan.privacy.mode != "none" and plan.privacy.delta * records >= 1:
        raise PrivacyError(f"delta {plan.privacy.delta:g} is 1 / number of records of this site or more")
    smallest = min(plan.federation.min_cohort, len(cohort))
    if smallest < policy.min_cohort:
        raise CohortTooSmall(
            f"a sum of {smallest} sites could be opened, this site's policy asks for {policy.min_cohort}"
        )
