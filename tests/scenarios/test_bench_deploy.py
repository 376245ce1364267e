"""The bench of a large model plays the size that was asked for, and its peaks are Linux's own."""

import os
import subprocess
import sys

import pytest

from common.config import fill
from common.errors import ConfigError
from common.models import planned_sizes
from scenarios.bench import deploy_large
from scenarios.bench.deploy_large import federation, run
from scenarios.data import public_shape
from scenarios.simulation import Simulation

MIB = 1 << 20


@pytest.mark.parametrize("params", [10_000, 1_000_000, 100_000_000, 400_000_000])
def test_the_model_has_about_as_many_weights_as_were_asked_for_and_no_more(params):
    simulation = fill(Simulation, federation(params))
    inputs, classes = public_shape(simulation.data)
    table = federation(params)
    table["model"] |= {"inputs": list(inputs), "classes": classes}
    assert 0.97 * params < sum(planned_sizes(fill(Simulation, table).model)) <= params


@pytest.mark.parametrize("params", [9_999, 400_000_001])
def test_other_sizes_are_refused_before_anything_is_started(params):
    with pytest.raises(ConfigError, match="--params"):
        run(params)


def test_a_peak_is_kept_when_what_made_it_is_gone():
    code = "data = bytearray(200 << 20); del data; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert process.pid in deploy_large._children()[os.getpid()]
        assert 200 * MIB < 1024 * deploy_large._peak_kb(process.pid) < 300 * MIB
        process.communicate(b"\n")
    assert deploy_large._peak_kb(process.pid) == 0
