"""Rules with norms, signs, averages and memories of their own: what people ask for by name."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, norm, ratio
from .adam import adam_moments
from .base import Arrays


def project_radially(u: np.ndarray, g: np.ndarray, p: np.ndarray, delta: float, eps: float) -> tuple[np.ndarray, bool]:
    """The projection of AdamP and SGDP: rows first, then the whole tensor as one row."""
    if p.ndim < 2:
        return u, False
    for rows in (p.shape[0], 1):
        U, G, P = (x.reshape(rows, -1) for x in (u, g, p))
        size = np.linalg.norm(P, axis=1)
        cos = np.abs(np.sum(G * P, axis=1)) / (np.maximum(np.linalg.norm(G, axis=1), eps) * np.maximum(size, eps))
        if np.max(cos) < delta / math.sqrt(P.shape[1]):
            H = P / (size + eps)[:, None]
            return (U - H * np.sum(H * U, axis=1, keepdims=True)).reshape(u.shape), True
    return u, False


class AdamP(PerTensor):
    """Heo et al., 2020 (arXiv:2006.08217)."""

    name = "adamp"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1, "nesterov": False}
    settings = (
        {},
        {"lr": 0.05, "delta": 2.0, "weight_decay": 0.3},
        {"lr": 0.05, "delta": 100.0, "weight_decay": 0.3, "wd_ratio": 0.5, "nesterov": True},
        {"lr": 0.05, "delta": 0.5, "beta2": 0.9, "eps": 0.01},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        c1, c2 = adam_moments(self, g, s)
        top = self.beta1 * s.m + (1 - self.beta1) * g if self.nesterov else s.m
        u, projected = project_radially(ratio(top, np.sqrt(s.v / c2) + self.eps), g, p, self.delta, self.eps)
        p *= 1 - self.lr * self.weight_decay * (self.wd_ratio if projected else 1)
        p -= self.lr / c1 * u


class SGDP(PerTensor):
    """Heo et al., 2020 (arXiv:2006.08217)."""

    name = "sgdp"
    buffers = ("b",)
    defaults = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "eps": 1e-8, "weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1}
    settings = (
        {"lr": 0.1},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "delta": 1.0},
        {"lr": 0.05, "momentum": 0.5, "dampening": 0.3, "nesterov": True, "weight_decay": 0.1, "delta": 50.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.b = self.momentum * s.b + (1 - self.dampening) * g
        u, projected = project_radially(g + self.momentum * s.b if self.nesterov else s.b, g, p, self.delta, self.eps)
        p *= 1 - self.lr * self.weight_decay * (self.wd_ratio if projected else 1) / (1 - self.momentum)
        p -= self.lr * u


class ASGD(PerTensor):
    """Polyak, Juditsky, 1992, in torch's form; the evaluation weights are the average."""

    name = "asgd"
    buffers = ("a",)
    defaults = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.1, "lambd": 0.05, "weight_decay": 0.1, "t0": 5.0},
        {"lr": 0.1, "lambd": 0.0, "t0": 0.0},
        {"lr": 0.1, "lambd": 0.5, "alpha": 1.0, "t0": 12.0},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.eta, s.mu = self.lr, 1.0
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        p *= 1 - self.lambd * s.eta
        p -= s.eta * g
        s.a = p.copy() if s.mu == 1 else s.a + s.mu * (p - s.a)
        s.eta = self.lr / (1 + self.lambd * self.lr * s.t) ** self.alpha
        s.mu = 1 / max(1, s.t - self.t0)

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return [s.a for s in self.states]


class Fromage(PerTensor):
    """Bernstein, Vahdat, Yue, Liu, 2020 (arXiv:2002.03432)."""

    name = "fromage"
    defaults = {"lr": 1e-2, "p_bound": None}
    settings = ({}, {"lr": 0.1}, {"lr": 0.1, "p_bound": 0.8}, {"lr": 0.3, "p_bound": 1.01})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, first=np.linalg.norm(p))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        x, n = np.linalg.norm(p), np.linalg.norm(g)
        p -= self.lr * g * (x / n if x > 0 and n > 0 else 1.0)
        p /= math.sqrt(1 + self.lr**2)
        if self.p_bound is not None and np.linalg.norm(p) > self.p_bound * s.first:
            p *= self.p_bound * s.first / np.linalg.norm(p)


class FTRL(PerTensor):
    """McMahan et al., 2013."""

    name = "ftrl"
    buffers = ("z", "n")
    defaults = {"lr": 1e-3, "lr_power": -0.5, "beta": 0.0, "lambda1": 0.0, "lambda2": 0.0, "initial_accumulator_value": 0.0, "shrinkage": 0.0}
    settings = (
        {"lr": 0.1},
        {"lr": 0.3, "beta": 1.0, "lambda1": 0.5, "lambda2": 0.1, "initial_accumulator_value": 0.1},
        {"lr": 0.3, "lr_power": -0.3, "beta": 0.5, "shrinkage": 0.1},
        {"lr": 0.1, "lr_power": 0.0, "lambda2": 0.5},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.n = np.full_like(p, self.initial_accumulator_value)
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        power = -self.lr_power
        new = s.n + g**2
        s.z = s.z + g + 2 * self.shrinkage * p - (new**power - s.n**power) / self.lr * p
        s.n = new
        q = (s.n**power + self.beta) / self.lr + self.lambda2
        p[...] = np.where(np.abs(s.z) <= self.lambda1, 0.0, ratio(np.sign(s.z) * self.lambda1 - s.z, q))


class MADGRAD(PerTensor):
    """Defazio, Jelassi, 2021 (arXiv:2101.11075); lr = 0 does not move."""

    name = "madgrad"
    buffers = ("s", "v")
    defaults = {"lr": 1e-2, "momentum": 0.9, "eps": 1e-6, "weight_decay": 0.0, "decoupled": False}
    settings = (
        {},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2},
        {"lr": 0.1, "weight_decay": 0.2, "decoupled": True},
        {"lr": 0.1, "momentum": 0.0, "eps": 0.01, "weight_decay": 0.2},
        {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.2, "decoupled": True},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.start = p.copy()
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if self.lr == 0:
            return
        k = (self.lr + self.eps) * math.sqrt(s.t)
        g = self.decay(p, g, decoupled=self.decoupled)
        start = s.start if self.momentum > 0 else p + ratio(s.s, np.cbrt(s.v) + self.eps)
        s.v = s.v + k * g**2
        s.s = s.s + k * g
        z = start - ratio(s.s, np.cbrt(s.v) + self.eps)
        p[...] = self.momentum * p + (1 - self.momentum) * z


class NovoGrad(PerTensor):
    """Ginsburg et al., 2019 (arXiv:1905.11286)."""

    name = "novograd"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "beta1": 0.95, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "grad_averaging": False,
                "amsgrad": False, "init": "first"}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.9, "beta2": 0.25, "weight_decay": 0.1},
        {"lr": 0.05, "grad_averaging": True, "amsgrad": True, "beta2": 0.5, "weight_decay": 0.1, "decoupled": True},
        {"lr": 0.05, "init": "zero", "eps": 0.1},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.v = s.vmax = 0.0
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        n = float(np.sum(g**2))
        first = s.t == 1 if self.init == "first" else s.v == 0
        s.v = n if first else self.beta2 * s.v + (1 - self.beta2) * n
        s.vmax = max(s.vmax, s.v)
        u = ratio(g, math.sqrt(s.vmax if self.amsgrad else s.v) + self.eps)
        if self.decoupled:
            p *= 1 - self.lr * self.weight_decay
        else:
            u = u + self.weight_decay * p
        s.m = self.beta1 * s.m + (1 - self.beta1 if self.grad_averaging else 1) * u
        p -= self.lr * s.m


class Rprop(PerTensor):
    """Riedmiller, Braun, 1993 (iRprop-), as torch has it."""

    name = "rprop"
    buffers = ("prev",)
    defaults = {"lr": 1e-2, "eta_minus": 0.5, "eta_plus": 1.2, "step_min": 1e-6, "step_max": 50.0}
    settings = ({}, {"lr": 0.1, "eta_minus": 0.3, "eta_plus": 2.0, "step_max": 0.3}, {"lr": 0.5, "step_min": 0.1, "step_max": 0.2})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.size = np.full_like(p, self.lr)
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        a = np.sign(g * s.prev)
        factor = np.where(a > 0, self.eta_plus, np.where(a < 0, self.eta_minus, 1.0))
        s.size = np.clip(s.size * factor, self.step_min, self.step_max)
        g = np.where(a < 0, 0.0, g)
        p -= s.size * np.sign(g)
        s.prev = g


class SM3(PerTensor):
    """Anil, Gupta, Koren, Singer, 2019 (arXiv:1901.11150), SM3-II; beta is an addition of the ports."""

    name = "sm3"
    buffers = ("m",)
    defaults = {"lr": 0.1, "momentum": 0.0, "beta": 0.0, "eps": 1e-30}
    settings = ({}, {"momentum": 0.9, "eps": 1e-8}, {"beta": 0.9}, {"lr": 0.05, "beta": 0.5, "momentum": 0.5, "eps": 0.01})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        shape = p.shape or (1,)
        s.acc = [np.zeros([n if i == k else 1 for i in range(len(shape))]) for k, n in enumerate(shape)]
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        G = g.reshape(g.shape or (1,))
        least = s.acc[0]
        for a in s.acc[1:]:
            least = np.minimum(least, a)
        nu = np.broadcast_to(least, G.shape) * (self.beta or 1.0) + (1 - self.beta) * G**2
        for k in range(G.ndim):
            top = np.max(nu, axis=tuple(i for i in range(G.ndim) if i != k), keepdims=True)
            s.acc[k] = np.maximum(s.acc[k], top) if self.beta > 0 else top
        u = ratio(G, np.sqrt(nu + self.eps)).reshape(g.shape)
        s.m = self.momentum * s.m + (1 - self.momentum) * u
        p -= self.lr * (s.m if self.momentum > 0 else u)


class SparseAdam(PerTensor):
    """torch.optim.SparseAdam on dense gradients: a row of zeros alone is untouched."""

    name = "sparse_adam"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    settings = ({}, {"lr": 0.05, "beta1": 0.8, "beta2": 0.9}, {"lr": 0.05, "eps": 0.1})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        touched = np.any(g.reshape(g.shape[0], -1) != 0, axis=1) if g.ndim else np.asarray(g != 0)
        m, v = s.m, s.v
        c1, c2 = adam_moments(self, g, s)
        step = self.lr * math.sqrt(c2) / c1 * ratio(s.m, np.sqrt(s.v) + self.eps)
        mask = touched.reshape(touched.shape + (1,) * (g.ndim - touched.ndim))
        s.m, s.v = np.where(mask, s.m, m), np.where(mask, s.v, v)
        p -= np.where(mask, step, 0.0)


class LOMO(PerTensor):
    """Lv et al., 2023 (arXiv:2306.09782): the norm is that of the gradients before any clipping."""

    name = "lomo"
    defaults = {"lr": 1e-3, "clip_norm": None, "clip_value": None}
    settings = ({"lr": 0.1}, {"lr": 0.1, "clip_norm": 0.5}, {"lr": 0.1, "clip_value": 0.2}, {"lr": 0.1, "clip_norm": 2.0, "clip_value": 0.2})

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        factor = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm(grads) + 1e-6))
        for p, g in zip(params, grads):
            p -= self.lr * factor * (g if self.clip_value is None else np.clip(g, -self.clip_value, self.clip_value))


class AggMo(PerTensor):
    """Lucas, Sun, Zemel, Grosse, 2018 (arXiv:1804.00325)."""

    name = "aggmo"
    defaults = {"lr": 1e-3, "betas": (0.0, 0.9, 0.99), "weight_decay": 0.0, "decoupled": False}
    settings = ({"lr": 0.05}, {"lr": 0.05, "betas": (0.5,), "weight_decay": 0.3},
                {"lr": 0.02, "betas": (0.95, 0.0, 0.5, 0.8), "weight_decay": 0.3, "decoupled": True})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, b=[np.zeros_like(p) for _ in self.betas])

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        s.b = [beta * b + g for beta, b in zip(self.betas, s.b)]
        p -= self.lr / len(s.b) * sum(s.b)


class Ranger(PerTensor):
    """Wright, 2019: gradient centralisation, RAdam with its own eps, and slow weights."""

    name = "ranger"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.95, "beta2": 0.999, "eps": 1e-5, "weight_decay": 0.0, "alpha": 0.5, "k": 6, "threshold": 5.0,
                "centralize": True, "conv_only": False, "warm": "sgd"}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.3, "k": 4},
        {"lr": 0.05, "beta2": 0.95, "conv_only": True, "warm": "none", "alpha": 0.8, "eps": 0.1},
        {"lr": 0.05, "beta2": 0.95, "centralize": False, "threshold": 4.0, "k": 1},
        {"lr": 0.05, "beta2": 0.5},  # never rectified
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.slow = p.copy()
        return s

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if self.centralize and g.ndim > (3 if self.conv_only else 1):
            g = g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
        p *= 1 - self.lr * self.weight_decay
        c1, c2 = adam_moments(self, g, s)
        limit = 2 / (1 - self.beta2) - 1
        rho = limit - 2 * s.t * self.beta2**s.t / c2
        if rho > self.threshold:
            rect = c2 * (rho - 4) / (limit - 4) * (rho - 2) / rho * limit / (limit - 2)
            p -= self.lr / c1 * math.sqrt(rect) * ratio(s.m, np.sqrt(s.v) + self.eps)
        elif self.warm == "sgd":
            p -= self.lr / c1 * s.m
        if s.t % self.k == 0:
            s.slow = s.slow + self.alpha * (p - s.slow)
            p[...] = s.slow
