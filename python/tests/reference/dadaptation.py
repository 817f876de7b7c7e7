"""Prodigy and D-Adaptation: the distance to the solution is estimated while training."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._per_tensor import copies, dot, norm, ratio, zeros
from .base import Arrays, OptimizerReference

INFINITY = float("inf")


class Prodigy(OptimizerReference):
    """Prodigy (Mishchenko, Defazio, 2023; arXiv:2306.06101), the rule of its released package.

    `beta3=None` is sqrt(beta2).  With beta1 = 0 the step uses d g (old d) in place of m.
    """

    name = "prodigy"
    defaults = {"lr": 1.0, "beta1": 0.9, "beta2": 0.999, "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "decouple": True,
                "use_bias_correction": False, "safeguard_warmup": False, "d0": 1e-6, "d_coef": 1.0, "growth_rate": INFINITY}
    settings = (
        {},
        {"d0": 1e-2, "weight_decay": 0.2, "use_bias_correction": True, "beta2": 0.99},
        {"d0": 1e-2, "weight_decay": 0.2, "decouple": False, "growth_rate": 1.1, "lr": 0.5},
        {"d0": 1e-2, "safeguard_warmup": True, "lr": 0.3, "d_coef": 2.0, "beta3": 0.9},
        {"d0": 1e-2, "beta1": 0.0, "eps": 0.1},
    )

    def start(self, params: Arrays) -> None:
        self.origin = copies(params)
        self.m, self.v, self.s = zeros(params), zeros(params), zeros(params)
        self.estimate = self.estimate_max = self.d0
        self.numerator, self.k = 0.0, 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        beta1, beta2 = self.beta1, self.beta2
        beta3 = np.sqrt(beta2) if self.beta3 is None else self.beta3
        d = self.estimate
        b = np.sqrt(1 - beta2 ** (self.k + 1)) / (1 - beta1 ** (self.k + 1)) if self.use_bias_correction else 1.0
        dlr = d * self.lr * b
        if not self.decouple:
            grads = [g + self.weight_decay * p for p, g in zip(params, grads)]

        away = dot(grads, [o - p for o, p in zip(self.origin, params)])
        self.numerator = beta3 * self.numerator + d / self.d0 * dlr * away
        weight = d / self.d0 * (d if self.safeguard_warmup else dlr)
        for i, g in enumerate(grads):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * d * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * d**2 * g**2
            self.s[i] = beta3 * self.s[i] + weight * g
        denominator = sum(np.sum(np.abs(s)) for s in self.s)
        if denominator == 0:
            return
        d_hat = self.d_coef * self.numerator / denominator
        new = max(d, d_hat) if d == self.d0 else d
        self.estimate_max = max(self.estimate_max, d_hat)
        self.estimate = min(self.estimate_max, new * self.growth_rate)

        for p, g, m, v in zip(params, grads, self.m, self.v):
            if self.decouple:
                p -= self.weight_decay * dlr * p
            p -= dlr * ratio(m if beta1 > 0 else d * g, np.sqrt(v) + self.estimate * self.eps)
        self.k += 1


class DAdaptSGD(OptimizerReference):
    """D-Adaptation SGD (Defazio, Mishchenko, 2023; arXiv:2301.07733), coupled decay in every gradient, the first included.

    While all gradients have been 0 nothing is initialised.
    """

    name = "dadapt_sgd"
    defaults = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "d0": 1e-6, "growth_rate": INFINITY}
    settings = (
        {},
        {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.2},
        {"d0": 1e-2, "lr": 0.5, "growth_rate": 1.05, "momentum": 0.5},
    )

    def start(self, params: Arrays) -> None:
        self.origin, self.s = copies(params), zeros(params)
        self.estimate, self.numerator, self.g0 = self.d0, 0.0, 0.0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        grads = [g + self.weight_decay * p for p, g in zip(params, grads)]
        if self.g0 == 0:
            self.g0 = norm(grads)
            if self.g0 == 0:
                return
        dlr = self.estimate * self.lr / self.g0
        self.numerator += dlr * dot(grads, self.s)
        self.s = [s + dlr * g for s, g in zip(self.s, grads)]
        if norm(self.s) == 0:
            return
        d_hat = 2 * self.numerator / norm(self.s)
        self.estimate = max(self.estimate, min(d_hat, self.estimate * self.growth_rate))
        for p, o, s in zip(params, self.origin, self.s):
            p[...] = self.momentum * p + (1 - self.momentum) * (o - s)


class DAdaptAdam(OptimizerReference):
    """D-Adaptation Adam (Defazio, Mishchenko, 2023; arXiv:2301.07733); the statistics use the v of the step before."""

    name = "dadapt_adam"
    defaults = {"lr": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decouple": False,
                "use_bias_correction": False, "d0": 1e-6, "growth_rate": INFINITY}
    settings = (
        {},
        {"d0": 1e-2, "weight_decay": 0.2, "beta2": 0.99, "use_bias_correction": True},
        {"d0": 1e-2, "weight_decay": 0.2, "decouple": True, "growth_rate": 1.05, "lr": 0.5},
        {"d0": 1e-2, "beta1": 0.5, "beta2": 0.9, "eps": 0.1},
    )

    def start(self, params: Arrays) -> None:
        self.m, self.v, self.s = zeros(params), zeros(params), zeros(params)
        self.estimate, self.numerator, self.k = self.d0, 0.0, 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        beta1, beta2, root = self.beta1, self.beta2, np.sqrt(self.beta2)
        b = np.sqrt(1 - beta2 ** (self.k + 1)) / (1 - beta1 ** (self.k + 1)) if self.use_bias_correction else 1.0
        dlr = self.estimate * self.lr * b
        if not self.decouple:
            grads = [g + self.weight_decay * p for p, g in zip(params, grads)]

        acc = dlr * dot(grads, [ratio(s, np.sqrt(v) + self.eps) for s, v in zip(self.s, self.v)])
        for i, g in enumerate(grads):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * dlr * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g**2
            self.s[i] = root * self.s[i] + (1 - root) * dlr * g
        self.numerator = root * self.numerator + (1 - root) * acc
        total = sum(np.sum(np.abs(s)) for s in self.s)
        if total == 0:
            return
        d_hat = self.numerator / ((1 - root) * total)
        self.estimate = max(self.estimate, min(d_hat, self.estimate * self.growth_rate))

        for p, m, v in zip(params, self.m, self.v):
            if self.decouple:
                p *= 1 - self.weight_decay * dlr
            p -= ratio(m, np.sqrt(v) + self.eps)
        self.k += 1
