"""Whether a site's records, and what the model of the run kept with them says, are still as they were.

For its administrator.

DIR/profile.json: when it was kept, and records by bin of each column and of the model's outputs. Nothing of it is ever
sent. What a comparison finds is shown to who asked, and among the site's own numbers (`exposed.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.exposed import NUMBERS
from client.runs import SiteRun
from client.site import Site
from common.audit import AdminCommand
from common.errors import ConfigError, FederationError
from common.evaluators.drift import LARGE, Profile, Shift, shifts
from common.files import write_atomically
from common.models import build, load_parameters, predict
from common.telemetry import Meter, Number
from common.wire import from_hex, from_json, to_json

_SHOWN = 10  # columns, of those that moved


@dataclass(frozen=True)
class Kept:
    """inputs, outputs: profiles; outputs of the model with that hash, of that run, where there was one."""

    when: str
    inputs: Profile
    run: str
    model: str
    outputs: Profile | None


def keep(site: Site, when: str) -> Mapping[str, Any]:
    """Make what the records are now what they are compared with from now on."""
    features, run = _features(site), _newest(site)
    kept = {"when": when, "inputs": _table(Profile.of(features)), "run": "", "model": "", "outputs": []}
    if run is not None:
        outputs = _table(Profile.of(_said(run, features)))
        kept |= {"run": run.run.hex(), "model": run.version().model_hash.hex(), "outputs": outputs}
    write_atomically(site.directory / "profile.json", to_json(kept))
    site.audit.note(AdminCommand.now("keep profile", site.settings.data.name))
    return {"site": site.name, "kept": when, "records": len(features), "model": kept["model"] or "none yet"}


def compare(site: Site) -> Mapping[str, Any]:
    """The records that the loader gives now against the kept profile, column by column, and the outputs likewise.

    Outputs are compared while the model that the profile was kept with is the one its run ended with. Raises
    ConfigError when no profile was kept, or it is of other columns.
    """
    kept, features = _read(site.directory / "profile.json"), _features(site)
    inputs, outputs = shifts(kept.inputs, features), _shifted_outputs(site, kept, features)
    moved = sorted((place for place, shift in enumerate(inputs) if shift.moved), key=lambda at: -inputs[at].index)
    largest = max(inputs, key=lambda shift: shift.index)
    name = site.settings.data.name
    numbers = [
        Number("veilfed_site_input_shift", largest.index, (name,)),
        Number("veilfed_site_inputs_moved", len(moved), (name,)),
    ]
    if outputs:
        numbers.append(Number("veilfed_site_output_shift", max(shift.index for shift in outputs), (name,)))
    Meter(site.directory / NUMBERS).add(numbers)
    return {
        "site": site.name,
        "kept": kept.when,
        "records_then": int(kept.inputs.counts[0].sum()),
        "records_now": len(features),
        "columns": len(inputs),
        "largest_shift": largest.index,
        "large_from": LARGE,
        "columns_moved": len(moved),
        "moved": [
            {"column": place, "shift": inputs[place].index, "p": inputs[place].p_value} for place in moved[:_SHOWN]
        ],
        "outputs": [{"class": place, "shift": s.index, "p": s.p_value} for place, s in enumerate(outputs)],
    }


def _shifted_outputs(site: Site, kept: Kept, features: NDArray[np.float32]) -> list[Shift]:
    if kept.outputs is None:
        return []
    run = SiteRun.open(site.directory / "runs", from_hex(kept.run), site.at_rest)
    if run.version().model_hash.hex() != kept.model:
        return []
    return shifts(kept.outputs, _said(run, features))


def _features(site: Site) -> NDArray[np.float32]:
    """All that the loader gives, whichever part it is in."""
    return np.concatenate([site.training_records.features, site.held_out_records.features])


def _newest(site: Site) -> SiteRun | None:
    """The run that this site took part in last, if it got anywhere."""
    states = sorted((site.directory / "runs").glob("*/state"), key=lambda path: path.stat().st_mtime_ns)
    if not states:
        return None
    run = SiteRun.open(site.directory / "runs", from_hex(states[-1].parent.name), site.at_rest)
    return run if run.version().round_number else None


def _said(run: SiteRun, features: NDArray[np.float32]) -> NDArray[np.float64]:
    network = build(run.plan.model)
    load_parameters(network, run.state().released)
    return predict(network, features)


def _table(profile: Profile) -> list[dict[str, Any]]:
    columns = zip(profile.edges, profile.counts, strict=True)
    return [{"edges": edges.tolist(), "counts": counts.tolist()} for edges, counts in columns]


def _profile(table: list[Mapping[str, Any]]) -> Profile:
    edges, counts = (tuple(np.asarray(column[key], float) for column in table) for key in ("edges", "counts"))
    return Profile(edges, counts)


def _read(path: Path) -> Kept:
    try:
        told = from_json(path.read_bytes())
        outputs = _profile(told["outputs"]) if told["outputs"] else None
        return Kept(told["when"], _profile(told["inputs"]), told["run"], told["model"], outputs)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "keep one first: veilfed site drift DIR --keep") from None
    except (FederationError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}", "keep a new one: veilfed site drift DIR --keep") from None
