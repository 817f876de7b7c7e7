"""Sign methods: Signum, Tiger, Lion."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor


class Signum(PerTensor):
    """signSGD and Signum (Bernstein et al., 2018; arXiv:1802.04434); momentum 0 is signSGD; decoupled decay."""

    name = "signum"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}
    settings = ({}, {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3}, {"lr": 0.02, "momentum": 0.0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        s.m = self.momentum * s.m + (1 - self.momentum) * g
        p -= self.lr * np.sign(s.m)


class Tiger(PerTensor):
    """Tiger (Su, 2023), "tight-fisted" sign optimizer: Signum with its own defaults, or Lion with beta1 = beta2."""

    name = "tiger"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "beta": 0.965, "weight_decay": 0.01}
    settings = ({}, {"lr": 0.02, "beta": 0.8, "weight_decay": 0.3}, {"lr": 0.02, "weight_decay": 0.0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        s.m = self.beta * s.m + (1 - self.beta) * g
        p -= self.lr * np.sign(s.m)


class Lion(PerTensor):
    """Lion (Chen et al., 2023; arXiv:2302.06675)."""

    name = "lion"
    buffers = ("m",)
    defaults = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
    settings = ({}, {"lr": 0.02, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.3}, {"lr": 0.02, "beta1": 0.0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        p -= self.lr * np.sign(self.beta1 * s.m + (1 - self.beta1) * g)
        s.m = self.beta2 * s.m + (1 - self.beta2) * g
