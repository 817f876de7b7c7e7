"""AdaBelief and Yogi: Adam with another second moment."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio


class AdaBelief(PerTensor):
    """AdaBelief (Zhuang et al., 2020; arXiv:2010.07468): the second moment of g - m, with the new m.

    `eps_root` is added into the recursion of s at every step; `decoupled=False` adds the decay to the gradient.
    """

    name = "adabelief"
    buffers = ("m", "s")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-16, "eps_root": 1e-16, "weight_decay": 0.0,
                "decoupled": True}
    settings = (
        {},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2},
        {"lr": 0.02, "beta2": 0.9, "eps": 0.01, "weight_decay": 0.2, "decoupled": False},
        {"lr": 0.02, "eps": 1e-3, "eps_root": 1e-2},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.s = self.beta2 * s.s + (1 - self.beta2) * (g - s.m) ** 2 + self.eps_root
        c1, c2 = 1 - self.beta1**s.t, 1 - self.beta2**s.t
        p -= self.lr * ratio(s.m / c1, np.sqrt(s.s / c2) + self.eps)


class Yogi(PerTensor):
    """Yogi (Zaheer, Reddi, Sachan, Kale, Kumar, 2018): v moves towards g^2 by at most (1 - beta2) g^2.

    Both m and v start at `initial_accumulator`, as the public packages have it.
    """

    name = "yogi"
    defaults = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-3, "initial_accumulator": 1e-6, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.2},
        {"lr": 0.05, "beta2": 0.7, "eps": 1e-8, "initial_accumulator": 0.1},
        {"lr": 0.05, "eps": 0.0, "initial_accumulator": 0.0},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, m=np.full_like(p, self.initial_accumulator), v=np.full_like(p, self.initial_accumulator))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.v = s.v - (1 - self.beta2) * np.sign(s.v - g**2) * g**2
        c1, c2 = 1 - self.beta1**s.t, 1 - self.beta2**s.t
        p -= self.lr * ratio(s.m / c1, np.sqrt(s.v / c2) + self.eps)
