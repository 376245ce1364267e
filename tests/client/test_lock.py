"""A stolen disk opens nothing without the passphrase file, and a lock put on half way is finished by asking again."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from client.lock import lock, unlock
from client.runs import SiteRun
from client.site import Site
from common.config import load_table
from common.errors import ConfigError, TrustError
from common.keystore import AtRest, is_open, load_secret
from scenarios.cli import main
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER = NAMES[0]


def passphrase_file(place: Path, text: str = "correct horse battery staple\n", mode: int = 0o600) -> Path:
    place.mkdir(exist_ok=True)
    path = place / "adler.pass"
    path.write_text(text)
    path.chmod(mode)
    return path


def run_of(played: Coordinator, name: str = ADLER) -> SiteRun:
    return SiteRun.open(played.directories[name] / "runs", played.store.run, played.site(name).at_rest)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def secrets_of(played: Coordinator, number: int) -> list[bytes]:
    """Everything that adler must keep to itself in the middle of a round, raw."""
    run, site = run_of(played), played.site(ADLER)
    masks = site.at_rest.load(run.directory / f"masks-{number:06d}")
    passphrase = Path(site.settings.passphrase_file).read_text().strip()
    identity = load_secret(site.directory / "identity.key", passphrase)
    keys = [run.exchange_key(1).private_bytes(), run.cohort_key(1).export_for_wrapping()]
    return [passphrase.encode(), identity, *keys, masks[:32], masks[32:]]


@pytest.fixture
def locked(tmp_path):
    """Adler's keys were locked before it joined; now its update of round 2 is out and its masks are on."""
    played = Coordinator(workplace(tmp_path / "run"))
    lock(played.directories[ADLER], passphrase_file(tmp_path / "usb"))
    played.join()
    played.share_key()
    played.whole_round(1)
    played.train(2, played.offers(2))
    return played


def test_no_file_of_a_locked_site_holds_a_secret(locked):
    secrets = secrets_of(locked, 2)
    assert all(len(secret) >= 28 for secret in secrets)
    held = {path: path.read_bytes() for path in files(locked.directories[ADLER])}
    assert len(held) > 10
    for path, data in held.items():
        for secret in secrets:
            assert secret[:16] not in data, path
            assert secret.hex().encode() not in data.lower(), path
    birke = [path.read_bytes() for path in files(locked.directories[NAMES[1]])]
    cohort_key = secrets[3]
    assert any(cohort_key in data for data in birke)  # the search finds what is there


def test_nothing_opens_without_the_passphrase_file(locked, tmp_path):
    directory = locked.directories[ADLER]
    (tmp_path / "usb" / "adler.pass").unlink()
    restart()
    with pytest.raises(ConfigError, match=r"adler\.pass"):
        Site.open(directory)
    sealed = [path for path in files(directory) if path.suffix == ".key" or path.name.startswith("masks-")]
    assert len(sealed) >= 4
    for path in sealed:
        assert not is_open(path)
        with pytest.raises(ConfigError, match=r"locked|sealed"):
            AtRest().load(path)
        with pytest.raises(TrustError):
            AtRest.behind(bytes(32)).load(path)


def test_a_wrong_passphrase_is_one_constant_refusal(locked, tmp_path, capsys):
    directory, said = locked.directories[ADLER], set()
    for wrong in ("wrong\n", "correct horse battery staple \n", "x" * 1000):
        path = passphrase_file(tmp_path / "usb", wrong)
        for command in (
            ["site", "unlock", str(directory)],
            ["site", "lock", str(directory), "--passphrase-file", str(path)],
        ):
            assert main([*command, "--json"]) == 4
            said.add(capsys.readouterr().out)
    assert len(said) == 1
    assert "does not open" in said.pop()
    assert not is_open(directory / "identity.key")


def test_a_secret_opens_only_under_its_own_name(locked):
    run = run_of(locked)
    old, new = (run.directory / f"cohort-00000{epoch}.key" for epoch in (1, 2))
    shutil.copy(old, new)
    with pytest.raises(TrustError, match="does not open"):
        run.at_rest.load(new)


def test_a_key_slipped_in_without_a_lock_is_refused(locked):
    run = run_of(locked)
    AtRest().save(run.directory / "cohort-000001.key", bytes(1024))
    with pytest.raises(TrustError, match="does not open"):
        run.cohort_key(1)


def test_locking_and_unlocking_in_the_middle_of_a_run_changes_no_bit_of_the_model(tmp_path):
    models = []
    for name in ("never", "between"):
        played = Coordinator.ready(tmp_path / name)
        directory, secret = played.directories[ADLER], passphrase_file(tmp_path / "usb")
        assert stat.S_IMODE((directory / "identity.key").stat().st_mode) == 0o600
        for number in (1, 2, 3):
            if name == "between" and number == 2:
                assert lock(directory, secret) == 4  # identity, exchange and cohort keys, the coming round's masks
                assert not is_open(directory / "identity.key")
                assert lock(directory, secret) == 0
            if name == "between" and number == 3:
                assert unlock(directory) == 4
                assert is_open(directory / "identity.key")
            restart()
            played.whole_round(number)
        models.append(run_of(played).state().model)
    assert np.array_equal(*models)


def test_what_a_crash_left_of_an_unlocked_secret_goes_when_the_lock_is_put_on(tmp_path):
    played = Coordinator.ready(tmp_path / "run")
    directory, run = played.directories[ADLER], run_of(played).directory
    secret = (run / "cohort-000001.key").read_bytes()
    for place in (directory / ".identity.key.00ff.part", run / ".cohort-000001.key.00ff.part"):
        place.write_bytes(secret)
    lock(directory, passphrase_file(tmp_path / "usb"))
    assert not [path for path in files(directory) if secret[-32:] in path.read_bytes()]


@pytest.mark.parametrize("direction", ["lock", "unlock"])
def test_stopped_anywhere_and_asked_again_it_is_done(tmp_path, direction):
    """Every state that a crash can leave: the files are written one after the other, each whole or not at all."""
    played = Coordinator.ready(tmp_path / "run")
    played.offers(1)
    played.offers(1)
    directory, secret = played.directories[ADLER], passphrase_file(tmp_path / "usb")
    if direction == "unlock":
        lock(directory, secret)
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(directory, before)
    finish = {"lock": lambda: lock(directory, secret), "unlock": lambda: unlock(directory)}[direction]
    assert finish() == 4
    shutil.copytree(directory, after)
    runs = [path.relative_to(directory) for path in files(directory) if path.parent.parent.name == "runs"]
    changed = [path for path in runs if (before / path).read_bytes() != (after / path).read_bytes()]
    order = [*changed, Path("identity.key"), Path("site.toml")]
    assert len(order) == 5
    for done in range(len(order) + 1):
        for place, path in enumerate(order):
            shutil.copy2((after if place < done else before) / path, directory / path)
        finish_again = finish if done < len(order) or direction == "lock" else None
        if finish_again:
            finish_again()
        restart()
        assert {is_open(directory / path) for path in order[:-1]} == {direction == "unlock"}
        played.site(ADLER)
        assert (
            run_of(played).cohort_key(1).export_for_wrapping()
            == run_of(played, NAMES[1]).cohort_key(1).export_for_wrapping()
        )


def test_the_administrators_own_lines_stay_as_they_are(tmp_path):
    directory = Coordinator.ready(tmp_path / "run").directories[ADLER]
    text = "# ours\n" + (directory / "site.toml").read_text().replace('passphrase_file = ""\n', "")
    (directory / "site.toml").write_text(text)
    secret = passphrase_file(tmp_path / "a \"usb\" 'stick' \u00e9")
    lock(directory, secret)
    assert load_table(directory / "site.toml")["passphrase_file"] == str(secret)
    assert (directory / "site.toml").read_text().endswith(text)
    Site.open(directory)
    unlock(directory)
    assert (directory / "site.toml").read_text() == text


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("good enough\n", 0o644, "mode 0644"),
        ("good enough\n", 0o640, "mode 0640"),
        ("", 0o600, "no passphrase"),
        ("\nsecond", 0o600, "no passphrase"),
    ],
)
def test_a_passphrase_that_others_may_read_or_that_is_none_is_refused(tmp_path, capsys, text, mode, message):
    directory = Coordinator(workplace(tmp_path / "run")).directories[ADLER]
    secret = passphrase_file(tmp_path / "usb", text, mode)
    assert main(["site", "lock", str(directory), "--passphrase-file", str(secret)]) == 2
    assert message in capsys.readouterr().err
    assert is_open(directory / "identity.key")


def test_a_passphrase_beside_what_it_locks_is_refused(tmp_path, capsys):
    directory = Coordinator(workplace(tmp_path / "run")).directories[ADLER]
    secret = passphrase_file(directory)
    assert main(["site", "lock", str(directory), "--passphrase-file", str(secret)]) == 2
    assert "another disk" in capsys.readouterr().err


def test_the_commands_say_what_they_did(tmp_path, capsys):
    directory = Coordinator.ready(tmp_path / "run").directories[ADLER]
    secret = passphrase_file(tmp_path / "usb")
    assert main(["site", "lock", str(directory), "--passphrase-file", str(secret), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"directory": str(directory), "locked": True, "files_changed": 4}
    assert main(["site", "unlock", str(directory)]) == 0
    assert capsys.readouterr().out == f"{directory} is unlocked: 4 key files were rewritten\n"
    assert main(["site", "unlock", str(directory), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "ConfigError"
