"""Gradient Conductor, on the vectors themselves."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import numpy as np

from .surgery import Aggregation


class GCond(Aggregation):
    """Gradient Conductor (Alves Limarenko and Studenikina, 2025; arXiv 2509.07252)."""

    name = "gcond"
    defaults = {
        "mode": "smooth", "critical": -0.8, "main": -0.5, "weak": 0.0, "remap_power": 2.0, "stability": 0.8, "strength": 0.2,
        "dominance_window": 3, "norm_ema_beta": 0.95, "norm_cap": None, "momentum": 0.9, "max_iters": None, "eps": 1e-8,
        "cos_tol": 1e-6, "reference": "raw", "lambdas": None, "output": "momentum", "trust_coef": 1e-4,
    }  # fmt: skip
    t = 0

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        m = len(jacobian)
        if self.t == 0:
            self.previous, self.length = np.zeros_like(jacobian), np.ones(m)
            self.history: deque[int] = deque(maxlen=max(self.dominance_window, 1))
            self.average = np.zeros(jacobian.shape[1])
        self.t += 1
        raw = jacobian * (1.0 if self.lambdas is None else np.asarray(self.lambdas, float)[:, None])
        g = raw.copy()
        for k in range(m):
            n = np.linalg.norm(g[k])
            self.length[k] = max(self.norm_ema_beta * self.length[k] + (1 - self.norm_ema_beta) * n, self.eps)
            if self.norm_cap is not None and n > self.norm_cap:
                g[k] *= self.norm_cap / (n + self.eps)
        for _ in range(2 * m if self.max_iters is None else self.max_iters):
            pairs = [(self.cosine(g[i], g[j]), i, j) for i, j in itertools.combinations(range(m), 2)
                     if g[i] @ g[i] >= self.eps and g[j] @ g[j] >= self.eps]
            if not pairs or min(pairs)[0] >= self.weak - self.cos_tol:
                break
            (self._turn if self.mode == "smooth" else self._cut)(g, *min(pairs))
        self.previous = raw if self.reference == "raw" else g.copy()
        self.average = self.momentum * self.average + (1 - self.momentum) * g.sum(axis=0)
        return self.average / (1 - self.momentum**self.t)

    def signs(self, unbiased: list[np.ndarray], params: list[np.ndarray]) -> list[np.ndarray]:
        """The output by signs, tensor by tensor, of what `combine` gave."""
        out = []
        for m, w in zip(unbiased, params):
            a, b = np.linalg.norm(w), np.linalg.norm(m)
            ratio = 1.0 if a < self.eps or b < self.eps else min(a / b, 100.0)
            out.append(np.sign(m) * self.trust_coef * ratio)
        return out

    def cosine(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + self.eps))

    def _turn(self, g: np.ndarray, cos: float, i: int, j: int) -> None:
        W, L = self._arbitrate(g, i, j)
        d, w, l = g[i] @ g[j], g[W].copy(), g[L].copy()
        if cos >= self.main:
            t = np.clip((cos - self.main) / (self.weak - self.main + self.eps), 0, 1)
            a = math.pi / 2 * (1 - t)
        elif cos > self.critical:
            a = math.pi / 2 + math.pi / 2 * ((cos - self.main) / (self.critical - self.main + self.eps)) ** self.remap_power
        else:
            a = math.pi
        g[W] += -math.sin(a) * d / (l @ l + self.eps) * l
        g[L] += -math.sin(min(a, math.pi / 2)) * d / (w @ w + self.eps) * w

    def _cut(self, g: np.ndarray, cos: float, i: int, j: int) -> None:
        if cos < self.main:
            W, L = self._arbitrate(g, i, j)
            g[L] = 0 if cos < self.critical else g[L] - g[L] @ g[W] / (g[W] @ g[W] + self.eps) * g[W]
            return
        a, b = g[i].copy(), g[j].copy()
        g[i] = a - a @ b / (b @ b + self.eps) * b
        g[j] = b - a @ b / (a @ a + self.eps) * a

    def _arbitrate(self, g: np.ndarray, i: int, j: int) -> tuple[int, int]:
        s = {k: np.linalg.norm(g[k]) / (self.length[k] + self.eps) for k in (i, j)}
        score = {k: self.stability * max(0.0, self.cosine(g[k], self.previous[k]))
                 + self.strength * s[k] / (s[i] + s[j] + self.eps) for k in (i, j)}
        W = i if score[i] >= score[j] else j
        if self.dominance_window > 0 and len(self.history) == self.dominance_window:
            if all(k == i for k in self.history):
                W = j
            elif all(k == j for k in self.history):
                W = i
        self.history.append(W)
        return W, j if W == i else i
