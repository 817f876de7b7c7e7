"""AdEMAMix."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio


class AdEMAMix(PerTensor):
    """AdEMAMix (Pagliardini, Ablin, Grangier, 2024; arXiv:2409.03137): Adam plus a slow EMA of the gradient.

    alpha warms up linearly, beta3 linearly in its half-life from beta1 to its final value; a length of 0 is off.
    The slow EMA has no bias correction.
    """

    name = "ademamix"
    buffers = ("m1", "m2", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "alpha": 5.0, "t_alpha": 0, "t_beta3": 0,
                "eps": 1e-8, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.02, "beta3": 0.99, "alpha": 2.0, "weight_decay": 0.2, "eps": 0.01},
        {"lr": 0.02, "beta3": 0.999, "t_alpha": 10, "t_beta3": 20},
        {"lr": 0.02, "beta1": 0.0, "beta3": 0.99, "t_alpha": 20, "t_beta3": 10},
        {"lr": 0.02, "beta2": 0.9, "alpha": 0.0, "weight_decay": 0.1},  # AdamW
    )

    def alpha_at(self, t: int) -> float:
        return self.alpha * min(t / self.t_alpha, 1) if self.t_alpha else self.alpha

    def beta3_at(self, t: int) -> float:
        if t >= self.t_beta3:
            return self.beta3
        half_life = lambda beta: np.log(0.5) / np.log(beta) if beta > 0 else 0.0
        a = t / self.t_beta3
        h = (1 - a) * half_life(self.beta1) + a * half_life(self.beta3)
        return min(2 ** (-1 / h), self.beta3) if h > 0 else 0.0

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        beta3 = self.beta3_at(s.t)
        s.m1 = self.beta1 * s.m1 + (1 - self.beta1) * g
        s.m2 = beta3 * s.m2 + (1 - beta3) * g
        s.v = self.beta2 * s.v + (1 - self.beta2) * g**2
        c1, c2 = 1 - self.beta1**s.t, 1 - self.beta2**s.t
        u = ratio(s.m1 / c1 + self.alpha_at(s.t) * s.m2, np.sqrt(s.v / c2) + self.eps)
        p -= self.lr * (u + self.weight_decay * p)
