"""Grams and diffGrad: Adam's step rescaled by the current gradient."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio
from .adam import adam_moments


def adam_ratio(self, numerator: np.ndarray, v: np.ndarray, c1: float, c2: float) -> np.ndarray:
    """`paper`: (x/c1)/(sqrt(v/c2) + eps).  `released`: sqrt(c2)/c1 * x/(sqrt(v) + eps)."""
    if self.eps_mode == "paper":
        return ratio(numerator / c1, np.sqrt(v / c2) + self.eps)
    return np.sqrt(c2) / c1 * ratio(numerator, np.sqrt(v) + self.eps)


class Grams(PerTensor):
    """Grams (Cao, Li, Song, 2024; arXiv:2412.17107): Adam's magnitude with the sign of the current gradient."""

    name = "grams"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "eps_mode": "paper"}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 0.01, "weight_decay": 0.2},
        {"lr": 0.05, "beta2": 0.99, "eps": 0.01, "eps_mode": "released"},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        c1, c2 = adam_moments(self, g, s)
        p -= self.lr * np.sign(g) * adam_ratio(self, np.abs(s.m), s.v, c1, c2)


class DiffGrad(PerTensor):
    """diffGrad (Dubey et al., 2019; arXiv:1909.11015): Adam's step times sigmoid(|change of the gradient|).

    The stored gradient includes the coupled decay; the friction acts on the step, not on the stored m.
    """

    name = "diffgrad"
    buffers = ("m", "v", "previous")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "eps_mode": "paper"}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 0.01, "weight_decay": 0.2},
        {"lr": 0.05, "beta2": 0.99, "eps": 0.01, "weight_decay": 0.1, "eps_mode": "released"},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        c1, c2 = adam_moments(self, g, s)
        friction = 1 / (1 + np.exp(-np.abs(s.previous - g)))
        p -= self.lr * friction * adam_ratio(self, s.m, s.v, c1, c2)
        s.previous = g
