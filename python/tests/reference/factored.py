"""Second moments that are kept for rows, columns or blocks alone: AdaLOMO, CAME, Adam-mini."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, norm, ratio
from .adam_variants import rms
from .base import Arrays


class Factors:
    """Means over the last axis and the last but one of a tensor of rank 2 or more; of a smaller one the tensor itself."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.two = len(shape) >= 2
        self.r = np.zeros(shape[:-1] if self.two else shape)
        self.c = np.zeros(shape[:-2] + shape[-1:] if self.two else ())

    def take(self, q: np.ndarray, beta: float) -> None:
        self.r = beta * self.r + (1 - beta) * (q.mean(axis=-1) if self.two else q)
        if self.two:
            self.c = beta * self.c + (1 - beta) * q.mean(axis=-2)

    def divide(self, x: np.ndarray) -> np.ndarray:
        if not self.two:
            return x / np.sqrt(self.r)
        return x / np.sqrt(self.r / self.r.mean(axis=-1, keepdims=True))[..., None] / np.sqrt(self.c)[..., None, :]


class AdaLOMO(PerTensor):
    """Lv et al., 2023 (arXiv:2310.10195); Adafactor's axes for rank above 2."""

    name = "adalomo"
    defaults = {"lr": 1e-3, "weight_decay": 0.0, "threshold": 1.0, "decay_rate": -0.8, "eps1": 1e-30, "eps2": 1e-3,
                "clip_norm": None, "clip_value": None}
    settings = ({}, {"lr": 0.05, "weight_decay": 0.3}, {"lr": 0.05, "threshold": 0.3, "decay_rate": -0.5, "eps1": 1e-3, "eps2": 2.0},
                {"lr": 0.05, "eps1": 1e-2, "clip_norm": 0.5, "clip_value": 0.4}, {"lr": 0.05, "eps1": 0.1, "clip_value": 0.2})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, f=Factors(p.shape))

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        share = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm(grads) + 1e-6))
        bound = np.inf if self.clip_value is None else self.clip_value
        super().step(params, [share * np.clip(g, -bound, bound) for g in grads])

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.f.take(g**2 + self.eps1, 1 - s.t**self.decay_rate)
        u = s.f.divide(g)
        u = u / max(1.0, rms(u) / self.threshold)
        eta = self.lr * max(self.eps2, rms(p))
        p *= 1 - eta * self.weight_decay
        p -= eta * u


class CAME(PerTensor):
    """Luo et al., 2023 (arXiv:2307.02047)."""

    name = "came"
    buffers = ("m",)
    defaults = {"lr": 2e-4, "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps1": 1e-30, "eps2": 1e-16, "clip_threshold": 1.0, "weight_decay": 0.0}
    settings = ({}, {"lr": 0.01, "beta2": 0.9, "beta3": 0.9, "weight_decay": 0.3},
                {"lr": 0.01, "beta1": 0.5, "beta2": 0.8, "beta3": 0.99, "eps1": 1e-3, "eps2": 1e-2, "clip_threshold": 0.3})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.f, s.residual = Factors(p.shape), Factors(p.shape)
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.f.take(g**2 + self.eps1, self.beta2)
        u = s.f.divide(g)
        u = u / max(1.0, rms(u) / self.clip_threshold)
        s.m = self.beta1 * s.m + (1 - self.beta1) * u
        step = s.m
        if p.ndim >= 2:
            s.residual.take((u - s.m) ** 2 + self.eps2, self.beta3)
            step = s.residual.divide(s.m)
        p -= self.weight_decay * self.lr * p
        p -= self.lr * step


class AdamMini(PerTensor):
    """Zhang et al., 2024 (arXiv:2406.16793)."""

    name = "adam_mini"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "blocks": "auto", "heads": 1}
    settings = ({}, {"lr": 0.05, "beta2": 0.9, "weight_decay": 0.3}, {"lr": 0.05, "blocks": "tensor", "eps": 0.1},
                {"lr": 0.05, "blocks": "adam"}, {"lr": 0.05, "blocks": "head", "heads": 1}, {"lr": 0.05, "blocks": "row"})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        rows = p.shape[0] if p.ndim >= 2 else 1
        s.blocks = {"auto": rows, "row": rows, "tensor": 1, "adam": p.size, "head": self.heads}[self.blocks]
        s.v = np.zeros((s.blocks, 1))
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.v = self.beta2 * s.v + (1 - self.beta2) * np.mean(g.reshape(s.blocks, -1) ** 2, axis=1, keepdims=True)
        root = np.sqrt(s.v / (1 - self.beta2**s.t)) + self.eps
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * ratio(s.m.reshape(s.blocks, -1) / (1 - self.beta1**s.t), root).reshape(p.shape)
