"""AdaHessian and Sophia: momentum over an estimate of the diagonal of the Hessian."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import rademacher, ratio, zeros
from .base import Arrays, OptimizerReference


class AdaHessian(OptimizerReference):
    """AdaHessian (Yao et al., 2020; arXiv:2006.00719).  Kernels are averaged over all axes from the third on."""

    name = "adahessian"
    needs = ("hvp",)
    defaults = {"lr": 0.15, "beta1": 0.9, "beta2": 0.999, "eps": 1e-4, "weight_decay": 0.0, "hessian_power": 1.0, "block": 1,
                "update_each": 1}
    settings = (
        {},
        {"lr": 0.05, "weight_decay": 0.1, "hessian_power": 0.5, "update_each": 3},
        {"lr": 0.05, "block": 3, "beta1": 0.0, "beta2": 0.9, "eps": 0.1},
        {"lr": 0.05, "block": 5, "hessian_power": 0.0},
    )

    def start(self, params: Arrays) -> None:
        self.t, self.m, self.v, self.D = 0, zeros(params), zeros(params), zeros(params)

    def averaged(self, d: np.ndarray) -> np.ndarray:
        if d.ndim > 2:
            return np.broadcast_to(np.mean(d, axis=tuple(range(2, d.ndim)), keepdims=True), d.shape)
        if d.size % self.block:
            return d
        return np.repeat(np.mean(d.reshape(-1, self.block), axis=1), self.block).reshape(d.shape)

    def step(self, params: Arrays, grads: Arrays, *, hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        if self.t % self.update_each == 0:
            z = rademacher(normal(self.t))
            self.D = [self.averaged(np.abs(a * b)) for a, b in zip(z, hvp(params, z))]
        self.t += 1
        for i, (p, g) in enumerate(zip(params, grads)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * self.D[i] ** 2
            denominator = np.sqrt(self.v[i] / (1 - self.beta2**self.t)) ** self.hessian_power + self.eps
            p -= self.lr * (self.m[i] / (1 - self.beta1**self.t) / denominator + self.weight_decay * p)


class Sophia(OptimizerReference):
    """Sophia-H and Sophia-G (Liu, Li, Hall, Liang, Ma, 2023; arXiv:2305.14342).

    The gradient with labels drawn from the model (gnb) is that of task 1.  With order=after the estimate is of the
    point before the move."""

    name = "sophia"
    needs = ("hvp", "task_gradients")
    defaults = {"lr": 1e-4, "beta1": 0.965, "beta2": 0.99, "gamma": None, "eps": 1e-12, "weight_decay": 0.1, "interval": 10,
                "clip": 1.0, "denominator": "max", "order": "before", "bias_correction": False, "estimator": "hutchinson",
                "probe": "gaussian", "batch_size": 1.0}
    settings = (
        {},
        {"lr": 0.05, "gamma": 2.0, "interval": 3, "beta2": 0.9},
        {"lr": 0.05, "estimator": "gnb", "batch_size": 40.0},
        {"lr": 0.05, "gamma": 2.0, "interval": 2, "order": "after", "probe": "rademacher", "bias_correction": True, "beta1": 0.9},
        {"lr": 0.05, "gamma": 1.0, "interval": 4, "estimator": "gnb", "batch_size": 3.0, "beta2": 0.8, "clip": 0.5},
        {"lr": 0.05, "gamma": 1.0, "interval": 5, "estimator": "gnb", "order": "after", "denominator": "add", "eps": 1e-3},
    )

    def start(self, params: Arrays) -> None:
        self.t, self.m, self.curvature = 0, zeros(params), zeros(params)

    def estimate(self, params: Arrays, hvp: Any, normal: Any, task_gradients: Any) -> Arrays:
        if self.estimator == "gnb":
            return [self.batch_size * g**2 for g in task_gradients(2)[1]]
        z = normal(self.t)
        if self.probe == "rademacher":
            z = rademacher(z)
        return [a * b for a, b in zip(z, hvp(params, z))]

    def step(self, params: Arrays, grads: Arrays, *, hvp: Any = None, normal: Any = None, task_gradients: Any = None,
             **oracles: Any) -> None:
        old = self.curvature
        gamma = self.gamma if self.gamma is not None else {"hutchinson": 0.01, "gnb": 0.05}[self.estimator]
        if self.t % self.interval == 0:
            new = self.estimate(params, hvp, normal, task_gradients)
            self.curvature = [self.beta2 * c + (1 - self.beta2) * e for c, e in zip(self.curvature, new)]
        self.t += 1
        for i, (p, g) in enumerate(zip(params, grads)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            m = self.m[i] / (1 - self.beta1**self.t) if self.bias_correction else self.m[i]
            h = gamma * (old if self.order == "after" else self.curvature)[i]
            d = h + self.eps if self.denominator == "add" else np.maximum(h, self.eps)
            p *= 1 - self.lr * self.weight_decay
            p -= self.lr * np.clip(ratio(m, d), -self.clip, self.clip)
