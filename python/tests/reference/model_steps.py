"""Step sizes from the loss: MoMo and Schedule-Free+; and Schedule-Free RAdam."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._per_tensor import copies, dot, ratio, zeros
from .base import Arrays, OptimizerReference
from .schedule_free import ScheduleFreeAdamW


class MoMo(OptimizerReference):
    """MoMo and MoMo-Adam (Schaipp, Ohana, Eickenberg, Defazio, Gower, 2023; arXiv:2305.07583)."""

    name = "momo"
    needs = ("loss",)
    defaults = {"lr": 1.0, "beta": 0.9, "beta2": 0.999, "eps": 1e-8, "lower_bound": 0.0, "weight_decay": 0.0, "adapt_lower_bound": False,
                "precondition": "none"}
    settings = (
        {"lr": 0.5, "lower_bound": -20.0},
        {"lr": 0.3, "beta": 0.5, "lower_bound": -20.0, "weight_decay": 0.1},
        {"lr": 0.05, "precondition": "adam", "lower_bound": -20.0, "weight_decay": 0.1},
        {"lr": 1.0, "lower_bound": -100.0, "adapt_lower_bound": True},
        {"lr": 0.1, "precondition": "adam", "lower_bound": -30.0, "adapt_lower_bound": True, "eps": 0.01},
        {"lr": 0.1, "lower_bound": 50.0, "adapt_lower_bound": True},  # above every loss
    )

    def start(self, params: Arrays) -> None:
        self.m, self.v = zeros(params), zeros(params)
        self.t, self.f, self.gamma, self.bound = 0, 0.0, 0.0, self.lower_bound

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None, **oracles: Any) -> None:
        assert loss is not None
        self.t += 1
        adam = self.precondition == "adam"
        b = self.beta if adam or self.t > 1 else 0.0
        self.f = b * self.f + (1 - b) * loss
        self.gamma = b * self.gamma + (1 - b) * dot(grads, params)
        self.m = [b * m + (1 - b) * g for m, g in zip(self.m, grads)]
        self.v = [self.beta2 * v + (1 - self.beta2) * g**2 for v, g in zip(self.v, grads)]
        D = [np.sqrt(v / (1 - self.beta2**self.t)) + self.eps if adam else np.ones_like(v) for v in self.v]
        c = 1 - self.beta**self.t if adam else 1.0
        k = 1 + self.lr * self.weight_decay
        scaled = [ratio(m, d) for m, d in zip(self.m, D)]
        n, p = dot(self.m, scaled), dot(self.m, params)
        if self.adapt_lower_bound:
            cap = k * (self.f - self.gamma) + p
            if cap < k * c * self.bound:
                self.bound = max(cap / (2 * c * k), self.lower_bound)
        tau = 0.0 if n <= np.finfo(float).eps else min(self.lr / c, max(k * (self.f - c * self.bound - self.gamma) + p, 0.0) / n)
        if self.adapt_lower_bound:
            self.bound = max((self.f + p - self.gamma - tau * n / 2) / c, self.lower_bound)
        for x, s in zip(params, scaled):
            x -= self.lr * self.weight_decay / k * x + tau * s


class ScheduleFreePlus(OptimizerReference):
    """AdamC in Schedule-Free with a Polyak step, after the reference implementation of schedule_free."""

    name = "schedule_free_plus"
    needs = ("loss",)
    defaults = {"lr": 1.0, "beta1": 0.9, "beta2": 0.95, "sf_beta": 0.9, "eps": 1e-8, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0,
                "polyak_beta": 0.0, "c_warmup": 0, "sf_anneal_steps": 0, "sf_beta_max": 0.965, "keep_corrected": False}
    settings = (
        {"lr": 0.3},
        {"lr": 0.2, "polyak_beta": 0.9, "weight_decay": 2.0, "c_warmup": 5},
        {"lr": 0.2, "polyak_beta": 0.7, "keep_corrected": True, "r": 1.0, "weight_lr_power": 1.0},
        {"lr": 0.3, "sf_beta": 0.5, "sf_anneal_steps": 12, "sf_beta_max": 0.95},
        {"lr": 0.1, "sf_beta": 0.0, "c_warmup": 100, "beta1": 0.5, "eps": 1e-3},
    )

    def start(self, params: Arrays) -> None:
        self.m, self.v, self.z, self.x = zeros(params), zeros(params), copies(params), copies(params)
        self.k, self.e, self.largest, self.sum = 0, 0.0, self.eps, 0.0

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None, **oracles: Any) -> None:
        assert loss is not None
        beta = self.sf_beta
        if self.sf_anneal_steps > 0:
            a = min(self.k / self.sf_anneal_steps, 1.0)
            beta = 1 - (1 - self.sf_beta) ** (1 - a) * (1 - self.sf_beta_max) ** a
        pb = self.polyak_beta
        self.e = pb * self.e + (1 - pb) * sum(float(np.sum(np.abs(g))) for g in grads) * math.sqrt(math.pi / 2)
        average = self.e / (1 - pb ** (self.k + 1))
        if self.keep_corrected:
            self.e = average
        inner = beta * dot(grads, [z - x for z, x in zip(self.z, self.x)])
        eta = max(self.lr, self.eps) * max(0.0, loss + inner) / average if average else 0.0
        self.largest = max(self.largest, eta)
        c = 1.0
        if self.k >= self.c_warmup:
            w = (self.k + 1) ** self.r * self.largest**self.weight_lr_power
            self.sum += w
            c = w / self.sum
        self.k += 1
        for i, (y, g) in enumerate(zip(params, grads)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g**2
            self.z[i] = self.z[i] - eta**2 * self.weight_decay * y
            root = np.sqrt(self.v[i] / (1 - self.beta2**self.k)) + self.eps
            self.z[i] = self.z[i] - eta * ratio(self.m[i] / (1 - self.beta1**self.k), root)
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            y[...] = beta * self.x[i] + (1 - beta) * self.z[i]

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return copies(self.x)


class ScheduleFreeRAdam(ScheduleFreeAdamW):
    """Schedule-Free RAdam (Defazio et al., 2024, and schedulefree 1.4): the rectification is the warm-up."""

    name = "schedule_free_radam"
    defaults = {"lr": 2.5e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0,
                "silent_sgd_phase": True}
    settings = (
        {"lr": 0.05},
        {"lr": 0.05, "beta2": 0.9, "weight_decay": 0.2, "beta1": 0.7},
        {"lr": 0.05, "beta2": 0.95, "silent_sgd_phase": False, "r": 1.0, "eps": 0.1},
        {"lr": 0.05, "beta2": 0.5, "weight_lr_power": 0.0},  # never rectified: nothing moves
    )

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.t += 1
        limit = 2 / (1 - self.beta2) - 1
        c2 = 1 - self.beta2**self.t
        rho = limit - 2 * self.t * self.beta2**self.t / c2
        adapted = rho > 4
        rect = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) if adapted else float(not self.silent_sgd_phase)
        eta = self.lr * rect
        self.lr_max = max(self.lr_max, eta)
        w = self.t**self.r * self.lr_max**self.weight_lr_power
        self.weight_sum += w
        c = w / self.weight_sum if self.weight_sum else 0.0
        for i, (y, g) in enumerate(zip(params, grads)):
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g**2
            d = ratio(g, np.sqrt(self.v[i] / c2) + self.eps) if adapted else g
            self.z[i] = self.z[i] - eta * (d + self.weight_decay * y)
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            y[...] = (1 - self.beta1) * self.z[i] + self.beta1 * self.x[i]
