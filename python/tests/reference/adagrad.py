"""AdaGrad, RMSProp, Adadelta."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, norm, ratio
from .base import Arrays, OptimizerReference


class AdaGrad(PerTensor):
    """AdaGrad (Duchi, Hazan, Singer, 2011), diagonal form, with the lr decay of the common packages."""

    name = "adagrad"
    defaults = {"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10}
    settings = (
        {},
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.2},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 0.1},
        {"lr": 0.1, "eps": 0.0},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, s=np.full_like(p, self.initial_accumulator_value))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        s.s = s.s + g**2
        p -= self.lr / (1 + (s.t - 1) * self.lr_decay) * ratio(g, np.sqrt(s.s) + self.eps)


class AdaGradNorm(OptimizerReference):
    """AdaGrad-Norm (Streeter, McMahan, 2010; Ward, Wu, Bottou, 2019; used by arXiv:2402.11215): one scalar for all tensors."""

    name = "adagrad_norm"
    defaults = {"lr": 1.0, "b0": 1e-2}
    settings = ({}, {"lr": 0.3, "b0": 2.0}, {"lr": 0.1})

    def start(self, params: Arrays) -> None:
        self.b_squared = self.b0**2

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.b_squared += norm(grads) ** 2
        for p, g in zip(params, grads):
            p -= self.lr * g / np.sqrt(self.b_squared)


class RMSProp(PerTensor):
    """RMSProp (Hinton, 2012; centred: Graves, 2013, arXiv:1308.0850).

    The centred variance is clamped at 0; `eps_in_sqrt` is the placement of arXiv:2404.01436 (UNVERIFIED).
    """

    name = "rmsprop"
    buffers = ("v", "mean", "b")
    defaults = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "eps_in_sqrt": False, "momentum": 0.0, "centered": False,
                "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.02, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.2},
        {"lr": 0.02, "alpha": 0.9, "eps": 0.1, "eps_in_sqrt": True, "momentum": 0.5},
        {"lr": 0.01, "alpha": 0.9, "eps": 0.01, "centered": True, "momentum": 0.9},
        {"lr": 0.02, "alpha": 0.8, "eps": 0.01, "centered": True, "eps_in_sqrt": True},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        s.v = self.alpha * s.v + (1 - self.alpha) * g**2
        w = s.v
        if self.centered:
            s.mean = self.alpha * s.mean + (1 - self.alpha) * g
            w = np.maximum(s.v - s.mean**2, 0)
        q = np.sqrt(w + self.eps) if self.eps_in_sqrt else np.sqrt(w) + self.eps
        s.b = self.momentum * s.b + ratio(g, q)  # momentum 0: b is the plain step
        p -= self.lr * s.b


class Adadelta(PerTensor):
    """Adadelta (Zeiler, 2012; arXiv:1212.5701), coupled decay."""

    name = "adadelta"
    buffers = ("v", "d")
    defaults = {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}
    settings = ({}, {"lr": 0.5, "rho": 0.7, "eps": 1e-2, "weight_decay": 0.2}, {"rho": 0.95, "eps": 1e-3})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        s.v = self.rho * s.v + (1 - self.rho) * g**2
        u = ratio(np.sqrt(s.d + self.eps) * g, np.sqrt(s.v + self.eps))
        s.d = self.rho * s.d + (1 - self.rho) * u**2
        p -= self.lr * u
