"""Penalties that are sums over the elements: value, gradient, prox(w, t) = argmin_u |u - w|^2/2 + t value(u)."""

from __future__ import annotations

import numpy as np

from .base import RegularizerReference
from .regularizers import soft


def bisect(f, low: np.ndarray, high: np.ndarray, steps: int = 200) -> np.ndarray:
    """The root of a rising function of arrays, to the last bit."""
    for _ in range(steps):
        middle = (low + high) / 2
        above = f(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


class HuberPenalty(RegularizerReference):
    """weight sum (w^2/2 up to delta, then delta (|w| - delta/2)) (Huber, 1964)."""

    name = "huber_penalty"
    defaults = {"weight": 1.0, "delta": 1.0}
    settings = ({}, {"weight": 0.3, "delta": 0.5}, {"weight": 4.0, "delta": 2.0}, {"weight": 0.0})

    def value(self, w: np.ndarray) -> float:
        a, d = np.abs(w), self.delta
        return float(self.weight * np.sum(np.where(a <= d, w * w / 2, d * (a - d / 2))))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * np.clip(w, -self.delta, self.delta)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k = t * self.weight
        return np.where(np.abs(w) <= self.delta * (1 + k), w / (1 + k), w - k * self.delta * np.sign(w))


class LogCosh(RegularizerReference):
    """weight delta^2 sum log cosh(w/delta)."""

    name = "log_cosh"
    defaults = {"weight": 1.0, "delta": 1.0}
    settings = ({}, {"weight": 0.3, "delta": 0.05}, {"weight": 40.0, "delta": 0.5}, {"weight": 0.0})

    def value(self, w: np.ndarray) -> float:
        x = np.abs(w) / self.delta
        return float(self.weight * self.delta**2 * np.sum(x + np.log1p(np.exp(-2 * x)) - np.log(2)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * self.delta * np.tanh(w / self.delta)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k, d, m = t * self.weight, self.delta, np.abs(w)
        return np.sign(w) * bisect(lambda u: u + k * d * np.tanh(u / d) - m, 0 * m, m)


class L0(RegularizerReference):
    """weight times the number of entries that are not zero."""

    name = "l0"
    defaults = {"weight": 1e-4}
    settings = ({}, {"weight": 0.3}, {"weight": 0.0})
    has_gradient = False

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.count_nonzero(w))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return np.where(w * w > 2 * t * self.weight, w, 0.0)


class Lp(RegularizerReference):
    """weight sum |w|^p, 0 < p <= 1; p may be one number a column of the matrix view."""

    name = "lp"
    defaults = {"weight": 1e-4, "p": 0.5, "floor": 0.0}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "p": 0.3}, {"weight": 0.3, "p": 2 / 3}, {"weight": 0.3, "p": 0.9},
                {"weight": 0.3, "p": 1.0}, {"weight": 0.3, "floor": 0.5}, {"weight": 0.0})

    def _p(self, w: np.ndarray) -> np.ndarray:
        p = np.asarray(self.p, np.float64)
        return p if p.ndim == 0 else np.broadcast_to(p, (w.size // p.size, p.size)).reshape(w.shape)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.sum(np.abs(w) ** self._p(w)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        p, a = self._p(w), np.maximum(np.abs(w), self.floor)
        return np.where(w == 0, 0.0, self.weight * p * np.where(w == 0, 1.0, a) ** (p - 1) * np.sign(w))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k, p, m = t * self.weight, self._p(w), np.abs(w)
        if k == 0:
            return w.copy()
        q = np.where(p < 1, p, 0.5)
        beta = (2 * k * (1 - q)) ** (1 / (2 - q))
        tau = beta + k * q * beta ** (q - 1)
        u = bisect(lambda u: u - m + k * q * u ** (q - 1), beta + 0 * m, np.maximum(m, beta))
        return np.where(p < 1, np.where(m <= tau, 0.0, np.sign(w) * u), soft(w, k))


class MCP(RegularizerReference):
    """The minimax concave penalty (Zhang, 2010)."""

    name = "mcp"
    defaults = {"weight": 1e-4, "gamma": 3.0}
    settings = ({}, {"weight": 0.3}, {"weight": 0.4, "gamma": 1.5})

    def value(self, w: np.ndarray) -> float:
        x, l, g = np.abs(w), self.weight, self.gamma
        return float(np.sum(np.where(x <= g * l, l * x - x * x / (2 * g), g * l * l / 2)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return np.sign(w) * np.maximum(self.weight - np.abs(w) / self.gamma, 0.0)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        x, l, g = np.abs(w), self.weight, self.gamma
        if t < g:
            return np.where(x <= g * l, soft(w, t * l) / (1 - t / g), w)
        return np.where(x > np.sqrt(t * g) * l, w, 0.0)


class SCAD(RegularizerReference):
    """The smoothly clipped absolute deviation (Fan, Li, 2001)."""

    name = "scad"
    defaults = {"weight": 1e-4, "a": 3.7}
    settings = ({}, {"weight": 0.3}, {"weight": 0.4, "a": 2.2})

    def _value(self, x: np.ndarray) -> np.ndarray:
        l, a = self.weight, self.a
        return np.where(x <= l, l * x, np.where(x <= a * l, (2 * a * l * x - x * x - l * l) / (2 * (a - 1)), l * l * (a + 1) / 2))

    def value(self, w: np.ndarray) -> float:
        return float(np.sum(self._value(np.abs(w))))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x, l, a = np.abs(w), self.weight, self.a
        return np.sign(w) * np.where(x <= l, l, np.maximum(a * l - x, 0.0) / (a - 1))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        x, l, a = np.abs(w), self.weight, self.a
        if t < a - 1:
            u = np.where(x <= (1 + t) * l, np.maximum(x - t * l, 0.0), np.where(x <= a * l, ((a - 1) * x - t * a * l) / (a - 1 - t), x))
        else:
            near, far = np.minimum(np.maximum(x - t * l, 0.0), l), np.maximum(x, a * l)
            cost = lambda u: (u - x) ** 2 / 2 + t * self._value(u)  # noqa: E731
            u = np.where(cost(near) <= cost(far), near, far)
        return np.sign(w) * u


class NegEntropy(RegularizerReference):
    """weight sum w log w on w >= 0."""

    name = "neg_entropy"
    defaults = {"weight": 1.0}
    settings = ({}, {"weight": 0.3}, {"weight": 20.0}, {"weight": 0.0})

    def domain(self, w: np.ndarray) -> np.ndarray:
        return np.abs(w) + 0.01

    def value(self, w: np.ndarray) -> float:
        if np.any(w < 0):
            return np.inf
        return float(self.weight * np.sum(np.where(w > 0, w * np.log(np.where(w > 0, w, 1.0)), 0.0)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * (np.log(w) + 1)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k = t * self.weight
        if k == 0:
            return w.copy()
        c = w - k
        # e^y + k y = c: y lies above (c - e^top)/k and below min(log, line)
        top = np.where(c > 1, np.log(np.maximum(c, 1.0)), np.minimum(c / k, 0.0))
        low = np.minimum((c - np.exp(top)) / k, top)
        return np.exp(bisect(lambda y: np.exp(y) + k * y - c, low, top))


class SoftmaxEntropy(RegularizerReference):
    """weight times the sum of the entropies of the softmax of every line of the last axis."""

    name = "softmax_entropy"
    defaults = {"weight": 1.0}
    settings = ({}, {"weight": 0.3}, {"weight": 0.0})
    has_prox = False

    def _log(self, w: np.ndarray) -> np.ndarray:
        z = np.atleast_1d(w)
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))

    def value(self, w: np.ndarray) -> float:
        l = self._log(w)
        return float(-self.weight * np.sum(np.exp(l) * l))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        l = self._log(w)
        p = np.exp(l)
        return (-self.weight * p * (l - np.sum(p * l, axis=-1, keepdims=True))).reshape(w.shape)


class ProxCrossEntropy(RegularizerReference):
    """lam sum (lse(x) - <y, x>) over the lines of the last axis."""

    name = "prox_cross_entropy"
    required = ("target",)
    defaults = {"lam": 1.0, "steps": 10}
    settings = tuple({"target": [0.0, 0.0, 1.0], "steps": 60, **h} for h in ({}, {"lam": 0.3}, {"lam": 5.0}))

    def takes(self, shape: tuple[int, ...]) -> bool:
        return shape[-1:] == (3,)

    def value(self, w: np.ndarray) -> float:
        y = np.asarray(self.target)
        return float(self.lam * np.sum(np.log(np.sum(np.exp(w), axis=-1)) - np.sum(y * w, axis=-1)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        p = np.exp(w - w.max(axis=-1, keepdims=True))
        return self.lam * (p / p.sum(axis=-1, keepdims=True) - np.asarray(self.target))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        """u_i + k s_i = z_i + k y_i, and s_i = exp(u_i - c): for every c the u_i follow, and sum s = 1 fixes c."""
        k = t * self.lam
        if k == 0:
            return w.copy()
        b = w + k * np.asarray(self.target)

        def s_of(c: np.ndarray) -> np.ndarray:  # k s + log s + c - b = 0 in s within (0, inf): bisection in log s
            return np.exp(bisect(lambda l: k * np.exp(l) + l + c - b, 0 * b - 700, 0 * b + 50, 120))

        c = bisect(lambda c: 1 - np.sum(s_of(c), axis=-1, keepdims=True), b.min(-1, keepdims=True) - 50, b.max(-1, keepdims=True) + 50, 120)
        return b - k * s_of(c)
