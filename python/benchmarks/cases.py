"""What the suites of whole families share: cases with candidates, aims, and a look whether all compute the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .common import Shapes, Step, duration, measure, plain_loop, reason, run_tasks, table, threads_text, timed

OURS, LOOP, BEST, PRODUCT = "thalweg", "plain loop", "best peer", "sgemm"
SECONDS = 4.0  # of timing a case, but for three turns of every candidate
ONCE = 15.0  # seconds of a first step (bfloat16 where the processor has none) after which there is no other


@dataclass
class Candidate:
    """A step to time; what the first one has computed, an array or a list of them; the operations it needs."""

    step: Step
    result: Callable[[], Any] | None = None
    flops: float = 0.0


Builders = dict[str, Callable[[], Candidate]]


def apart(ours: Any, theirs: Any) -> float:
    """How far two results are apart, in lengths of the second."""
    a, b = ([np.asarray(x, np.float64) for x in (r if isinstance(r, list) else [r])] for r in (ours, theirs))
    far = sum(float(np.sum((x - y.reshape(x.shape)) ** 2)) for x, y in zip(a, b, strict=True))
    return float(np.sqrt(far / max(sum(float(np.sum(y**2)) for y in b), 1e-300)))


@dataclass(frozen=True)
class Case:
    """One row of a table.

    title       of the case
    candidates  builders by label, OURS first; the argument says whether small sizes do
    aims        {label, or BEST of the peers: at most so many times its time}
    tolerance   how far results may lie apart, by `distance`(ours, theirs): beyond it a peer is not timed
    steps       that one call takes, where it is a whole period of refreshes; times are for one step
    threads     with how many it is measured, of those asked for
    """

    title: str
    candidates: Callable[[bool], Builders]
    aims: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4
    distance: Callable[[Any, Any], float] = apart
    steps: int = 1
    threads: Sequence[int] = (1, 2)


def loop(name: str, states: int, shapes: Shapes, times: int = 1,
         over: list[np.ndarray] | None = None) -> Callable[[], Candidate]:
    """The plain loop, run `times` times a step."""

    def build() -> Candidate:
        step = plain_loop(name, states, shapes, over)
        return Candidate(step if times == 1 else lambda: [step() for _ in range(times)])

    return build


def ours(sentence: str, shapes: Shapes, steps: int = 1, flops: float = 0.0, varied: int = 1,
         answer: Callable[[Any, list[np.ndarray]], None] | None = None, **options: Any) -> Callable[[], Candidate]:
    """thalweg on arrays of these shapes, `steps` steps a call: what it computes is how the last one of them moves.

    varied  how many different gradients take turns: of one alone, averages and bases would be of rank 1
    answer  (request, gradients): answers each request; without it they are gradients, and a loss is 1
    """

    def build() -> Candidate:
        import thalweg

        params, grads = normal(shapes)
        turns = [grads, *(normal(shapes, k)[1] for k in range(1, varied))]
        opt = thalweg.Optimizer(params, sentence, **options)
        opt.bind_gradients(grads)

        def step(k: int) -> None:
            if varied > 1:
                opt.step(turns[k % varied])
            elif answer is None:
                opt.step(lambda: 1.0)
            else:
                for request in opt.requests():
                    answer(request, grads)

        return moving(step, params, steps, flops)

    return build


def torch_steps(make: Callable[[list[Any]], Any], shapes: Shapes, steps: int = 1, flops: float = 0.0, varied: int = 1,
                **arguments: Callable[[], Any]) -> Callable[[], Candidate]:
    """The same of an optimizer of torch, which `make` makes of its parameters; `arguments` make what its step takes."""

    def build() -> Candidate:
        import torch

        params, grads = normal(shapes)
        turns = [[torch.from_numpy(g) for g in grads]]
        turns += [[torch.from_numpy(g) for g in normal(shapes, k)[1]] for k in range(1, varied)]
        tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        for tensor, grad in zip(tensors, turns[0]):
            tensor.grad = grad
        opt = make(tensors)
        given = {name: value() for name, value in arguments.items()}

        def step(k: int) -> None:
            if varied > 1:
                for tensor, grad in zip(tensors, turns[k % varied]):
                    tensor.grad = grad
            opt.step(**given)

        return moving(step, params, steps, flops)

    return build


def moving(step: Callable[[int], None], params: list[np.ndarray], steps: int, flops: float = 0.0) -> Candidate:
    """`steps` steps a call, which change `params`; the result is what the last one of the first call has changed."""
    before: list[np.ndarray] = []

    def call() -> None:
        for k in range(steps):
            if k == steps - 1 and not before:
                before.extend(p.copy() for p in params)
            step(k)

    return Candidate(call, lambda: [p - b for p, b in zip(params, before)], flops)


def normal(shapes: Shapes, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients of full rank, float32."""
    rng = np.random.default_rng([5, seed])
    return ([rng.standard_normal(s, np.float32) for s in shapes],
            [np.float32(1e-2) * rng.standard_normal(s, np.float32) for s in shapes])


# ---- a suite


def task(cases: Mapping[str, Case], case: str, quick: bool, repetitions: int) -> dict[str, Any]:
    """Seconds a step of every candidate, its Gflop/s, and how far its result is from ours."""
    chosen, built, far, failed, once = cases[case], {}, {}, {}, {}
    mine: Any = None
    builders = chosen.candidates(quick)
    for label, build in builders.items():
        try:
            candidate = build()
            took = timed(candidate.step)
            result = candidate.result() if candidate.result else None
            if label == OURS:
                mine = [np.array(a) for a in result] if isinstance(result, list) else np.array(result)
            elif result is not None:
                far[label] = chosen.distance(mine, result)
                if not far[label] <= chosen.tolerance:
                    failed[label] = {"error": f"computes something else: {far[label]:.1e} apart"}
                    continue
            built[label] = candidate
            if took > ONCE:
                once[label] = took
        except Exception as problem:
            failed[label] = {"error": reason(problem)}
    steps = {label: lambda c=c: c.step for label, c in built.items() if label not in once}
    times = measure(steps, repetitions, SECONDS) | once
    times = {k: t / chosen.steps if isinstance(t, float) else t for k, t in times.items()} | failed
    speed = {k: c.flops / (chosen.steps * times[k]) * 1e-9 for k, c in built.items() if c.flops and isinstance(times[k], float)}
    return {"times": {k: times[k] for k in builders}, "gflops": speed, "apart": far}


def run(suite: str, threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    """(Markdown, raw results) of the suite benchmarks.`suite`: of those of its CASES with `only` in their name."""
    every: Mapping[str, Case] = importlib.import_module(f"benchmarks.{suite}").CASES
    cases = {name: case for name, case in every.items() if only in name}
    raw: dict[str, dict[int, Any]] = {name: {} for name in cases}
    for count in threads:
        chosen = [name for name, case in cases.items() if count in case.threads]
        tasks = [dict(case=name, quick=quick, repetitions=repetitions) for name in chosen]
        for name, result in zip(chosen, run_tasks(suite, tasks, count, 600)):
            print(f"{suite}: {name}, {threads_text(count)}: {verdict_line(cases[name], result)}", flush=True)
            raw[name][count] = result
    return section(cases, raw, threads), raw


def verdicts(case: Case, result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """{label: (our time over its, the aim)} where there is an aim and both were measured."""
    times = {k: t for k, t in result.get("times", {}).items() if isinstance(t, float)}
    peers = {k: t for k, t in times.items() if k not in (OURS, LOOP) and not k.startswith(PRODUCT)}
    found = {}
    for label, aim in case.aims.items():
        at = min(peers, key=peers.__getitem__, default="") if label == BEST else label
        if at in times and OURS in times:
            found[at] = times[OURS] / times[at], aim
    return found


def verdict_line(case: Case, result: dict[str, Any]) -> str:
    """The ratios of a case in one line, for who watches."""
    if "error" in result:
        return f"failed, {result['error']}"
    parts = [f"{r:.3g} of {label} (aim {aim:g}, {met(r, aim)})" for label, (r, aim) in verdicts(case, result).items()]
    parts += [f"{label} skipped: {t['error']}" for label, t in result["times"].items() if isinstance(t, dict)]
    return "; ".join(parts) or "no aim could be looked at"


def met(measured: float, aim: float) -> str:
    return "met" if measured <= aim else "MISSED"


def section(cases: Mapping[str, Case], raw: dict[str, dict[int, Any]], threads: list[int]) -> str:
    """The table; then how many aims are met, the others with the farthest first, and what was skipped."""
    rows, missed, skipped, all_aims = [], [], [], 0
    for name, case in cases.items():
        done = {n: r for n, r in raw[name].items() if "times" in r}
        skipped += [f"{name}, {threads_text(n)}: {r['error']}" for n, r in raw[name].items() if "error" in r]
        found = {n: verdicts(case, r) for n, r in done.items()}
        for n, r in done.items():
            skipped += [f"{name}, {label}, {threads_text(n)}: {t['error']}"
                        for label, t in r["times"].items() if isinstance(t, dict)]
            all_aims += len(found[n])
            missed += [(ratio / aim, f"{name} {ratio:.3g} of {label} (aim {aim:g}, {threads_text(n)})")
                       for label, (ratio, aim) in found[n].items() if ratio > aim]
        for label in next(iter(done.values()))["times"] if done else ():
            row = [case.title if label == OURS else "", label]
            for n in threads:
                row += cells(done[n], label, found[n]) if n in done else ["", ""]
            aim = next((a for f in found.values() for at, (_, a) in f.items() if at == label), None)
            rows.append([*row, "" if aim is None else f"{aim:g}"])
    header = ["case", "candidate"]
    for n in threads:
        header += [f"{threads_text(n)}, ms", "thalweg over it"]
    text = table([*header, "aim"], rows) + f"\n\n{all_aims - len(missed)} of {all_aims} aims met."
    if missed:
        text += " Missed, the farthest first: " + "; ".join(line for _, line in sorted(missed, reverse=True)) + "."
    return text + ("\n\nSkipped: " + "; ".join(skipped) + "." if skipped else "")


def cells(result: dict[str, Any], label: str, found: dict[str, tuple[float, float]]) -> list[str]:
    """The time of a candidate with its Gflop/s, and our time over it with the verdict."""
    time, mine = result["times"].get(label), result["times"].get(OURS)
    digits = 3 if isinstance(time, float) and time < 0.1 else 1
    shown = "skipped" if isinstance(time, dict) else duration(time, 1e-3, digits)
    if label in result["gflops"]:
        shown += f" ({result['gflops'][label]:.0f} Gflop/s)"
    if label == OURS or label.startswith(PRODUCT) or not isinstance(time, float) or not isinstance(mine, float):
        return [shown, ""]
    verdict = f" {met(*found[label])}" if label in found else ""
    return [shown, f"{mine / time:.3g}{verdict}"]
