"""Grokfast, and the singular values of gradients brought into an interval."""

from __future__ import annotations

from typing import Callable

import numpy as np

from .base import Arrays, TransformReference
from .muon import orthogonalize


class Grokfast(TransformReference):
    """Lee, Kang, Kim, Lee, 2024 (arXiv 2405.20233): gradfilter_ema and gradfilter_ma."""

    name = "grokfast"
    defaults = {"lamb": None, "alpha": 0.98, "form": "ema", "window": 100, "filter": "mean", "warmup": True}
    settings = ({}, {"lamb": 0.5, "alpha": 0.7}, {"lamb": 0.0}, {"form": "ma", "window": 5}, {"form": "ma", "window": 7, "filter": "sum", "lamb": 0.3},
                {"form": "ma", "window": 8, "warmup": False, "lamb": 1.0}, {"form": "ma", "window": 1})

    past: list[Arrays] | None = None
    slow: Arrays | None = None

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        lamb = self.lamb if self.lamb is not None else {"ema": 2.0, "ma": 5.0}[self.form]
        if self.form == "ema":
            self.slow = [g.copy() for g in grads] if self.slow is None else [
                self.alpha * s + (1 - self.alpha) * g for s, g in zip(self.slow, grads)]
            return [g + lamb * s for g, s in zip(grads, self.slow)]
        self.past = [*(self.past or []), [g.copy() for g in grads]][-self.window:]
        if self.warmup and len(self.past) < self.window:
            return [g.copy() for g in grads]
        sums = [sum(column) for column in zip(*self.past)]
        return [g + lamb * s / (len(self.past) if self.filter == "mean" else 1) for g, s in zip(grads, sums)]


class _Spectral(TransformReference):
    shapes = "matrix"

    def sign(self, X: np.ndarray) -> np.ndarray:
        return orthogonalize(X, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps_mode="clamp")

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        out = []
        for g in grads:
            X = g.reshape(g.shape[0], -1)
            turned = X.shape[0] > X.shape[1]
            Y = self.matrix(X.T if turned else X)
            out.append((Y.T if turned else Y).reshape(g.shape))
        return out

    def matrix(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class SpectralClip(_Spectral):
    """Cesista, 2025, as Emerging-Optimizers has it."""

    name = "spectral_clip"
    defaults = {"sigma_min": -1.0, "sigma_max": 1.0, "method": "svd", "ns_steps": 8, "ns_coefficients": "polar_express_8"}
    settings = ({}, {"sigma_min": 0.5, "sigma_max": 0.8}, {"sigma_min": 0.5, "sigma_max": 0.8, "method": "ns"},
                {"sigma_max": 0.6, "method": "ns", "ns_steps": 12, "ns_coefficients": "cubic"})

    def matrix(self, X: np.ndarray) -> np.ndarray:
        if self.method == "svd":
            U, s, Vt = np.linalg.svd(X, full_matrices=False)
            keep = s > s[0] * max(X.shape) * np.finfo(float).eps
            return U @ np.diag(np.where(keep, np.clip(s, self.sigma_min, self.sigma_max), 0.0)) @ Vt
        O = self.sign(X)

        def part(b: float) -> np.ndarray:
            return self.sign(b * np.eye(len(X)) - O @ X.T) @ (b * O - X)

        return 0.5 * ((self.sigma_min + self.sigma_max) * O + part(self.sigma_min) - part(self.sigma_max))


class SpectralHardcap(_Spectral):
    """Cesista, 2025, as Emerging-Optimizers has it."""

    name = "spectral_hardcap"
    defaults = {"beta": 1.0, "method": "svd", "ns_steps": 8, "ns_coefficients": "polar_express_8"}
    settings = ({}, {"beta": 0.4}, {"beta": 0.4, "method": "ns"}, {"beta": 2.0, "method": "ns", "ns_steps": 5, "ns_coefficients": "quintic"})

    def matrix(self, X: np.ndarray) -> np.ndarray:
        if self.method == "svd":
            U, s, Vt = np.linalg.svd(X, full_matrices=False)
            return U @ np.diag(np.minimum(s, self.beta)) @ Vt
        O = self.sign(X)
        A = self.beta * O - X
        return 0.5 * (self.beta * O + X - A @ (self.sign(A).T @ O))
