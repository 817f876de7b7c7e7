"""Weights of samples, classes and tasks, from their cards."""

from __future__ import annotations

import numpy as np

from .base import WeightingReference


class GroupAdvantage(WeightingReference):
    """Rewards relative to their group (Shao et al., 2024; arXiv 2402.03300)."""

    name = "group_advantage"
    defaults = {"use_std": True, "eps": 1e-6}
    settings = ({}, {"use_std": False}, {"eps": 0.1})
    refuses_nan = False

    def step(self, rewards, groups):
        out = np.zeros_like(rewards)
        for g in np.unique(groups):
            r = rewards[groups == g]
            mean, std = (r.mean(), r.std(ddof=1)) if len(r) > 1 else (0.0, 1.0)
            out[groups == g] = (r - mean) / ((1.0 if std == 0 else std) + self.eps if self.use_std else 1.0)
        return out

    def sequences(self, rng):
        return [[{"rewards": rng.standard_normal(n), "groups": rng.integers(-k, k, n)} for _ in range(2)] for n, k in ((1, 1), (9, 3), (64, 4))] + [
            [{"rewards": np.array([1.0, 1.0, 0.0, 2.0]), "groups": np.array([5, 5, 7, 7])}]]
