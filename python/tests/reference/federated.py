"""Rounds of local training: the outer rules, with the participants' parameters in place of gradients."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor


class DiLoCoOuter(PerTensor):
    """Douillard et al., 2023, arXiv 2311.08105; the gradient given here is the mean of the workers."""

    name = "diloco_outer"
    buffers = ("b",)
    defaults = {"lr": 0.7, "momentum": 0.9, "nesterov": True, "workers": 1}
    settings = ({}, {"lr": 0.3, "momentum": 0.5}, {"nesterov": False, "lr": 0.2})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        drift = p - g
        s.b = drift if s.t == 1 else self.momentum * s.b + drift
        p -= self.lr * (drift + self.momentum * s.b if self.nesterov else s.b)


class FedOpt(PerTensor):
    """Reddi et al., 2021, arXiv 2003.00295; the gradient is minus the mean change."""

    name = "fedopt"
    buffers = ("m",)
    defaults = {"kind": "adam", "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    settings = ({}, {"kind": "yogi", "tau": 0.1}, {"kind": "adagrad", "beta1": 0.5, "lr": 0.3})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if s.t == 1:
            s.v = np.full_like(p, self.tau**2)
        d = -g
        s.m = self.beta1 * s.m + (1 - self.beta1) * d
        if self.h["kind"] == "adagrad":
            s.v = s.v + d * d
        elif self.h["kind"] == "yogi":
            s.v = s.v - (1 - self.beta2) * d * d * np.sign(s.v - d * d)
        else:
            s.v = self.beta2 * s.v + (1 - self.beta2) * d * d
        p += self.lr * s.m / (np.sqrt(s.v) + self.tau)
