"""Adan and MARS: momentum with gradient differences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, ratio
from .base import Arrays


class Adan(PerTensor):
    """Adan (Xie et al., 2022; arXiv:2208.06677); betas are the EMA rates.

    `prox=True` divides by 1 + lr*wd after the step, `prox=False` multiplies by 1 - lr*wd before it.
    """

    name = "adan"
    buffers = ("m", "d", "n", "previous")
    defaults = {"lr": 1e-3, "beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8, "weight_decay": 0.0, "prox": True}
    settings = (
        {},
        {"lr": 0.05, "weight_decay": 0.3, "eps": 0.01},
        {"lr": 0.05, "beta1": 0.9, "beta2": 0.7, "beta3": 0.95, "weight_decay": 0.3, "prox": False},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        delta = g - s.previous if s.t > 1 else np.zeros_like(g)
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.d = self.beta2 * s.d + (1 - self.beta2) * delta
        s.n = self.beta3 * s.n + (1 - self.beta3) * (g + self.beta2 * delta) ** 2
        c1, c2, c3 = 1 - self.beta1**s.t, 1 - self.beta2**s.t, 1 - self.beta3**s.t
        u = ratio(s.m / c1 + self.beta2 * s.d / c2, np.sqrt(s.n / c3) + self.eps)
        if self.prox:
            p[...] = (p - self.lr * u) / (1 + self.lr * self.weight_decay)
        else:
            p[...] = p * (1 - self.lr * self.weight_decay) - self.lr * u
        s.previous = np.copy(g)


class MARS(PerTensor):
    """MARS-AdamW (Yuan et al., 2024; arXiv:2411.10438).

    Matrices (and vectors with `optimize_1d`) take the variance-reduced gradient c, scaled to norm 1 when longer; the
    other tensors take AdamW with their own rates.  The approximate form remembers the last gradient; the exact one takes
    that of the present minibatch at the previous parameters.  Either is 0 at the first step, as in the authors' code
    (which counts only 2-D tensors as matrices; here two or more axes do).
    """

    name = "mars"
    buffers = ("m", "v", "previous")
    defaults = {"lr": 3e-3, "beta1": 0.95, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "gamma": 0.025,
                "optimize_1d": False, "lr_1d_factor": 1.0, "beta1_1d": 0.9, "beta2_1d": 0.95, "exact": False}
    settings = (
        {},
        {"lr": 0.05, "gamma": 0.1, "weight_decay": 0.2, "lr_1d_factor": 0.5, "beta1_1d": 0.8},
        {"lr": 0.05, "beta1": 0.9, "gamma": 0.5, "optimize_1d": True, "eps": 0.01},
        {"lr": 0.05, "gamma": 0.0, "beta2": 0.9, "beta2_1d": 0.9},
        {"lr": 0.05, "gamma": 0.3, "exact": True},
        {"lr": 0.05, "beta1": 0.9, "gamma": 0.5, "optimize_1d": True, "weight_decay": 0.1, "exact": True},
    )
    last: Arrays | None = None

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        if self.exact:
            if self.last is not None:
                for s, g in zip(self.states, oracles["gradient_at"](self.last)):
                    s.previous = g
            self.last = [p.copy() for p in params]
        super().step(params, grads)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if p.ndim >= 2 or self.optimize_1d:
            lr, beta1, beta2 = self.lr, self.beta1, self.beta2
            c = g + self.gamma * beta1 / (1 - beta1) * (g - s.previous)
            c = c / max(1.0, np.sqrt(np.sum(c**2)))
        else:
            lr, beta1, beta2, c = self.lr * self.lr_1d_factor, self.beta1_1d, self.beta2_1d, g
        s.m = beta1 * s.m + (1 - beta1) * c
        s.v = beta2 * s.v + (1 - beta2) * c**2
        p *= 1 - lr * self.weight_decay
        p -= lr * ratio(s.m / (1 - beta1**s.t), np.sqrt(s.v / (1 - beta2**s.t)) + self.eps)
        s.previous = np.copy(g)
