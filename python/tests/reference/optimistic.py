"""Optimistic methods: a guess of the next gradient is used before it is seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._per_tensor import copies, distance, dot, norm, ratio, zeros
from .base import Arrays, OptimizerReference


class OptimisticSGD(OptimizerReference):
    """Optimistic gradient descent (Popov, 1980; Daskalakis et al., 2017; studied in arXiv:2302.04552)."""

    name = "optimistic_sgd"
    defaults = {"lr": 1e-2, "alpha": 1.0, "beta": 1.0}
    settings = ({}, {"lr": 0.1, "beta": 0.5}, {"lr": 0.05, "alpha": 0.3, "beta": 0.9})

    def start(self, params: Arrays) -> None:
        self.previous: Arrays | None = None

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        previous = grads if self.previous is None else self.previous
        for p, g, old in zip(params, grads, previous):
            p -= self.lr * ((self.alpha + self.beta) * g - self.beta * old)
        self.previous = copies(grads)


class OptimisticOMD(OptimizerReference):
    """Optimistic online mirror descent (Chen, Zhang, Tu, Zhao, Zhang, 2023; arXiv:2302.04552).

    Geometry `euclid`: `domain` is `none`, `ball` (radius D/2 around 0, all tensors one vector) or `box` (every entry in
    [-D/2, D/2]).  Geometry `entropy`: each tensor is one point of a simplex; the move is computed in logarithms with
    entries floored at 1e-300.  Step: `lr` if given, else 2/(mu t) if mu is given, else D/sqrt(delta + 4 G^2 + V).
    """

    name = "optimistic_omd"
    defaults = {"D": 1.0, "G": 0.0, "delta": 1.0, "mu": None, "lr": None, "geometry": "euclid", "domain": "none"}
    settings = (
        {"D": 0.2},
        {"D": 1.5, "G": 0.5, "delta": 0.3, "domain": "ball"},
        {"D": 0.8, "domain": "box"},
        {"mu": 20.0},
        {"lr": 0.05, "mu": 20.0, "D": 0.8, "domain": "ball"},
    )
    simplex_settings = ({"geometry": "entropy"}, {"geometry": "entropy", "lr": 0.3})  # for 1-D tensors on the simplex

    def start(self, params: Arrays) -> None:
        self.hidden, self.last = copies(params), zeros(params)
        self.variation, self.t = 0.0, 0

    def eta(self, t: int) -> float:
        if self.lr is not None:
            return self.lr
        if self.mu is not None:
            return 2 / (self.mu * t)
        return self.D / np.sqrt(self.delta + 4 * self.G**2 + self.variation)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.t += 1
        self.hidden = self.move(self.eta(self.t), grads)
        self.variation += distance(grads, self.last) ** 2
        self.last = copies(grads)
        for p, x in zip(params, self.move(self.eta(self.t + 1), grads)):
            p[...] = x

    def move(self, eta: float, grads: Arrays) -> Arrays:
        """The mirror step from the hidden iterate."""
        if self.geometry == "entropy":
            logits = [np.log(np.maximum(x, 1e-300)) - eta * g for x, g in zip(self.hidden, grads)]
            weights = [np.exp(a - np.max(a)) for a in logits]
            return [w / np.sum(w) for w in weights]
        moved = [x - eta * g for x, g in zip(self.hidden, grads)]
        if self.domain == "ball":
            n = norm(moved)
            return [x * (self.D / 2 / n) for x in moved] if n > self.D / 2 else moved
        if self.domain == "box":
            return [np.clip(x, -self.D / 2, self.D / 2) for x in moved]
        return moved


class OptAMSGrad(OptimizerReference):
    """OPT-AMSGrad (Wang, Li, Karimi, Li, 2019/2021; arXiv:1903.01435) with regularised nonlinear extrapolation.

    The parameters hold the query point, w is hidden.  UNVERIFIED: the base of the optimistic half step (`h_base`), that
    the extrapolation weighs the oldest r gradients, and that the ridge is relative to the trace.
    """

    name = "opt_amsgrad"
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "history": 5, "reg": 1e-3, "h_base": "previous"}
    settings = (
        {},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "history": 3, "reg": 0.1},
        {"lr": 0.02, "beta1": 0.5, "history": 1, "eps": 0.01, "h_base": "current"},
    )

    def start(self, params: Arrays) -> None:
        self.w, self.stored = copies(params), []
        self.m, self.v, self.vmax = zeros(params), zeros(params), zeros(params)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.stored = (self.stored + [copies(grads)])[-(self.history + 1):]
        prediction = self.predict()
        for i, (p, g) in enumerate(zip(params, grads)):
            previous = self.m[i]
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g**2
            self.vmax[i] = np.maximum(self.vmax[i], self.v[i])
            q = np.sqrt(self.vmax[i]) + self.eps
            self.w[i] = self.w[i] - self.lr * ratio(self.m[i], q)
            base = previous if self.h_base == "previous" else self.m[i]
            h = self.beta1 * base + (1 - self.beta1) * prediction[i]
            p[...] = self.w[i] - self.lr * ratio(h, q)

    def predict(self) -> Arrays:
        """The next gradient, extrapolated from the stored ones."""
        u = [[b - a for a, b in zip(old, new)] for old, new in zip(self.stored, self.stored[1:])]
        gram = np.array([[dot(a, b) for b in u] for a in u])
        if len(u) == 0 or np.trace(gram) == 0:
            return self.stored[-1]
        z = np.linalg.solve(gram + self.reg * np.trace(gram) * np.eye(len(u)), np.ones(len(u)))
        c = z / np.sum(z)
        return [sum(ci * g[i] for ci, g in zip(c, self.stored)) for i in range(len(self.stored[0]))]
