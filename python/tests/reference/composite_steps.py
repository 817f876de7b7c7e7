"""Optimizers with a prox, a mirror or a set in them, and those that step to the minimiser of a model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, dot
from .base import Arrays, OptimizerReference
from .constraints import Simplex
from .sets import L1Ball, LinfBall


class DualAveraging(PerTensor):
    """argmin <s/t, w> + l1 |w|_1 + gamma/(2 sqrt t) |w - w0|^2 (Nesterov, 2009; Xiao, 2010)."""

    name = "dual_averaging"
    buffers = ("s",)
    defaults = {"l1": 0.0, "gamma": 1.0}
    settings = ({}, {"gamma": 5.0}, {"l1": 0.3, "gamma": 2.0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if s.t == 1:
            s.start = p.copy()
        s.s = s.s + g
        k = np.sqrt(s.t) / self.gamma
        x = s.start - k * s.s / s.t
        p[...] = np.sign(x) * np.maximum(np.abs(x) - k * self.l1, 0.0)


class MirrorDescent(PerTensor):
    """Mirror maps of the simplex, the orthant, p-norms and the plain square (Nemirovski, Yudin, 1983)."""

    name = "mirror_descent"
    defaults = {"lr": 0.1, "geometry": "simplex", "p": 1.5, "radius": 1.0, "axis": -1}
    settings = ({}, {"lr": 0.5, "radius": 3.0}, {"geometry": "orthant"}, {"geometry": "pnorm"}, {"geometry": "pnorm", "p": 1.2, "lr": 0.02},
                {"geometry": "pnorm", "p": 2.0}, {"geometry": "l2", "lr": 0.05})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if self.geometry == "l2":
            p -= self.lr * g
        elif self.geometry == "orthant":
            p[...] = np.maximum(p, 0.0) * np.exp(-self.lr * g)
        elif self.geometry == "pnorm":
            q = self.p / (self.p - 1)

            def link(x: np.ndarray, r: float) -> np.ndarray:
                n = np.sum(np.abs(x) ** r) ** (1 / r)
                return np.sign(x) * np.abs(x) ** (r - 1) / n ** (r - 2) if n > 0 else 0 * x

            p[...] = link(link(p, self.p) - self.lr * g, q)
        else:
            axis = self.axis if p.ndim else None
            w = np.maximum(p, 0.0)
            w = np.where(np.any(w > 0, axis=axis, keepdims=True), w, 1.0)
            plain = ~np.any(p > 0, axis=axis, keepdims=True)
            with np.errstate(divide="ignore"):
                z = np.where(w > 0, np.log(w), -np.inf) - np.where(plain, 0.0, self.lr * g)
            e = np.exp(z - z.max(axis=axis, keepdims=True))
            p[...] = self.radius * e / e.sum(axis=axis, keepdims=True)


class FrankWolfe(PerTensor):
    """Conditional gradients (Frank, Wolfe, 1956)."""

    name = "frank_wolfe"
    required = ("set",)
    defaults = {"rule": "open", "curvature": 1.0, "gamma": 0.01, "momentum": 0.0}
    settings = ({"set": LinfBall(radius=0.7)}, {"set": L1Ball(radius=2.0), "rule": "short", "curvature": 2.0},
                {"set": LinfBall(radius=0.7), "rule": "constant", "gamma": 0.2}, {"set": Simplex(), "momentum": 0.6})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if s.t == 1:
            s.average = g.copy()
            p[...] = self.h["set"].project(p)
        else:
            s.average = self.momentum * s.average + (1 - self.momentum) * g
        g = s.average
        corner = self.h["set"].lmo(g)
        gap, square = np.sum(g * (p - corner)), np.sum((corner - p) ** 2)
        short = 0.0 if square == 0 else min(1.0, max(gap, 0.0) / (self.curvature * square))
        gamma = {"open": 2 / (s.t - 1 + 2), "short": short, "constant": self.gamma}[self.rule]
        p[...] = p + gamma * (corner - p)


class TruncatedModel(OptimizerReference):
    """The linear model of the loss, cut off at a lower bound (Asi, Duchi, 2019)."""

    name = "truncated_model"
    required = ("lr",)
    defaults = {"lower": 0.0}
    settings = ({"lr": 0.1}, {"lr": 0.2, "lower": -1.0}, {"lr": 0.05, "lower": 2.0})
    needs = ("loss",)

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None, **oracles: Any) -> None:
        square = dot(grads, grads)
        size = 0.0 if square == 0 else min(self.lr, max(loss - self.lower, 0.0) / square)
        for p, g in zip(params, grads):
            p -= size * g


class ProxLinear(OptimizerReference):
    """|c| with c linearised (Davis, Drusvyatskiy, 2019; arXiv 1803.06523); the loss is c."""

    name = "prox_linear"
    required = ("lr",)
    settings = ({"lr": 0.1}, {"lr": 0.02})
    needs = ("loss",)

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None, **oracles: Any) -> None:
        square = dot(grads, grads)
        size = 0.0 if square == 0 else float(np.clip(loss / square, -self.lr, self.lr))
        for p, g in zip(params, grads):
            p -= size * g


class SaRA(OptimizerReference):
    """AdamW on the entries that are small to begin with (Hu et al., 2024; arXiv 2409.06633)."""

    name = "sara"
    defaults = {"lr": 1e-3 * math.exp(-0.7), "threshold": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01,
                "lambda_rank": 0.0, "min_rank_dim": 64, "progressive_step": -1}
    settings = ({}, {"threshold": 0.8, "lr": 0.05, "weight_decay": 0.1}, {"threshold": 0.8, "lr": 0.05, "progressive_step": 7},
                {"threshold": 0.8, "lr": 0.02, "lambda_rank": 0.3, "min_rank_dim": 1}, {"threshold": 1e3, "lr": 0.01})

    def start(self, params: Arrays) -> None:
        self.t = 0
        self.mask = [np.abs(p) < self.threshold for p in params]
        self.fresh(params)

    def fresh(self, params: Arrays) -> None:
        self.k, self.m, self.v = 0, [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]

    def step(self, params: Arrays, grads: Arrays, *, normal: Any = None, **oracles: Any) -> None:
        grads = [g.copy() for g in grads]
        matrices = [i for i, p in enumerate(params) if p.ndim >= 2 and min(len(p), p[0].size) > self.min_rank_dim]
        chosen = None
        if self.lambda_rank > 0 and matrices:
            u = 0.5 * math.erfc(-normal(self.t)[0].flat[0] / math.sqrt(2))
            chosen = matrices[min(int(u * len(matrices)), len(matrices) - 1)]
        self.t += 1
        if self.t == self.progressive_step + 1 and self.t > 1:
            self.mask = [m & (np.abs(p) < self.threshold) for m, p in zip(self.mask, params)]
            self.fresh(params)
        if chosen is not None:
            w = params[chosen].reshape(len(params[chosen]), -1) * self.mask[chosen].reshape(len(params[chosen]), -1)
            U, s, Vt = np.linalg.svd(w, full_matrices=False)
            keep = s > 1e-12 * s[0]
            grads[chosen] += self.lambda_rank * (U[:, keep] @ Vt[keep]).reshape(grads[chosen].shape)
        self.k += 1
        for p, g, mask, m, v in zip(params, grads, self.mask, self.m, self.v):
            m[...] = self.beta1 * m + (1 - self.beta1) * g
            v[...] = self.beta2 * v + (1 - self.beta2) * g * g
            new = p * (1 - self.lr * self.weight_decay)
            new = new - self.lr * (m / (1 - self.beta1**self.k)) / (np.sqrt(v / (1 - self.beta2**self.k)) + self.eps)
            p[...] = np.where(mask, new, p)
