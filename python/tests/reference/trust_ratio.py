"""LARS and LAMB: the step of each tensor scaled by the norm of its weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio
from .adam import adam_moments


def length(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(x**2)))


class LAMB(PerTensor):
    """LAMB (You et al., 2019; arXiv:1904.00962); the decay is inside the trust ratio, `max_trust` clamps ||theta||."""

    name = "lamb"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "bias_correction": True,
                "max_trust": float("inf")}
    settings = (
        {},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3, "eps": 0.01},
        {"lr": 0.02, "bias_correction": False, "weight_decay": 0.1},
        {"lr": 0.02, "max_trust": 0.5},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        c1, c2 = adam_moments(self, g, s)
        if not self.bias_correction:
            c1 = c2 = 1.0
        u = ratio(s.m / c1, np.sqrt(s.v / c2) + self.eps) + self.weight_decay * p
        a, b = min(length(p), self.max_trust), length(u)
        p -= self.lr * (a / b if a > 0 and b > 0 else 1.0) * u


class LARS(PerTensor):
    """LARS (You, Gitman, Ginsburg, 2017; arXiv:1708.03888); lr and ratio sit inside the momentum buffer."""

    name = "lars"
    buffers = ("b",)
    defaults = {"lr": 1.0, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "trust_coefficient": 1e-3, "eps": 0.0,
                "denominator": "paper", "skip_1d": True}
    settings = (
        {"lr": 0.5},
        {"lr": 0.5, "trust_coefficient": 0.05, "weight_decay": 0.3, "momentum": 0.5},
        {"lr": 0.5, "trust_coefficient": 0.05, "weight_decay": 0.3, "denominator": "update", "skip_1d": False},
        {"lr": 0.2, "trust_coefficient": 0.05, "nesterov": True, "eps": 0.1, "skip_1d": False},
        {"lr": 0.2, "momentum": 0.0, "trust_coefficient": 0.1},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if self.skip_1d and p.ndim <= 1:
            u, trust = g, 1.0
        else:
            u = g + self.weight_decay * p
            norm = length(p)
            denominator = length(g) + self.weight_decay * norm if self.denominator == "paper" else length(u)
            trust = self.trust_coefficient * norm / (denominator + self.eps) if norm > 0 and denominator > 0 else 1.0
        d = self.lr * trust * u
        s.b = self.momentum * s.b + d
        p -= d + self.momentum * s.b if self.nesterov else s.b
