"""Schedules of the speed runs, REX, and GreedyLR: the value at step k, counted from 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ScheduleReference


class PowerCooldown(ScheduleReference):
    """modded-nanogpt's cooldown: flat, then a power of the steps that are left."""

    name = "power_cooldown"
    required = ("total", "start")
    defaults = {"lr": 1.0, "power": 1.2}
    settings = ({"total": 100, "start": 30}, {"lr": 0.1, "total": 100, "start": 0, "power": 1.0}, {"total": 40, "start": 50},
                {"total": 50, "start": 20, "power": 0.0}, {"total": 500, "start": 99, "power": 2.5})

    def value(self, k: int) -> float:
        if k >= self.total:
            return 0.0
        if self.start >= self.total:
            return self.lr
        return self.lr * min(1.0, ((self.total - k) / (self.total - self.start)) ** self.power)


class REX(ScheduleReference):
    """Chen, Wolfe, Kyrillidis, 2021 (arXiv 2107.04197)."""

    name = "rex"
    required = ("total",)
    defaults = {"lr": 1.0, "end": 0.0, "beta": 0.5}
    settings = ({"total": 100}, {"lr": 0.3, "end": 0.01, "total": 57, "beta": 0.0}, {"total": 400, "beta": 0.95}, {"total": 0})

    def value(self, k: int) -> float:
        left = 1 - k / self.total if k < self.total else 0.0
        return self.end + (self.lr - self.end) * left / (1 - self.beta + self.beta * left)


class MomentumWarmup(ScheduleReference):
    """modded-nanogpt's momentum of Muon."""

    name = "momentum_warmup"
    required = ("total",)
    defaults = {"start": 0.85, "peak": 0.95, "end": 0.85, "warmup": 300, "cooldown": 50}
    settings = ({"total": 1000}, {"total": 100, "warmup": 20, "cooldown": 30, "end": 0.5}, {"total": 60, "warmup": 0, "cooldown": 0})

    def value(self, k: int) -> float:
        if k < self.warmup:
            return self.start + (self.peak - self.start) * k / self.warmup
        if self.cooldown > 0 and k > self.total - self.cooldown:
            return self.peak + (self.end - self.peak) * min(1.0, (k - (self.total - self.cooldown)) / self.cooldown)
        return self.peak


class BatchLadder(ScheduleReference):
    """modded-nanogpt's batch sizes in rungs, and the factors of the rate."""

    name = "batch_ladder"
    required = ("boundaries", "batches")
    defaults = {"gives": "lr", "lr": 1.0, "power": 0.5, "multipliers": None}
    settings = ({"boundaries": [20, 100], "batches": [8, 16, 24]}, {"boundaries": [20, 100], "batches": [8, 16, 24], "gives": "batch"},
                {"boundaries": [7], "batches": [8, 4], "lr": 0.1, "multipliers": [1, 1.52]}, {"boundaries": [], "batches": [8], "power": 1.0})

    def value(self, k: int) -> float:
        i = int(np.searchsorted(np.asarray(self.boundaries, float), k, side="right"))
        if self.gives == "batch":
            return float(self.batches[i])
        return self.lr * (self.multipliers[i] if self.multipliers is not None else (self.batches[i] / self.batches[0]) ** self.power)


class Greedy(ScheduleReference):
    """GreedyLR (arXiv 2512.14527), as transformers has it."""

    name = "greedy"
    required = ("lr",)
    defaults = {"mode": "min", "factor": 0.95, "patience": 10, "threshold": 1e-6, "threshold_mode": "abs", "cooldown": 0, "warmup": 0,
                "min_lr": 1e-3, "max_lr": 1.0, "eps": 1e-8, "smooth": False, "window": 50, "reset_start": 500}
    settings = (
        {"lr": 0.1, "patience": 2},
        {"lr": 0.1, "patience": 0, "mode": "max", "threshold": 0.05, "threshold_mode": "rel", "factor": 0.5, "max_lr": 0.5, "cooldown": 2},
        {"lr": 0.1, "patience": 1, "factor": 0.4, "min_lr": 0.05, "reset_start": 3, "smooth": True, "window": 4, "warmup": 1},
        {"lr": 0.1, "patience": 0, "factor": 0.3, "min_lr": 0.02, "reset_start": 1, "eps": 0.01},
    )

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        self.window_of: list[float] = []
        self.resets = self.reset_start
        self.fresh()

    def fresh(self) -> None:
        self.now, self.best = self.lr, np.inf if self.mode == "min" else -np.inf
        self.good = self.bad = self.cooling = self.warming = 0

    def value(self, k: int) -> float:
        return self.now

    def better(self, x: float) -> bool:
        if self.threshold_mode == "rel":
            return x < self.best * (1 - self.threshold) if self.mode == "min" else x > self.best * (1 + self.threshold)
        return x < self.best - self.threshold if self.mode == "min" else x > self.best + self.threshold

    def observe(self, x: float) -> None:
        if self.smooth:
            self.window_of = [*self.window_of, x][-self.window:]
            x = float(np.mean(self.window_of))
        if self.cooling > 0:
            self.cooling, self.good, self.bad = self.cooling - 1, 0, 0
            return
        if self.warming > 0:
            self.warming, self.good, self.bad = self.warming - 1, 0, 0
            return
        if self.better(x):
            self.best, self.good, self.bad = x, self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good > self.patience:
            new = min(self.now / self.factor, self.max_lr)
            if new - self.now > self.eps:
                self.now = new
            self.warming, self.good, self.resets = self.warmup, 0, self.reset_start
        elif self.bad > self.patience:
            new = max(self.now * self.factor, self.min_lr)
            if self.now - new > self.eps:
                self.now = new
            if self.now == self.min_lr:
                self.resets -= 1
                if self.resets <= 0:
                    self.fresh()
                    self.window_of, self.resets = [], self.reset_start
            self.cooling, self.bad = self.cooldown, 0


class KLAnneal(ScheduleReference):
    """Liang et al., 2018 (arXiv 1802.05814)."""

    name = "kl_anneal"
    defaults = {"anneal_cap": 0.2, "total_anneal_steps": 200_000}
    settings = ({}, {"total_anneal_steps": 50}, {"anneal_cap": 1.0, "total_anneal_steps": 30}, {"total_anneal_steps": 0, "anneal_cap": 0.4})

    def value(self, k: int) -> float:
        return min(self.anneal_cap, k / self.total_anneal_steps) if self.total_anneal_steps else self.anneal_cap


class NFTOldDecay(ScheduleReference):
    """Zheng et al., 2025 (arXiv 2509.16117)."""

    name = "nft_old_decay"
    defaults = {"decay_type": 1, "flat": None, "uprate": None, "uphold": None}
    settings = ({}, {"decay_type": 2}, {"flat": 10, "uprate": 0.05}, {"decay_type": 2, "uphold": 0.2})

    def value(self, k: int) -> float:
        usual = ((0, 0.001, 0.5), (75, 0.0075, 0.999))[self.decay_type - 1]
        flat, uprate, uphold = (u if g is None else g for u, g in zip(usual, (self.flat, self.uprate, self.uphold)))
        return 0.0 if k < flat else min((k - flat) * uprate, uphold)


class InversionLR(ScheduleReference):
    """Fang et al., 2023 (arXiv 2308.04699)."""

    name = "inversion_lr"
    defaults = {"lr": 0.1, "steps": 1000, "rampdown": 0.75, "rampup": 0.05}
    settings = ({}, {"steps": 60, "lr": 1.0}, {"steps": 30, "rampdown": 1.0, "rampup": 0.5})

    def value(self, k: int) -> float:
        t = min(k / self.steps, 1.0)
        return self.lr * (0.5 - 0.5 * np.cos(np.pi * min(1.0, (1 - t) / self.rampdown))) * min(1.0, t / self.rampup)
