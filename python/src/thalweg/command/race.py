"""`race`: sentences on one problem, from the same starts and minibatches; a table and a picture."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import thalweg

from .console import Bar, Progress, Refusal, counted, need, number, one_thread, print_table
from .problems import Problem, problem

POINTS = 60  # how often a run looks at the loss
ALL_DIVERGED = "there is no best: half of the runs of each diverged, or more"
DIVERGED = 1e6  # a loss this many times larger than at the start


@dataclass
class Run:
    """One run of one sentence.

    at      the steps at which the loss was looked at, from 0
    losses  the losses there; what follows a divergence is infinite
    error   the score at the end, NaN where the problem has none
    micros  the median time of a step outside the gradients, in microseconds
    state   bytes of state
    """

    at: np.ndarray
    losses: np.ndarray
    error: float
    micros: float
    state: int

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.losses[-1])


@dataclass
class Entry:
    """A sentence and its runs, one a seed."""

    sentence: str
    runs: list[Run] = field(default_factory=list)

    def final(self) -> np.ndarray:
        """The loss at the end, of each run."""
        return np.array([run.losses[-1] for run in self.runs])

    def errors(self) -> np.ndarray:
        return np.array([run.error for run in self.runs])

    def median(self) -> float:
        """The median loss at the end; infinite where half of the runs diverged."""
        return spread(self.final())[1]

    def lost(self) -> str:
        """How many runs diverged, of how many."""
        return f"{sum(run.diverged for run in self.runs)} of {len(self.runs)}"

    def rank(self) -> tuple[float, float]:
        """Less is better: the median score, where there is one, then the median loss."""
        loss, score = self.median(), spread(self.errors())[1]
        if loss == math.inf:
            return math.inf, loss
        return 0.0 if math.isnan(score) else score, loss


def best_of(entries: list[Entry]) -> int | None:
    """Which one is the best; None where half of the runs of each diverged."""
    best = min(range(len(entries)), key=lambda i: entries[i].rank())
    return best if math.isfinite(entries[best].rank()[0]) else None


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """The quartiles, between two of the values linearly: (lower, median, upper).  What leans on a value that is
    infinite is infinite, and NaN counts as that, but where all are NaN."""
    ordered = np.sort(np.where(np.isnan(values), np.inf, values)) if not np.isnan(values).all() else values

    def at(share: float) -> float:
        below, part = divmod(share * (len(ordered) - 1), 1)
        value = float(ordered[int(below)])
        return value + part * (float(ordered[int(below) + 1]) - value) if part and math.isfinite(value) else value

    return at(0.25), at(0.5), at(0.75)


def written(sentence: str, on: Problem, steps: int) -> str:
    """The sentence as the library writes it.

    Refusal, in the library's words, where it cannot be made on the parameters of the problem.
    """
    params = [p.astype(np.float32) for p in on.start(np.random.default_rng(0))]
    try:
        with thalweg.Optimizer(params, complete(sentence, steps), names=on.names) as opt:
            return opt.sentence
    except thalweg.Error as wrong:
        raise Refusal(str(wrong)) from None


def check(sentences: list[str], on: Problem, steps: int) -> None:
    """Refusal for the first sentence that cannot be made."""
    for sentence in sentences:
        written(sentence, on, steps)


def complete(sentence: str, steps: int) -> str:
    """The sentence with the number of steps in place of {steps}."""
    return sentence.replace("{steps}", str(steps))


def run(sentence: str, on: Problem, seed: int, steps: int, state_dtype: str = "f32", bar: Bar | None = None) -> Run:
    """One run.  Refusal where the method asks for what the problem does not have."""
    rng = np.random.default_rng([seed, 1])
    params = [p.astype(np.float32) for p in on.start(np.random.default_rng([seed, 0]))]
    opt = thalweg.Optimizer(params, complete(sentence, steps), names=on.names, state_dtype=state_dtype, seed=seed)
    at = np.unique(np.linspace(0, steps, min(POINTS, steps) + 1).astype(int))
    losses = np.full(len(at), np.inf)
    losses[0] = on.loss(params)
    watched = [what for what in ("metric", "loss") if _takes(opt, what)]
    micros, point, known = [], 1, losses[0]
    try:
        for k in range(1, steps + 1):
            for what in watched:
                opt.observe(what, known)
            inside, started, batches = 0.0, time.perf_counter(), {}
            for request in opt.requests():
                before = time.perf_counter()
                if request.tag not in batches:
                    batches[request.tag] = on.batch(rng)
                on.answer(request, params, batches[request.tag])
                inside += time.perf_counter() - before
            micros.append((time.perf_counter() - started - inside) * 1e6)
            if bar is not None:
                bar.advance()
            if k == at[point]:
                with opt.averaged(), np.errstate(all="ignore"):
                    known = on.loss(params)
                if not known <= DIVERGED * max(abs(losses[0]), 1e-12):
                    break
                losses[point] = known
                point += 1
                if bar is not None:
                    bar.note(f"loss {known:.4g}")
                if point == len(at):
                    break
    except thalweg.NonfiniteError:
        pass  # the method refuses to go on: a divergence
    except thalweg.Error as wrong:
        raise Refusal(f"{sentence}: {wrong}") from None
    with opt.averaged(), np.errstate(all="ignore"):
        error = on.error(params) if math.isfinite(losses[-1]) else float("nan")
    state = opt.memory_report().total
    opt.close()
    return Run(at, losses, error, float(np.median(micros)) if micros else float("nan"), state)


def _takes(opt: thalweg.Optimizer, what: str) -> bool:
    try:
        opt.observe(what, 1.0)
    except thalweg.Error:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing is said of numbers that overflow: the table does."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def collect(sentences: list[str], on: Problem, seeds: int, steps: int, state_dtype: str, purpose: str) -> list[Entry]:
    """All runs, with progress."""
    entries = [Entry(sentence) for sentence in sentences]
    with Progress(purpose) as progress, one_thread(), _quiet():
        for entry in entries:
            bar = progress.start(entry.sentence, steps * seeds)
            for seed in range(seeds):
                entry.runs.append(run(entry.sentence, on, seed, steps, state_dtype, bar))
                bar.advance(steps * (seed + 1) - bar.done)  # (a run that diverged ends early)
            bar.end(f"loss {number(entry.median())}, {counted(seeds)}")
    return entries


def settings(arguments: argparse.Namespace) -> tuple[Problem, int]:
    """The problem and the number of steps that the arguments name; Refusal for numbers that are none."""
    if arguments.seeds < 1:
        raise Refusal(f"--seeds is at least 1, not {arguments.seeds}")
    on = problem(arguments.problem)
    steps = on.steps if arguments.steps is None else arguments.steps
    if steps < 1:
        raise Refusal(f"--steps is at least 1, not {steps}")
    if arguments.plot:
        need("matplotlib", "pictures are drawn")
        drawable(arguments.plot)
    return on, steps


def writable(path: Path, option: str) -> None:
    """Refusal where no file can be written there: before the work, not after it."""
    if not path.parent.is_dir():
        raise Refusal(f"{option}: there is no folder {path.parent}")
    if path.is_dir():
        raise Refusal(f"{option}: {path} is a folder")


def drawable(path: Path) -> None:
    """Refusal where no picture can be written there."""
    writable(path, "--plot")
    if path.suffix.lower().lstrip(".") not in ("png", "svg", "pdf"):
        raise Refusal(f"--plot: a picture is a .png, .svg or .pdf, not {path.name!r}")


def race(arguments: argparse.Namespace) -> int:
    """`race`: a table, the best first; with --plot a picture, with --json the numbers."""
    on, steps = settings(arguments)
    if arguments.json:
        writable(arguments.json, "--json")
    check(arguments.sentence, on, steps)
    entries = collect(arguments.sentence, on, arguments.seeds, steps, arguments.state_dtype, "race")
    ranked = sorted(entries, key=Entry.rank)
    scores = [on.score, "quartiles"] if on.score else []
    columns = ["sentence", "loss", "quartiles", *scores, "us/step", "state bytes", "diverged"]
    rows = []
    for entry in ranked:
        row = [entry.sentence, *cells(entry.final(), number)]
        if on.score:
            row += cells(entry.errors(), share)
        micros = float(np.median([r.micros for r in entry.runs]))
        rows.append([*row, f"{micros:.1f}", f"{entry.runs[0].state:,}", entry.lost()])
    best = best_of(ranked)
    print_table(columns, rows, right=range(1, len(columns)), title=heading(arguments, on, steps), best=best)
    if best is None:
        print(ALL_DIVERGED)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_values(arguments.problem, steps, entries), indent=1) + "\n")
    if arguments.plot:
        from . import plots

        plots.race(entries, on, arguments.problem, steps, arguments.plot)
        print(f"picture: {arguments.plot}")
    return 0


def heading(arguments: argparse.Namespace, on: Problem, steps: int) -> str:
    """What a table is about."""
    return f"{arguments.problem}: {on.summary}; {steps} steps, medians of {counted(arguments.seeds)}"


def share(x: float) -> str:
    """A score for tables; "-" for none."""
    return f"{x:.2%}" if math.isfinite(x) else "-"


def cells(values: np.ndarray, write: Callable[[float], str]) -> list[str]:
    """The median and the quartiles, for a table."""
    lower, median, upper = spread(values)
    return [write(median), f"{write(lower)} ... {write(upper)}"]


def as_values(name: str, steps: int, entries: list[Entry]) -> dict[str, object]:
    """The runs as JSON has them; what diverged is null."""
    def plain(x: float) -> float | None:
        return float(x) if math.isfinite(x) else None

    def values(r: Run) -> dict[str, object]:
        return {"at": r.at.tolist(), "losses": [plain(x) for x in r.losses], "error": plain(r.error),
                "micros": plain(r.micros), "state": r.state}

    return {"problem": name, "steps": steps,
            "entries": [{"sentence": e.sentence, "runs": [values(r) for r in e.runs]} for e in entries]}
