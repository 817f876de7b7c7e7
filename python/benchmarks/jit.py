"""Steps inside jax.jit with donated buffers: thalweg's call beside Optax compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import cases
from .cases import LOOP, OURS, Builders, Candidate, Case, loop, normal
from .common import Shapes

LR = 1e-3


def task(**arguments: Any) -> dict[str, Any]:
    return cases.task(CASES, **arguments)


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    return cases.run("jit", threads, quick, repetitions, only)


def stepping(make: Callable[[], Any], shapes: Shapes) -> Callable[[], Candidate]:
    """A transformation of gradients at work on lists of arrays, which it is given for good and gives back."""

    def build() -> Candidate:
        import jax

        transformation = make()
        start, grads = ([jax.numpy.array(a) for a in group] for group in normal(shapes))
        fresh = jax.jit(transformation.init)
        held: list[Any] = [[x + 0 for x in start], fresh(start)]
        first: list[np.ndarray] = []

        def update(params: Any, state: Any, grads: Any) -> Any:
            if hasattr(transformation, "apply"):
                return transformation.apply(grads, state, params)
            updates, state = transformation.update(grads, state, params)
            return jax.tree.map(jax.numpy.add, params, updates), state

        jitted = jax.jit(update, donate_argnums=(0, 1))
        # compiled here: the first step is timed like the others
        jax.block_until_ready(jitted([x + 0 for x in start], fresh(start), grads))

        def step() -> None:
            held[:] = jax.block_until_ready(jitted(*held, grads))
            if not first:
                first.extend(np.asarray(p) - np.asarray(s) for p, s in zip(held[0], start))

        return Candidate(step, lambda: first)

    return build


def beside(sentence: str, theirs: Callable[[Any], Any], states: int, shapes: Shapes, quick: bool) -> Builders:
    if quick:
        shapes = shapes[:8] if len(shapes) > 1 else [(1, 100_000)]

    def mine() -> Any:
        import thalweg.jax

        return thalweg.jax.optimizer(sentence)

    def peer() -> Any:
        import optax

        return theirs(optax)

    return {OURS: stepping(mine, shapes), LOOP: loop("walk", states, shapes), "Optax": stepping(peer, shapes)}


RULES: dict[str, tuple[str, Callable[[Any], Any], int]] = {
    "adamw": (f"adamw(lr={LR}, weight_decay=0.01)", lambda o: o.adamw(LR, weight_decay=0.01), 2),
    "clip, adamw": (f"clip_global_norm(1.0) | adamw(lr={LR}, weight_decay=0.01)",
                    lambda o: o.chain(o.clip_by_global_norm(1.0), o.adamw(LR, weight_decay=0.01)), 2),
    "sgd with momentum": (f"sgd(lr={LR}, momentum=0.9)", lambda o: o.sgd(LR, momentum=0.9), 1),
    "lion": (f"lion(lr={LR}, weight_decay=0.01)", lambda o: o.lion(LR, weight_decay=0.01), 1),
}
CASES: dict[str, Case] = {}
for _where, _shapes, _aim in (("33 M", [(1, 33_000_000)], 0.7), ("2,000 of 1,000", [(1, 1_000)] * 2_000, 0.5)):
    for _name, (_sentence, _theirs, _states) in RULES.items():
        CASES[f"{_name}, {_where}"] = Case(
            f"`{_sentence}`, {_where}", partial(beside, _sentence, _theirs, _states, _shapes), {"Optax": _aim}, 1e-3)
