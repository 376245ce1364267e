"""Figures of scenarios as inline SVG, drawn as those of the report are: see `server/plots.py`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server.plots import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from common.evaluators.utility import Estimate

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#b3261e", "#8cc5e8", "#52606d", "#cc79a7")
_CELL, _GAP = 3, 5  # of a small image, in units of the drawing


def said(values: Mapping[str, float]) -> str:
    """The values in words, for whoever cannot see the figure."""
    return "; ".join(f"{name}: {value:.3g}" for name, value in values.items())


def bars(values: Mapping[str, float], label: str, alt: str, line: float | None = None, said: str = "") -> str:
    """One bar a row.   line: a limit across all of them, called `said`."""

    def paint(ax: "Axes") -> None:
        names = list(values)
        ax.barh(range(len(names)), list(values.values()), 0.62, color=COLOURS[0])
        widest = max([*values.values(), line or 0.0])
        for place, value in enumerate(values.values()):
            told = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
            ax.annotate(told, (max(value, 0.0), place), (4, 0), textcoords="offset points", va="center")
        if line is not None:
            ax.axvline(line, color=COLOURS[3], linewidth=1.2, linestyle=(0, (4, 3)))
            ax.annotate(said, (line, 0), (3, 2), ("data", "axes fraction"), "offset points", color=COLOURS[3])
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set(xlabel=label, xlim=(min(0.0, *values.values()), widest * 1.18 or 1.0))
        ax.tick_params(axis="y", length=0)

    return draw(0.85 + 0.36 * len(values), alt, paint)


def intervals(figures: "Mapping[str, Estimate]", alt: str) -> str:
    """One figure a row: a point with its interval."""

    def paint(ax: "Axes") -> None:
        names, told = list(figures), list(figures.values())
        low, high = [each.low for each in told], [each.high for each in told]
        ax.hlines(range(len(names)), low, high, color=COLOURS[4], linewidth=4)
        ax.plot([each.value for each in told], range(len(names)), "o", color=COLOURS[0], markersize=5)
        for place, each in enumerate(told):
            ax.annotate(f"{each.value:.3g}", (each.high, place), (6, 0), textcoords="offset points", va="center")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        room = (max(high) - min(*low, 0.0)) * 0.14 or 1.0
        ax.set_xlim(min(*low, 0.0), max(high) + room)
        ax.tick_params(axis="y", length=0)

    return draw(0.85 + 0.3 * len(figures), alt, paint)


def lines(
    series: Mapping[str, Mapping[float, float]],
    label_x: str,
    label_y: str,
    alt: str,
    line: float | None = None,
    said: str = "",
) -> str:
    """One curve a series, whole x -> y.   line: a limit across, called `said`."""
    from matplotlib.ticker import MaxNLocator

    def paint(ax: "Axes") -> None:
        for place, (name, points) in enumerate(series.items()):
            colour = COLOURS[place % len(COLOURS)]
            marker = "o" if len(points) <= 40 else ""
            ax.plot(list(points), list(points.values()), color=colour, linewidth=1.8, marker=marker, ms=3.5, label=name)
        if line is not None:
            ax.axhline(line, color=COLOURS[3], linewidth=1.2, linestyle=(0, (4, 3)))
            ax.annotate(said, (0, line), (2, 4), ("axes fraction", "data"), "offset points", color=COLOURS[3])
        ax.set(xlabel=label_x, ylabel=label_y)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        ax.grid(axis="y")
        if len(series) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)

    return draw(2.9, alt, paint)


def histograms(
    samples: Mapping[str, NDArray[np.float64]], label: str, alt: str, bins: int | NDArray[np.float64] = 40
) -> str:
    """How often each value occurs, one outline a sample, all over the same bins: so many, or between these edges."""

    def paint(ax: "Axes") -> None:
        edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
        for place, (name, values) in enumerate(samples.items()):
            heights = np.histogram(values, edges)[0] / len(values)
            ax.stairs(heights, edges, color=COLOURS[place], fill=True, alpha=0.35, label=name)
            ax.stairs(heights, edges, color=COLOURS[place], linewidth=1.4)
        ax.set(xlabel=label, ylabel="share")
        ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)

    return draw(2.9, alt, paint)


def grid(rows: Sequence[str], columns: Sequence[str], values: NDArray[np.float64], alt: str) -> str:
    """values: (rows, columns) from 0 to 1, written in their cells as per cent; NaN is a dash."""

    def paint(ax: "Axes") -> None:
        ax.pcolormesh(np.nan_to_num(values), cmap="Blues", vmin=0, vmax=1.7, edgecolors="white", linewidth=1.5)
        for (row, column), value in np.ndenumerate(values):
            said = "–" if math.isnan(value) else f"{100 * value:.0f}"
            ax.annotate(said, (column + 0.5, row + 0.5), ha="center", va="center", fontsize=8.5)
        ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha="right")
        ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
        ax.tick_params(length=0)
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)

    return draw(1.1 + 0.3 * len(rows), alt, paint)


def images(rows: Mapping[str, Sequence[NDArray[np.float64]]], alt: str) -> str:
    """Small grey images (h, w), 0 white to 1 black, side by side; a row each name. Squares, so nothing is loaded."""
    high, wide = next(iter(rows.values()))[0].shape
    left, down = 62, high * _CELL + _GAP + 9
    parts, count = [], max(map(len, rows.values()))
    for place, (name, pictures) in enumerate(rows.items()):
        top = place * down
        parts.append(f'<text x="0" y="{top + 8}" font-size="5.5">{name}</text>')
        for column, picture in enumerate(pictures):
            parts.append(_image(np.clip(picture, 0, 1), column * (wide * _CELL + _GAP), top + 12))
    width, height = count * (wide * _CELL + _GAP), len(rows) * (down + 0)
    return f'<svg viewBox="0 0 {max(width, left)} {height + 8}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'


def _image(picture: NDArray[np.float64], left: int, top: int) -> str:
    high, wide = picture.shape
    cells = [
        f'<rect x="{left}" y="{top}" width="{wide * _CELL}" height="{high * _CELL}" fill="#fff" stroke="#d5dbe1"/>'
    ]
    for (row, column), value in np.ndenumerate(picture):
        shade = round(255 * (1 - float(value)))
        if shade < 250:
            place = f'x="{left + column * _CELL}" y="{top + row * _CELL}" width="{_CELL}" height="{_CELL}"'
            cells.append(f'<rect {place} fill="#{shade:02x}{shade:02x}{shade:02x}"/>')
    return "".join(cells)
