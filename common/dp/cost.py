"""What the rounds of a plan cost one site: events, before anything is released. Pure.

Noise that comes in shares depends on how many sites are summed, which is known only when their list is agreed on. So a
site reserves for the smallest list there may be and settles for the one there was.
"""

from collections.abc import Iterable
from dataclasses import replace

from common.dp.accounting import calibrate_noise
from common.dp.events import DpEvent, Gaussian, PoissonGaussian
from common.dp.noise_shares import NoiseShares
from common.federation import Plan, require


def training_events(plan: Plan, cohort: int, summed: int) -> tuple[DpEvent, ...]:
    """One round's training, of a site in a cohort, when `summed` sites are added up; () without privacy.

    summed: in the site's own bucket, where there are buckets: only their shares of the noise are in what is opened.
    """
    noise, training = plan.privacy.noise_multiplier, plan.training
    match plan.privacy.mode:
        case "local":
            return (PoissonGaussian(noise, training.sample_rate, training.local_steps),)
        case "distributed":
            return (PoissonGaussian(noise * _left(plan, cohort, summed), training.sample_rate, 1),)
        case "site":
            return (Gaussian(noise * _left(plan, cohort, summed)),)
        case _:
            return ()


def metric_events(plan: Plan, cohort: int, summed: int) -> tuple[DpEvent, ...]:
    """One round's counts; () without privacy."""
    if plan.privacy.mode == "none":
        return ()
    return (Gaussian(plan.metrics.noise_multiplier * _left(plan, cohort, summed)),)


def round_events(plan: Plan, round_number: int, cohort: int, summed: int) -> dict[str, tuple[DpEvent, ...]]:
    """What that round releases, by purpose in the ledger."""
    events: dict[str, tuple[DpEvent, ...]] = {}
    if plan.trains(round_number):
        events[plan.training_purpose] = training_events(plan, cohort, summed)
    if plan.measures(round_number):
        events["metrics"] = metric_events(plan, cohort, summed)
    return {purpose: cost for purpose, cost in events.items() if cost}


def planned_events(plan: Plan, cohort: int, rounds: Iterable[int]) -> tuple[DpEvent, ...]:
    """What `rounds` cost together when everybody is there, with one of them still reserved for as few as may be.

    That is the last, or the last that trains: counts alone may cost less than what a round of training is reserved for.
    """
    numbers, whole = sorted(rounds), plan.whole_sum(cohort)
    fewest = plan.smallest_sum(cohort) if plan.privacy.in_shares else whole
    reserved = {*numbers[-1:], max(filter(plan.trains, numbers), default=0)}
    costs = (round_events(plan, each, cohort, fewest if each in reserved else whole) for each in numbers)
    return tuple(event for cost in costs for events in cost.values() for event in events)


def calibrated(plan: Plan, cohort: int) -> Plan:
    """The plan with the least noise at which all its rounds, counts included, fit its own epsilon and delta."""

    def noisy(noise_multiplier: float) -> Plan:
        return replace(plan, privacy=replace(plan.privacy, noise_multiplier=noise_multiplier))

    numbers = range(1, plan.last_round + 1)
    return noisy(calibrate_noise(plan.privacy, lambda noise: planned_events(noisy(noise), cohort, numbers)))


def noise_share(plan: Plan, cohort: int) -> float:
    """Standard deviation of the noise that each site adds to its update before encryption (model units); 0: none.

    One unit of privacy moves the update by so much at most. `distributed`: one record's clipped gradient on its way
    into the weights. `site`: from any bounded update to any other. Projecting an update onto a ball or a box, or
    turning it, moves no two updates apart, so neither raises this.
    """
    training, privacy = plan.training, plan.privacy
    if not privacy.in_shares:
        return 0.0
    reach = 2 * privacy.max_update_norm
    if privacy.mode == "distributed":
        reach = privacy.max_grad_norm * training.learning_rate / training.lot_size
    return noise_shares(plan, cohort).share(privacy.noise_multiplier * reach)


def noise_shares(plan: Plan, cohort: int) -> NoiseShares:
    """Who adds what. Raises ConfigError for more colluding sites than the masks hold out against.

    With threshold t of n sites there is one list to sign only while c < 2t - n of them collude, and c sites must not be
    able to rebuild another's masks from their own shares of them (`common/masking.py`). Shares are sized for what is
    opened: were they sized for the cohort, a bucket of b of n sites would hold sqrt(b / n) of the noise that is asked
    for. All that collude may sit in one bucket, so each bucket is sized as if they did.
    """
    settings, colluding = plan.encryption, plan.privacy.colluding
    most = min(2 * settings.threshold_of(cohort) - cohort, settings.share_threshold_of(cohort)) - 1
    require(colluding <= most, "privacy.colluding", colluding, f"1 to {most} with {cohort} sites and this threshold")
    return NoiseShares(plan.whole_sum(cohort), colluding)


def _left(plan: Plan, cohort: int, summed: int) -> float:
    return noise_shares(plan, cohort).left(summed) if plan.privacy.in_shares else 1.0
