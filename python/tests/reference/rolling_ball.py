"""The Rolling Ball Optimizer."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, dot
from .base import Arrays, OptimizerReference


class RollingBall(OptimizerReference):
    """Rolling Ball Optimizer (Belgoumri et al., 2025; arXiv:2505.19527), as in the authors' code; their defaults are
    UNVERIFIED.  A large gradient needs a small `projection_lr`: the settings here suit some ten thousand elements."""

    name = "rolling_ball"
    needs = ("loss", "gradient_at", "loss_at")
    defaults = {"lr": 0.1, "radius": 0.5, "projection_lr": 1e-2, "n_projection": 10}
    settings = (
        {"projection_lr": 1e-5},
        {"lr": 0.02, "radius": 3.0, "projection_lr": 3e-5, "n_projection": 3},
        {"lr": 0.05, "radius": 0.0, "projection_lr": 2e-5, "n_projection": 1},
        {"n_projection": 0},
    )

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None,
             gradient_at: Callable[[Arrays], Arrays] | None = None, loss_at: Callable[[Arrays], float] | None = None,
             **oracles: Any) -> None:
        n2 = dot(grads, grads)
        q = np.sqrt(1 + n2)
        centre = [p - self.radius * g / q - self.lr * g for p, g in zip(params, grads)]
        height = loss + self.radius / q - self.lr * n2
        x = copies(params)
        for _ in range(self.n_projection):
            f, g = loss_at(x), gradient_at(x)
            x = [a - self.projection_lr * ((a - c) + (f - height) * b) for a, c, b in zip(x, centre, g)]
        for p, a in zip(params, x):
            p[...] = a
