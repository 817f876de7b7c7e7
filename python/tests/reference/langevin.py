"""Langevin dynamics."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, OptimizerReference


class SGLD(OptimizerReference):
    """Stochastic gradient Langevin dynamics (Welling, Teh, 2011)."""

    name = "sgld"
    defaults = {"lr": 1e-3, "temperature": 1.0}
    settings = ({}, {"lr": 0.05, "temperature": 0.1}, {"lr": 0.05, "temperature": 0.0})

    def start(self, params: Arrays) -> None:
        self.t = 0

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        xi = normal(self.t)
        self.t += 1
        for p, g, x in zip(params, grads, xi):
            p += -self.lr * g + np.sqrt(2 * self.lr * self.temperature) * x


class SphericalLangevin(OptimizerReference):
    """Langevin dynamics on unit spheres, one per tensor (arXiv:2603.06028): tangent Euler step, then normalisation.

    The estimate is a time average of the iterates.  The parameters are normalised at the start.
    """

    name = "spherical_langevin"
    defaults = {"dt": 1e-3, "strength": 1.0}
    settings = ({}, {"dt": 0.02, "strength": 5.0}, {"dt": 0.02, "strength": 0.0})

    def start(self, params: Arrays) -> None:
        self.t = 0
        for p in params:
            self.normalise(p)

    @staticmethod
    def normalise(p: np.ndarray) -> None:
        length = np.sqrt(np.sum(p**2))
        if length > 0:
            p /= length

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        xi = normal(self.t)
        self.t += 1
        for p, g, x in zip(params, grads, xi):
            q = -self.dt * self.strength * g + np.sqrt(self.dt) * x
            p += q - np.sum(p * q) * p
            self.normalise(p)
