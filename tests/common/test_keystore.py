"""Key files: only the owner reads them, and a locked one opens for its passphrase alone."""

import json
import os
import stat
from pathlib import Path

import pytest

from common.errors import ConfigError, TrustError
from common.keystore import AtRest, load_secret, save_secret

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors/mask_vectors.json").read_text(encoding="utf-8"))["key_file"]
SECRET = bytes(range(32))


def put(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refusal(path: Path, passphrase: str | None) -> str:
    with pytest.raises(TrustError) as caught:
        load_secret(path, passphrase)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "passphrase"), [("locked", GOLDEN["passphrase"]), ("plain", None)])
def test_the_golden_files_open(tmp_path, kind, passphrase):
    path = put(tmp_path / "key", bytes.fromhex(GOLDEN[kind]))
    assert load_secret(path, passphrase).hex() == GOLDEN["secret"]


def test_the_golden_sealed_file_opens_under_its_own_name_and_key(tmp_path):
    path = tmp_path / GOLDEN["place"]
    path.parent.mkdir()
    put(path, bytes.fromhex(GOLDEN["sealed"]))
    at_rest = AtRest.behind(bytes.fromhex(GOLDEN["identity"]))
    assert at_rest.load(path).hex() == GOLDEN["secret"]
    assert GOLDEN["identity"] not in repr(at_rest)
    assert repr(at_rest) == "AtRest()"
    for wrong in (AtRest.behind(bytes(32)), at_rest):
        other = put(path.with_name("cohort-000004.key"), path.read_bytes()) if wrong is at_rest else path
        with pytest.raises(TrustError, match="does not open"):
            wrong.load(other)
    with pytest.raises(ConfigError, match="sealed"):
        AtRest().load(path)


@pytest.mark.parametrize("at_rest", [AtRest(), AtRest.behind(SECRET)])
@pytest.mark.parametrize("secret", [b"", SECRET, os.urandom(100_000)], ids=len)
def test_what_was_put_at_rest_loads(tmp_path, secret, at_rest):
    path = tmp_path / "key"
    at_rest.save(path, b"an older key")
    first = path.read_bytes()
    at_rest.save(path, secret)
    assert at_rest.load(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first != path.read_bytes()


def test_every_bit_of_a_sealed_file_counts(tmp_path):
    path, at_rest = tmp_path / "key", AtRest.behind(SECRET)
    at_rest.save(path, SECRET)
    whole = path.read_bytes()
    for place in range(len(whole)):
        put(path, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TrustError, match="does not open"):
            at_rest.load(path)
    for size in (0, 18, 19, 30, 31, len(whole) - 1):
        with pytest.raises(TrustError, match="does not open"):
            at_rest.load(put(path, whole[:size]))


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
@pytest.mark.parametrize("secret", [b"", SECRET, os.urandom(100_000)], ids=len)
def test_what_was_saved_loads(tmp_path, secret, passphrase):
    path = tmp_path / "key"
    save_secret(path, b"an older key", None)
    save_secret(path, secret, passphrase)
    assert load_secret(path, passphrase) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_a_locked_file_shows_nothing_and_repeats_nothing(tmp_path):
    save_secret(tmp_path / "one", SECRET, "correct horse")
    save_secret(tmp_path / "two", SECRET, "correct horse")
    one, two = (tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()
    assert SECRET[:8] not in one
    assert one[19:35] != two[19:35]
    assert one[35:47] != two[35:47]


def test_the_same_passphrase_spelt_by_another_keyboard_opens(tmp_path):
    save_secret(tmp_path / "key", SECRET, "caf\u00e9")
    assert load_secret(tmp_path / "key", "cafe\u0301") == SECRET


def test_every_failure_to_open_gets_the_same_answer(tmp_path):
    path = tmp_path / "key"
    save_secret(path, SECRET, "correct horse")
    whole = path.read_bytes()
    answers = {refusal(path, wrong) for wrong in ("Correct horse", "correct horse ", "")}
    for place in (0, 17, 18, 19, 35, 47, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        answers.add(refusal(put(path, bytes(changed)), "correct horse"))
    for size in (0, 19, 34, 35, 40, 60, len(whole) - 1):
        answers.add(refusal(put(path, whole[:size]), "correct horse"))
    answers.add(refusal(put(path, whole + b"\0"), "correct horse"))
    assert len(answers) == 1


def test_a_lock_cannot_be_dropped_to_slip_in_another_key(tmp_path):
    path = tmp_path / "key"
    save_secret(path, b"the attacker's key", None)
    refusal(path, "correct horse")


@pytest.mark.parametrize("content", [b"", SECRET, b"veilfed.secret.v2\0\0" + SECRET, b"veilfed.secret.v1\0\2" + SECRET])
def test_files_of_another_make_are_refused(tmp_path, content):
    for passphrase in (None, "correct horse"):
        refusal(put(tmp_path / "key", content), passphrase)


def test_a_locked_file_without_a_passphrase_asks_for_it(tmp_path):
    save_secret(tmp_path / "key", SECRET, "correct horse")
    with pytest.raises(ConfigError, match="passphrase"):
        load_secret(tmp_path / "key", None)


def test_an_empty_passphrase_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="empty"):
        save_secret(tmp_path / "key", SECRET, "")
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("mode", [0o601, 0o604, 0o640, 0o660, 0o666, 0o700, 0o644, 0o755])
def test_a_file_that_others_may_use_is_refused_with_the_cure(tmp_path, mode):
    path = tmp_path / "key"
    save_secret(path, SECRET, None)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_secret(path, None)
    assert f"{mode:04o}" in caught.value.message
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_read_only_file_is_fine(tmp_path):
    save_secret(tmp_path / "key", SECRET, None)
    (tmp_path / "key").chmod(0o400)
    assert load_secret(tmp_path / "key", None) == SECRET


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_secret(path, None)
