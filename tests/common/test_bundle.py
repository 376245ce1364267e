"""Proves: what comes out of a bundle is a plan that a trusted key signed for this very version, and nothing else."""

import io
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version

import pytest
from flwr.cli.build import build_fab_from_files
from hypothesis import given, settings
from hypothesis import strategies as st

from common import bundle
from common.config import fill, override, to_table
from common.errors import FederationError, ProtocolError, TrustError
from common.federation import Plan
from common.signing import Identity

KEY, OTHER, RUN = Identity.generate(), Identity.generate(), bytes(range(16))
PLAN = fill(Plan, override(to_table(Plan()), ["federation.rounds=7", "model.inputs=[13]", "model.classes=2"]))
CONTENT = bundle.build(PLAN)
SIGNATURE = bundle.sign(CONTENT, KEY, RUN)
FILES = {name: data for name, data in bundle._files(CONTENT).items() if not name.startswith(".info")}


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def opened(content: bytes, key: Identity = KEY) -> Plan:
    """Signed by a key that is trusted: what is left to refuse is what is in it."""
    return bundle.opened(content, bundle.sign(content, key, RUN), [KEY.public], RUN)[0]


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return made.getvalue()


def test_what_was_signed_is_what_is_opened():
    assert bundle.opened(CONTENT, SIGNATURE, [OTHER.public, KEY.public], RUN) == (PLAN, KEY.public)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10_000), st.floats(1e-3, 50), st.integers(0, 2**53 - 1), st.text(min_size=1, max_size=30))
def test_any_plan_comes_back_and_is_built_the_same_wherever_it_is_built(rounds, epsilon, seed, name):
    table = to_table(PLAN)
    table["federation"] |= {"rounds": rounds, "name": name}
    table["privacy"]["epsilon"] = epsilon
    table["model"]["seed"] = seed
    try:
        plan = fill(Plan, table)
    except FederationError:
        return
    content = bundle.build(plan)
    assert content == bundle.build(fill(Plan, to_table(plan)))
    assert opened(content) == plan


@pytest.mark.parametrize("signature", ["", ":", "zz:zz", "00", "00:00:00", "ab" * 32])
def test_a_bundle_without_a_signature_is_none(signature):
    with pytest.raises(TrustError, match=r"not signed|signature is not one|not trusted here"):
        bundle.opened(CONTENT, signature, [KEY.public], RUN)


def test_a_key_that_nobody_trusts_signs_nothing():
    with pytest.raises(TrustError, match="a key that is not trusted here"):
        bundle.opened(CONTENT, bundle.sign(CONTENT, OTHER, RUN), [KEY.public], RUN)
    with pytest.raises(TrustError, match="a key that is not trusted here"):
        bundle.opened(CONTENT, SIGNATURE, [], RUN)


def test_a_signature_is_for_one_run_and_no_other():
    """Whoever may list runs sees the signature of each: it must not pass for a run of their own."""
    with pytest.raises(TrustError, match="does not hold"):
        bundle.opened(CONTENT, SIGNATURE, [KEY.public], bytes(16))


def test_a_trusted_name_under_anothers_signature_is_refused():
    _, proof = bundle.sign(CONTENT, OTHER, RUN).split(":")
    with pytest.raises(TrustError):
        bundle.opened(CONTENT, f"{KEY.public.hex()}:{proof}", [KEY.public], RUN)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_a_bundle_in_which_any_byte_was_changed_is_refused(place, change):
    changed = CONTENT[:place] + bytes([CONTENT[place] ^ change]) + CONTENT[place + 1 :]
    with pytest.raises(TrustError):
        bundle.opened(changed, SIGNATURE, [KEY.public], RUN)


def test_the_signature_of_one_plan_is_not_that_of_another():
    other = bundle.build(fill(Plan, override(to_table(PLAN), ["federation.rounds=8"])))
    with pytest.raises(TrustError):
        bundle.opened(other, SIGNATURE, [KEY.public], RUN)


def changed(change: Callable[[dict[str, bytes]], None]) -> bytes:
    """A whole and well-signed bundle with other files in it."""
    files = dict(FILES)
    change(files)
    return build_fab_from_files(files)[0]


def test_a_bundle_for_another_version_names_both_and_the_next_step():
    mine = f'version = "{version("veilfed")}"'.encode()
    other = changed(
        lambda files: files.update({"pyproject.toml": files["pyproject.toml"].replace(mine, b'version = "9.9"')})
    )
    with pytest.raises(ProtocolError, match=f"is for veilfed 9.9, here is {version('veilfed')}") as refused:
        opened(other)
    assert "same version everywhere" in refused.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update({"server/app.py": b"import os\n"}),
        lambda files: files.update({"README.md": b"hello"}),
        lambda files: files.update({"federation.toml": files["federation.toml"] + b"\n# a remark\n"}),
        lambda files: files.update({"pyproject.toml": FILES["pyproject.toml"].replace(b"server.app", b"evil.app")}),
        lambda files: files.update({"pyproject.toml": files["pyproject.toml"] + b"\n[tool.pip]\n"}),
    ],
    ids=["code", "page", "remark", "component", "table"],
)  # fmt: skip
def test_a_bundle_with_anything_beside_its_plan_is_refused(change):
    with pytest.raises(ProtocolError, match="more than a plan"):
        opened(changed(change))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"federation.toml": FILES["federation.toml"]},
        {"pyproject.toml": FILES["pyproject.toml"]},
        FILES | {"federation.toml": b"\xff\xfe"},
        FILES | {"federation.toml": b"rounds = "},
        FILES | {"federation.toml": b"[federation]\ncolour = 'red'\n"},
        FILES | {"federation.toml": b"[privacy]\nepsilon = -1\n"},
        FILES | {"pyproject.toml": b"[project]\n"},
        FILES | {"pyproject.toml": b"project = 3\n"},
    ],
)
def test_a_bundle_without_a_plan_that_can_be_read_is_refused(files):
    with pytest.raises(ProtocolError, match="no plan that this version understands"):
        opened(archive(files))


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all", CONTENT[:-30], CONTENT[40:]])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(ProtocolError, match=r"not an archive|no plan"):
        opened(content)


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked():
    bomb = archive({"federation.toml": bytes(100 * bundle.LARGEST), "pyproject.toml": b""})
    assert len(bomb) < bundle.LARGEST
    with pytest.raises(ProtocolError, match="unpacks to more"):
        opened(bomb)


def test_an_archive_that_does_not_unpack_is_refused():
    broken = bytearray(archive({"federation.toml": FILES["federation.toml"] * 20}))
    broken[60:80] = b"\xff" * 20
    with pytest.raises(ProtocolError, match="not an archive"):
        opened(bytes(broken))


def test_an_archive_that_lies_about_what_it_unpacks_to_is_refused():
    """The sizes in its list of contents are those of a plan; what follows them is not."""
    bomb = bytearray(archive({"federation.toml": bytes(100 * bundle.LARGEST)}))
    place = bomb.rindex(b"PK\x01\x02")
    bomb[place + 24 : place + 28] = (100).to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        opened(bytes(bomb))


def test_a_bundle_that_is_too_long_is_refused_before_its_signature_is_looked_at():
    with pytest.raises(ProtocolError, match="a plan has at most"):
        bundle.opened(bytes(bundle.LARGEST + 1), "", [KEY.public], RUN)


def test_an_encrypted_or_strangely_packed_archive_is_refused():
    encrypted = bytearray(archive({"federation.toml": b"x"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(mark) + offset] |= 1
    strange = bytearray(archive({"federation.toml": b"x"}))
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        strange[strange.index(mark) + offset] = 99
    for content in (bytes(encrypted), bytes(strange)):
        with pytest.raises(ProtocolError):
            opened(content)
