"""The report's figures as inline SVG: real text, no script, no font, no link, and the same bytes every time.

Every function takes plain numbers and returns one `<svg role="img">` element, described by `alt` for those who
cannot see it. Colours are told apart by colour-blind readers (Okabe and Ito 2008) and by their labels.
"""

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _RULE = "#1f2933", "#52606d", "#dfe4e8"
_BLUE, _SKY, _GREEN, _ORANGE, _RED = "#0072b2", "#8cc5e8", "#009e73", "#e69f00", "#b3261e"
_PHASES = {  # key of a round -> what it is called, its colour
    "train_s": ("train", _BLUE),
    "encrypt_s": ("encrypt", _SKY),
    "sum_s": ("add up", _ORANGE),
    "open_s": ("open", _GREEN),
}
_REST = ("evaluate and the rest", "#c3cad1")
_MARKS = {
    "ours": (_BLUE, "o", _BLUE),
    "alone": (_ORANGE, "s", "white"),
    "central": (_GREEN, "^", "white"),
    "non_private": (_MUTED, "D", "white"),
}
FEW = 12  # sites that are shown one by one; of more, only a summary is legible
_HEIGHT, _ROW = 2.9, 0.31  # inches
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.0,
    "legend.columnspacing": 1.2,
}
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}

Figures = Mapping[str, float]  # value, low, high


def utility_by_round(figures: Mapping[int, Figures], metric: str, reference: float | None, alt: str) -> str:
    """figures: by round.   reference: the same model without privacy, drawn as a line."""

    def paint(ax: "Axes") -> None:
        rounds = list(figures)
        low, value, high = ([figures[r][key] for r in rounds] for key in ("low", "value", "high"))
        ax.fill_between(rounds, low, high, color=_SKY, alpha=0.45, linewidth=0)
        ax.plot(rounds, value, color=_BLUE, linewidth=2, marker="o", markersize=3.5 if len(rounds) <= 40 else 0)
        if reference is not None:
            ax.axhline(reference, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            ax.annotate("no privacy", (1, reference), (5, 0), ("axes fraction", "data"), color=_MUTED, **_BESIDE)
        ax.set(xlabel="round", ylabel=metric)
        ax.grid(axis="y")
        _whole_rounds(ax)

    return draw(_HEIGHT, alt, paint)


def gaps_by_round(gaps: Mapping[str, Mapping[int, Figures]], alt: str) -> str:
    """gaps: name -> round -> figure. A dot and its interval each, side by side; 0 is equal."""

    def paint(ax: "Axes") -> None:
        rounds = sorted({number for by_round in gaps.values() for number in by_round})
        apart = 0.06 * (rounds[-1] - rounds[0])
        marks = zip(gaps.items(), ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^")), strict=False)
        for place, ((name, by_round), (colour, marker)) in enumerate(marks):
            at = [number + apart * (place - 1) for number in by_round]
            low, value, high = ([figures[key] for figures in by_round.values()] for key in ("low", "value", "high"))
            ax.vlines(at, low, high, color=colour, linewidth=2)
            ax.plot(at, value, marker, color=colour, label=name)
        ax.set(xlabel="round", ylabel="gap between groups", ylim=(0, None))
        ax.grid(axis="y")
        ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
        ax.set_xticks(rounds)

    return draw(_HEIGHT, alt, paint)


def watched_by_round(
    figures: Mapping[int, Figures], name: str, limits: Sequence[float], fired: Collection[int], alt: str
) -> str:
    """figures: by round, with their intervals.   limits: drawn as lines.   fired: rounds that are marked."""

    def paint(ax: "Axes") -> None:
        rounds = list(figures)
        low, value, high = ([figures[r][key] for r in rounds] for key in ("low", "value", "high"))
        ax.vlines(rounds, low, high, color=_SKY, linewidth=3)
        ax.plot(rounds, value, color=_BLUE, linewidth=1.2, marker="o", markersize=3.5)
        marked = [r for r in rounds if r in fired]
        ax.plot(marked, [figures[r]["value"] for r in marked], "s", color=_RED, markersize=6.5)
        for limit in limits:
            ax.axhline(limit, color=_RED, linewidth=1.2, linestyle=(0, (4, 3)))
            ax.annotate(f"{limit:.3g}", (1, limit), (5, 0), ("axes fraction", "data"), color=_RED, **_BESIDE)
        ax.set(xlabel="round", ylabel=_label(name))
        ax.grid(axis="y")
        _whole_rounds(ax)

    return draw(_HEIGHT, alt, paint)


def comparison(
    rows: Sequence[tuple[str, Figures, Literal["ours", "alone", "central", "non_private"]]], metric: str, alt: str
) -> str:
    """One dot and its interval for each row, from top to bottom."""

    def paint(ax: "Axes") -> None:
        for place, (_, figure, kind) in enumerate(rows):
            colour, marker, face = _MARKS[kind]
            ax.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot(figure["value"], place, marker, color=colour, markerfacecolor=face, markeredgewidth=1.6)
        _named_rows(ax, [name for name, _, _ in rows])
        ax.spines["left"].set_visible(False)
        ax.set(xlabel=metric)

    return draw(max(_HEIGHT, 0.75 + _ROW * len(rows)), alt, paint)


def importance(rows: Sequence[tuple[str, Figures]], alt: str) -> str:
    """A bar for each feature, from top to bottom, and its interval on it; 0 is a feature that changes nothing."""

    def paint(ax: "Axes") -> None:
        places, figures = range(len(rows)), [figure for _, figure in rows]
        low, value, high = ([figure[key] for figure in figures] for key in ("low", "value", "high"))
        ax.barh(places, value, 0.62, color=_SKY)
        ax.hlines(places, low, high, color=_BLUE, linewidth=2)
        ax.axvline(0, color=_MUTED, linewidth=0.8)
        _named_rows(ax, [name for name, _ in rows])
        ax.spines["left"].set_visible(False)
        ax.set(xlabel="accuracy lost")
        ax.locator_params(axis="x", nbins=6)

    return draw(max(_HEIGHT, 0.75 + _ROW * len(rows)), alt, paint)


def epsilon_by_round(spent: Mapping[str, Mapping[int, float]], limit: float | None, alt: str) -> str:
    """spent: site -> round -> epsilon so far.   limit: where the ledgers refuse, drawn as a line."""

    def paint(ax: "Axes") -> None:
        rounds = sorted({r for by_round in spent.values() for r in by_round})
        at = {r: [by_round[r] for by_round in spent.values() if r in by_round] for r in rounds}
        top = max([*(max(values) for values in at.values()), limit or 0.0]) or 1.0
        if len(spent) <= FEW:
            for by_round in spent.values():
                ax.plot(list(by_round), list(by_round.values()), color=_BLUE, linewidth=1.6, alpha=0.8)
            ends = {site: by_round[max(by_round)] for site, by_round in spent.items()}
            near = {site: round(end / top / 0.12) for site, end in ends.items()}  # too close for labels of their own
            groups = [[site for site in ends if near[site] == place] for place in sorted(set(near.values()))]
            labels = [(max(ends[site] for site in group), _names(group)) for group in groups]
        else:
            ax.fill_between(rounds, [min(at[r]) for r in rounds], [max(at[r]) for r in rounds], color=_SKY, alpha=0.6)
            ax.plot(rounds, [median(at[r]) for r in rounds], color=_BLUE, linewidth=2)
            labels = [(median(at[rounds[-1]]), f"median of\n{len(spent)} sites")]
        for height, label in labels:
            ax.annotate(label, (rounds[-1], height), (6, 0), **{**_BESIDE, "va": "top"})
        if limit is not None:
            ax.axhline(limit, color=_RED, linewidth=1.2, linestyle=(0, (4, 3)))
            ax.annotate(f"limit {limit:g}", (0, limit), (2, 4), ("axes fraction", "data"), "offset points", color=_RED)
        ax.set(xlabel="round", ylabel="ε spent", ylim=(0, top * 1.15))
        ax.grid(axis="y")
        _whole_rounds(ax)

    return draw(_HEIGHT, alt, paint)


def seconds_by_phase(rounds: Sequence[Mapping[str, Any]], alt: str) -> str:
    """rounds: `round`, `seconds` and any of the phases. What no phase explains is drawn as the rest."""

    def paint(ax: "Axes") -> None:
        numbers = [entry["round"] for entry in rounds]
        edges = [*(n - 0.5 for n in numbers), numbers[-1] + 0.5]
        floor = [0.0] * len(numbers)
        for key, (name, colour) in {**_PHASES, "": _REST}.items():
            if key:
                ceiling = [f + (entry.get(key) or 0.0) for f, entry in zip(floor, rounds, strict=True)]
            else:
                ceiling = [max(f, entry["seconds"]) for f, entry in zip(floor, rounds, strict=True)]
            if ceiling != floor:
                ax.stairs(ceiling, edges, baseline=floor, fill=True, color=colour, linewidth=0, label=name)
            floor = ceiling
        ax.set(xlabel="round", ylabel="seconds", ylim=(0, None))
        ax.grid(axis="y")
        ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
        _whole_rounds(ax)

    return draw(_HEIGHT, alt, paint)


def bytes_by_site(sites: Sequence[Mapping[str, Any]], alt: str) -> str:
    """sites: `site`, `bytes_up`, `bytes_down`. Of many sites, those that moved most."""
    most = sorted(sites, key=lambda site: site["bytes_up"] + site["bytes_down"], reverse=True)[:FEW]
    shown = [site for site in sites if site in most]
    powers = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1.0}
    unit = next((unit for unit, size in powers.items() if most[0]["bytes_up"] >= size), "bytes")

    def paint(ax: "Axes") -> None:
        up, down = ([site[key] / powers[unit] for site in shown] for key in ("bytes_up", "bytes_down"))
        ax.barh(range(len(shown)), up, 0.62, color=_BLUE, label="sent")
        ax.barh(range(len(shown)), down, 0.62, left=up, color=_SKY, label="received")
        _named_rows(ax, [site["site"] for site in shown])
        ax.set(xlabel=unit)
        ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)

    return draw(max(_HEIGHT, 0.95 + _ROW * len(shown)), alt, paint)


def _named_rows(ax: "Axes", names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [_label(name) for name in names], color=_INK)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _whole_rounds(ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _label(name: str) -> str:
    """A name that fits beside an axis, whatever a partner calls itself."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= 24 else f"{plain[:23]}…"


def _names(sites: Sequence[str]) -> str:
    shown = [_label(site)[:14] for site in sites[:5]]
    return "\n".join([*shown, f"and {len(sites) - 5} more"] if len(sites) > 5 else shown)


def draw(height: float, alt: str, paint: Callable[["Axes"], None]) -> str:
    """One set of axes, 4.6 x `height` inches: so narrow that its words stay legible on a phone."""
    import matplotlib
    from matplotlib.figure import Figure

    document = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has fonts of its own
        figure = Figure(figsize=(4.6, height), layout="constrained")
        paint(figure.subplots())
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(document, format="svg", transparent=True, metadata=undated)
    return _inline(document.getvalue(), alt)


def _inline(document: bytes, alt: str) -> str:
    """The drawing as an HTML fragment: no namespace, no style sheet, and only those ids that are used."""
    root = ET.fromstring(document)  # noqa: S314  # written by matplotlib a moment ago
    for definitions in root.findall("{*}defs"):
        for style in definitions.findall("{*}style"):
            definitions.remove(style)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    used = "".join(value for element in root.iter() for key, value in element.attrib.items() if key != "id")
    for element in root.iter():
        if f"#{element.get('id')}" not in used:
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return ET.tostring(root, encoding="unicode")
