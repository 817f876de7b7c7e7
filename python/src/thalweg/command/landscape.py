"""`landscape`: the trajectories of sentences over a function of two variables."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

import thalweg

from .console import Refusal, need, number, print_table
from .problems import PLANES, Plane
from .race import check, complete, drawable


@dataclass
class Track:
    """Where a sentence went.

    points  (steps + 1, 2); those behind a divergence are NaN
    values  the function there, over its minimum
    """

    sentence: str
    points: np.ndarray
    values: np.ndarray


def track(sentence: str, plane: Plane, start: tuple[float, float], steps: int, noise: float, seed: int) -> Track:
    """The parameters after every step, in float64.

    noise  the standard deviation of what is added to each gradient
    """
    rng = np.random.default_rng(seed)
    params = [np.array(start, np.float64)]
    points = np.full((steps + 1, 2), np.nan)
    points[0] = start
    noisy = _Noisy(plane)
    opt = thalweg.Optimizer(params, complete(sentence, steps), names=plane.names, seed=seed)
    try:
        for k in range(1, steps + 1):
            drawn: dict[int, np.ndarray] = {}
            for request in opt.requests():
                if request.tag not in drawn:
                    drawn[request.tag] = noise * rng.standard_normal(2)
                noisy.answer(request, params, drawn[request.tag])
            if not np.all(np.abs(params[0]) < 1e6):
                break
            points[k] = params[0]
    except thalweg.NonfiniteError:
        pass  # the rest stays NaN
    except thalweg.Error as wrong:
        raise Refusal(f"{sentence}: {wrong}") from None
    with np.errstate(all="ignore"):
        return Track(sentence, points, plane.f(points[:, 0], points[:, 1]) - plane.least)


class _Noisy(Plane):
    """The plane with a vector added to its gradients: the minibatch."""

    def __init__(self, plane: Plane) -> None:
        self.__dict__.update(plane.__dict__)

    def gradient(self, params: list[np.ndarray], batch: np.ndarray) -> tuple[float, list[np.ndarray]]:
        loss, (g,) = super().gradient(params, batch)
        return loss + float(batch @ params[0]), [g + batch]


def landscape(arguments: argparse.Namespace) -> int:
    """`landscape`: a table of where each sentence ended, and the picture."""
    need("matplotlib", "pictures are drawn")
    drawable(arguments.plot)
    plane = PLANES[arguments.function]
    if arguments.steps < 1:
        raise Refusal(f"--steps is at least 1, not {arguments.steps}")
    try:
        start = plane.first if arguments.start is None else tuple(float(x) for x in arguments.start.split(","))
        x, y = start
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError
    except ValueError:
        raise Refusal(f"--start is two numbers, as -1.5,2, not {arguments.start!r}") from None
    if not 0 <= arguments.noise < math.inf:
        raise Refusal(f"--noise is at least 0, not {arguments.noise}")
    if not 0 <= arguments.seed < 2**64:
        raise Refusal(f"--seed is in 0 ... 2**64 - 1, not {arguments.seed}")
    check(arguments.sentence, plane, arguments.steps)
    tracks = [track(s, plane, (x, y), arguments.steps, arguments.noise, arguments.seed) for s in arguments.sentence]
    rows = []
    for t in tracks:
        last = float(t.values[-1]) if np.isfinite(t.values[-1]) else float("inf")
        x, y = t.points[int(np.sum(np.isfinite(t.values))) - 1]
        rows.append([t.sentence, number(last), f"{float(np.nanmin(t.values)):.3g}", f"({x:.3g}, {y:.3g})"])
    title = f"{arguments.function}: {plane.summary}"
    print_table(["sentence", "above the minimum", "least", "at the end"], rows, right=(1, 2, 3), title=title)
    from . import plots

    plots.landscape(plane, arguments.function, tracks, arguments.plot)
    print(f"picture: {arguments.plot}")
    return 0
