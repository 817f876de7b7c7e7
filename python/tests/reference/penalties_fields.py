"""Penalties of neighbours and frequencies: total variation, truncated quadratic, Sobolev norms."""

from __future__ import annotations

import math

import numpy as np

from .base import RegularizerReference
from .regularizers import soft


def taut_string(w: np.ndarray, k: float) -> np.ndarray:
    """The total variation prox: the shortest path through the tube of half-width k around the running sum, ends fixed."""
    n = len(w)
    r = np.concatenate([[0.0], np.cumsum(w)])
    low, high = r - k, r + k
    low[[0, n]] = high[[0, n]] = r[[0, n]]
    u, i, s = np.zeros(n), 0, 0.0
    while i < n:
        lowest, highest, at_low, at_high, end = -np.inf, np.inf, i + 1, i + 1, None
        for j in range(i + 1, n + 1):
            a, b = (low[j] - s) / (j - i), (high[j] - s) / (j - i)
            if a > highest:
                end, slope = at_high, highest
                break
            if b < lowest:
                end, slope = at_low, lowest
                break
            if a >= lowest:
                lowest, at_low = a, j
            if b <= highest:
                highest, at_high = b, j
        if end is None:
            end, slope = n, (r[n] - s) / (n - i)
        u[i:end] = slope
        s, i = s + slope * (end - i), end
    return u


def root(d: np.ndarray, eps: float) -> np.ndarray:
    return np.sqrt(d * d + eps * eps) if eps else np.abs(d)


class TV1D(RegularizerReference):
    """weight sum sqrt(d^2 + eps^2), d the differences along the flattened tensor; the prox takes eps as 0."""

    name = "tv_1d"
    defaults = {"weight": 1e-4, "eps": 0.0}
    settings = ({}, {"weight": 0.3}, {"weight": 2.0}, {"weight": 0.3, "eps": 0.1}, {"weight": 0.0})

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.sum(root(np.diff(w.ravel()), self.eps)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        d = np.diff(w.ravel())
        s = d / root(d, self.eps) if self.eps else np.sign(d)
        g = np.zeros(w.size)
        g[1:] += self.weight * s
        g[:-1] -= self.weight * s
        return g.reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return taut_string(w.ravel(), t * self.weight).reshape(w.shape) if t * self.weight > 0 and w.size > 1 else w.copy()


class FusedLasso(RegularizerReference):
    """l1_weight |w|_1 + tv_weight total variation."""

    name = "fused_lasso"
    defaults = {"l1_weight": 1e-4, "tv_weight": 1e-4, "eps": 0.0}
    settings = ({}, {"l1_weight": 0.3, "tv_weight": 0.2}, {"l1_weight": 0.0, "tv_weight": 0.2}, {"l1_weight": 0.3, "tv_weight": 0.2, "eps": 0.1})

    def _tv(self) -> TV1D:
        return TV1D(weight=self.tv_weight, eps=self.eps)

    def value(self, w: np.ndarray) -> float:
        return float(self.l1_weight * np.abs(w).sum() + self._tv().value(w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.l1_weight * np.sign(w) + self._tv().gradient(w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return soft(self._tv().prox(w, t), t * self.l1_weight) if t > 0 else w.copy()


def differences(w: np.ndarray) -> np.ndarray:
    """Forward differences along every axis, zero on its last slice: (axes, *shape)."""
    return np.stack([np.concatenate([np.diff(w, axis=a), np.zeros_like(np.take(w, [0], axis=a))], axis=a) for a in range(w.ndim)])


def adjoint(p: np.ndarray) -> np.ndarray:
    out = np.zeros(p.shape[1:])
    for a, q in enumerate(p):
        inner = np.moveaxis(q, a, 0)[:-1]
        view = np.moveaxis(out, a, 0)
        view[:-1] -= inner
        view[1:] += inner
    return out


class TVND(RegularizerReference):
    """Total variation along every axis; the prox by the card's dual iteration."""

    name = "tv_nd"
    defaults = {"weight": 1e-4, "eps": 0.0, "isotropic": True, "max_iter": 200, "tol": 1e-6}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "isotropic": False}, {"weight": 0.3, "eps": 0.1},
                {"weight": 0.3, "eps": 0.1, "isotropic": False}, {"weight": 2.0, "max_iter": 9}, {"weight": 0.3, "tol": 1e-2})

    def value(self, w: np.ndarray) -> float:
        if w.ndim == 0:
            return 0.0
        d = differences(w)
        if self.isotropic:
            return float(self.weight * np.sum(np.sqrt(np.sum(d * d, axis=0) + self.eps**2)))
        return float(self.weight * sum(np.sum(root(np.diff(w, axis=a), self.eps)) for a in range(w.ndim)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        if w.ndim == 0:
            return 0 * w
        d = differences(w)
        n = np.sqrt(np.sum(d * d, axis=0) + self.eps**2) if self.isotropic else root(d, self.eps)
        return self.weight * adjoint(d / np.where(n > 0, n, 1.0))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k = t * self.weight
        if k == 0 or w.ndim == 0:
            return w.copy()
        p = q = np.zeros((w.ndim, *w.shape))
        m = 1.0
        for _ in range(self.max_iter):
            new = q + differences(w - adjoint(q)) / (4 * w.ndim)
            size = np.sqrt(np.sum(new * new, axis=0)) if self.isotropic else np.abs(new)
            new = new / np.maximum(1.0, size / k)
            after = (1 + math.sqrt(1 + 4 * m * m)) / 2
            change, q, p, m = np.max(np.abs(new - p)), new + (m - 1) / after * (new - p), new, after
            if change <= self.tol * k:
                break
        return w - adjoint(p)


class TruncatedQuadratic(RegularizerReference):
    """sum min(alpha d^2, nu) over the neighbours along every axis."""

    name = "truncated_quadratic"
    defaults = {"alpha": 1.0, "nu": 0.1}
    settings = ({}, {"alpha": 0.3, "nu": 0.5}, {"nu": 1e9})
    has_prox = False

    def value(self, w: np.ndarray) -> float:
        return float(np.sum(np.minimum(self.alpha * differences(w) ** 2, self.nu))) if w.ndim else 0.0

    def gradient(self, w: np.ndarray) -> np.ndarray:
        if w.ndim == 0:
            return 0 * w
        d = differences(w)
        return adjoint(np.where(self.alpha * d * d < self.nu, 2 * self.alpha * d, 0.0))


class Sobolev(RegularizerReference):
    """weight/2 (1/N) sum m |FFT(w)|^2, m = (1 + |scale k|^2)^s (Zhu, Hu, Lou, Yang, 2021)."""

    name = "sobolev"
    defaults = {"s": 1.0, "scale": 1.0, "weight": 1.0, "homogeneous": False, "axes": None, "zero_mode": True}
    settings = ({}, {"s": 0.0}, {"zero_mode": False, "s": 0.5}, {"s": -1.5, "weight": 0.3}, {"s": 0.5, "scale": 0.7}, {"homogeneous": True}, {"homogeneous": True, "s": -0.5},
                {"axes": [-1], "weight": 0.3})

    def takes(self, shape: tuple[int, ...]) -> bool:
        return self.axes is None or len(shape) >= 1

    def _axes(self, w: np.ndarray) -> tuple[int, ...]:
        return tuple(range(w.ndim)) if self.axes is None else tuple(a % w.ndim for a in self.axes)

    def _m(self, w: np.ndarray) -> np.ndarray:
        square = np.zeros(w.shape)
        for a in self._axes(w):
            k = self.scale * np.fft.fftfreq(w.shape[a], 1 / w.shape[a])
            square = square + (k**2).reshape([-1 if i == a else 1 for i in range(w.ndim)])
        m = (1 + square) ** self.s
        if self.homogeneous:
            m = np.where(square > 0, np.where(square > 0, square, 1.0) ** self.s, 1.0 if self.s == 0 else 0.0)
        return m if self.zero_mode else np.where(square > 0, m, 0.0)

    def value(self, w: np.ndarray) -> float:
        w = np.atleast_1d(w)
        n = math.prod(w.shape[a] for a in self._axes(w))
        return float(self.weight / (2 * n) * np.sum(self._m(w) * np.abs(np.fft.fftn(w, axes=self._axes(w))) ** 2))

    def _filter(self, w: np.ndarray, f: np.ndarray) -> np.ndarray:
        if w.ndim == 0:
            return f * w
        return np.fft.ifftn(f * np.fft.fftn(w, axes=self._axes(w)), axes=self._axes(w)).real

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * self._filter(w, self._m(w))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return self._filter(w, 1 / (1 + t * self.weight * self._m(w)))
