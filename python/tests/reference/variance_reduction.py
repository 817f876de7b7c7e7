"""Gradient estimates that are carried from point to point: SVRG, SAGA, SPIDER, HARPG."""

from __future__ import annotations

from typing import Any, Callable

from ._per_tensor import copies, norm, zeros
from .base import Arrays, OptimizerReference
from .o2nc import fraction


class SVRG(OptimizerReference):
    """SVRG (Johnson, Zhang, 2013).  At every `inner`-th step the gradient is taken for that over all data."""

    name = "svrg"
    needs = ("gradient_at",)
    required = ("lr", "inner")
    defaults = {"weight_decay": 0.0}
    settings = ({"lr": 0.1, "inner": 5}, {"lr": 0.3, "inner": 2}, {"lr": 0.2, "inner": 1}, {"lr": 0.05, "inner": 100},
                {"lr": 0.1, "inner": 4, "weight_decay": 0.2})

    def start(self, params: Arrays) -> None:
        self.t, self.snapshot, self.mu = 0, copies(params), zeros(params)

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        if self.t % self.inner == 0:
            self.snapshot, self.mu = copies(params), copies(grads)
        there = grads if self.t % self.inner == 0 else gradient_at(copies(self.snapshot))
        for p, g, h, m in zip(params, grads, there, self.mu):
            p -= self.lr * (g - h + m + self.weight_decay * p)
        self.t += 1


class SAGA(OptimizerReference):
    """SAGA (Defazio, Bach, Lacoste-Julien, 2014; arXiv:1407.0202).  The samples come in turn.  `init` full: the table
    begins with the gradients of all samples, and the first step is one along their mean."""

    name = "saga"
    needs = ("task_gradients",)
    required = ("lr", "n")
    defaults = {"init": "zero"}
    settings = ({"lr": 0.1, "n": 4}, {"lr": 0.3, "n": 1}, {"lr": 0.05, "n": 17}, {"lr": 0.1, "n": 3, "init": "full"},
                {"lr": 0.05, "n": 20, "init": "full"})

    def start(self, params: Arrays) -> None:
        self.t, self.table, self.mean = 0, [zeros(params) for _ in range(self.n)], zeros(params)

    def step(self, params: Arrays, grads: Arrays, *, task_gradients: Callable[[int], list[Arrays]] | None = None,
             **oracles: Any) -> None:
        if self.t == 0 and self.init == "full":
            # without a host that answers for samples, all are the one at hand
            self.table = [copies(g) for g in (task_gradients(self.n) if task_gradients else [grads] * self.n)]
            self.mean = [sum(row[k] for row in self.table) / self.n for k in range(len(params))]
            grads = self.table[0]
        old = self.table[self.t % self.n]
        for p, g, a, m in zip(params, grads, old, self.mean):
            p -= self.lr * (g - a + m)
        self.table[self.t % self.n] = copies(grads)
        self.mean = [sum(row[k] for row in self.table) / self.n for k in range(len(params))]
        self.t += 1


class SPIDER(OptimizerReference):
    """SPIDER with normalised steps (Fang, Li, Lin, Zhang, 2018; arXiv:1807.01695).  At every `period`-th step the
    gradient is taken for that of the large batch."""

    name = "spider"
    needs = ("gradient_at",)
    required = ("lr",)
    defaults = {"period": 10, "normalize": True, "boost": False}
    settings = ({"lr": 0.1}, {"lr": 0.05, "period": 3}, {"lr": 0.2, "period": 4, "normalize": False}, {"lr": 0.1, "period": 1},
                {"lr": 0.2, "period": 4, "boost": True})

    def start(self, params: Arrays) -> None:
        self.t, self.v, self.previous = 0, zeros(params), copies(params)

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        if self.t % self.period == 0:
            self.v = copies(grads)
        else:
            before = gradient_at(copies(self.previous))
            self.v = [v + g - b for v, g, b in zip(self.v, grads, before)]
        self.previous = copies(params)
        length = norm(self.v) if self.normalize and not self.boost else 1.0
        for p, v in zip(params, self.v):
            if length > 0:
                p -= self.lr * v / length
        self.t += 1


class HARPG(OptimizerReference):
    """(N)-HARPG (Fatkhullin et al., 2023; arXiv:2302.01734).  The Hessian-vector product is exact here, at a random
    point between the last two."""

    name = "harpg"
    needs = ("hvp",)
    required = ("lr",)
    defaults = {"lr_power": 1.0, "eta_power": 1.0, "normalize": True}
    settings = (
        {"lr": 0.2},
        {"lr": 0.1, "lr_power": 0.5, "eta_power": 0.6},
        {"lr": 0.3, "normalize": False},
        {"lr": 0.05, "lr_power": 0.0, "eta_power": 2.0},
    )

    def start(self, params: Arrays) -> None:
        self.t, self.d, self.previous = 0, zeros(params), copies(params)

    def step(self, params: Arrays, grads: Arrays, *, hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        decay = 2 / (self.t + 2)
        if self.t == 0:
            self.d = copies(grads)
        else:
            q = fraction(normal(self.t))
            between = [q * p + (1 - q) * o for p, o in zip(params, self.previous)]
            turned = hvp(between, [p - o for p, o in zip(params, self.previous)])
            eta = decay**self.eta_power
            self.d = [(1 - eta) * (d + h) + eta * g for d, h, g in zip(self.d, turned, grads)]
        self.previous = copies(params)
        length = norm(self.d) if self.normalize else 1.0
        for p, d in zip(params, self.d):
            if length > 0:
                p -= self.lr * decay**self.lr_power * d / length
        self.t += 1
