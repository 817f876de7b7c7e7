"""Runs whose checkpoints the first version of the format wrote, with what the straight run did next.

    python python/tests/data/old_checkpoints.py FOLDER

writes <name>.safetensors for each run and expected.json, with the library of that day; the tests only read them.  What
is told, when and to which optimizer stands here once, for both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import thalweg as tw

SHAPES = {"w": (3, 2), "b": (2,)}
SAVED, LAST = 5, 9


class Run:
    """A small problem whose numbers need no generator of random ones: gradients are 0.5*x + sin(k + place)."""

    sentence = "sgd(lr=0.1)"
    absent: dict[int, str] = {}
    dtype: Any = np.float64
    options: dict[str, Any] = {}
    inside: int | None = (
        None  # the request of step SAVED that waits in the checkpoint; None: the checkpoint is from between two steps
    )

    def __init__(self, names: tuple[str, ...] = ("w", "b")) -> None:
        self.arrays = {
            n: (0.25 * np.arange(1, np.prod(SHAPES[n]) + 1)).reshape(SHAPES[n]).astype(self.dtype) for n in names
        }
        self.opt = tw.Optimizer(self.groups(), self.sentence, **self.options)

    def groups(self) -> list[Any]:
        return list(self.arrays.items())

    def gradient(self, name: str, k: int) -> np.ndarray:
        x = self.arrays[name]
        return (0.5 * x + np.sin(k + np.arange(x.size)).reshape(x.shape)).astype(x.dtype)

    def told(self, k: int) -> None:
        """What is set or observed before step k."""

    def loop(self, k: int) -> Iterator[int]:
        """Step k, one number for each request; it may be left between two, and the rest be finished elsewhere."""
        for n, request in enumerate(self.opt.requests()):
            yield n
            request.answer([None if self.absent.get(k) == name else self.gradient(name, k) for name in self.arrays])

    def step(self, k: int) -> None:
        self.told(k)
        for _ in self.loop(k):
            pass


class AdamW(Run):
    sentence = (
        "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=0.1, warmup=3, total=20), weight_decay=0.1) | ema(0.9)"
    )
    absent = {1: "b", 2: "b"}
    dtype = np.float32


class Groups(Run):
    sentence = "sgd(lr=0.1, momentum=0.9)"

    def groups(self) -> list[Any]:
        w, b = self.arrays.items()
        return [{"params": [w]}, {"params": [b], "lr": 0.5}]


class Set(Run):
    """Set while running, for all."""

    sentence = "adam(lr=0.1)"

    def told(self, k: int) -> None:
        if k == 2:
            self.opt.set("lr", 0.025)


class Nadam(Run):
    sentence = "nadam(lr=0.1)"
    absent = {0: "b", 3: "b"}


class Lookahead(Run):
    sentence = "sgd(lr=0.1, momentum=0.9) | lookahead(k=2)"


class Plateau(Run):
    sentence = "sgd(lr=reduce_on_plateau(lr=0.2, patience=0, factor=0.5))"

    def told(self, k: int) -> None:
        if k < 8:
            self.opt.observe("metric", [3.0, 2.0, 2.0, 2.0, 1.0, 1.5, 1.5, 0.5][k])


class Sam(Run):
    """Saved between the two requests of a step, with the weights at the perturbed point."""

    sentence = "sam(0.05) | adamw(lr=0.1)"
    inside = 1


class Master(Run):
    """Steps too short for 16 bits add up in the float32 copy."""

    sentence = "sgd(lr=0.0002)"
    dtype = np.float16
    options = {"master": "f32"}


class Noise(Run):
    sentence = "gradient_noise(eta=0.3) | sgd(lr=0.1)"
    options = {"seed": 3}


class ScheduleFree(Run):
    sentence = "adamw(lr=0.1) | schedule_free(warmup_steps=2)"


RUNS: dict[str, type[Run]] = {
    "adamw": AdamW,
    "groups": Groups,
    "set": Set,
    "nadam": Nadam,
    "lookahead": Lookahead,
    "plateau": Plateau,
    "sam": Sam,
    "master": Master,
    "noise": Noise,
    "schedule_free": ScheduleFree,
}


def write(folder: Path) -> None:
    expected: dict[str, Any] = {}
    for name, kind in RUNS.items():
        run = kind()
        for k in range(SAVED):
            run.step(k)

        def save() -> dict[str, Any]:
            run.opt.save(folder / f"{name}.safetensors")
            return {n: x.ravel().tolist() for n, x in run.arrays.items()}

        if run.inside is None:
            start = save()
            run.step(SAVED)
        else:
            for n in run.loop(SAVED):
                if n == run.inside:
                    start = save()
        rows = []
        for k in range(SAVED, LAST):
            if k > SAVED:
                run.step(k)
            rows.append({n: x.ravel().tolist() for n, x in run.arrays.items()})
        expected[name] = {"start": start, "rows": rows}
    text = json.dumps(expected, separators=(",", ":"))
    (folder / "expected.json").write_text(text.replace("},{", "},\n{").replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
