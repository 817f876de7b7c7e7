"""SGD and the methods that rescale or select its gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, dot, norm
from .base import Arrays, OptimizerReference


class SGD(PerTensor):
    """SGD with momentum, Nesterov and dampening (Robbins, Monro, 1951; Polyak, 1964; Sutskever et al., 2013).

    The first buffer is the plain gradient, without dampening.
    """

    name = "sgd"
    buffers = ("b",)
    defaults = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "decoupled": False}
    settings = (
        {},
        {"lr": 0.1, "weight_decay": 0.2},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.3, "decoupled": True},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        d = g
        if self.momentum:
            s.b = np.copy(g) if s.t == 1 else self.momentum * s.b + (1 - self.dampening) * g
            d = g + self.momentum * s.b if self.nesterov else s.b
        p -= self.lr * d


class BetaNGD(OptimizerReference):
    """Beta-normalised gradient descent (Chen, Zhou, Liang, Lu, 2023; arXiv:2303.02854): the step lr g / ||g||^beta, global norm."""

    name = "beta_ngd"
    required = ("lr",)
    defaults = {"beta": 1.0}
    settings = ({"lr": 0.05}, {"lr": 0.1, "beta": 0.5}, {"lr": 0.1, "beta": 0.0})

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        n = norm(grads)
        if n > 0:
            for p, g in zip(params, grads):
                p -= self.lr * g / n**self.beta


class PolyakSGD(OptimizerReference):
    """Capped stochastic Polyak step (Loizou, Vaswani, Laradji, Lacoste-Julien, 2020; arXiv:2002.10542).

    `positive` clamps f - f_min at 0; without it a loss below f_min ascends.
    """

    name = "polyak_sgd"
    needs = ("loss",)
    defaults = {"max_lr": 1.0, "scaling": 1.0, "f_min": 0.0, "eps": 0.0, "positive": False}
    settings = (
        {},
        {"max_lr": 0.05},
        {"max_lr": 10.0, "scaling": 0.7, "f_min": -0.3, "eps": 0.5},
        {"f_min": 1.0, "scaling": 0.5, "max_lr": 0.2},
        {"f_min": 1.0, "positive": True, "max_lr": 0.2},
    )

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None, **oracles: Any) -> None:
        gap = loss - self.f_min
        if self.positive:
            gap = max(gap, 0.0)
        denominator = dot(grads, grads) + self.eps
        if denominator > 0:
            for p, g in zip(params, grads):
                p -= self.scaling * min(gap / denominator, self.max_lr) * g


class SplitSGD(PerTensor):
    """SGD with fixed signed steps on the largest gradients (Rosenfeld, Risteski, 2023; arXiv:2311.04163).

    The paper's case study caps the dominant coordinates and dampens the rest; selection, buffers and defaults are
    UNVERIFIED.  Chosen here: the k = floor(fraction n) largest |g| of each tensor (ties: lowest index) are hot, and the
    momentum buffer moves everywhere, from 0 and with dampening at the first call too.
    """

    name = "split_sgd"
    buffers = ("b",)
    defaults = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.9, "sign_lr": 1e-3, "fraction": 0.1}
    settings = (
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.5, "dampening": 0.2, "sign_lr": 0.02, "fraction": 0.4},
        {"lr": 0.1, "fraction": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        k = int(np.floor(self.fraction * g.size))
        hot = np.zeros(g.size, dtype=bool)
        hot[np.argsort(-np.abs(g).ravel(), kind="stable")[:k]] = True
        hot = hot.reshape(g.shape)
        s.b = self.momentum * s.b + (1 - self.dampening) * g
        p -= np.where(hot, self.sign_lr * np.sign(g), self.lr * s.b)
