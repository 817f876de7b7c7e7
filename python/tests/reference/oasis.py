"""OASIS and SANIA: diagonal curvature with a step size that sets itself."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, dot, rademacher, ratio, zeros
from .base import Arrays, OptimizerReference


class OASIS(OptimizerReference):
    """OASIS (Jahani et al., 2021; arXiv:2109.05198).

    D starts at the first probe; with `beta1` the step takes the EMA of the gradient, from 0 and uncorrected (UNVERIFIED),
    the rate rule always the raw gradients.
    """

    name = "oasis"
    needs = ("hvp", "gradient_at")
    defaults = {"lr0": 1e-3, "beta2": 0.99, "alpha": 1e-3, "adaptive": True, "beta1": 0.0}
    settings = (
        {},
        {"lr0": 0.05, "beta2": 0.9, "alpha": 0.3},
        {"lr0": 0.05, "adaptive": False, "beta2": 0.5},
        {"lr0": 0.02, "beta1": 0.8, "alpha": 0.1},
    )

    def start(self, params: Arrays) -> None:
        self.k, self.eta, self.theta = 0, self.lr0, np.inf
        self.m, self.diagonal, self.previous = zeros(params), zeros(params), copies(params)

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None, normal: Callable[[int], Arrays] | None = None,
             **oracles: Any) -> None:
        self.k += 1
        z = rademacher(normal(self.k - 1))
        h = [zi * hz for zi, hz in zip(z, hvp(params, z))]
        if self.k == 1:
            self.diagonal = h
        else:
            self.diagonal = [self.beta2 * d + (1 - self.beta2) * x for d, x in zip(self.diagonal, h)]
        scale = [np.maximum(np.abs(d), self.alpha) for d in self.diagonal]

        if self.adaptive and self.k >= 2:
            self.adapt(scale, params, grads, gradient_at(copies(self.previous)))
        self.previous = copies(params)
        for i, (p, g) in enumerate(zip(params, grads)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            p -= self.eta * self.m[i] / scale[i]

    def adapt(self, scale: Arrays, params: Arrays, grads: Arrays, old_grads: Arrays) -> None:
        dp = [a - b for a, b in zip(params, self.previous)]
        dg = [a - b for a, b in zip(grads, old_grads)]
        moved = np.sqrt(dot(dp, [d * x for d, x in zip(scale, dp)]))
        turned = np.sqrt(dot(dg, [x / d for d, x in zip(scale, dg)]))
        local = 0.5 * moved / turned if turned > 0 else np.inf
        eta = min(np.sqrt(1 + self.theta) * self.eta, local)
        if not np.isfinite(eta) or eta == 0:
            eta = self.eta
        self.theta, self.eta = eta / self.eta, eta


class SANIA(OptimizerReference):
    """SANIA, preconditioned Polyak steps (Abdukhakimov et al., 2023; arXiv:2312.17369).

    The diagonal is floored at eps by a maximum, as the authors' torch classes do.
    """

    name = "sania"
    needs = ("loss", "hvp")
    defaults = {"precond": "adagrad_sqr", "beta2": 0.999, "eps": 0.1, "f_star": 0.0, "lr": 1.0}
    settings = (
        {},
        {"precond": "none", "lr": 0.5},
        {"precond": "adam_sqr", "beta2": 0.9, "eps": 0.3, "lr": 0.3},
        {"precond": "adagrad", "eps": 0.01},
        {"precond": "adam", "beta2": 0.9, "f_star": 0.1},
        {"precond": "hutchinson", "beta2": 0.9, "eps": 0.05},
    )

    def start(self, params: Arrays) -> None:
        self.t, self.s = 0, zeros(params)

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None, normal: Callable[[int], Arrays] | None = None,
             **oracles: Any) -> None:
        self.t += 1
        if self.precond == "hutchinson":
            z = rademacher(normal(self.t - 1))
            probes = [zi * hz for zi, hz in zip(z, hvp(params, z))]
        else:
            probes = grads
        directions = [self.direction(i, g, x) for i, (g, x) in enumerate(zip(grads, probes))]
        n = dot(grads, directions)
        gap = max(loss - self.f_star, 0.0)
        lam = 1 - np.sqrt(1 - 2 * gap / n) if n > 0 and 2 * gap < n else 1.0
        for p, d in zip(params, directions):
            p -= self.lr * lam * d

    def direction(self, i: int, g: np.ndarray, probe: np.ndarray) -> np.ndarray:
        """g divided by the preconditioner B, after its statistics have moved."""
        if self.precond == "none":
            return g
        if self.precond in ("adagrad", "adagrad_sqr"):
            b = self.s[i] = self.s[i] + g**2
        elif self.precond in ("adam", "adam_sqr"):
            self.s[i] = self.beta2 * self.s[i] + (1 - self.beta2) * g**2
            b = self.s[i] / (1 - self.beta2**self.t)
        else:
            self.s[i] = probe if self.t == 1 else self.beta2 * self.s[i] + (1 - self.beta2) * probe
            b = np.abs(self.s[i])
        b = np.maximum(b, self.eps)
        return ratio(g, np.sqrt(b) if self.precond in ("adagrad", "adam") else b)
