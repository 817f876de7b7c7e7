"""A step of every optimizer of the registry beside the plain loop over its parameters, gradients and state."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import peers
from .common import Shapes, duration, elements, measure, plain_loop, ratio, run_tasks, table
from .family import state_bytes

SIDE, COUNT = 256, 16
SECONDS = 3.0  # of timing a method, but for three turns


def task(method: str, quick: bool, repetitions: int) -> dict[str, Any]:
    """Nanoseconds an element of the method and of the loop."""
    import thalweg
    from thalweg.command import examples

    shapes: Shapes = [(SIDE, SIDE)] * (2 if quick else COUNT)
    sentence = examples.sentence(thalweg.method(method))
    states = round(state_bytes(sentence, shapes) / (4 * elements(shapes)))
    builders = {"thalweg": partial(peers.ours, sentence, shapes), "loop": partial(plain_loop, "walk", states, shapes)}
    times = {k: t / elements(shapes) * 1e9 if isinstance(t, float) else t
             for k, t in measure(builders, repetitions, SECONDS).items()}
    return {"sentence": sentence, "states": states, "times": times}


def members() -> list[str]:
    import thalweg

    return [m.name for m in thalweg.methods("optimizer")]


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    """(Markdown, raw results): a table, at the smallest number of threads."""
    methods = [name for name in members() if only in name]
    print(f"steps: {len(methods)} methods", flush=True)
    tasks = [dict(method=m, quick=quick, repetitions=repetitions) for m in methods]
    raw = dict(zip(methods, run_tasks("steps", tasks, min(threads), 120)))
    rows, left = [], []
    for method, result in raw.items():
        times = result.get("times", {})
        own, loop = times.get("thalweg"), times.get("loop")
        if isinstance(own, float) and isinstance(loop, float):
            rows.append([method, str(result["states"]), duration(own, digits=3), duration(loop, digits=3),
                         ratio(own, loop), f"`{result['sentence']}`"])
        else:
            left.append(method)
    text = table(["method", "states", "thalweg", "plain loop", "over loop", "sentence"], rows)
    return text + (f"\n\nNot timed (their requests want more than gradients): {', '.join(left)}." if left else ""), raw
