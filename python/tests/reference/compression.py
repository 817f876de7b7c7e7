"""Compressed gradients, and the error that is fed back; a proximal client term."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from .base import Arrays, TransformReference


def kept(n: int, ratio: float, k: int | None) -> int:
    return min(n, k or max(1, round(ratio * n)))


def compress(form: str, x: np.ndarray, h: dict, draw: np.ndarray) -> np.ndarray:
    """What arrives of one tensor; `draw` are standard normal numbers."""
    x = np.where(np.isfinite(x), x, 0.0)
    flat, n = x.ravel(), x.size
    if form in ("topk", "randk"):
        k, out = kept(n, h["ratio"], h["k"]), np.zeros(n)
        scores = np.abs(flat if form == "topk" else draw.ravel())
        chosen = np.argsort(-scores, kind="stable")[:k]
        out[chosen] = flat[chosen] * (n / k if form == "randk" and h["unbiased"] else 1)
        return out.reshape(x.shape)
    if not np.any(x):
        return np.zeros_like(x)
    if form == "sign":
        return np.where(x >= 0, 1.0, -1.0) * (np.mean(np.abs(x)) if h["scaled"] else 1.0)
    if form == "onebit":
        m = x.reshape(x.shape[0] if x.ndim else 1, -1)
        out = np.empty_like(m)
        for j in range(m.shape[1]):
            above = m[:, j] >= 0
            for side in (above, ~above):
                out[side, j] = m[side, j].mean() if side.any() else 0
        return out.reshape(x.shape)
    size, levels = np.linalg.norm(flat), h["levels"]
    r = levels * np.abs(x) / size
    u = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)), otypes=[float])(draw)
    return size * np.sign(x) * (np.floor(r) + (u < r - np.floor(r))) / levels


class _Compressed(TransformReference):
    """The draws of step t of a tensor are those of `normal(t)`, t from 0."""

    form = ""
    t = 0

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        draws = normal(self.t)
        self.t += 1
        return [compress(self.form, g, self.h, z) for g, z in zip(grads, draws)]


class TopK(_Compressed):
    name, form = "topk_compress", "topk"
    defaults = {"ratio": 0.01, "k": None}
    settings = ({}, {"ratio": 0.3}, {"k": 4}, {"ratio": 1.0})


class RandK(_Compressed):
    name, form = "randk_compress", "randk"
    defaults = {"ratio": 0.01, "k": None, "unbiased": True}
    settings = ({"ratio": 0.5}, {"k": 3, "unbiased": False}, {"ratio": 1.0})


class Sign(_Compressed):
    name, form = "sign_compress", "sign"
    defaults = {"scaled": True}
    settings = ({}, {"scaled": False})


class OneBit(_Compressed):
    name, form = "onebit_compress", "onebit"


class QSGD(_Compressed):
    name, form = "qsgd_compress", "qsgd"
    defaults = {"levels": 4}
    settings = ({}, {"levels": 1}, {"levels": 100})


class ErrorFeedback(TransformReference):
    name = "error_feedback"
    defaults = {"compressor": "topk", "decay": 1.0, "ratio": 0.01, "k": None, "unbiased": True, "scaled": True, "levels": 4}
    settings = ({}, {"ratio": 0.2, "decay": 0.5}, {"compressor": "sign"}, {"compressor": "onebit", "decay": 0.9},
                {"compressor": "randk", "k": 2, "unbiased": False}, {"compressor": "qsgd", "decay": 0.0})
    t = 0
    e: Arrays | None = None

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        p = [g + self.decay * e for g, e in zip(grads, self.e or [np.zeros_like(g) for g in grads])]
        d = [compress(self.compressor, x, self.h, z) for x, z in zip(p, normal(self.t))]
        self.t += 1
        self.e = [a - b for a, b in zip(p, d)]
        return d


class FedProxGrad(TransformReference):
    """Li et al., 2018 (arXiv 1812.06127)."""

    name = "fedprox_grad"
    defaults = {"mu": 0.01, "round": 8}
    settings = ({}, {"mu": 0.5, "round": 5}, {"mu": 1.0, "round": 1})
    t = 0

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        if self.t % self.h["round"] == 0:
            self.server = [p.copy() for p in params]
        self.t += 1
        return [g + self.mu * (p - s) for g, p, s in zip(grads, params, self.server)]
