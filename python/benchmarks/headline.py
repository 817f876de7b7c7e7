"""The claims of the README, each beside the peers that it is about, in one process and taking turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import peers
from .common import Shapes, Step, duration, elements, measure, plain_loop, ratio, run_tasks, table, threads_text

CHAIN = "clip_value(1.0) | gradient_noise(eta=0) | penalty(l2(1e-4)) | adamw | ema(0.999)"
TINY: Shapes = [(16, 16)] * 5 + [(1, 16)] * 5
OURS = "thalweg"


def adamw(shapes: Shapes) -> dict[str, Callable[[], Step]]:
    return {
        OURS: partial(peers.ours, "adamw", shapes),
        "plain C loop": partial(plain_loop, "adamw", 2, shapes),
        "torch fused": partial(peers.torch, "AdamW", shapes, fused=True),
        "torch foreach": partial(peers.torch, "AdamW", shapes, foreach=True),
        "optax, jitted, donated": partial(peers.optax, "adamw", shapes, learning_rate=1e-3),
        "NumPy": partial(peers.numpy_adamw, shapes),
    }


def candidates(case: str, quick: bool) -> tuple[Shapes, dict[str, Callable[[], Step]], dict[str, Any]]:
    """What is timed in a case: the shapes, the builders, and a dict that they fill with bytes of state."""
    large: Shapes = [(1024, 1024)] if quick else [(8192, 4096)]
    small: Shapes = [(64, 64)] * (100 if quick else 2000)
    square: Shapes = [(256, 256)] * 4 if quick else [(1024, 1024)] * 16
    report: dict[str, Any] = {OURS: {}, "f32 state": {}, "bf16 state": {}}
    if case == "large":
        return large, adamw(large), report
    if case == "small":
        return small, adamw(small), report
    if case == "tiny":
        return TINY, adamw(TINY), report
    if case == "chain":
        steps = {
            OURS: partial(peers.ours, CHAIN, large, report[OURS]),
            "adamw alone": partial(peers.ours, "adamw", large),
            "plain C loop, 2 states": partial(plain_loop, "walk", 2, large),
            "plain C loop, 3 states": partial(plain_loop, "walk", 3, large),
        }
        return large, steps, report
    if case == "8-bit":
        steps = {
            OURS: partial(peers.ours, "adamw", large, report[OURS], state_dtype="q8"),
            "bf16 state": partial(peers.ours, "adamw", large, report["bf16 state"], state_dtype="bf16"),
            "f32 state": partial(peers.ours, "adamw", large, report["f32 state"]),
            "plain C loop, f32": partial(plain_loop, "adamw", 2, large),
        }
        return large, steps, report
    steps = {
        OURS: partial(peers.ours, "muon(ns_precision=bf16)", square),
        "f32 products": partial(peers.ours, "muon", square),
        "torch.optim.Muon": partial(peers.torch, "Muon", square),
        "optax.contrib.muon": partial(peers.optax, "contrib.muon", square, learning_rate=1e-3),
        "pytorch_optimizer Muon": partial(peers.pytorch_optimizer, "muon", square, use_muon=True),
    }
    return square, steps, report


# case -> (title, unit in seconds or None for nanoseconds an element, its name,
#          [(candidate, at most so many times its time)])
CASES: dict[str, tuple[str, float | None, str, list[tuple[str, float]]]] = {
    "large": (
        "AdamW, f32, one tensor of 33.5 M", None, "ns an element", [("plain C loop", 1.10), ("torch fused", 1.00)]),
    "small": ("AdamW, f32, 2,000 tensors of 64 x 64", None, "ns an element", [("torch fused", 0.40)]),
    "chain": (f"`{CHAIN}`, 33.5 M", None, "ns an element", [("adamw alone", 1.5 + 8 / 28)]),
    "8-bit": ("AdamW with 8-bit state, 33.5 M", None, "ns an element", [("f32 state", 1.00)]),
    "tiny": ("AdamW, a model of ten tensors (1,360 numbers), `step()` from Python", 1e-6, "us a step", []),
    "muon": (
        "Muon, products in bfloat16 as in torch.optim.Muon, sixteen matrices of 1024 x 1024", 1e-3, "ms a step",
        [("torch.optim.Muon", 1.00)]),
}


def task(case: str, quick: bool, repetitions: int) -> dict[str, Any]:
    shapes, steps, report = candidates(case, quick)
    times = measure(steps, repetitions)
    state = {label: filled["state"] for label, filled in report.items() if filled}
    return {"elements": elements(shapes), "times": times, "state": state}


def verdicts(case: str, result: dict[str, Any]) -> list[str]:
    """What was aimed at, and what was measured."""
    times, state = result["times"], result["state"]
    lines = []
    for other, limit in CASES[case][3]:
        measured = ratio(times.get(OURS), times.get(other))
        if measured:
            missed = "" if float(measured) <= limit else "; missed"
            lines.append(f"{measured} of {other} (aim: at most {limit:.2f}{missed})")
    if case == "8-bit" and len(state) == 3:
        share = state[OURS] / state["f32 state"]
        lines.append(f"{share:.1%} of the bytes of f32 state (aim: at most 30 %{'' if share <= 0.30 else '; missed'})")
    if case == "tiny" and isinstance(times.get(OURS), float):
        micros = times[OURS] * 1e6
        lines.append(f"{micros:.2f} us (aim: under 5{'' if micros < 5 else '; missed'})")
    return lines


def run(threads: list[int], quick: bool, repetitions: int) -> tuple[str, Any]:
    """(Markdown, raw results)."""
    raw: dict[str, dict[int, Any]] = {case: {} for case in CASES}
    for count in threads:
        for case in CASES:
            print(f"headline: {case}, {threads_text(count)}", flush=True)
            tasks = [dict(case=case, quick=quick, repetitions=repetitions)]
            raw[case][count] = next(run_tasks("headline", tasks, count, 600))
    parts = []
    for case, (title, unit, unit_name, _) in CASES.items():
        parts.append(f"#### {title}")
        results = {count: r for count, r in raw[case].items() if "times" in r}
        labels = list(next(iter(results.values()))["times"]) if results else []
        labels.sort(key=lambda label: label != OURS)
        rows = []
        for label in labels:
            row = [label]
            for count, r in results.items():
                time = r["times"][label]
                digits = 3 if unit is None else 2
                row += [duration(time, unit or r["elements"] * 1e-9, digits), ratio(time, r["times"][OURS])]
            rows.append(row)
        header = [f"{unit_name}, medians"]
        for count in results:
            header += [threads_text(count), f"over {OURS}"]
        if rows:
            parts.append(table(header, rows))
        for count, r in raw[case].items():
            where = threads_text(count)
            if "error" in r:
                parts.append(f"{where}: failed, {r['error']}")
                continue
            if lines := verdicts(case, r):
                parts.append(f"{where}: {'; '.join(lines)}.")
            failed = [f"{label}: {t['error']}" for label, t in r["times"].items() if isinstance(t, dict)]
            if failed:
                parts.append(f"{where}, failed: {'; '.join(failed)}")
    return "\n\n".join(parts), raw
