"""Normalised implicit gradient transport."""

from __future__ import annotations

from typing import Any

from ._per_tensor import copies, norm, zeros
from .base import Arrays, OptimizerReference


class NIGT(OptimizerReference):
    """N-IGT (Cutkosky, Mehta, 2020, arXiv:2002.03305; Fatkhullin et al., 2023, arXiv:2302.01734).

    The parameters hold the query point; `evaluation_weights` is the iterate theta.  `eta` replaces the schedule of the
    mixing rate after the first step, which always uses 1.
    """

    name = "nigt"
    required = ("lr",)
    defaults = {"lr_power": 1.0, "eta_power": 0.8, "eta": None, "normalize": True}
    settings = (
        {"lr": 0.2},
        {"lr": 0.1, "lr_power": 0.5, "eta_power": 0.5},
        {"lr": 0.1, "eta": 0.3, "lr_power": 0.0},
        {"lr": 0.1, "normalize": False, "eta_power": 1.0},
    )

    def start(self, params: Arrays) -> None:
        self.iterate, self.d, self.t = copies(params), zeros(params), 0

    def mixing(self, t: int) -> float:
        if t == 0:
            return 1.0
        return (2 / (t + 2)) ** self.eta_power if self.eta is None else self.eta

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        eta, eta_next = self.mixing(self.t), self.mixing(self.t + 1)
        gamma = self.lr * (2 / (self.t + 2)) ** self.lr_power
        self.d = [(1 - eta) * d + eta * g for d, g in zip(self.d, grads)]
        n = norm(self.d) if self.normalize else 1.0
        for i, query in enumerate(params):
            move = -gamma * self.d[i] / n if n > 0 else 0 * self.d[i]
            self.iterate[i] = self.iterate[i] + move
            query[...] = self.iterate[i] + (1 - eta_next) / eta_next * move
        self.t += 1

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return copies(self.iterate)
