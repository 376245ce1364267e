"""Proves: a log is one JSON object a line, and no key gets into it, whoever logs what."""

import base64
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.log import FIELDS, HIDDEN, Lines, configure, hidden, say, say_error

ROOT = Path(__file__).parents[2]
KEY = bytes(range(7, 39))
SPELLINGS = {
    "hex": bytes.hex,
    "HEX": lambda key: key.hex().upper(),
    "0x": lambda key: "0x" + key.hex(),
    "base64": lambda key: base64.b64encode(key).decode(),
    "base64url": lambda key: base64.urlsafe_b64encode(key).decode(),
    "repr": repr,
    "bytearray": lambda key: repr(bytearray(key)),
    "list": lambda key: str(list(key)),
    "integer": lambda key: str(int.from_bytes(key, "big")),
}


@pytest.fixture
def told():
    """Lines of a logger of its own, as they come."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines("worker"))
    log = logging.getLogger("veilfed.test")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    yield log, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.removeHandler(handler)
    log.propagate = True


def test_an_event_is_one_line_of_json(told):
    log, lines = told
    say(log, "order answered", action="train", round=3, seconds=0.25, run="ab" * 16)
    (line,) = lines()
    assert {name: line[name] for name in ("level", "process", "event", "action", "round", "seconds", "run")} == {
        "level": "info",
        "process": "worker",
        "event": "order answered",
        "action": "train",
        "round": 3,
        "seconds": 0.25,
        "run": "ab" * 16,
    }
    assert line["time"].endswith("+00:00")


def test_a_field_that_nobody_listed_is_told_by_name_only(told):
    log, lines = told
    say(log, "joined", identity_key=KEY.hex(), salt="open sesame", site="adler")
    (line,) = lines()
    assert line["not_told"] == ["identity_key", "salt"]
    assert "sesame" not in json.dumps(line)
    assert line["site"] == "adler"
    assert KEY.hex() not in json.dumps(line)


@pytest.mark.parametrize("value", [KEY, list(KEY), int.from_bytes(KEY, "big"), object()], ids=lambda value: type(value))
def test_a_field_takes_texts_and_numbers_alone(told, value):
    log, lines = told
    say(log, "joined", site=value)
    assert lines()[0]["site"] == HIDDEN


def test_what_is_no_number_is_still_json(told):
    log, lines = told
    say(log, "answered", epsilon=float("nan"), seconds=float("inf"))
    assert (lines()[0]["epsilon"], lines()[0]["seconds"]) == ("nan", "inf")


def test_many_lines_in_a_text_are_one_line_in_the_log(told):
    log, lines = told
    log.warning('the other side wrote\n{"event": "all is well"}\r\n\x1b[2J')
    (line,) = lines()
    assert line["event"].startswith("the other side wrote\n")


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(key=st.binary(min_size=32, max_size=64), before=st.sampled_from(["", "key=", "x ", "/srv/", "'", "seed:", "_"]))
def test_key_material_is_hidden_in_every_spelling(spelling, key, before):
    """A random key has no spelling that a chance could get past: base64 without one capital comes once in 1e10."""
    text = SPELLINGS[spelling](key)
    if spelling.startswith("base64") and text == text.lower():
        return
    if spelling in ("list", "integer") and len(text) < 40:
        return
    shown = hidden(f"{before}{text} and more")
    assert text not in shown
    assert HIDDEN in shown


def test_a_private_key_in_pem_is_hidden_whole_and_cut_off():
    key = generate_private_key(SECP384R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    for text in (pem, pem[:200], repr(pem)):
        shown = hidden(f"loaded {text}")
        assert all(line not in shown for line in pem.splitlines()[1:-1])


def test_ordinary_texts_stay_readable():
    for text in (
        "/srv/veilfed/cleveland/ledgers/heart.jsonl, line 17: not what was written here",
        "epsilon 3.000 over 2.5 after 120 rounds of 4 sites, 1,048,576 parameters",
        "the coordinator cannot be reached: [Errno 111] Connection refused",
        "10.20.30.40:8443 at 2026-11-24T18:00:00+00:00",
    ):
        assert hidden(text) == text


def test_a_long_text_takes_no_long_time():
    assert len(hidden("a" * 1_000_000)) <= 500
    assert len(hidden("-----BEGIN " * 20_000)) <= 500


def test_a_traceback_is_places_without_values(told):
    log, lines = told
    secret = KEY.hex()
    try:
        raise ValueError(f"cannot use {secret} or {KEY!r}")
    except ValueError:
        log.exception("training failed")
    (line,) = lines()
    assert line["error"] == "ValueError"
    assert line["at"][-1].startswith("test_log.py:")
    assert secret not in json.dumps(line)
    assert repr(KEY) not in json.dumps(line)


def test_an_error_of_ours_comes_with_its_next_step(told):
    log, lines = told
    say_error(log, "run ended", ConfigError("site.toml is missing", "run veilfed site init"))
    assert lines()[0] | {"code": "ConfigError", "hint": "run veilfed site init"} == lines()[0]


def test_arguments_that_do_not_fit_are_told_of():
    record = logging.LogRecord("flwr", logging.INFO, __file__, 1, "%d bytes", (KEY,), None)
    line = json.loads(Lines("worker").format(record))
    assert "cannot be told" in line["event"]
    assert "library" in line


def test_a_process_that_dies_says_so_in_the_same_way():
    """Uncaught in the main thread, in another one, as a warning: all are such lines, and none shows the key."""
    program = """
import logging, threading, warnings
from common.log import configure
configure("worker")
def fail():
    secret = bytes(range(7, 39))
    raise RuntimeError(secret)
thread = threading.Thread(target=fail); thread.start(); thread.join()
warnings.warn(repr(bytes(range(7, 39))))
logging.getLogger("another.library").error("%d", bytes(range(7, 39)))
fail()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["critical", "warning", "error", "critical"]
    assert all(line["process"] == "worker" for line in lines)
    for spelling in SPELLINGS.values():
        assert spelling(KEY) not in done.stdout + done.stderr


def test_configure_replaces_what_was_there_and_a_keyboard_interrupt_is_no_bug():
    before = (sys.excepthook, threading.excepthook, logging.root.handlers[:], logging.root.level)
    stream = io.StringIO()
    try:
        configure("node", stream=stream)
        logging.getLogger("anything").warning("hello")
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    finally:
        sys.excepthook, threading.excepthook = before[:2]
        logging.captureWarnings(False)
        logging.root.handlers[:] = before[2]
        logging.root.setLevel(before[3])
    (line,) = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (line["process"], line["library"], line["event"]) == ("node", "anything", "hello")


def test_no_listed_field_is_named_for_a_secret():
    assert not {name for name in FIELDS if any(word in name for word in ("key", "secret", "seed", "token", "pass"))}
