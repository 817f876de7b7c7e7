"""What a stage costs beside its rule: the time of a step over that of bare adamw, in pairs, by the time of the CPU."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cases import met
from .common import Step, duration, run_tasks, table

BARE = "adamw"
# 16.8 M numbers; 16 K, which with gradient, state and an average fit into half a megabyte of second-level cache
LARGE, CACHED = (4096, 4096), (128, 128)
QUICK = (64, 512)  # instead of both
TURN = 0.01  # seconds of CPU that a turn takes at least


@dataclass(frozen=True)
class Stage:
    """A sentence beside bare adamw.

    aim     at most so many times its time; in the cache, at most so many nanoseconds an element more
    options of the optimizer
    cached  on a tensor that stays in the second-level cache
    """

    sentence: str
    aim: float
    options: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = False

    @property
    def title(self) -> str:
        return f"`{self.sentence}`" + "".join(f", {name} {value}" for name, value in self.options.items())


CHAIN = "clip_value(1) | {} | penalty(l2(1e-4)) | adamw | ema(0.999)"
STAGES = [
    Stage("clip_global_norm(1) | adamw", 1.4),
    Stage("adamw | ema(0.999)", 1.5),
    Stage("clip_global_norm(1) | adamw | ema(0.999)", 1.7),
    Stage("adamw | prox(l1(1e-5))", 1.15),
    Stage("cautious_adamw", 2.2),
    Stage("adamw | project(l2_ball(100))", 1.7),
    Stage("adamw | prox(group_lasso(1e-5, axis=row))", 1.7),
    Stage("adamw | nm_sparsity(2, 4)", 1.5),
    Stage("adamw | project(simplex(100))", 5.0),
    Stage("penalty(norm_loss(1e-3)) | adamw", 2.0),
    Stage(CHAIN.format("gradient_noise(eta=0)"), 1.9),
    Stage(CHAIN.format("gradient_noise"), 1.9),  # with a normal number an element
    Stage(BARE, 0.8, {"state_dtype": "q8"}),
    Stage(BARE, 0.8, {"state_dtype": "bf16"}),
    *(Stage(sentence, 0.1, cached=True) for sentence in (
        "clip_value(1) | adamw", "penalty(l2(1e-4)) | adamw", "adamw | ema(0.999)", "adamw | prox(l1(1e-5))",
        "adamw | cautious_decay")),
]  # fmt: skip
CASES = {stage.title.replace("`", "") + (", cached" if stage.cached else ""): stage for stage in STAGES}


def stepped(shape: tuple[int, int], sentence: str, **options: Any) -> Step:
    """Steps with the same gradient; the first two, which allocate and start things, are behind us."""
    import thalweg

    rng = np.random.default_rng(0)
    w, g = np.float32(0.05) * rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    opt = thalweg.Optimizer([w], sentence, **options)
    opt.bind_gradients([g])
    for _ in range(2):
        opt.step()
    return opt.step


def busy(step: Step, count: int) -> float:
    """Seconds of the CPU that a step takes."""
    started = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - started) / count


def pairs(bare: Step, other: Step, repetitions: int) -> list[tuple[float, float]]:
    """The times of both, one after the other."""
    count = max(1, math.ceil(TURN / max(busy(bare, 1), 1e-7)))
    gc.disable()
    try:
        return [(busy(bare, count), busy(other, count)) for _ in range(repetitions)]
    finally:
        gc.enable()


def task(case: str, quick: bool, repetitions: int) -> dict[str, Any]:
    """Medians: seconds of bare adamw and of the sentence; their ratio and their difference, of the pairs."""
    stage = CASES[case]
    shape = QUICK if quick else CACHED if stage.cached else LARGE
    both = pairs(stepped(shape, BARE), stepped(shape, stage.sentence, **stage.options), repetitions)
    median = statistics.median
    return {
        "bare": median(a for a, _ in both), "time": median(b for _, b in both), "over": median(b / a for a, b in both),
        "adds": median((b - a) / math.prod(shape) * 1e9 for a, b in both),
    }  # fmt: skip


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    """(Markdown, raw results): two tables, of one thread."""
    names = [name for name in CASES if only in name]
    raw: dict[str, dict[str, Any]] = {}
    tasks = [dict(case=name, quick=quick, repetitions=repetitions) for name in names]
    for name, result in zip(names, run_tasks("stages", tasks, 1, 300)):
        raw[name] = result
        print(f"stages: {name}: {said(CASES[name], result)}", flush=True)
    return section(raw), raw


def said(stage: Stage, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"failed, {result['error']}"
    what = f"{result['adds']:.3f} ns an element more" if stage.cached else f"{result['over']:.2f} of {BARE}"
    return f"{what} (aim {stage.aim:g}, {verdict(stage, result)})"


def verdict(stage: Stage, result: dict[str, Any]) -> str:
    return met(result["adds" if stage.cached else "over"], stage.aim)


def section(raw: Mapping[str, dict[str, Any]]) -> str:
    """The tables of what was measured; what failed stands below."""
    done = [(CASES[name], result) for name, result in raw.items() if "error" not in result]
    parts: list[str] = []

    def add(title: str, unit: float, unit_name: str, what: str, rows: list[tuple[Stage, dict[str, Any], str]]) -> None:
        header = ["sentence", f"{BARE}, {unit_name}", f"sentence, {unit_name}", what, "aim"]
        if rows:
            parts.append(f"#### {title}\n\n" + table(header, [
                [stage.title, duration(r["bare"], unit), duration(r["time"], unit),
                 f"{shown} {verdict(stage, r)}", f"{stage.aim:g}"] for stage, r, shown in rows]))

    add("16.8 M numbers", 1e-3, "ms", f"over {BARE}", [(s, r, f"{r['over']:.2f}") for s, r in done if not s.cached])
    add("16 K numbers, in the second-level cache", 1e-6, "us", "adds, ns an element",
        [(s, r, f"{r['adds']:.3f}") for s, r in done if s.cached])
    reached = sum(verdict(stage, r) == "met" for stage, r in done)
    parts.append(f"{reached} of {len(done)} aims met.")
    if failed := [f"{name}: {result['error']}" for name, result in raw.items() if "error" in result]:
        parts.append(f"Failed: {'; '.join(failed)}.")
    return "\n\n".join(parts)
