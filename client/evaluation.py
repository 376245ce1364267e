"""What the evaluators can say of a model on one's own records. It stays where the records are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from client.datasets import Records
from client.runs import SiteRun
from client.site import Site
from common.errors import ConfigError
from common.evaluators.catalogue import evaluate_all
from common.evaluators.groups import GroupCells, GroupCounts
from common.evaluators.report import Findings, Material
from common.evaluators.utility import Floats
from common.gradients import input_gradients
from common.models import build, load_parameters, logits, predict

if TYPE_CHECKING:
    from torch import nn

_MOST_RECORDS = 2000  # of a kind: more sharpen no figure that anybody would act on, and attacks on them take long
_MOST_LEVELS = 12  # of a protected attribute that groups are made by
_BINS = 10


def evaluate_run(site: Site, run: str) -> list[Findings]:
    """Of the model of a run as this site holds it, on the records that it holds out.

    run: the first digits of its number. Raises ConfigError where the site is in no such run, or holds nothing out.
    """
    joined = _joined(site, run)
    network = build(joined.plan.model)
    load_parameters(network, joined.state().released)
    return evaluate_all(material(network, site.held_out_records, site.training_records))


def material(network: "nn.Module", held_out: Records, training: Records, seed: int = 0) -> Material:
    """Everything about a trained model that its own records give: of at most 2,000 of a kind, drawn by the seed.

    Raises ConfigError where nothing is held out.
    """
    if not len(held_out):
        raise ConfigError("no records are held out to evaluate on", "set [data] holdout, e.g. 0.2, before training")
    asked, reference = _some(held_out, seed), _some(training, seed)
    probabilities = predict(network, asked.features)
    return Material(
        probabilities=probabilities,
        labels=asked.labels,
        features=asked.features,
        reference=reference.features,
        predict=lambda features: predict(network, features),
        logits=lambda features: logits(network, features),
        input_gradients=lambda features, labels: input_gradients(network, features, labels),
        groups=_groups(probabilities, asked),
        seed=seed,
    )


def _joined(site: Site, run: str) -> SiteRun:
    found = [path.parent.name for path in (site.directory / "runs").glob(f"{run}*/agreement.json")]
    if len(found) != 1:
        what = "no run" if not found else "more than one run"
        raise ConfigError(
            f"this site is in {what} whose number begins with {run!r}", f"see: ls {site.directory / 'runs'}"
        )
    return SiteRun.open(site.directory / "runs", bytes.fromhex(found[0]), site.at_rest)


def _some(records: Records, seed: int) -> Records:
    if len(records) <= _MOST_RECORDS:
        return records
    return records.subset(np.random.default_rng(seed).choice(len(records), _MOST_RECORDS, replace=False))


def _groups(probabilities: Floats, records: Records) -> GroupCounts | None:
    """Counts by every protected attribute with two levels or more, of a model that decides between two classes."""
    levels: Mapping[str, tuple[str, ...]] = {
        name: tuple(sorted(set(values.astype(str)))) for name, values in records.groups.items()
    }
    usable = {name: found for name, found in levels.items() if 2 <= len(found) <= _MOST_LEVELS}
    if not usable or probabilities.shape[1] != 2:
        return None
    cells = GroupCells(usable, _BINS)
    return GroupCounts(cells, cells.tally(probabilities, records.labels, records.groups), 0.0)
