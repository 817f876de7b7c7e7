"""Rules that change one thing about Adam: its division, its clipping, its momentum, its bounds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, ratio
from .adam import adam_moments
from .base import Arrays


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2))) if x.size else 0.0


class AdamAtan2(PerTensor):
    """Everett et al., 2024 (arXiv:2407.05872): atan2 in place of the division, so that no eps is needed.

    `regenerate` pulls towards the first parameters, from the second step on, before the step is taken."""

    name = "adam_atan2"
    buffers = ("m", "v")
    defaults = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "a": 1.27, "b": 1.0, "weight_decay": 0.0, "regenerate": 0.0}
    settings = (
        {},
        {"lr": 0.05, "weight_decay": 0.3},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.7, "a": 16.0, "b": 16.0},
        {"lr": 0.05, "a": 4 / math.pi, "regenerate": 0.5},
        {"lr": 0.05, "beta1": 0.0, "beta2": 0.0, "b": 0.01},  # ratios of 100 and more
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.start = p.copy()
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if s.t > 1 and self.regenerate > 0:
            p += self.lr * self.regenerate * (s.start - p)
        c1, c2 = adam_moments(self, g, s)
        u = self.a * np.arctan2(s.m / c1, self.b * np.sqrt(s.v / c2))
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * u


class StableAdamW(PerTensor):
    """Wortsman et al., 2023 (arXiv:2304.13013): the rate is divided by the RMS of g/sqrt(v), where that is above 1."""

    name = "stable_adamw"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 1e-2, "threshold": 1.0, "form": "optimi"}
    settings = (
        {},
        {"lr": 0.05, "beta2": 0.999, "weight_decay": 0.5},
        {"lr": 0.05, "beta2": 0.999, "weight_decay": 0.5, "form": "timm", "threshold": 0.5},
        {"lr": 0.05, "eps": 0.3, "threshold": 0.4},
        {"lr": 0.05, "threshold": math.inf},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        c1, c2 = adam_moments(self, g, s)
        root = np.sqrt(s.v / c2)
        w = ratio(g, np.sqrt(np.maximum(s.v / c2, self.eps**2)) if self.form == "optimi" else root + self.eps)
        eta = self.lr / max(1.0, rms(w) / self.threshold)
        p *= 1 - (eta if self.form == "optimi" else self.lr) * self.weight_decay
        p -= eta * ratio(s.m / c1, root + self.eps)


class SimplifiedAdEMAMix(PerTensor):
    """Morwani, Vyas, Zhang, Kakade, 2025 (arXiv:2502.02431): the momentum is a sum; the warm-up is that of a library."""

    name = "simplified_ademamix"
    buffers = ("m", "v")
    defaults = {"lr": 1e-4, "beta1": 0.99, "beta2": 0.95, "alpha": 0.0, "eps": 1e-8, "weight_decay": 0.0, "beta1_warmup": 0, "min_beta1": 0.9}
    settings = (
        {},
        {"lr": 5e-3, "beta1": 0.9, "alpha": 2.0, "weight_decay": 0.3},
        {"lr": 2e-3, "beta1_warmup": 20, "alpha": 0.5, "eps": 0.01},
        {"lr": 5e-3, "beta1": 0.95, "min_beta1": 0.0, "beta1_warmup": 10},
        {"lr": 0.05, "beta1": 0.0, "eps": 0.0},
    )

    def rate(self, t: int) -> float:
        def half_life(x: float) -> float:
            return (math.log(0.5) / math.log(x) if x > 0 else 0.0) - 1

        if t >= self.beta1_warmup:
            return self.beta1
        a = t / self.beta1_warmup
        return 0.5 ** (1 / ((1 - a) * half_life(self.min_beta1) + a * half_life(self.beta1) + 1))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.m = self.rate(s.t) * s.m + g
        s.v = self.beta2 * s.v + (1 - self.beta2) * g**2
        u = ratio(s.m + self.alpha * g, np.sqrt(s.v / (1 - self.beta2**s.t)) + self.eps)
        p -= self.lr * (u + self.weight_decay * p)


class GrokAdamW(PerTensor):
    """grokadamw 0.1.2 (norm=clip) and the head of its repository (norm=preserve)."""

    name = "grokadamw"
    buffers = ("m", "v", "e")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "alpha": 0.98, "lamb": 2.0, "gamma": 0.1,
                "signal_decay": 0.1, "norm": "clip", "clip": 1.0, "signal": 0.0}
    settings = (
        {},
        {"lr": 0.05, "gamma": 0.3, "weight_decay": 0.3, "alpha": 0.7, "clip": 0.5},
        {"lr": 0.05, "norm": "preserve", "alpha": 0.9, "signal": 0.7, "signal_decay": 2.0},
        {"lr": 0.05, "norm": "none", "gamma": 0.0, "lamb": 0.0},
        {"lr": 0.05, "norm": "none", "beta2": 0.9, "eps": 0.1, "alpha": 1.0},
    )

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        for i, (p, g, s) in enumerate(zip(params, grads, self.states)):
            s.t += 1
            if self.norm == "clip":
                g = g * min(1.0, self.clip / (np.linalg.norm(g) + 1e-6))
            alpha = self.alpha * math.exp(-self.signal_decay * self.signal)
            s.e = alpha * s.e + (1 - alpha) * g
            q = g + self.lamb * s.e
            if self.norm == "preserve":
                q = q * np.linalg.norm(g) / max(np.linalg.norm(q), self.eps)
            beta = self.beta1 * (1 - self.gamma) ** i
            s.m = beta * s.m + (1 - beta) * q
            s.v = self.beta2 * s.v + (1 - self.beta2) * q**2
            p *= 1 - self.lr * self.weight_decay
            p -= self.lr * math.sqrt(1 - self.beta2**s.t) / (1 - self.beta1**s.t) * ratio(s.m, np.sqrt(s.v) + self.eps)


class DPAdamBC(PerTensor):
    """Tang, Shpilevskiy, Lecuyer, 2023 (arXiv:2312.14334): the variance of the noise is taken out of v."""

    name = "dp_adam_bc"
    buffers = ("m", "v")
    required = ("noise_multiplier", "clip", "batch_size")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "floor": 1e-8, "eps": 0.0, "weight_decay": 0.0}
    settings = (
        {"noise_multiplier": 1.0, "clip": 1.0, "batch_size": 4.0, "lr": 0.01, "floor": 1e-2},
        {"noise_multiplier": 0.5, "clip": 0.2, "batch_size": 1.0, "lr": 0.05, "floor": 1e-4, "eps": 0.01, "weight_decay": 0.1},
        {"noise_multiplier": 0.0, "clip": 1.0, "batch_size": 1.0, "lr": 0.05, "beta2": 0.9},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        c1, c2 = adam_moments(self, g, s)
        w = np.maximum(s.v / c2 - (self.noise_multiplier * self.clip / self.batch_size) ** 2, self.floor)
        p -= self.lr * (s.m / c1) / (np.sqrt(w) + self.eps)


class ACProp(PerTensor):
    """Zhuang et al., 2021 (arXiv:2110.05454) as optax has it: the denominator is that of the step before."""

    name = "acprop"
    buffers = ("m", "s")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-16, "eps_root": 1e-16, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3},
        {"lr": 0.02, "eps": 0.1, "eps_root": 1e-3, "beta2": 0.95},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        k = s.t - 1
        u = g / (1 + self.eps) if k == 0 else ratio(g, np.sqrt(s.s / (1 - self.beta2**k)) + self.eps)
        r = g - s.m
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.s = self.beta2 * s.s + (1 - self.beta2) * r**2 + self.eps_root
        p -= self.lr * (u + self.weight_decay * p)


class AdaBound(PerTensor):
    """Luo, Xiong, Liu, Sun, 2019 (arXiv:1902.09843): step sizes between bounds that close."""

    name = "adabound"
    buffers = ("m", "v", "vmax")
    defaults = {"lr": 1e-3, "final_lr": 0.1, "beta1": 0.9, "beta2": 0.999, "gamma": 1e-3, "eps": 1e-8, "weight_decay": 0.0,
                "decoupled": False, "amsgrad": False, "root_eps": 0.0}
    settings = (
        {},
        {"lr": 0.05, "gamma": 0.5, "final_lr": 0.02, "weight_decay": 0.3},
        {"lr": 0.05, "gamma": 0.1, "weight_decay": 0.3, "decoupled": True, "amsgrad": True, "beta2": 0.7},
        {"lr": 0.05, "gamma": 0.1, "root_eps": 0.01, "eps": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        c1, c2 = adam_moments(self, g, s)
        s.vmax = np.maximum(s.vmax, s.v)
        v = s.vmax if self.amsgrad else s.v
        f = self.final_lr  # the rate is constant here: lr/base_lr = 1
        with np.errstate(divide="ignore"):
            rate = self.lr * math.sqrt(c2) / c1 / (np.sqrt(v + self.root_eps) + self.eps)
        p -= np.clip(rate, f * (1 - 1 / (self.gamma * s.t + 1)), f * (1 + 1 / (self.gamma * s.t))) * s.m


class QHAdam(PerTensor):
    """Ma, Yarats, 2018 (arXiv:1810.06801)."""

    name = "qhadam"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "nu1": 1.0, "nu2": 1.0, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.995, "nu1": 0.7, "weight_decay": 0.3},
        {"lr": 0.05, "nu1": 0.7, "nu2": 0.4, "beta2": 0.9, "weight_decay": 0.3, "decoupled": True},
        {"lr": 0.05, "nu1": 0.0, "nu2": 0.5, "eps": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        c1, c2 = adam_moments(self, g, s)
        top = (1 - self.nu1) * g + self.nu1 * s.m / c1
        p -= self.lr * ratio(top, np.sqrt((1 - self.nu2) * g**2 + self.nu2 * s.v / c2) + self.eps)
