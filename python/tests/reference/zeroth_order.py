"""Gradients from losses alone: random directions, mirrored pairs, and MeZO."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import norm, rademacher, zeros
from .base import Arrays, OptimizerReference


class _Losses(OptimizerReference):
    """`estimate` gives a gradient, which plain descent follows."""

    needs = ("loss_at",)
    inner = "sgd(lr=0.0001)"  # short: the noise of an estimate grows with the number of elements

    def start(self, params: Arrays) -> None:
        self.k = 0

    def estimate(self, params: Arrays, loss: Callable[[Arrays], float], normal: Callable[[int], Arrays]) -> Arrays:
        raise NotImplementedError

    def step(self, params: Arrays, grads: Arrays, *, loss_at: Callable[[Arrays], float] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        for p, g in zip(params, self.estimate(params, loss_at, normal)):
            p -= 0.0001 * g
        self.k += 1


def moved(params: Arrays, direction: Arrays, length: float) -> Arrays:
    return [p + length * u for p, u in zip(params, direction)]


class ZOGradient(_Losses):
    """Nesterov, Spokoiny, 2017; Duchi et al., 2015.  The lengths are large here, so that float32 keeps its digits."""

    name = "zo_gradient"
    kind = "transform"
    defaults = {"mu": 1e-3, "q": 1, "kind": "gaussian", "central": False}
    settings = (
        {"mu": 0.1},
        {"mu": 0.05, "q": 3, "central": True},
        {"mu": 0.2, "q": 2, "kind": "rademacher"},
        {"mu": 0.5, "kind": "sphere"},
        {"mu": 0.5, "q": 4, "kind": "sphere", "central": True},
    )

    def estimate(self, params: Arrays, loss: Callable[[Arrays], float], normal: Callable[[int], Arrays]) -> Arrays:
        kind, factor, g = self.h["kind"], 1.0, zeros(params)
        for j in range(self.q):
            u = normal(self.k * self.q + j)
            if kind == "rademacher":
                u = rademacher(u)
            if kind == "sphere":
                length, factor = norm(u), float(sum(p.size for p in params))
                u = [x / length for x in u]
            above = loss(moved(params, u, self.mu))
            if self.central:
                d = (above - loss(moved(params, u, -self.mu))) / (2 * self.mu)
            else:
                d = (above - loss(params)) / self.mu
            g = [a + factor / self.q * d * x for a, x in zip(g, u)]
        return g


class OpenAIES(_Losses):
    """Salimans et al., 2017 (arXiv 1703.03864)."""

    name = "openai_es"
    kind = "transform"
    defaults = {"pairs": 8, "sigma": 0.02, "shaping": "centered_rank"}
    settings = ({"sigma": 0.3}, {"pairs": 1, "sigma": 0.1}, {"pairs": 3, "sigma": 0.2, "shaping": "none"})

    def estimate(self, params: Arrays, loss: Callable[[Arrays], float], normal: Callable[[int], Arrays]) -> Arrays:
        draws = [normal(self.k * self.pairs + p) for p in range(self.pairs)]
        f = np.array([loss(moved(params, e, s * self.sigma)) for s in (1, -1) for e in draws])
        if self.shaping == "centered_rank":
            s = np.empty(len(f))
            s[np.argsort(f, kind="stable")] = np.arange(len(f)) / (len(f) - 1) - 0.5
            f = s
        weights = (f[:self.pairs] - f[self.pairs:]) / (2 * self.pairs * self.sigma)
        return [sum(w * e[i] for w, e in zip(weights, draws)) for i in range(len(params))]


class MeZO(OptimizerReference):
    """Malladi et al., 2023 (arXiv 2305.17333), the parameters restored from a copy."""

    name = "mezo"
    needs = ("loss_at",)
    defaults = {"lr": 1e-6, "eps": 1e-3, "weight_decay": 0.0, "n_seeds": 1}
    settings = ({}, {"lr": 1e-4, "eps": 0.1}, {"lr": 5e-5, "eps": 0.2, "n_seeds": 3, "weight_decay": 100.0})

    def start(self, params: Arrays) -> None:
        self.k = 0

    def step(self, params: Arrays, grads: Arrays, *, loss_at: Callable[[Arrays], float] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        g = zeros(params)
        for s in range(self.n_seeds):
            z = normal(self.k * self.n_seeds + s)
            slope = (loss_at(moved(params, z, self.eps)) - loss_at(moved(params, z, -self.eps))) / (2 * self.eps)
            g = [a + slope * x / self.n_seeds for a, x in zip(g, z)]
        for p, a in zip(params, g):
            p -= self.lr * (a + self.weight_decay * p)
        self.k += 1
