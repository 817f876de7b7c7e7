"""Steps from gradients at several points: extragradient and its optimistic form, STORM, SARAH, Fish; the local clock."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, zeros
from .base import Arrays, OptimizerReference, ScheduleReference


class _Ball:
    """The projection onto the Euclidean ball, as a sentence writes it."""

    name = "l2_ball"

    def __init__(self, radius: float) -> None:
        self.h = {"radius": radius}

    def project(self, x: np.ndarray) -> np.ndarray:
        return x * min(1.0, self.h["radius"] / max(np.linalg.norm(x), 1e-300))


class Extragradient(OptimizerReference):
    """Korpelevich, 1976; the look alone is projected."""

    name = "extragradient"
    needs = ("gradient_at",)
    defaults = {"lr": 1e-2, "domain": None}
    settings = ({}, {"lr": 0.3}, {"lr": 0.2, "domain": _Ball(1.0)})

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        look = [p - self.lr * g for p, g in zip(params, grads)]
        if self.domain is not None:
            look = [self.domain.project(x) for x in look]
        for p, g in zip(params, gradient_at(look)):
            p -= self.lr * g


class OptimisticGDA(OptimizerReference):
    """Popov, 1980; Daskalakis et al., 2018."""

    name = "optimistic_gda"
    defaults = {"lr": 1e-2, "k": 1.0}
    settings = ({}, {"lr": 0.1, "k": 0.5}, {"lr": 0.1, "k": 0.0})

    def start(self, params: Arrays) -> None:
        self.before: Arrays | None = None

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        before = self.before or grads
        for p, g, b in zip(params, grads, before):
            p -= self.lr * ((1 + self.k) * g - self.k * b)
        self.before = copies(grads)


class STORM(OptimizerReference):
    """Cutkosky, Orabona, 2019 (arXiv 1905.10018)."""

    name = "storm"
    needs = ("gradient_at",)
    defaults = {"k": 0.1, "w": 0.1, "c": 10.0, "eta": None, "a": None}
    settings = ({}, {"k": 1.0, "w": 2.0, "c": 0.5}, {"eta": 0.1, "a": 0.3}, {"eta": 0.1, "a": 1.0}, {"a": 0.0, "k": 0.3})

    def start(self, params: Arrays) -> None:
        self.t, self.d, self.before, self.sum, self.rate = 0, zeros(params), copies(params), 0.0, 1.0

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        if self.t == 0:
            self.d = copies(grads)
        else:
            a = self.rate if self.a is None else self.a
            self.d = [g + (1 - a) * (d - b) for g, d, b in zip(grads, self.d, gradient_at(copies(self.before)))]
        self.before = copies(params)
        self.sum += sum(float(np.sum(g * g)) for g in grads)
        eta = self.k / (self.w + self.sum) ** (1 / 3) if self.eta is None else self.eta
        self.rate = min(self.c * eta**2, 1.0)
        for p, d in zip(params, self.d):
            p -= eta * d
        self.t += 1


class SARAH(OptimizerReference):
    """Nguyen et al., 2017 (arXiv 1703.00102), with inner loops of a fixed length."""

    name = "sarah"
    needs = ("gradient_at",)
    required = ("inner",)
    defaults = {"lr": 0.01}
    settings = ({"inner": 5}, {"lr": 0.2, "inner": 3}, {"lr": 0.1, "inner": 1})

    def start(self, params: Arrays) -> None:
        self.t, self.v, self.before = 0, zeros(params), copies(params)

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        if self.t % self.inner == 0:
            self.v = copies(grads)
        else:
            self.v = [v + g - b for v, g, b in zip(self.v, grads, gradient_at(copies(self.before)))]
        self.before = copies(params)
        for p, v in zip(params, self.v):
            p -= self.lr * v
        self.t += 1


class LocalSGD(ScheduleReference):
    """1 at the steps t = k + 1 after which workers meet."""

    name = "local_sgd"
    defaults = {"period": 8, "switch": 0}
    settings = ({}, {"period": 3, "switch": 5}, {"period": 1}, {"period": 5, "switch": 100})

    def value(self, k: int) -> float:
        t = k + 1
        return float(t <= self.h["switch"] or (t - self.h["switch"]) % self.h["period"] == 0)


class Fish(OptimizerReference):
    """Shi et al., 2021 (arXiv 2104.09937), plain descent or Adam inside, whose state goes on.  The tasks of the tests differ by a constant gradient:
    `gradient_at` is the first task's."""

    name = "fish"
    needs = ("gradient_at", "task_gradients")
    required = ("meta_steps",)
    defaults = {"meta_lr": 0.5, "inner_lr": 0.01, "inner": "sgd"}
    settings = ({"meta_steps": 3}, {"meta_steps": 2, "meta_lr": 1.0, "inner_lr": 0.2}, {"meta_steps": 1, "inner_lr": 0.1}, {"meta_steps": 3, "inner": "adam", "inner_lr": 0.05})

    count = 0

    def _inner(self, grads: Arrays) -> Arrays:
        if self.inner == "sgd":
            return grads
        if self.count == 0:
            self.m, self.v = [0 * g for g in grads], [0 * g for g in grads]
        self.count += 1
        self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, grads)]
        self.v = [0.999 * v + 0.001 * g * g for v, g in zip(self.v, grads)]
        return [m / (1 - 0.9**self.count) / (np.sqrt(v / (1 - 0.999**self.count)) + 1e-8) for m, v in zip(self.m, self.v)]

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             task_gradients: Callable[[int], list[Arrays]] | None = None, **oracles: Any) -> None:
        tasks, t = task_gradients(self.meta_steps), copies(params)
        for task in tasks:
            there = [g + a - b for g, a, b in zip(gradient_at(t), task, tasks[0])]
            t = [x - self.inner_lr * d for x, d in zip(t, self._inner(there))]
        for p, x in zip(params, t):
            p += self.meta_lr * (x - p)


class NuPI(OptimizerReference):
    """Sohrabi et al., 2024 (arXiv 2406.04558); the gradient is the error, descended along."""

    name = "nupi"
    required = ("lr",)
    defaults = {"kp": 0.0, "ki": 1.0, "ema_nu": 0.0, "init": "sgd", "weight_decay": 0.0}
    settings = ({"lr": 0.1}, {"lr": 0.1, "kp": 2.0, "ema_nu": 0.5}, {"lr": 0.05, "kp": 1.0, "ki": 0.5, "ema_nu": -0.3, "init": "zeros"},
                {"lr": 0.1, "kp": 1.0, "weight_decay": 0.2})

    def start(self, params: Arrays) -> None:
        self.xi, self.visits = zeros(params), 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        plain = self.visits == 0 and self.h["init"] == "sgd"
        for i, (p, e) in enumerate(zip(params, grads)):
            u = self.ki * e
            if not plain:
                u = u + self.kp * (1 - self.ema_nu) * (e - self.xi[i])
                self.xi[i] = self.ema_nu * self.xi[i] + (1 - self.ema_nu) * e
            p -= self.lr * (u + self.weight_decay * p)
        self.visits += 1


class FullBatchGR(OptimizerReference):
    """Geiping et al., 2021 (arXiv 2109.14119); the gradients of the tests' tasks differ by constants."""

    name = "full_batch_gr"
    needs = ("gradient_at", "task_gradients")
    required = ("blocks",)
    defaults = {"lr": 0.8, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "block_strength": 0.5, "eps": 1e-2, "clip": 0.25}
    settings = ({"blocks": 2, "eps": 0.1}, {"blocks": 3, "lr": 0.1, "eps": 0.5, "clip": 5.0, "nesterov": False, "momentum": 0.5},
                {"blocks": 1, "lr": 0.1, "block_strength": 0.0})

    def start(self, params: Arrays) -> None:
        self.b: Arrays | None = None

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             task_gradients: Callable[[int], list[Arrays]] | None = None, **oracles: Any) -> None:
        tasks = task_gradients(self.blocks)
        mean = zeros(params)
        for task in tasks:
            length = self.block_strength * np.sqrt(sum(float(np.sum(g * g)) for g in task))
            r = task
            if length > 0:
                h = self.eps / length
                moved = gradient_at([p + h * self.block_strength * g for p, g in zip(params, task)])
                r = [g + self.lr / 4 * (m + g - f - g) / h for g, m, f in zip(task, moved, tasks[0])]
            mean = [a + x / self.blocks for a, x in zip(mean, r)]
        norm = np.sqrt(sum(float(np.sum(g * g)) for g in mean))
        if norm > self.clip:
            mean = [g * self.clip / (norm + 1e-6) for g in mean]
        g = [a + self.weight_decay * p for a, p in zip(mean, params)]
        self.b = copies(g) if self.b is None else [self.momentum * b + x for b, x in zip(self.b, g)]
        for p, x, b in zip(params, g, self.b):
            p -= self.lr * (x + self.momentum * b if self.nesterov else b)


class NoPropSchedule(ScheduleReference):
    """Li, Teh, Pascanu, 2025 (arXiv 2503.24322)."""

    name = "noprop_schedule"
    defaults = {"of": "alpha_bar", "total": 10, "eta": 0.1, "s": 0.008, "clip": 1e-5}
    settings = ({}, {"of": "snr"}, {"of": "loss", "total": 5, "eta": 0.5}, {"of": "a", "total": 4}, {"of": "b", "s": 0.1}, {"of": "c", "clip": 1e-2})

    def signal(self, t: int) -> float:
        f = lambda u: np.cos((u / self.total + self.s) / (1 + self.s) * np.pi / 2) ** 2  # noqa: E731
        return float(np.clip(f(self.total - t) / f(0), self.clip, 1 - self.clip))

    def value(self, k: int) -> float:
        t, snr = min(k, self.total), lambda x: x / (1 - x)
        if self.of in ("alpha_bar", "snr"):
            return self.signal(t) if self.of == "alpha_bar" else snr(self.signal(t))
        if self.of == "loss":
            return self.eta * self.total / 2 * (snr(self.signal(k)) - snr(self.signal(k - 1))) if 1 <= k <= self.total else 0.0
        now, before = self.signal(max(t, 1)), self.signal(max(t, 1) - 1)
        p = before / now
        return {"a": np.sqrt(now) * (1 - p), "b": np.sqrt(p) * (1 - now), "c": (1 - now) * (1 - p)}[self.of] / (1 - before)


class SSOStepsize(ScheduleReference):
    """Lavington et al., 2023 (arXiv 2302.02607); adagrad before it was told of a gradient."""

    name = "sso_stepsize"
    defaults = {"kind": "constant", "eta0": 1.0, "total": 1000, "eta_min": 1e-4, "eta_max": 1e4}
    settings = ({}, {"kind": "sqrt", "eta0": 2.0}, {"kind": "exponential", "total": 20, "eta_min": 0.1}, {"kind": "adagrad", "eta0": 0.3, "eta_max": 0.2})

    def value(self, k: int) -> float:
        t = k + 1
        factor = {"sqrt": t**-0.5, "exponential": float(self.total) ** (-t / self.total)}.get(self.h["kind"], 1.0)
        return float(np.clip(self.eta0 * factor, self.eta_min, self.eta_max))
