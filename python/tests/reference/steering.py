"""Gradients that a sharpness-aware one steers, and task gradients that are frozen."""

from __future__ import annotations

from typing import Callable

import numpy as np

from ._per_tensor import dot, norm
from .base import Arrays
from .perturbations import Perturbation


def uphill(params: Arrays, grads: Arrays, rho: float) -> Arrays:
    size = norm(grads)
    return [p + rho / size * g if size > 0 else p for p, g in zip(params, grads)]


class GLAD(Perturbation):
    """Peng et al., 2025 (arXiv 2507.13089), the library's variant."""

    name = "glad"
    defaults = {"rho": 0.05, "eps": 1e-12}
    settings = ({}, {"rho": 5.0}, {"rho": 20.0, "eps": 50.0})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Callable[[Arrays], Arrays]) -> Arrays:
        s = gradient_at(uphill(params, grads, self.rho))
        d = min(dot(grads, s), 0.0) / max(dot(s, s), self.eps)
        return [g - d * x for g, x in zip(grads, s)]


class GAQATFreeze(Perturbation):
    """Jiang et al., 2024 (arXiv 2412.05551)."""

    name = "gaqat_freeze"
    defaults = {"window": 100, "threshold": 0.3, "rho": 0.05}
    settings = ({}, {"window": 4, "threshold": 0.5}, {"window": 3, "threshold": 0.9, "rho": 0.5}, {"window": 2, "threshold": 1.0})

    def start(self, params: Arrays) -> None:
        super().start(params)
        self.history: list[Arrays] = []
        self.frozen = [np.zeros(p.shape, bool) for p in params]

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Callable[[Arrays], Arrays]) -> Arrays:
        smooth = gradient_at(uphill(params, grads, self.rho))
        out = [np.where(f, 0, g) + s for f, g, s in zip(self.frozen, grads, smooth)]
        self.history.append([np.sign(g) for g in grads])
        if len(self.history) == self.window:
            for i in range(len(params)):
                signs = np.stack([row[i] for row in self.history])
                self.frozen[i] = (signs[1:] != signs[:-1]).mean(axis=0) < self.threshold
            self.history = []
        return out
