"""Schedule-Free SGD and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._per_tensor import copies, ratio, zeros
from .base import Arrays, OptimizerReference


class ScheduleFreeSGD(OptimizerReference):
    """Schedule-Free SGD (Defazio et al., 2024; arXiv:2405.15682).

    The parameters hold the training point y = (1 - beta) z + beta x; x, the average, is read by `evaluation_weights`.
    The decay is applied at y, inside the step of z.
    """

    name = "schedule_free_sgd"
    defaults = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}
    settings = (
        {"lr": 0.1},
        {"lr": 0.2, "momentum": 0.7, "weight_decay": 0.2, "warmup_steps": 10},
        {"lr": 0.2, "r": 1.5, "weight_lr_power": 0.0},
        {"lr": 0.2, "warmup_steps": 15, "weight_lr_power": 1.0, "r": 0.5},
    )

    def start(self, params: Arrays) -> None:
        self.x, self.z = copies(params), copies(params)
        self.t, self.lr_max, self.weight_sum = 0, 0.0, 0.0

    @property
    def beta(self) -> float:
        return self.momentum

    def direction(self, i: int, g: np.ndarray, y: np.ndarray) -> np.ndarray:
        return g + self.weight_decay * y

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.t += 1
        gamma = self.lr * self.t / self.warmup_steps if self.t < self.warmup_steps else self.lr
        self.lr_max = max(self.lr_max, gamma)
        w = self.t**self.r * self.lr_max**self.weight_lr_power
        self.weight_sum += w
        c = w / self.weight_sum if self.weight_sum else 0.0
        for i, (y, g) in enumerate(zip(params, grads)):
            self.z[i] = self.z[i] - gamma * self.direction(i, g, y)
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            y[...] = (1 - self.beta) * self.z[i] + self.beta * self.x[i]

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return copies(self.x)


class ScheduleFreeAdamW(ScheduleFreeSGD):
    """Schedule-Free AdamW (Defazio et al., 2024; arXiv:2405.15682), v bias-corrected and eps on the corrected root."""

    name = "schedule_free_adamw"
    defaults = {"lr": 2.5e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0,
                "weight_lr_power": 2.0}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.2, "warmup_steps": 10},
        {"lr": 0.05, "eps": 0.1, "r": 1.5, "weight_lr_power": 0.0},
        {"lr": 0.05, "warmup_steps": 15, "weight_lr_power": 1.0, "eps": 0.0},
    )

    def start(self, params: Arrays) -> None:
        super().start(params)
        self.v = zeros(params)

    @property
    def beta(self) -> float:
        return self.beta1

    def direction(self, i: int, g: np.ndarray, y: np.ndarray) -> np.ndarray:
        self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g**2
        return ratio(g, np.sqrt(self.v[i] / (1 - self.beta2**self.t)) + self.eps) + self.weight_decay * y
