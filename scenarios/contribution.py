"""What each simulated site adds to the model: the plan played once more in the open, where any coalition can be tried.

It plays no protocol and charges no ledger; a report shows it as what a simulation may know and a real consortium would
not: see `common/evaluators/contribution.py` for what it would cost there.
"""

from collections.abc import Callable, Mapping

from client.datasets import Records
from common.evaluators.contribution import Coalition, Game
from common.federation import Plan
from common.model_state import ModelState
from scenarios.baselines import played


def game_of(plan: Plan, training: Mapping[str, Records], score: Callable[[ModelState], float]) -> Game:
    """A coalition is worth what its updates alone would have changed in every round of the run that all had, summed.

    It is the initial model's score for nobody and the final model's for everybody. Nobody trains again: each of the
    2^n coalitions costs an evaluation a round. score: of a model, 0 to 1. Noise is drawn afresh.
    Reference: Song, Tong, Wei 2019, doi 10.1109/BigData47090.2019.9006327 (multi-round reconstruction, without decay).
    """
    names = tuple(training)
    rounds = list(played(plan, list(training.values())))
    start = [score(this.before) for this in rounds]

    def utility(coalition: Coalition) -> float:
        places = [place for place, name in enumerate(names) if name in coalition]
        if not places:
            return start[0]
        gains = [score(this.after(plan, places)) - before for this, before in zip(rounds, start, strict=True)]
        return start[0] + sum(gains)

    return Game(names, utility, span=float(len(rounds)))
