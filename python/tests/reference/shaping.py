"""Clipping and shaping of gradients, schedules of domain adaptation and of radii."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np

from .base import Arrays, OptimizerReference, ScheduleReference, TransformReference


def _norm(grads: Arrays) -> float:
    return math.sqrt(sum(float(np.sum(g * g)) for g in grads))


def _rows(g: np.ndarray) -> np.ndarray:
    return g.reshape(g.shape[0], -1) if g.ndim > 1 else g.reshape(1, -1)


class ClipNorm(TransformReference):
    """Every tensor alone, by min(1, max_norm/(n + eps)), as torch does it for all together."""

    name = "clip_norm"
    required = ("max_norm",)
    defaults = {"norm_type": 2.0, "eps": 1e-6}
    settings = ({"max_norm": 0.5}, {"max_norm": 0.3, "norm_type": 1.0}, {"max_norm": 0.1, "norm_type": np.inf},
                {"max_norm": 0.5, "eps": 0.1}, {"max_norm": 1.0, "eps": 2.0})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        norms = [float(np.linalg.norm(np.ravel(g), self.norm_type)) for g in grads]
        return [g * min(1.0, self.max_norm / (n + self.eps)) if n > 0 else g for g, n in zip(grads, norms)]


class ClipBlockRMS(TransformReference):
    """Adafactor's clipping (Shazeer and Stern, 2018; arXiv 1804.04235)."""

    name = "clip_block_rms"
    defaults = {"threshold": 1.0}
    settings = ({}, {"threshold": 0.1})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        return [g / max(1.0, math.sqrt(np.mean(g * g)) / self.threshold) if g.size else g for g in grads]


class AGC(TransformReference):
    """Adaptive gradient clipping (Brock et al., 2021; arXiv 2102.06171)."""

    name = "agc"
    defaults = {"clipping": 0.01, "eps": 1e-3, "tiny": 1e-6}
    settings = ({}, {"clipping": 0.5}, {"clipping": 0.1, "eps": 2.0}, {"clipping": 1e-9, "tiny": 3.0})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        assert params is not None
        out = []
        for g, w in zip(grads, params):
            rows = _rows(np.array(g, copy=True))
            for row, weights in zip(rows, _rows(np.asarray(w))):
                size, most = np.linalg.norm(row), self.clipping * max(np.linalg.norm(weights), self.eps)
                if size > most:
                    row *= most / max(size, self.tiny)
            out.append(rows.reshape(g.shape))
        return out


class GradientCentralization(TransformReference):
    """Rows of mean 0 (Yong et al., 2020; arXiv 2004.01461)."""

    name = "gradient_centralization"
    defaults = {"conv_only": False}
    settings = ({}, {"conv_only": True})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        rank = 3 if self.conv_only else 1
        return [g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if g.ndim > rank else g for g in grads]


class GradReversal(TransformReference):
    """Gradient reversal (Ganin et al., 2016; arXiv 1505.07818)."""

    name = "grad_reversal"
    defaults = {"lam": 1.0}
    settings = ({"lam": 0.01}, {"lam": 0.0})  # gradient ascent diverges with more

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        return [-self.lam * g for g in grads]


class OnlineMedianGradient(TransformReference):
    """The median over iterations by stochastic proximal points (Schaipp et al., 2024; arXiv 2402.12828)."""

    name = "online_median_gradient"
    defaults = {"tau": 0.1, "norm": "l2", "mu": 1.0, "carry": True}
    settings = ({}, {"norm": "l1"}, {"norm": "square"}, {"norm": "huber", "mu": 0.5}, {"norm": "huber", "mu": 50.0},
                {"carry": False}, {"norm": "l1", "carry": False}, {"tau": 5.0}, {"norm": "huber", "carry": False})
    m: Arrays | None = None

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        tau, mu, norm = self.tau, self.mu, self.h["norm"]
        if self.m is None or not self.carry:
            self.m = [np.zeros_like(g) for g in grads]
        d = [g - m for g, m in zip(grads, self.m)]
        size = _norm(d)
        if norm == "l1":
            move = [np.clip(x, -tau, tau) for x in d]
        elif norm == "l2":
            move = [min(1.0, tau / size) * x if size > 0 else x for x in d]
        elif norm == "square" or size <= (1 + tau) * mu:
            move = [tau / (1 + tau) * x for x in d]
        else:
            move = [tau * mu / size * x for x in d]
        self.m = [m + x for m, x in zip(self.m, move)]
        return self.m


class ClippedSGD(OptimizerReference):
    """SGD with norm clipping (Koloskova et al., 2023; arXiv 2305.01588)."""

    name = "clipped_sgd"
    defaults = {"lr": 0.1, "clip": 1.0}
    settings = ({}, {"lr": 0.5, "clip": 0.2}, {"clip": 1e6})

    def step(self, params: Arrays, grads: Arrays, **more: Any) -> None:
        n = _norm(grads)
        c = 1.0 if n <= self.clip else self.clip / n
        for w, g in zip(params, grads):
            w -= self.lr * c * g


class DANNLambda(ScheduleReference):
    """Weight of the domain loss (Ganin et al., 2016; arXiv 1505.07818)."""

    name = "dann_lambda"
    required = ("total",)
    defaults = {"gamma": 10.0, "lo": 0.0, "hi": 1.0}
    settings = ({"total": 100}, {"total": 40, "gamma": 3.0, "lo": 0.1, "hi": 0.5}, {"total": 0})

    def value(self, k: int) -> float:
        p = min(k / self.total, 1.0) if self.total > 0 else 1.0
        return self.lo + (self.hi - self.lo) * math.tanh(self.gamma * p / 2)  # 2/(1 + e^-x) - 1 = tanh(x/2)


class DANNLR(ScheduleReference):
    """Step size of domain-adversarial training (Ganin et al., 2016; arXiv 1505.07818)."""

    name = "dann_lr"
    required = ("total",)
    defaults = {"lr": 0.01, "alpha": 10.0, "beta": 0.75}
    settings = ({"total": 100}, {"total": 40, "lr": 1.0, "alpha": 1.0, "beta": 2.0})

    def value(self, k: int) -> float:
        return self.lr * (1 + self.alpha * min(k / self.total, 1.0)) ** -self.beta


class DANNSchedules(ScheduleReference):
    """Both of them, by name."""

    name = "dann_schedules"
    required = ("total",)
    defaults = {"gives": "lambda", "gamma": 10.0, "lo": 0.0, "hi": 1.0, "mu0": 0.01, "alpha": 10.0, "beta": 0.75}
    settings = ({"total": 100}, {"total": 100, "gives": "lr"}, {"total": 40, "gives": "lambda", "gamma": 3.0, "lo": 0.1, "hi": 0.5},
                {"total": 40, "gives": "lr", "mu0": 1.0, "alpha": 1.0, "beta": 2.0}, {"total": 0}, {"total": 0, "gives": "lr"})

    def value(self, k: int) -> float:
        p = min(max(k / self.total, 0.0), 1.0) if self.total else 1.0
        if self.gives == "lr":
            return self.mu0 / (1 + self.alpha * p) ** self.beta
        return self.lo + (self.hi - self.lo) * (2 / (1 + math.exp(-self.gamma * p)) - 1)


class RhoSchedule(ScheduleReference):
    """Radius schedules (Zhuang et al., 2022; Rangwani et al., 2022)."""

    name = "rho_schedule"
    defaults = {"mode": "proportional", "rho_min": 0.05, "rho_max": 0.8, "lr": None, "lr_min": 0.0, "lr_max": 0.1,
                "epoch": 1, "epochs": 1, "bounds": [5.0, 160.0, 180.0], "values": [0.05, 0.1, 0.5, 0.6]}
    settings = ({"lr": 0.05}, {"lr": 0.3}, {"lr": 0.02, "lr_min": 0.1, "lr_max": 0.1},
                {"lr": 0.0, "lr_min": 0.05}, {"mode": "linear", "epoch": 3, "epochs": 30}, {"mode": "linear"},
                {"mode": "step"}, {"mode": "step", "epoch": 4, "bounds": [2.0], "values": [0.3, 0.1]})

    def value(self, k: int) -> float:
        e = 1 + k // self.epoch
        if self.mode == "step":
            return next((v for b, v in zip(self.bounds, self.values) if b >= e), self.values[-1])
        if self.mode == "linear":
            share = (e - 1) / max(self.epochs - 1, 1)
        else:
            share = 1.0 if self.lr_max == self.lr_min else (self.lr - self.lr_min) / (self.lr_max - self.lr_min)
        return max(0.0, self.rho_min + (self.rho_max - self.rho_min) * share)
