"""Aggregators of task gradients beside TorchJD, SAM beside a plain torch form, private gradients beside plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import cases
from .cases import LOOP, OURS, Builders, Candidate, Case, loop, normal, ours, torch_steps
from .common import Shapes

LR = 1e-3


def task(**arguments: Any) -> dict[str, Any]:
    return cases.task(CASES, **arguments)


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    return cases.run("surgery", threads, quick, repetitions, only)


# ---- aggregators

# name here -> (settings beyond the tasks, name in TorchJD, its arguments by the number of tasks, how near; None: the
# order of the tasks is drawn at random, and both draw otherwise)
AGGREGATORS: dict[str, tuple[str, str, Callable[[int], dict[str, Any]], float | None]] = {
    "upgrad": ("", "UPGrad", lambda t: {}, 1e-2),
    "mgda": ("", "MGDA", lambda t: {}, 1e-6),
    "cagrad": ("", "CAGrad", lambda t: {"c": 0.5}, 1e-2),
    "imtl_g": ("", "IMTLG", lambda t: {}, 1e-2),
    "nash_mtl": ("", "NashMTL", lambda t: {"n_tasks": t}, 5e-2),
    "pcgrad": ("", "PCGrad", lambda t: {}, None),
    "gradvac": ("", "GradVac", lambda t: {}, None),
    "aligned_mtl": ("", "AlignedMTL", lambda t: {}, 1e-2),
    "dualproj": ("", "DualProj", lambda t: {}, 1e-2),
    "krum": (", n_byzantine=0, squared=false", "Krum", lambda t: {"n_byzantine": 0}, 1e-4),
    "trimmed_mean": ("", "TrimmedMean", lambda t: {"trim_number": 1}, 1e-4),
    "config": ("", "ConFIG", lambda t: {}, 1e-2),
}


def longer(ours: Any, theirs: Any) -> float:
    """How much longer ours is, relative: the shortest one is looked for, there by Frank-Wolfe steps to 1e-3."""
    return float(np.linalg.norm(ours) / np.linalg.norm(theirs)) - 1


@functools.lru_cache(1)
def jacobian(tasks: int, n: int) -> np.ndarray:
    """Rows of different lengths, some of which conflict: a block of numbers over and over."""
    rng, width = np.random.default_rng(9), min(n, 1 << 16)
    shared, own = rng.standard_normal(width), rng.standard_normal((tasks, width))
    block = np.linspace(0.5, 2, tasks)[:, None] * (own + np.linspace(-0.3, 0.9, tasks)[:, None] * shared)
    rows = np.empty((tasks, n), np.float32)
    for at in range(0, n, block.shape[1]):
        rows[:, at : at + block.shape[1]] = block[:, : n - at]
    return rows


def aggregated(name: str, tasks: int, n: int, quick: bool) -> Builders:
    """A whole step: every gradient answered where it lies, combined, and taken by SGD."""
    n = n // 50 if quick else n
    rows = jacobian(tasks, n)
    settings, theirs, arguments, near = AGGREGATORS.get(name, ("", "", lambda t: {}, 1e-4))

    def build() -> Candidate:
        import thalweg

        w = np.zeros(n, np.float32)
        opt = thalweg.Optimizer([w], f"{name}(tasks={tasks}{settings}) | sgd(lr={LR})")

        def step() -> None:
            for request in opt.requests():
                request.answer([rows[request.index]], stay=True)

        return Candidate(step, lambda: w)

    def peer() -> Candidate:
        import torch

        if name == "coordinate_median":
            combine = median
        else:
            from torchjd import aggregation

            combine = getattr(aggregation, theirs)(**arguments(tasks))
        w, j = torch.zeros(n), torch.from_numpy(rows)

        def step() -> None:
            with torch.no_grad():
                w.sub_(combine(j), alpha=LR)

        # at sixteen tasks that conflict ECOS gives up there, far from a solution of the equation of Nash-MTL
        known = near is not None and (name, tasks) != ("nash_mtl", 16)
        return Candidate(step, w.numpy if known else None)

    def median(j: Any) -> Any:
        """Of an even number of rows: the mean of the two in the middle, which torch.median does not give."""
        ordered = j.sort(dim=0).values
        return (ordered[tasks // 2 - 1] + ordered[tasks // 2]) / 2

    reads = loop("read", 0, [(tasks, n)], 2, [rows])  # for the Gramian and for the sum
    return {OURS: build, LOOP: reads, "torch" if name == "coordinate_median" else "TorchJD": peer}


# ---- SAM


def sam(shapes: Shapes, rule: str, quick: bool) -> Builders:
    """SAM around a rule, both gradients the same and ready."""
    shapes = [(rows, max(1, columns // 50)) for rows, columns in shapes] if quick else shapes
    mine = {"AdamW": f"adamw(lr={LR})", "SGD": f"sgd(lr={LR}, momentum=0.9)"}[rule]

    def peer() -> Candidate:
        import torch

        made: list[Any] = []

        def make(tensors: list[Any]) -> Any:
            made[:] = tensors
            options = {"momentum": 0.9} if rule == "SGD" else {}
            return Around(getattr(torch.optim, rule)(tensors, lr=LR, fused=True, **options), tensors)

        return torch_steps(make, shapes)()

    # in numbers an element: the norm 1; to the worst point 4, and back 2; the rule 7 or 5; the loop walks 3 + 2*walks
    walks = {"AdamW": 6, "SGD": 5}[rule]
    return {
        OURS: ours(f"sam(0.05) | {mine}", shapes), LOOP: loop("walk", walks, shapes), "torch, SAM of two steps": peer,
    }  # fmt: skip


class Around:
    """SAM as it is usually written in torch: keep all parameters, go to the worst point, go back, take the step."""

    def __init__(self, rule: Any, tensors: list[Any], rho: float = 0.05) -> None:
        self.rule, self.tensors, self.rho = rule, tensors, rho

    def step(self) -> None:
        import torch

        with torch.no_grad():
            norm = torch.stack([p.grad.norm(p=2) for p in self.tensors]).norm(p=2)
            scale = self.rho / (norm + 1e-12)
            kept = []
            for p in self.tensors:
                kept.append(p.clone())
                p.add_(p.grad * scale)
            # here the host computes the gradient at the worst point
            for p, old in zip(self.tensors, kept):
                p.copy_(old)
        self.rule.step()


# ---- private gradients


def private(tensors: int, noise: float, quick: bool) -> Builders:
    """256 samples of 100,000 numbers, clipped to 1 and added; SGD takes the mean, at a rate of 1."""
    samples, n = (32, 10_000) if quick else (256, 100_000)
    rng = np.random.default_rng(10)
    parts = [0.01 * rng.standard_normal((samples, n // tensors), np.float32) for _ in range(tensors)]
    shapes: Shapes = [(1, n // tensors)] * tensors

    def answer(request: Any, _: Any) -> None:
        request.answer_samples([part[:, None] for part in parts])

    def peer() -> Candidate:
        import torch

        given = [torch.from_numpy(part) for part in parts]
        start, _ = normal(shapes)
        weights = [torch.from_numpy(w.copy()) for w in start]

        def step() -> None:
            with torch.no_grad():
                norms = torch.stack([g.norm(dim=1) for g in given], dim=1).norm(dim=1)
                factors = (1 / (norms + 1e-6)).clamp(max=1)
                for w, g in zip(weights, given):
                    total = torch.einsum("i,ij->j", factors, g)
                    if noise:
                        total += noise * torch.randn_like(total)
                    w.sub_(total[None], alpha=1 / samples)

        return Candidate(step, None if noise else lambda: [w.numpy() - s for w, s in zip(weights, start)])

    sentence = f"dp_sgd(noise_multiplier={noise}, expected_batch_size={samples}) | sgd(lr=1)"
    return {OURS: ours(sentence, shapes, answer=answer), LOOP: loop("read", 0, [(samples, n)], 2), "torch": peer}


CASES: dict[str, Case] = {}
for _tasks, _n, _aim in ((16, 10_000_000, 0.3), (4, 10_000_000, 0.3), (16, 1_000_000, 0.4)):
    for _name, (_, _, _, _near) in AGGREGATORS.items():
        if _name not in ("trimmed_mean", "config"):
            CASES[f"{_name} {_tasks} x {_n // 1_000_000} M"] = Case(
                f"`{_name}`, {_tasks} tasks x {_n // 1_000_000} M", partial(aggregated, _name, _tasks, _n),
                {"TorchJD": _aim}, _near or 1e-4, longer if _name == "mgda" else cases.apart)
for _name, _peer in (("trimmed_mean", "TorchJD"), ("coordinate_median", "torch"), ("config", "TorchJD")):
    CASES[f"{_name} 16 x 1 M"] = Case(
        f"`{_name}`, 16 tasks x 1 M", partial(aggregated, _name, 16, 1_000_000), {_peer: 0.05}, 1e-2)
for _rule in ("AdamW", "SGD"):
    for _count, _aim in ((1, 0.28), (100, 0.6)):
        CASES[f"sam, {_rule}, {_count}"] = Case(
            f"`sam` around {_rule}, 10 M in {_count} tensor{'s' if _count > 1 else ''}",
            partial(sam, [(1, 10_000_000 // _count)] * _count, _rule),
            {"torch, SAM of two steps": _aim} if _rule == "AdamW" else {}, 1e-2)
for _noise in (0.0, 1.0):
    for _count in (1, 10):
        CASES[f"dp_sgd, noise {_noise:g}, {_count}"] = Case(
            f"`dp_sgd`, noise {_noise:g}, 256 x 100,000 in {_count} tensor{'s' if _count > 1 else ''}",
            partial(private, _count, _noise), {"torch": 0.6}, 1e-3)
