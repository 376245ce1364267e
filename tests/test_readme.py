"""The README is true: its commands run, its links lead somewhere, its targets exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
NGINX = shutil.which("nginx") or Path("/usr/sbin/nginx").exists()


def test_there_are_two_commands_first():
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "help", "fuzz"])
def test_every_make_target_exists(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_run_one_after_the_other(tmp_path):
    for command in (line for line in COMMANDS if line.startswith("veilfed")):
        if "consortium" in command and not NGINX:
            continue  # what a coordinator needs is not on this machine
        program, *arguments = shlex.split(command)
        assert program == "veilfed"
        done = subprocess.run(
            [sys.executable, "-m", "scenarios.cli", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr[-2000:])
        assert done.stdout.strip()


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *ROOT.glob("*/README.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), (page, link)
