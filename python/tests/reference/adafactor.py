"""Adafactor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


class Adafactor(PerTensor):
    """Adafactor (Shazeer, Stern, 2018; arXiv:1804.04235), no first moment, the form of torch.optim.Adafactor.

    The last two axes are factored, leading axes are independent problems.  `eps1=None` is the machine epsilon of the
    storage type (float64 here).
    """

    name = "adafactor"
    defaults = {"lr": 1e-2, "beta2_decay": -0.8, "eps1": None, "eps2": 1e-3, "d": 1.0, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.2, "weight_decay": 0.3, "beta2_decay": -0.5},
        {"lr": 0.1, "eps1": 0.5, "eps2": 0.7},
        {"lr": 1.0, "d": 2.0, "beta2_decay": -1.0},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = SimpleNamespace(t=0, v=np.zeros_like(p))
        if p.ndim >= 2:
            s.r, s.c = np.zeros(p.shape[:-1] + (1,)), np.zeros(p.shape[:-2] + (1, p.shape[-1]))
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if p.size == 0:
            return
        eps1 = np.finfo(np.float64).eps if self.eps1 is None else self.eps1
        k = s.t**self.beta2_decay
        a = max(self.eps2, rms(p)) * min(self.lr, 1 / np.sqrt(s.t))
        p *= 1 - self.lr * self.weight_decay
        if p.ndim >= 2:
            s.r = s.r + k * (np.mean(g**2, axis=-1, keepdims=True) - s.r)
            s.c = s.c + k * (np.mean(g**2, axis=-2, keepdims=True) - s.c)
            estimate = s.r * s.c / np.maximum(np.mean(s.r, axis=-2, keepdims=True), eps1)
        else:
            s.v = s.v + k * (g**2 - s.v)
            estimate = s.v
        u = g / np.sqrt(np.maximum(estimate, eps1**2))
        p -= a / max(1.0, rms(u) / self.d) * u
