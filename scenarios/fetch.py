"""Where public data sets lie on this machine."""

import os
from pathlib import Path

from common.errors import ConfigError

FILES: dict[str, tuple[str, ...]] = {
    "mnist": (
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ),
    "adult": ("adult.data", "adult.test"),
}


def cache_directory() -> Path:
    """Where downloads and extracted features are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "veilfed"


def find(name: str, directory: str = "") -> dict[str, Path]:
    """The files of data set `name`, plain or gzipped: from `directory`, else VEILFED_DATA, else the cache.

    Each place may hold them itself or in a folder called `name`. A given directory is the only place looked at.
    """
    places = [directory] if directory else [os.environ.get("VEILFED_DATA", ""), str(cache_directory())]
    for folder in [Path(place) / sub for place in places if place for sub in ("", name)]:
        found = {file: folder / f"{file}{end}" for file in FILES[name] for end in (".gz", "") if _is(folder, file, end)}
        if len(found) == len(FILES[name]):
            return found
    raise ConfigError(
        f"data set {name!r} is not in {' or '.join(place for place in places if place)}",
        f"veilfed data fetch {name}, or set data.directory or VEILFED_DATA to where its files lie",
    )


def _is(folder: Path, file: str, end: str) -> bool:
    return (folder / f"{file}{end}").is_file()
