"""Prodigy inside Schedule-Free, and Adam with an epsilon of spectral norms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Arrays, OptimizerReference


class ProdigyScheduleFree(OptimizerReference):
    """prodigy-plus-schedule-free 2.0.1 by its card; one d for all tensors."""

    name = "prodigy_schedule_free"
    defaults = {"lr": 1.0, "beta1": 0.9, "beta2": 0.99, "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "weight_decay_by_lr": True, "d0": 1e-6,
                "d_coef": 1.0, "d_limiter": True, "prodigy_steps": 0, "schedulefree_c": 0.0, "factored": True, "stable": True, "slice": 11}
    settings = (
        {"d0": 0.02},
        {"d0": 0.01, "slice": 1, "stable": False, "d_limiter": False, "beta3": 0.8, "weight_decay": 0.1},
        {"d0": 0.03, "slice": 2, "factored": False, "schedulefree_c": 20.0, "prodigy_steps": 9, "lr": 0.5},
        {"d0": 0.02, "slice": 3, "weight_decay": 0.05, "weight_decay_by_lr": False, "d_coef": 2.0, "beta1": 0.5},
    )

    def start(self, params: Arrays) -> None:
        self.d, self.N, self.W, self.k = self.d0, 0.0, 0.0, 1
        self.states = [SimpleNamespace(z=p.copy(), origin=p.copy(), v=0.0, r=0.0, q=0.0, s=np.zeros(len(np.ravel(p)[:: self.slice]))) for p in params]

    def root(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        keep, fresh = self.beta2, (1 - self.beta2) * self.d**2
        if not (self.factored and g.ndim >= 2 and max(g.shape) >= 32):
            s.v = keep * s.v + fresh * g**2
            return np.sqrt(s.v)
        *_, a, b = sorted(range(g.ndim), key=lambda i: (g.shape[i], i))
        s.r = keep * s.r + fresh * np.mean(g**2, axis=b, keepdims=True)
        s.q = keep * s.q + fresh * np.mean(g**2, axis=a, keepdims=True)
        return np.sqrt(s.r / np.mean(s.r, axis=a, keepdims=True) * s.q)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        d, num, den = self.d, 0.0, 0.0
        beta3 = np.sqrt(self.beta2) if self.beta3 is None else self.beta3
        dlr = d * self.lr
        self.W += dlr**2
        c = dlr**2 / self.W
        if self.schedulefree_c:
            c = min(1.0, c * (1 - self.beta1) * self.schedulefree_c)
        xy, counts = 1 - self.beta1 * (1 - c), self.prodigy_steps == 0 or self.k < self.prodigy_steps
        for y, g, s in zip(params, grads, self.states):
            u = d * g / (self.root(g, s) + d * self.eps)
            if self.stable and u.size:
                u = u / np.sqrt(max(1.0, np.sqrt(np.mean(u**2))))
            if counts:
                w = d**2 / np.sqrt(self.d0)
                part = lambda x: np.ravel(x)[:: self.slice]  # noqa: E731
                num += w * np.sum(part(g) * part(s.origin - s.z))
                s.s = beta3 * s.s + w * part(g)
                den += np.abs(s.s).sum()
            if self.weight_decay_by_lr:
                u = u + self.weight_decay * y
            else:
                s.z -= self.weight_decay * y
                y -= self.weight_decay * y
            y += c * (s.z - y)
            s.z = s.z - dlr * u
            y -= dlr * xy * u
        if counts:
            self.N = beta3 * self.N + (num if d > self.d0 or num > 0 else 0.0)
            if den > 0:
                found = min(self.N / den, d * 2**0.25) if self.d_limiter else self.N / den
                self.d = max(d, found * self.d_coef)
        self.k += 1

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return [y + (1 - 1 / self.beta1) * (s.z - y) for y, s in zip(params, self.states)]


class AdamSpectralEps(OptimizerReference):
    """Adam with eps times the product of the spectral norms of the listed layers (Gogianu et al., 2021)."""

    name = "adam_spectral_eps"
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "listed": None, "n_power_iterations": 1}
    settings = ({"lr": 0.05}, {"lr": 0.05, "eps": 0.1, "weight_decay": 0.2, "beta2": 0.9})

    def start(self, params: Arrays) -> None:
        self.t, self.m, self.v = 0, [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
        self.u = {i: np.ones(len(params[i])) for i in self.listed or ()}

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.t += 1
        P = 1.0
        for i in self.listed or ():
            W = params[i].reshape(len(params[i]), -1)
            for _ in range(self.n_power_iterations):
                v = W.T @ self.u[i]
                v = v / np.linalg.norm(v)
                self.u[i] = W @ v / np.linalg.norm(W @ v)
            P *= self.u[i] @ W @ v
        self.product = P
        for p, g, m, v in zip(params, grads, self.m, self.v):
            g = g + self.weight_decay * p
            m[...] = self.beta1 * m + (1 - self.beta1) * g
            v[...] = self.beta2 * v + (1 - self.beta2) * g**2
            p -= self.lr * (m / (1 - self.beta1**self.t)) / (np.sqrt(v / (1 - self.beta2**self.t)) + self.eps * P)
