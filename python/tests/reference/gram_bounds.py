"""The Gram-iteration bound: a Schatten norm by its singular values; and the Sobolev gradient by numpy.fft."""

from __future__ import annotations

from typing import Callable

import numpy as np

from .base import Arrays, RegularizerReference, TransformReference


class GramIteration(RegularizerReference):
    """(sum s^p)^(1/p) of the singular values, p = 2^(T+1) (Delattre et al., 2023; arXiv 2305.16173)."""

    name = "gram_iteration"
    shapes = "matrix"
    has_prox = False
    defaults = {"weight": 0.1, "threshold": 1.0, "n_iter": 6}
    settings = ({}, {"n_iter": 0, "threshold": 0.0}, {"n_iter": 1, "weight": 1.0}, {"n_iter": 3, "weight": 0.5}, {"threshold": 100.0})

    def bound(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """Of a real or complex matrix: the bound, and U diag((s/bound)^(p-1)) V^H."""
        U, s, Vh = np.linalg.svd(w, full_matrices=False)
        if s[0] == 0:
            return 0.0, np.zeros_like(w)
        p = 2.0 ** (self.n_iter + 1)
        b = s[0] * np.sum((s / s[0]) ** p) ** (1 / p)
        return float(b), (U * (s / b) ** (p - 1)) @ Vh

    def value(self, w: np.ndarray) -> float:
        b, _ = self.bound(w.reshape(len(w), -1))
        return self.weight * b if b > self.threshold else 0.0

    def gradient(self, w: np.ndarray) -> np.ndarray:
        b, g = self.bound(w.reshape(len(w), -1))
        return self.weight * g.reshape(w.shape) if b > self.threshold else np.zeros_like(w)


class GramIterationConv(GramIteration):
    """The largest bound over the frequencies of an n x n grid."""

    name = "gram_iteration_conv"
    defaults = {"weight": 0.1, "threshold": 1.0, "n_iter": 6, "n": None}
    settings = ({}, {"n": 5, "n_iter": 2}, {"n": 4, "n_iter": 0, "threshold": 0.0, "weight": 1.0}, {"threshold": 1e6})

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4

    def worst(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        n = self.n or max(w.shape[2:])
        hat = np.fft.fft2(w, (n, n))
        best, gradient = -1.0, np.zeros_like(w)
        for y in range(n):
            for x in range(n // 2 + 1):
                b, D = self.bound(hat[:, :, y, x])
                if b > best:
                    a, c = np.meshgrid(np.arange(w.shape[2]), np.arange(w.shape[3]), indexing="ij")
                    best, gradient = b, np.real(D[:, :, None, None] * np.exp(2j * np.pi * (y * a + x * c) / n))
        return best, gradient

    def value(self, w: np.ndarray) -> float:
        b, _ = self.worst(w)
        return self.weight * b if b > self.threshold else 0.0

    def gradient(self, w: np.ndarray) -> np.ndarray:
        b, g = self.worst(w)
        return self.weight * g if b > self.threshold else np.zeros_like(w)


class SobolevGradient(TransformReference):
    """IFFT(FFT(g)/m) (Neuberger, 1985)."""

    name = "sobolev_gradient"
    shapes = "matrix"
    defaults = {"s": 1.0, "scale": 1.0, "homogeneous": False, "axes": None, "zero_mode": True}
    settings = ({}, {"s": 0.5, "scale": 0.3, "axes": [0]}, {"s": -0.4, "zero_mode": False}, {"homogeneous": True, "axes": [-1]},
                {"homogeneous": True, "s": 0.5, "zero_mode": False}, {"s": 0.0, "zero_mode": False})

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        out = []
        for g in grads:
            axes = [a % g.ndim for a in (self.axes or range(g.ndim))]
            square = np.zeros(g.shape)
            for a in axes:
                f = self.scale * np.fft.fftfreq(g.shape[a], 1 / g.shape[a])
                square = square + (f**2).reshape([-1 if i == a else 1 for i in range(g.ndim)])
            mean = square == 0
            with np.errstate(divide="ignore"):
                m = square**self.s if self.homogeneous else (1 + square) ** self.s
                factor = np.where(mean, float(self.zero_mode), 1 / m)
            out.append(np.real(np.fft.ifftn(factor * np.fft.fftn(g, axes=axes), axes=axes)))
        return out
