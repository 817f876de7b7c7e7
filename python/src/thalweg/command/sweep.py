"""`sweep`: one sentence over the values of a hyper-parameter, or of two."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from .. import _registry, _sentence
from .console import Refusal, counted, number, print_table
from .race import ALL_DIVERGED, best_of, cells, check, collect, heading, settings, share, spread, written

COUNT = 7  # values where nobody says


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter and the values it takes."""

    path: str
    values: tuple[float, ...]
    log: bool


def read_axis(text: str) -> Axis:
    """"adamw.lr=1e-4:1e-1:log", with a count behind it or not (":log:9"); or "adamw.lr=1e-3,3e-3".

    Refusal, with what was expected, for a text that is none of these.
    """
    path, _, values = text.partition("=")
    found = re.fullmatch(r"([^:,]+):([^:,]+)(?::(log|lin))?(?::(\d+))?", values.strip())
    try:
        if found is None:
            listed = tuple(float(v) for v in values.split(","))
            if not all(map(math.isfinite, listed)):
                raise ValueError
            return Axis(path.strip(), listed, min(listed) > 0 and max(listed) >= 20 * min(listed))
        low, high, log, count = float(found[1]), float(found[2]), found[3] == "log", int(found[4] or COUNT)
    except ValueError:
        raise Refusal("--over is PATH=LOW:HIGH, with :log and a count behind it or not, or PATH=A,B,C, not "
                      f"{text!r}") from None
    if count < 2 or not low < high or (log and low <= 0) or not math.isfinite(high - low):
        raise Refusal(f"--over {text!r}: LOW is less than HIGH, above 0 where it is :log, and the count at least 2")
    points = np.geomspace(low, high, count) if log else np.linspace(low, high, count)
    return Axis(path.strip(), tuple(float(f"{x:.4g}") for x in points), log)


def with_value(sentence: str, path: str, value: float) -> str:
    """The sentence with another value of a hyper-parameter.

    sentence  as the library writes it: by name, but for what a schedule or a regularizer has by its place
    path      "adamw.lr"; "adamw#1.lr" is that of the second adamw from the left; "lr" alone where one stage has one;
              "warmup_cosine.peak" in a schedule too

    Refusal where there is none, or more than one.
    """
    stage, _, name = path.rpartition(".")
    wanted, _, nth = stage.partition("#")
    found, seen, known = [], 0, []
    for match in re.finditer(r"([a-z]\w*)\(", sentence):
        start = match.end()
        inside = _sentence.inside(sentence, start)
        arguments = _sentence.split(inside, ",")
        names = [its for its, _ in _sentence.named(_registry.by_name().get(match[1]), inside)]
        known += [f"{match[1]}.{n}" for n in names if match[1] != "route"]
        if wanted and match[1] != wanted:
            continue
        if wanted and nth and seen != int(nth):
            seen += 1
            continue
        seen += 1
        if name in names:
            at = start
            for its, argument in zip(names, arguments):
                if its == name:
                    found.append((at, at + len(argument)))
                at += len(argument) + 1
    if not found:
        raise Refusal(f"--over: there is no {path!r} in the sentence; there are: {', '.join(dict.fromkeys(known))}")
    if len(found) > 1 and not wanted:
        raise Refusal(f"--over: {path!r} may be several; name the stage, as one of: "
                      f"{', '.join(k for k in dict.fromkeys(known) if k.endswith('.' + name))}")
    start, stop = found[0]
    written = sentence[start:stop]
    head, named, _ = written.partition("=")
    before = head + "=" if named else written[: len(written) - len(written.lstrip())]
    return f"{sentence[:start]}{before}{_whole(value)}{sentence[stop:]}"


def _whole(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def sweep(arguments: argparse.Namespace) -> int:
    """`sweep`: a table of the values, the best one marked; with --plot the curve with its spread, or a map of two."""
    on, steps = settings(arguments)
    axes = [read_axis(text) for text in arguments.over]
    if len(axes) > 2:
        raise Refusal("--over is given once or twice")
    if len({axis.path for axis in axes}) < len(axes):
        raise Refusal(f"--over: {axes[0].path!r} is given twice")
    base = written(arguments.sentence, on, steps)
    points = list(itertools.product(*(axis.values for axis in axes)))
    sentences = []
    for point in points:
        text = base
        for axis, value in zip(axes, point):
            text = with_value(text, axis.path, value)
        sentences.append(text)
    check(sentences, on, steps)
    entries = collect(sentences, on, arguments.seeds, steps, arguments.state_dtype, "sweep")
    best = best_of(entries)
    rows = []
    for point, entry in zip(points, entries):
        row = [*(f"{v:.4g}" for v in point), *cells(entry.final(), number)]
        if on.score:
            row.append(share(spread(entry.errors())[1]))
        rows.append([*row, entry.lost()])
    columns = [*(axis.path for axis in axes), "loss", "quartiles", *([on.score] if on.score else []), "diverged"]
    title = f"{heading(arguments, on, steps)}\n{arguments.sentence}"
    print_table(columns, rows, right=range(len(columns)), title=title, best=best)
    at = () if best is None else points[best]
    print("best: " + ", ".join(f"{axis.path}={v:.4g}" for axis, v in zip(axes, at)) if at else ALL_DIVERGED)
    for axis, value in zip(axes, at):
        if value in (axis.values[0], axis.values[-1]):
            print(f"{axis.path}={value:.4g} is at the edge of what was tried: a better one may lie outside")
    if arguments.plot:
        from . import plots

        title = f"{arguments.sentence}\n{arguments.problem}, {counted(arguments.seeds)}"
        if len(axes) == 1:
            plots.sweep(axes[0], entries, best, on, title, arguments.plot)
        else:
            plots.sweep_map(axes, entries, best, on, title, arguments.plot)
        print(f"picture: {arguments.plot}")
    return 0
