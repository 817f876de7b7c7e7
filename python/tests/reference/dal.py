"""Drift-adjusted learning rate."""

from __future__ import annotations

from typing import Any, Callable

from ._per_tensor import norm
from .base import Arrays, OptimizerReference


class DAL(OptimizerReference):
    """DAL-p (Rosca, Wu, Qin, Dherin, 2023; arXiv:2302.01952): gradient descent at lr = min(2/(||Hg||/||g||)^p, max_lr).

    `static_lr` is the rate when p = 0 and at steps (from 0) before `start` or after `stop`.  With curvature=difference
    Hg is (g(theta + e g) - g)/e, e = fd_eps or 0.01/||g||, which is exact where the gradient is linear.
    """

    name = "dal"
    kind = "schedule"
    needs = ("hvp",)
    required = ("static_lr",)
    defaults = {"power": 1.0, "max_lr": 5.0, "start": None, "stop": None, "curvature": "product", "fd_eps": None}
    settings = (
        {"static_lr": 0.1, "max_lr": 0.3},
        {"static_lr": 0.1, "power": 2.0, "max_lr": 0.3},
        {"static_lr": 0.05, "power": 0.0},
        {"static_lr": 0.02, "max_lr": 0.2, "power": 0.5, "start": 3, "stop": 12},
    )

    def start(self, params: Arrays) -> None:
        self.k = 0

    def rate(self, grads: Arrays, curved: Arrays) -> float:
        """The learning rate for a gradient and its Hessian-vector product."""
        start, stop = self.h["start"], self.stop
        if self.power == 0 or (start is not None and self.k < start) or (stop is not None and self.k > stop):
            return self.static_lr
        h, n = norm(curved), norm(grads)
        return min(2 / (h / n) ** self.power, self.max_lr) if h > 0 and n > 0 else self.max_lr

    def step(self, params: Arrays, grads: Arrays, *, hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        lr = self.rate(grads, hvp(params, grads))
        for p, g in zip(params, grads):
            p -= lr * g
        self.k += 1
