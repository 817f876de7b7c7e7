"""EMA-Nesterov in front of momentum SGD."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._per_tensor import copies, zeros
from .base import Arrays, OptimizerReference


class EMANesterov(OptimizerReference):
    """arXiv:2605.25395 as the speed runs have it: the rule steps from the point ahead, not from where it came from."""

    name = "ema_nesterov"
    kind = "perturbation"
    needs = ("gradient_at",)
    inner = "sgd(lr=0.1, momentum=0.9)"
    defaults = {"stepsize": 0.3, "ema": 0.99, "prefill_steps": 0, "rest_steps": math.inf, "scheduled": True, "max_lr": None}
    settings = ({}, {"stepsize": 0.6, "ema": 0.5, "prefill_steps": 5, "rest_steps": 20.0}, {"stepsize": 0.9, "ema": 0.8}, {"max_lr": 0.4}, {"max_lr": 0.4, "scheduled": False}, {"stepsize": 0.0})

    def start(self, params: Arrays) -> None:
        self.last, self.b, self.buffers, self.k = copies(params), zeros(params), zeros(params), 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        if self.prefill_steps <= self.k < self.rest_steps:
            for p, b in zip(params, self.b):
                p += self.stepsize * (0.1 / self.max_lr if self.scheduled and self.max_lr else 1.0) * b
        for i, (p, g) in enumerate(zip(params, oracles["gradient_at"]([np.array(p) for p in params]))):
            self.buffers[i] = 0.9 * self.buffers[i] + g
            p -= 0.1 * self.buffers[i]
            self.b[i] = self.ema * self.b[i] + (1 - self.ema) * (p - self.last[i])
            self.last[i] = p.copy()
        self.k += 1
