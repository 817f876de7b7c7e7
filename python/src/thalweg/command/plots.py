"""The pictures of `race`, `sweep` and `landscape`, for slides: large type, colours that everybody tells apart."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .problems import Plane, Problem
from .race import Entry, spread

if TYPE_CHECKING:
    from .landscape import Track
    from .sweep import Axis

# Okabe and Ito's colours, without yellow, which does not show on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5195")
LINES = ("-", "--", ":", "-.")
INK = "#333333"
PALE = "#666666"  # headings
LOST = "#777777"  # what diverged
STYLE = {
    "figure.constrained_layout.use": True, "figure.dpi": 100, "figure.facecolor": "white", "savefig.dpi": 160,
    "font.size": 12, "text.color": INK, "mathtext.default": "regular", "legend.frameon": False, "lines.linewidth": 2.2,
    "axes.titlesize": 14, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.8,
}


@contextlib.contextmanager
def picture(path: Path, width: float, height: float, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure with axes side by side, drawn without a window, saved at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns, squeeze=False, **options)[0]
        yield figure, axes if columns > 1 else axes[0]
        figure.savefig(path)


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}


def _heading(figure: Any, text: str, **options: Any) -> None:
    """What the picture is about, small and pale above it."""
    figure.suptitle(text, x=0.01, ha="left", color=PALE, **options)


def _legend(figure: Any, handles: list[Any], labels: list[str]) -> None:
    """One sentence a line, below the axes; long ones are broken."""
    labels = ["\n    ".join(textwrap.wrap(label, 105, break_long_words=False)) for label in labels]
    figure.legend(handles, labels, loc="outside lower left", prop={"family": "monospace", "size": 10.5},
                  alignment="left", handlelength=2.4, labelspacing=0.45)


def _height(labels: list[str]) -> float:
    """Inches that the legend takes."""
    return 0.25 + 0.21 * sum(1 + len(label) // 105 for label in labels)


def _log_scale(axis: Any, values: np.ndarray) -> None:
    """A logarithmic scale where the values are positive and differ much; ticks that can be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = values[np.isfinite(values) & (values > 0)]
    if not len(finite) or finite.max() < 8 * finite.min():
        return
    axis.axes.set_yscale("log") if axis.axis_name == "y" else axis.axes.set_xscale("log")
    few = finite.max() < 100 * finite.min()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
    axis.set_minor_formatter(NullFormatter())
    if 1e-3 <= finite.min() and finite.max() <= 1e5:
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _band(axes: Any, x: np.ndarray, groups: Iterable[np.ndarray], colour: str, alpha: float) -> tuple[np.ndarray, ...]:
    """The quartiles of each group of values as a band over `x`.  Returns (lower, median)."""
    lower, median, upper = np.array([spread(values) for values in groups]).T
    upper = np.where(np.isfinite(upper), upper, median)
    axes.fill_between(x, lower, upper, where=np.isfinite(median), color=colour, alpha=alpha, linewidth=0)
    return lower, median


def race(entries: list[Entry], on: Problem, name: str, steps: int, path: Path) -> None:
    """The loss along the way, median and quartiles; and what each seed ended with."""
    ranked = sorted(entries, key=Entry.rank)
    labels = [e.sentence for e in ranked]
    with picture(path, 12, 5.2 + _height(labels), 2, width_ratios=(1.75, 1)) as (figure, (left, right)):
        handles, shown = [], []
        for i, entry in enumerate(ranked):
            look, at = _look(i), entry.runs[0].at
            _, median = _band(left, at, np.stack([r.losses for r in entry.runs]).T, look["color"], 0.16)
            keep = np.isfinite(median)
            handles += left.plot(at[keep], median[keep], **look)
            if keep.any() and not keep.all():  # where half of the runs are lost
                left.plot(at[keep][-1], median[keep][-1], marker="X", markersize=11, markeredgecolor="white",
                          color=look["color"])
            shown.append(median[keep])
        left.set(title="loss", xlabel="step", xlim=(0, steps))
        _log_scale(left.yaxis, np.concatenate(shown))
        first = max(float(m[0]) for m in shown)
        left.set_ylim(top=min(left.get_ylim()[1], 30 * first))
        _finals(right, ranked, on)
        _heading(figure, f"{name}: {on.summary}", fontsize=13)
        _legend(figure, handles, labels)


def _finals(axes: Any, ranked: list[Entry], on: Problem) -> None:
    """A dot for each seed, a bar for the median; the best on top."""
    values = [100 * e.errors() if on.score else e.final() for e in ranked]
    for i, each in enumerate(values):
        finite, row, colour = each[np.isfinite(each)], len(values) - 1 - i, _look(i)["color"]
        jitter = np.linspace(-0.16, 0.16, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
        axes.scatter(finite, row + jitter, s=34, color=colour, alpha=0.55, linewidth=0, zorder=3)
        median, text = spread(each)[1], "half diverged" if len(finite) else "diverged"
        if np.isfinite(median):
            text = f"{median:.3g}{' %' if on.score else ''}"
            axes.plot([median, median], [row - 0.32, row + 0.32], color=colour, linewidth=3.2, solid_capstyle="butt",
                      zorder=4)
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=colour, fontweight="bold")
    axes.set(title=f"{on.score} (%)" if on.score else "loss at the end", yticks=[], ylim=(-0.6, len(values) - 0.4))
    axes.spines["left"].set_visible(False)
    _log_scale(axes.xaxis, np.concatenate(values))
    axes.set_xlabel("every seed, and the median")


def sweep(axis: Axis, entries: list[Entry], best: int | None, on: Problem, title: str, path: Path) -> None:
    """The loss at the end, and the score where there is one, over the values of one hyper-parameter."""
    kinds = [("loss at the end", [e.final() for e in entries])]
    if on.score:
        kinds.append((f"{on.score} (%)", [100 * e.errors() for e in entries]))
    with picture(path, 6.6 * len(kinds) + 1, 5.4, len(kinds)) as (figure, axes):
        for i, (name, values) in enumerate(kinds):
            one, x, colour = np.atleast_1d(axes)[i], np.array(axis.values), COLOURS[i]
            lower, median = _band(one, x, values, colour, 0.18)
            keep = np.isfinite(median)
            one.plot(x[keep], median[keep], color=colour, marker="o", markersize=6, zorder=3)
            for place, each in zip(x, values):
                finite = each[np.isfinite(each)]
                one.scatter([place] * len(finite), finite, s=14, color=colour, alpha=0.45, linewidth=0)
            if best is not None and keep[best]:
                star = COLOURS[1] if i == 0 else COLOURS[0]
                one.scatter(x[best], median[best], marker="*", s=330, color=star, edgecolor="white", zorder=5)
            if axis.log:
                one.set_xscale("log")
            _log_scale(one.yaxis, np.concatenate([median[keep], lower[keep]]))
            width = 1.15 if axis.log else 1.0
            for place in x[~keep]:
                one.axvspan(place / width, place * width, color="#BBBBBB", alpha=0.35)
                one.text(place, 0.97, "diverged", rotation=90, va="top", ha="center", color=LOST,
                         transform=one.get_xaxis_transform())
            if best is None:
                one.set(title=f"{name}: diverged", xlabel=axis.path)
            else:
                one.set(title=f"{name}: {median[best]:.4g}", xlabel=f"{axis.path}  (best: {x[best]:.4g})")
        _heading(figure, textwrap.fill(title, 110, replace_whitespace=False), fontsize=12, family="monospace")


def measured(entries: list[Entry], on: Problem) -> tuple[str, np.ndarray]:
    """What the best of a sweep is chosen by, and its median for each entry: the score where there is one, in percent,
    else the loss at the end."""
    if on.score:
        return f"median {on.score} (%)", np.array([spread(100 * e.errors())[1] for e in entries])
    return "median loss at the end", np.array([e.median() for e in entries])


def sweep_map(
    axes: list[Axis], entries: list[Entry], best: int | None, on: Problem, title: str, path: Path
) -> None:
    """What the best is chosen by over two hyper-parameters: a field for each pair."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    rows, columns = (len(axis.values) for axis in axes)
    name, values = measured(entries, on)
    median = values.reshape(rows, columns)
    shown = np.where(np.isfinite(median), median, np.nan)
    finite = shown[np.isfinite(shown)]
    log = len(finite) > 0 and not on.score and bool((finite > 0).all())
    with picture(path, 3.2 + 1.05 * columns, 2.6 + 0.62 * rows) as (figure, one):
        one.grid(False)
        field = one.imshow(shown, cmap="viridis_r", norm=LogNorm() if log else None, origin="lower", aspect="auto")
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
        middle = np.sqrt(low * high) if log else (low + high) / 2
        for i in range(rows):
            for j in range(columns):
                text, size, colour = "diverged", 9, LOST
                if np.isfinite(median[i, j]):
                    text, size, colour = f"{median[i, j]:.3g}", 11, INK if median[i, j] <= middle else "white"
                one.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
        if best is not None:
            i, j = divmod(best, columns)
            one.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=3.5))
        one.set_yticks(range(rows), [f"{v:.3g}" for v in axes[0].values])
        one.set_xticks(range(columns), [f"{v:.3g}" for v in axes[1].values])
        one.set(ylabel=axes[0].path, xlabel=axes[1].path, title=name)
        if len(finite):
            bar = figure.colorbar(field, ax=one, pad=0.02)
            if log:
                _log_scale(bar.ax.yaxis, shown)
        _heading(figure, textwrap.fill(title, 80, replace_whitespace=False), fontsize=11, family="monospace")


def landscape(plane: Plane, name: str, tracks: list[Track], path: Path) -> None:
    """The function as a map with the trajectories on it; and how far above the minimum each was, step by step."""
    from matplotlib import patheffects

    labels = [t.sentence for t in tracks]
    left, right, bottom, top = plane.window
    with picture(path, 13, 6.0 + _height(labels), 2, width_ratios=(1.35, 1)) as (figure, (chart, along)):
        x, y = np.meshgrid(np.linspace(left, right, 500), np.linspace(bottom, top, 500))
        z = plane.f(x, y) - plane.least
        levels = np.geomspace(max(z.min(), z.max() * 1e-5), z.max(), 28)
        shade = np.log10(np.maximum(z, levels[0]))
        chart.imshow(shade, extent=plane.window, origin="lower", cmap="Greys", aspect="auto", alpha=0.55,
                     vmax=shade.max() + 1.2, interpolation="bilinear")
        chart.contour(x, y, z, levels=levels, colors="#8A8A8A", linewidths=0.5, alpha=0.7)
        white = [patheffects.Stroke(linewidth=4.2, foreground="white", alpha=0.85), patheffects.Normal()]
        handles = []
        for i, t in enumerate(tracks):
            look = _look(i)
            keep = np.isfinite(t.points[:, 0])
            px, py = t.points[keep, 0], t.points[keep, 1]
            handles += chart.plot(px, py, **look, linewidth=2.0, path_effects=white, zorder=4, alpha=0.95)
            chart.plot(px, py, ".", color=look["color"], markersize=3.4, zorder=5, alpha=0.75)
            chart.plot(px[-1], py[-1], "o", color=look["color"], markersize=10, markeredgecolor="white",
                       markeredgewidth=1.6, zorder=7)
            along.plot(np.arange(len(t.values)), np.maximum(t.values, 1e-16), **look)
        start = tracks[0].points[0]
        chart.plot(*start, "s", color="white", markersize=9, markeredgecolor=INK, markeredgewidth=1.8, zorder=8)
        chart.annotate("start", start, xytext=(9, 7), textcoords="offset points", fontsize=12, fontweight="bold",
                       zorder=8, path_effects=[patheffects.withStroke(linewidth=3, foreground="white")])
        for minimum in plane.minima:
            chart.plot(*minimum, "*", color="#FFD700", markersize=19, markeredgecolor=INK, markeredgewidth=1.0,
                       zorder=6)
        chart.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", title=name)
        chart.grid(False)
        along.set(title="above the minimum", xlabel="step", xlim=(0, max(len(t.values) for t in tracks) - 1))
        _log_scale(along.yaxis, np.concatenate([np.maximum(t.values, 1e-16) for t in tracks]))
        _heading(figure, plane.summary, fontsize=13)
        _legend(figure, handles, labels)
