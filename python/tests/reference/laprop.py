"""LaProp and ADOPT: the gradient is normalised before it enters the momentum."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio


class LaProp(PerTensor):
    """LaProp (Ziyin, Wang, Ueda, 2020; arXiv:2002.04839); lr outside the buffer, decoupled decay before the step."""

    name = "laprop"
    buffers = ("m", "v")
    defaults = {"lr": 4e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-15, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2},
        {"lr": 0.05, "beta2": 0.9, "eps": 0.1},
        {"lr": 0.05, "eps": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        c1, c2 = 1 - self.beta1**s.t, 1 - self.beta2**s.t
        s.v = self.beta2 * s.v + (1 - self.beta2) * g**2
        s.m = self.beta1 * s.m + (1 - self.beta1) * ratio(g, np.sqrt(s.v / c2) + self.eps)
        p -= self.lr * s.m / c1


class ADOPT(PerTensor):
    """ADOPT (Taniguchi et al., 2024; arXiv:2411.02853): normalises by the v of the step before, then updates v.

    The clip at call t is (t-1)^q, the index of the paper and of the authors' code (1 at the first real update);
    `clip_exponent=None` is off.  Coupled decay enters every gradient, also the one that fills v at the first call, as
    in the authors' code; that call makes no move, so it has no decoupled decay.
    """

    name = "adopt"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.9999, "eps": 1e-6, "clip_exponent": 0.25, "weight_decay": 0.0,
                "decoupled": True}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.2},
        {"lr": 0.02, "beta2": 0.7, "clip_exponent": None, "eps": 0.1},
        {"lr": 0.05, "beta2": 0.9, "clip_exponent": 0.1, "weight_decay": 0.2, "decoupled": False},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if not self.decoupled:
            g = self.decay(p, g, decoupled=False)
        if s.t == 1:
            s.v = g**2
            return
        if self.decoupled:
            self.decay(p, g, decoupled=True)
        n = ratio(g, np.maximum(np.sqrt(s.v), self.eps))
        if self.clip_exponent is not None:
            bound = (s.t - 1) ** self.clip_exponent
            n = np.clip(n, -bound, bound)
        s.m = self.beta1 * s.m + (1 - self.beta1) * n
        p -= self.lr * s.m
        s.v = self.beta2 * s.v + (1 - self.beta2) * g**2
