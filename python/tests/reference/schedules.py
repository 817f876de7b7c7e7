"""Learning-rate schedules: the value at step k, counted from 0."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from .base import ScheduleReference


def _ratio(k: float, total: float) -> float:
    """clamp(k/total, 0, 1); a schedule of length 0 has already ended."""
    return 1.0 if total <= 0 else min(max(k / total, 0.0), 1.0)


class Constant(ScheduleReference):
    """The same rate at every step."""

    name = "constant"
    required = ("lr",)
    settings = ({"lr": 0.25}, {"lr": 0.0})

    def value(self, k: int) -> float:
        return self.lr


class Linear(ScheduleReference):
    """Straight line from `lr` to `end` over `total` steps after `begin`; shown to be worst-case optimal in
    Defazio, Cutkosky, Mehta, Mishchenko, 2023 (arXiv 2310.07831)."""

    name = "linear"
    required = ("lr", "total")
    defaults = {"end": 0.0, "begin": 0}
    settings = ({"lr": 0.3, "total": 20}, {"lr": 0.1, "end": 0.4, "total": 7, "begin": 5},
                {"lr": 0.3, "end": 0.05, "total": 0})

    def value(self, k: int) -> float:
        f = _ratio(k - self.begin, self.total)
        return self.lr + (self.end - self.lr) * f


class Cosine(ScheduleReference):
    """Cosine annealing, which stays at `end` (Loshchilov, Hutter, 2016; arXiv 1608.03983)."""

    name = "cosine"
    required = ("lr", "total")
    defaults = {"end": 0.0}
    settings = ({"lr": 0.3, "total": 20}, {"lr": 0.3, "end": 0.02, "total": 9}, {"lr": 0.3, "end": 0.02, "total": 0})

    def value(self, k: int) -> float:
        f = _ratio(k, self.total)
        return self.end + (self.lr - self.end) * (1 + np.cos(np.pi * f)) / 2


class CosineRestarts(ScheduleReference):
    """SGDR: cosine annealing in periods t0, t0 t_mult, t0 t_mult^2, ... (Loshchilov, Hutter, 2016;
    arXiv 1608.03983)."""

    name = "cosine_restarts"
    required = ("lr", "t0")
    defaults = {"end": 0.0, "t_mult": 1}
    settings = ({"lr": 0.3, "t0": 6}, {"lr": 0.3, "end": 0.01, "t0": 4, "t_mult": 2}, {"lr": 0.3, "t0": 1, "t_mult": 3})

    def value(self, k: int) -> float:
        period = self.t0
        while k >= period:
            k, period = k - period, period * self.t_mult
        return self.end + (self.lr - self.end) * (1 + np.cos(np.pi * k / period)) / 2


class Polynomial(ScheduleReference):
    """(lr - end)(1 - k/total)^power + end."""

    name = "polynomial"
    required = ("lr", "total")
    defaults = {"end": 0.0, "power": 1.0}
    settings = ({"lr": 0.3, "total": 20}, {"lr": 0.3, "end": 0.05, "total": 15, "power": 2.0},
                {"lr": 0.3, "total": 15, "power": 0.5}, {"lr": 0.3, "end": 0.05, "total": 0, "power": 2.0})

    def value(self, k: int) -> float:
        return (self.lr - self.end) * (1 - _ratio(k, self.total)) ** self.power + self.end


class Exponential(ScheduleReference):
    """lr gamma^(k/every), with a floor at `end`; with `staircase` the exponent is rounded down."""

    name = "exponential"
    required = ("lr", "gamma")
    defaults = {"every": 1, "staircase": False, "end": 0.0}
    settings = ({"lr": 0.3, "gamma": 0.9}, {"lr": 0.3, "gamma": 0.5, "every": 7},
                {"lr": 0.3, "gamma": 0.5, "every": 7, "staircase": True}, {"lr": 0.3, "gamma": 0.8, "end": 0.05},
                {"lr": 0.3, "gamma": 1.1})

    def value(self, k: int) -> float:
        e = k // self.every if self.staircase else k / self.every
        return max(self.lr * self.gamma ** e, self.end)


class StepDecay(ScheduleReference):
    """A factor `gamma` every `every` steps, or at each of the `milestones` (duplicates count twice)."""

    name = "step_decay"
    required = ("lr",)
    defaults = {"gamma": 0.1, "every": 30, "milestones": None}
    settings = ({"lr": 0.3}, {"lr": 0.3, "gamma": 0.5, "every": 5},
                {"lr": 0.3, "gamma": 0.5, "milestones": [3, 8, 8, 20]})

    def value(self, k: int) -> float:
        drops = k // self.every if self.milestones is None else sum(m <= k for m in self.milestones)
        return self.lr * self.gamma ** drops


class InverseSqrt(ScheduleReference):
    """Linear warm-up, then 1/sqrt(k) (Vaswani et al., 2017, arXiv 1706.03762; fairseq's form)."""

    name = "inverse_sqrt"
    required = ("lr",)
    defaults = {"warmup_steps": 1000, "start": 0.0}
    settings = ({"lr": 0.3}, {"lr": 0.3, "warmup_steps": 8}, {"lr": 0.3, "warmup_steps": 5, "start": 0.1},
                {"lr": 0.3, "warmup_steps": 0})

    def value(self, k: int) -> float:
        W = self.warmup_steps
        if k < W:
            return self.h["start"] + (self.lr - self.h["start"]) * k / W
        return self.lr * np.sqrt(max(W, 1) / max(k, 1))


class InverseTime(ScheduleReference):
    """Diminishing steps lr/(1 + kappa k) (Robbins, Monro, 1951; Bottou, Curtis, Nocedal, 2016, arXiv 1606.04838)."""

    name = "inverse_time"
    required = ("lr",)
    defaults = {"k_decay": 1.0}
    settings = ({"lr": 0.3}, {"lr": 0.3, "k_decay": 0.05}, {"lr": 0.3, "k_decay": 0.0})

    def value(self, k: int) -> float:
        return self.lr / (1 + self.k_decay * k)


class WSD(ScheduleReference):
    """Warm-up, stable, decay (Hu et al., 2024; arXiv 2404.06395).

    The card's rule warms up "from start" but its table has no `start`: 0 here, as in the quoted peer.
    `begin_decay(k)` ends the plateau at step k, whatever `stable_steps` said."""

    name = "wsd"
    required = ("lr", "warmup_steps", "stable_steps", "decay_steps")
    defaults = {"end": 0.0, "shape": "linear"}
    settings = ({"lr": 0.3, "warmup_steps": 5, "stable_steps": 8, "decay_steps": 10},
                {"lr": 0.3, "end": 0.03, "warmup_steps": 5, "stable_steps": 8, "decay_steps": 10, "shape": "sqrt"},
                {"lr": 0.3, "end": 0.03, "warmup_steps": 0, "stable_steps": 8, "decay_steps": 10, "shape": "cosine"},
                {"lr": 0.3, "end": 0.03, "warmup_steps": 3, "stable_steps": 0, "decay_steps": 0})

    def begin_decay(self, k: int) -> None:
        self.h["stable_steps"] = k - self.warmup_steps

    def value(self, k: int) -> float:
        W, S, D = self.warmup_steps, self.stable_steps, self.decay_steps
        if k < W:
            return self.lr * k / W
        if k - W - S <= 0:
            return self.lr
        f = _ratio(k - W - S, D)
        shape = {"linear": 1 - f, "sqrt": 1 - np.sqrt(f), "cosine": (1 + np.cos(np.pi * f)) / 2}[self.h["shape"]]
        return self.end + (self.lr - self.end) * shape


class OneCycle(ScheduleReference):
    """One-cycle policy (Smith, Topin, 2017, arXiv 1708.07120; Smith, 2018, arXiv 1803.09820), in torch's form: phase
    ends are real numbers, counted so that step total - 1 is the last."""

    name = "one_cycle"
    required = ("lr", "total")
    defaults = {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4, "anneal": "cos", "three_phase": False}
    settings = ({"lr": 0.3, "total": 30}, {"lr": 0.3, "total": 30, "anneal": "linear", "pct_start": 0.45},
                {"lr": 0.3, "total": 30, "three_phase": True},
                {"lr": 0.3, "total": 31, "anneal": "linear", "three_phase": True, "div_factor": 4.0,
                 "final_div_factor": 10.0})

    def value(self, k: int) -> float:
        init = self.lr / self.div_factor
        low = init / self.final_div_factor
        p, last = self.pct_start * self.total, self.total - 1.0
        if self.three_phase:
            phases = [(p - 1, init, self.lr), (2 * p - 2, self.lr, init), (last, init, low)]
        else:
            phases = [(p - 1, init, self.lr), (last, self.lr, low)]
        a = 0.0
        for b, x, y in phases:
            if k <= b:
                f = (k - a) / (b - a) if b > a else 1.0
                return x + (y - x) * (f if self.anneal == "linear" else (1 - np.cos(np.pi * f)) / 2)
            a = b
        return low


class Warmup(ScheduleReference):
    """Linear warm-up from `start` to the first value of `inner` (a schedule; a number is a constant), then `inner`
    from its step 0.

    `offset=1` counts (k + 1)/W, so that the first step already moves."""

    name = "warmup"
    required = ("warmup_steps", "inner")
    defaults = {"start": 0.0, "offset": 0}
    settings = ({"warmup_steps": 5, "inner": Constant(lr=0.3)},
                {"warmup_steps": 6, "start": 0.05, "inner": Cosine(lr=0.3, total=12)},
                {"warmup_steps": 4, "offset": 1, "inner": Linear(lr=0.3, total=10)},
                {"warmup_steps": 0, "inner": Polynomial(lr=0.3, total=10, power=2.0)})

    def value(self, k: int) -> float:
        inner = self.inner if isinstance(self.inner, ScheduleReference) else Constant(lr=self.inner)
        W, start = self.warmup_steps, self.h["start"]
        if k < W:
            return start + (inner.value(0) - start) * (k + self.offset) / W
        return inner.value(k - W)


class WarmupLinear(ScheduleReference):
    """Linear from 0 to `peak` in `warmup` steps, then linear to `end` at step `total`."""

    name = "warmup_linear"
    required = ("peak", "warmup", "total")
    defaults = {"end": 0.0}
    settings = ({"peak": 0.3, "warmup": 5, "total": 20}, {"peak": 0.3, "warmup": 0, "total": 12, "end": 0.05},
                {"peak": 0.3, "warmup": 6, "total": 6, "end": 0.05})

    def value(self, k: int) -> float:
        if k < self.warmup:
            return self.peak * k / self.warmup
        return Linear(lr=self.peak, end=self.end, total=self.total - self.warmup).value(k - self.warmup)


class WarmupCosine(ScheduleReference):
    """Linear from 0 to `peak` in `warmup` steps, then a half cosine to `end` at step `total` (as optax counts)."""

    name = "warmup_cosine"
    required = ("peak", "warmup", "total")
    defaults = {"end": 0.0}
    settings = ({"peak": 0.3, "warmup": 5, "total": 20}, {"peak": 0.3, "warmup": 0, "total": 12, "end": 0.05},
                {"peak": 0.3, "warmup": 6, "total": 6, "end": 0.05})

    def value(self, k: int) -> float:
        if k < self.warmup:
            return self.peak * k / self.warmup
        return Cosine(lr=self.peak, end=self.end, total=self.total - self.warmup).value(k - self.warmup)


class Join(ScheduleReference):
    """`schedules[i]` from `boundaries[i-1]` on, each counting its own steps from 0 (optax.join_schedules)."""

    name = "join"
    required = ("schedules", "boundaries")
    settings = ({"schedules": [Linear(lr=0.0, end=0.3, total=5), Cosine(lr=0.3, total=12)], "boundaries": [5]},
                {"schedules": [Constant(lr=0.1), Exponential(lr=0.3, gamma=0.8), Constant(lr=0.01)],
                 "boundaries": [4, 15]},
                {"schedules": [Constant(lr=0.2)], "boundaries": []})

    def value(self, k: int) -> float:
        now = sum(b <= k for b in self.boundaries)
        return self.schedules[now].value(k - self.boundaries[now - 1] if now else k)


def median_filter(x: np.ndarray, width: int) -> np.ndarray:
    """Running median of odd `width`; to the left goes the first value, to the right the reflection without the last
    value."""
    half = width // 2
    padded = np.concatenate([np.full(half, x[0]), x, x[-2:-2 - half:-1] if half else x[:0]])
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


# The norms of a run: large, falling, with one spike, rising again at the end.
NORMS = [9.0, 7.5, 4.0, 4.5, 2.0, 2.5, 30.0, 1.5, 1.25, 1.5, 1.0, 1.125, 0.875, 1.0, 1.25, 0.75, 1.0, 1.5, 1.25, 2.0,
         1.75, 2.5, 3.0, 2.0]


class EffectiveLR(ScheduleReference):
    """The line lr * weight_decay = const of late training (Li et al., 2025; arXiv 2509.25049).

    `inner` is the new learning rate (`returns=weight_decay`) or the new weight decay (`returns=lr`), the value its
    partner; early curves follow lr alone, so that the partner is kept.  No line where the product or `inner` is 0.
    `horizon` is 1/(lr weight_decay)."""

    name = "effective_lr"
    required = ("lr", "weight_decay", "inner")
    defaults = {"phase": "late", "returns": "weight_decay"}
    settings = ({"lr": 0.01, "weight_decay": 0.1, "inner": Cosine(lr=0.3, total=20)},
                {"lr": 0.01, "weight_decay": 0.1, "inner": Linear(lr=0.3, end=0.05, total=30), "returns": "lr"},
                {"lr": 0.01, "weight_decay": 0.1, "inner": Constant(lr=0.02), "phase": "early"},
                {"lr": 0.01, "weight_decay": 0.1, "inner": Constant(lr=0.02), "phase": "early", "returns": "lr"},
                {"lr": 0.01, "weight_decay": 0.1, "inner": Constant(lr=0.02), "returns": "horizon"},
                {"lr": 0.01, "weight_decay": 0.0, "inner": Constant(lr=0.02), "returns": "lr"})

    def value(self, k: int) -> float:
        gamma, x = self.lr * self.weight_decay, self.inner.value(k)
        if self.returns == "horizon":
            return 1 / gamma
        if self.phase == "early" or gamma == 0 or x == 0:
            return self.h[self.returns]
        return gamma / x


class RefinedSchedule(ScheduleReference):
    """Refined schedule from the gradient norms of an earlier run (Defazio, Cutkosky, Mehta, Mishchenko, 2023;
    arXiv 2310.07831, its closed form).  The authors' code has both exponents: 2 with l2 norms
    for SGD, 1 with l1 norms for Adam.

    The card's table has no learning rate although its rule multiplies by lr_max: it is `lr` here, 1 by default.  Step
    k is t = k + 1; after the last norm the value stays at that of t = T, which is 0 for T > 1.  The floor of the
    smoothed norms is 1e-12 of their median (of 1 when the median is 0)."""

    name = "refined_schedule"
    required = ("norms",)
    defaults = {"lr": 1.0, "frac": 0.1, "power": 2.0, "normalize": True, "total": None}
    settings = ({"norms": NORMS}, {"norms": NORMS, "lr": 0.3, "frac": 0.25},
                {"norms": NORMS, "frac": 0.0, "power": 1.0}, {"norms": NORMS, "normalize": False}, {"norms": [2.0]},
                {"norms": NORMS, "total": 31})

    def table(self) -> np.ndarray:
        G = np.asarray(self.norms, dtype=np.float64)
        T = len(G)
        G = median_filter(G, 2 * (int(self.frac * T) // 2) + 1)
        G = np.maximum(G, 1e-12 * (np.median(G) or 1.0))
        w = G ** -self.power
        tail = np.append(np.cumsum(w[::-1])[::-1][1:], 0.0)  # sum of the later weights
        eta = w * tail
        if not self.normalize:
            return eta
        return eta / eta.max() if T > 1 else np.ones(T)

    def value(self, k: int) -> float:
        eta = self.table() if self.total is None else resample(self.table(), self.total)
        return self.lr * float(eta[min(k, len(eta) - 1)])


def resample(eta: Sequence[float], total: int) -> np.ndarray:
    """The table `eta` of T steps for a run of `total` steps: linear in t/T, constant before the first entry."""
    T = len(eta)
    return np.interp(np.arange(1, total + 1) * (T / total), np.arange(1, T + 1), eta)


class ReduceOnPlateau(ScheduleReference):
    """Cuts the rate when a metric stops improving (torch's ReduceLROnPlateau).

    Stateful: `observe(metric)` returns the rate from now on; `value` is the rate now, whatever the step.  The
    starting rate `lr` is not in the card's table (its state has it)."""

    name = "reduce_on_plateau"
    required = ("lr",)
    defaults = {"mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0,
                "min_lr": 0.0, "eps": 1e-8}
    settings = ({"lr": 0.3}, {"lr": 0.3, "factor": 0.5, "patience": 2, "threshold": 0.05},
                {"lr": 0.3, "mode": "max", "threshold": 0.05, "factor": 0.5, "patience": 1, "cooldown": 3},
                {"lr": 0.3, "threshold_mode": "abs", "threshold": 0.1, "factor": 0.5, "patience": 0, "min_lr": 0.05},
                {"lr": 0.3, "mode": "max", "threshold_mode": "abs", "threshold": 0.1, "factor": 0.5, "patience": 2},
                {"lr": 0.3, "factor": 0.5, "patience": 0, "eps": 0.1})

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        self.now = self.lr
        self.best = np.inf if self.mode == "min" else -np.inf
        self.bad = self.waiting = 0

    def _better(self, x: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        if self.threshold_mode == "rel":
            return sign * x < sign * (self.best * (1 - sign * self.threshold))
        return sign * x < sign * self.best - self.threshold

    def observe(self, metric: float) -> float:
        if self._better(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.waiting > 0:
            self.waiting -= 1
            self.bad = 0
        if self.bad > self.patience:
            new = max(self.now * self.factor, self.min_lr)
            if self.now - new > self.eps:
                self.now = new
            self.waiting, self.bad = self.cooldown, 0
        return self.now

    def value(self, k: int) -> float:
        return self.now
