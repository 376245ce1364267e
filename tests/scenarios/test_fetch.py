"""What is installed is what was published, whole, and nothing of the user's is overwritten. No network here."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import ConfigError
from scenarios.fetch import (
    DOWNLOADS,
    Download,
    Mirror,
    Package,
    PublishedFile,
    Unavailable,
    cache_directory,
    fetch,
    find,
    obtain,
)

CONTENT = {"one": b"first " * 100, "two": b"second"}
FILES = tuple(PublishedFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())


@dataclass
class Memory:
    """A source that has what it was given, and counts how often it was asked."""

    contents: list[bytes]
    asked: int = field(default=0)

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        self.asked += 1
        return self.contents


@dataclass
class Nothing:
    reason: str

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        raise Unavailable(self.reason)


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VEILFED_DATA", raising=False)


def get(*sources, directory=None):
    lines: list[str] = []
    folder = obtain("toy", Download(FILES, sources), directory, lines.append)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, folder, lines


def put(folder: Path, contents=CONTENT, pack=bytes, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / f"{name}{ending}").write_bytes(pack(data))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_go_unpacked_and_checked_into_the_cache(pack):
    source = Memory([pack(data) for data in CONTENT.values()])
    installed, folder, _ = get(source)
    assert (installed, folder) == (CONTENT, cache_directory() / "toy")
    get(source)
    assert source.asked == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"second.",
        b"secon",
        gzip.compress(b"another", mtime=0),
        gzip.compress(b"second", mtime=0)[:-4],
        gzip.compress(bytes(10**7), mtime=0),
    ],
    ids=["empty", "longer", "shorter", "other gz", "cut gz", "huge gz"],
)
def test_one_wrong_byte_installs_nothing(damaged, tmp_path):
    with pytest.raises(ConfigError, match="two"):
        get(Memory([CONTENT["one"], damaged]))
    assert not (tmp_path / "cache").exists()


def test_the_next_source_is_tried_and_every_failure_is_told(tmp_path):
    with pytest.raises(ConfigError) as caught:
        get(Nothing("asleep"), Memory([b"x", b"y"]), directory=tmp_path / "mine")
    assert all(part in caught.value.message for part in ("asleep", "one differs", "mine: no one", "cache"))
    assert get(Nothing("asleep"), Memory([b"x", b"y"]), Memory(list(CONTENT.values())))[0] == CONTENT


@pytest.mark.parametrize("below", ["", "toy"])
def test_files_that_are_there_are_used_where_they_are(tmp_path, below, monkeypatch):
    put(tmp_path / "mine" / below, pack=gzip.compress, ending=".gz")
    _, folder, _ = get(Nothing(""), directory=tmp_path / "mine")
    assert folder == tmp_path / "mine" / below
    monkeypatch.setenv("VEILFED_DATA", str(tmp_path / "mine"))
    assert get(Nothing(""))[1] == folder


def test_a_given_directory_ends_up_holding_the_files(tmp_path):
    put(cache_directory() / "toy")
    installed, folder, _ = get(Nothing("asleep"), directory=tmp_path / "mine")
    assert (installed, folder) == (CONTENT, tmp_path / "mine")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    "mine", [{"one": b"my own", "two": b"work"}, {"one": CONTENT["one"], "two": b"work"}, {"two": b""}]
)
def test_a_users_other_files_are_neither_replaced_nor_mistaken(tmp_path, monkeypatch, given, mine):
    put(tmp_path / "mine", mine)
    monkeypatch.setenv("VEILFED_DATA", str(tmp_path / "mine"))
    source = Memory(list(CONTENT.values()))
    with pytest.raises(ConfigError, match="differs from the published"):
        get(source, directory=tmp_path / "mine" if given else None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == mine
    assert source.asked == 0


def test_a_half_filled_folder_is_filled(tmp_path):
    put(tmp_path / "mine", {"one": CONTENT["one"]})
    assert get(Memory(list(CONTENT.values())), directory=tmp_path / "mine")[0] == CONTENT


def test_a_damaged_file_in_the_cache_is_replaced():
    put(cache_directory() / "toy", {"one": b"half", "two": b""})
    assert get(Memory(list(CONTENT.values())))[0] == CONTENT


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write into"):
        get(Memory(list(CONTENT.values())), directory=tmp_path / "file" / "below")


def tarball(folder: str, contents) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An `npm` that answers with the tarball it is given; `None` makes it fail."""

    def answer_with(data: bytes | None):
        (tmp_path / "answer").write_bytes(data or b"")
        act = f"cp {tmp_path / 'answer'} toy.tgz" if data is not None else "echo E404 not found >&2; exit 1"
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\necho $@ > {tmp_path / 'asked'}\n{act}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return answer_with


NPM = Package("npm", "toy", "1.0", "package/data")


def test_an_npm_package_is_packed_and_read_but_never_run(npm, tmp_path):
    npm(tarball("package/data", CONTENT))
    assert get(NPM)[0] == CONTENT
    assert (tmp_path / "asked").read_text().split() == ["pack", "--ignore-scripts", "toy@1.0"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, "E404"),
        (b"not a tarball", "cannot be read"),
        (tarball("elsewhere", CONTENT), "not found"),
        (tarball("package/data", CONTENT)[:60], "npm package toy"),
        (tarball("package/data", {**CONTENT, "two": b"second and a half"}), "two differs"),
    ],
    ids=["fails", "no tarball", "elsewhere", "cut", "differs"],
)
def test_a_bad_npm_package_is_one_failure_of_many(npm, answer, complaint):
    npm(answer)
    with pytest.raises(ConfigError, match=complaint):
        get(NPM)


def test_a_machine_without_npm_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"npm package toy 1\.0: .*npm"):
        get(NPM)


def test_a_wheel_is_downloaded_by_pip_and_read(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    with zipfile.ZipFile(tmp_path / "index" / "toy-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in CONTENT.items():
            wheel.writestr(f"toy/data/{name}", data)
        wheel.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert get(Package("pip", "toy", "1.0", "toy/data"))[0] == CONTENT
    with pytest.raises(Unavailable, match=r"toy==2\.0"):
        Package("pip", "toy", "2.0", "toy/data").read(FILES)


def test_a_mirror_is_read_file_by_file_and_no_further_than_needed(tmp_path):
    put(tmp_path / "mirror", pack=gzip.compress, ending=".gz")
    assert get(Mirror(f"{(tmp_path / 'mirror').as_uri()}/", ".gz"))[0] == CONTENT
    with pytest.raises(Unavailable, match="one"):
        Mirror(f"{(tmp_path / 'mirror').as_uri()}/", ".zip").read(FILES)
    put(tmp_path / "mirror", {"one": bytes(10**6)}, ending=".big")
    assert len(Mirror(f"{(tmp_path / 'mirror').as_uri()}/", ".big").read(FILES[:1])[0]) < 10_000


def test_a_simulation_finds_in_the_given_directory_else_in_the_users_else_in_the_cache(tmp_path, monkeypatch):
    contents = {file.name: b"" for file in DOWNLOADS["adult"].files}
    put(cache_directory() / "adult", contents)
    assert find("adult")["adult.data"] == cache_directory() / "adult" / "adult.data"
    put(tmp_path / "users", contents, ending=".gz")
    monkeypatch.setenv("VEILFED_DATA", str(tmp_path / "users"))
    assert find("adult")["adult.test"] == tmp_path / "users" / "adult.test.gz"
    with pytest.raises(ConfigError, match="elsewhere"):
        find("adult", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["heart", "digits", "breast-cancer"])
def test_what_is_installed_already_is_not_fetched(name):
    assert any(fetch(name, None, lambda line: None).glob("*.csv*"))


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="imagenet"):
        fetch("imagenet", None, lambda line: None)


@pytest.mark.parametrize("name", DOWNLOADS)
def test_pinned_hashes_are_hashes(name):
    assert all(len(bytes.fromhex(file.sha256)) == 32 and file.size_bytes > 0 for file in DOWNLOADS[name].files)
