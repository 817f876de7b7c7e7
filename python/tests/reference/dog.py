"""Distance over gradients: DoG, DoWG and their accelerated relatives."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, distance, dot, norm, ratio, zeros
from .base import Arrays, OptimizerReference
from .constraints import Box, L2Ball


class DoG(OptimizerReference):
    """DoG and L-DoG (Ivgi, Hinder, Carmon, 2023; arXiv:2302.12022), coupled decay.

    `layerwise` makes every tensor a block of its own; otherwise all tensors are one block.
    """

    name = "dog"
    defaults = {"lr": 1.0, "reps_rel": 1e-6, "eps": 1e-8, "layerwise": False, "weight_decay": 0.0}
    settings = (
        {},
        {"reps_rel": 1e-2, "weight_decay": 0.2},
        {"reps_rel": 1e-2, "layerwise": True, "lr": 0.5},
        {"reps_rel": 1e-2, "eps": 1.0},
    )

    def start(self, params: Arrays) -> None:
        indices = range(len(params))
        self.blocks = [[i] for i in indices] if self.layerwise else [list(indices)]
        self.origin = copies(params)
        self.r = [self.reps_rel * (1 + norm([params[i] for i in b])) for b in self.blocks]
        self.g_sum = [self.eps for _ in self.blocks]

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        grads = [g + self.weight_decay * p for p, g in zip(params, grads)]
        for k, block in enumerate(self.blocks):
            self.r[k] = max(self.r[k], distance([params[i] for i in block], [self.origin[i] for i in block]))
            self.g_sum[k] += norm([grads[i] for i in block]) ** 2
            for i in block:
                params[i] -= self.lr * self.r[k] / np.sqrt(self.g_sum[k]) * grads[i]


class DoWG(OptimizerReference):
    """DoWG (Khaled, Mishchenko, Jin, 2023; arXiv:2305.16284); no move while all gradients have been 0."""

    name = "dowg"
    defaults = {"r_eps": 1e-4, "eps": 0.0}
    settings = ({}, {"r_eps": 0.05}, {"r_eps": 0.05, "eps": 0.1})

    def start(self, params: Arrays) -> None:
        self.origin, self.r_squared, self.v = copies(params), self.r_eps**2, 0.0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.r_squared = max(self.r_squared, distance(params, self.origin) ** 2)
        self.v += self.r_squared * norm(grads) ** 2
        for p, g in zip(params, grads):
            p -= ratio(self.r_squared * g, np.sqrt(self.v) + self.eps)


class UDoG(OptimizerReference):
    """U-DoG (Kreisler, Ivgi, Hinder, Carmon, 2024; arXiv:2404.00666); `domain` is a constraint, of each tensor.

    Two gradients a step at points of its own choice (`grads` is not used); the parameters are left at the average
    x-bar.  Verified: sequence, weights, averaging.  UNVERIFIED: G_x and G_y, chosen as in the code, where the maximum M
    already includes the m of this step, so that G_y of the last step <= G_x <= G_y.
    """

    name = "u_dog"
    needs = ("gradient_at",)
    defaults = {"r_eps_rel": 1e-6, "eps": 1e-12, "domain": None}
    settings = (
        {},
        {"r_eps_rel": 1e-2},
        {"r_eps_rel": 1e-2, "eps": 1.0},
        {"r_eps_rel": 1e-2, "domain": L2Ball(radius=0.7)},
        {"r_eps_rel": 1e-2, "domain": Box(lo=-0.2, hi=0.3)},
    )

    def start(self, params: Arrays) -> None:
        self.origin, self.y, self.s = copies(params), copies(params), zeros(params)
        self.weight, self.r_sum, self.q, self.m_max = 0.0, 0.0, 0.0, 0.0
        self.r = self.r_eps_rel * (1 + norm(params))

    def projected(self, xs: Arrays) -> Arrays:
        return xs if self.domain is None else [self.domain.project(x) for x in xs]

    def mean(self, omega: float, point: Arrays) -> Arrays:
        """The weighted average with `point` added at weight omega."""
        return [(s + omega * p) / (self.weight + omega) for s, p in zip(self.s, point)]

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        self.r_sum += self.r
        alpha = self.r_sum / self.r
        omega = alpha * self.r

        m = gradient_at(self.mean(omega, self.y))
        self.m_max = max(self.m_max, alpha**2 * dot(m, m))
        step = alpha * self.r / np.sqrt(self.eps + self.q + self.m_max)
        x = self.projected([y - step * mi for y, mi in zip(self.y, m)])

        average = self.mean(omega, x)
        g = gradient_at(average)
        self.q += alpha**2 * distance(g, m) ** 2
        step = alpha * self.r / np.sqrt(self.eps + self.q + self.m_max)
        self.y = self.projected([y - step * gi for y, gi in zip(self.y, g)])

        self.s = [s + omega * xi for s, xi in zip(self.s, x)]
        self.weight += omega
        self.r = max(self.r, distance(x, self.origin), distance(self.y, self.origin))
        for p, a in zip(params, average):
            p[...] = a


class ADoG(OptimizerReference):
    """A-DoG, accelerated DoG on AcceleGrad (Kreisler, Ivgi, Hinder, Carmon, 2024; arXiv:2404.00666), simplified variant.

    The parameters hold the query point x.
    """

    name = "a_dog"
    defaults = {"lr": 1.0, "reps_rel": 1e-6, "eps": 1e-8, "alpha_const": 0.5}
    settings = (
        {},
        {"reps_rel": 1e-2},
        {"reps_rel": 1e-2, "lr": 0.5, "eps": 0.5, "alpha_const": 1.0},
        {"reps_rel": 1e-2, "alpha_const": 2.0},
    )

    def start(self, params: Arrays) -> None:
        self.origin, self.w = copies(params), copies(params)
        self.r = self.r_sum = self.reps_rel * (1 + norm(params))
        self.g_sum = 0.0

    @property
    def alpha(self) -> float:
        return max(1.0, self.alpha_const * self.r_sum / self.r)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        alpha = self.alpha
        self.g_sum += alpha**2 * dot(grads, grads)
        y = []
        for i, (x, g) in enumerate(zip(params, grads)):
            eta_g = ratio(self.lr * self.r * g, np.sqrt(self.g_sum) + self.eps)
            self.w[i] = self.w[i] - alpha * eta_g
            y.append(x - eta_g)
        self.r = max(self.r, distance(self.w, self.origin))
        self.r_sum += self.r
        alpha = self.alpha
        for x, yi, w in zip(params, y, self.w):
            x[...] = (1 - 1 / alpha) * yi + w / alpha
