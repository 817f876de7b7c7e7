"""Coefficients and sparsities that rise along a run."""

from __future__ import annotations

import numpy as np

from .base import ScheduleReference


class CubicSparsity(ScheduleReference):
    """Zhu, Gupta, 2017; arXiv 1710.01878."""

    name = "cubic_sparsity"
    required = ("end",)
    defaults = {"initial": 0.0, "final": 0.9, "begin": 0, "every": 1, "power": 3.0}
    settings = ({"end": 40}, {"end": 50, "begin": 10, "every": 7, "initial": 0.2}, {"end": 500, "final": 0.5, "power": 1.0}, {"end": 41, "begin": 40})

    def value(self, k: int) -> float:
        if k < self.begin:
            return self.initial
        on = np.clip(self.begin + (k - self.begin) // self.every * self.every, self.begin, self.end)
        return self.final + (self.initial - self.final) * (1 - (on - self.begin) / (self.end - self.begin)) ** self.power


class QuadraticRamp(ScheduleReference):
    """Paria et al., 2020; arXiv 2004.05665."""

    name = "quadratic_ramp"
    defaults = {"weight": 1.0, "steps": 50000}
    settings = ({}, {"weight": 0.3, "steps": 40})

    def value(self, k: int) -> float:
        return self.weight * min(1.0, k / self.steps) ** 2


class ExpAnneal(ScheduleReference):
    """Pal et al., 2021; arXiv 2105.03918."""

    name = "exp_anneal"
    required = ("epochs",)
    defaults = {"weight_start": 100.0, "weight_end": 10.0}
    settings = ({"epochs": 50}, {"epochs": 300, "weight_start": 0.1, "weight_end": 0.7})

    def value(self, k: int) -> float:
        return self.weight_start * (self.weight_end / self.weight_start) ** min(1.0, k / self.epochs)


class ArchEntropy(ScheduleReference):
    """The entropy's coefficient in QuantNAS (arXiv 2208.14839); after the last epoch it stays."""

    name = "arch_entropy"
    required = ("epochs",)
    defaults = {"coef": 0.1, "warm_up": 0}
    settings = ({"epochs": 50}, {"epochs": 33, "coef": 2.0, "warm_up": 4}, {"epochs": 2})

    def value(self, k: int) -> float:
        E, W = self.epochs, self.warm_up
        e, q = min(k, E - 1), (E - W) // 4
        if e < W or e - W < q:
            return 0.0
        return self.coef * (e - W) / (E - 1 - W) * np.log(e - W - q + 2) / np.log(E - q - W + 1)
