"""Schedules that watch the run, from their cards."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ScheduleReference


class TimestepCurriculum(ScheduleReference):
    """Easy to hard by clusters of timesteps (Kim et al., 2025; arXiv 2403.10348)."""

    name = "timestep_curriculum"
    defaults = {"num_clusters": 20, "patience": 200, "total": 1000.0, "boundaries": None}
    settings = ({}, {"num_clusters": 4, "patience": 2, "total": 1.0}, {"num_clusters": 3, "patience": 0, "boundaries": [0.0, 1.0, 4.0, 5.0]})

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        self.stage, self.best, self.bad = 1, np.inf, 0

    def value(self, k: int) -> float:
        edges = np.linspace(0, self.total, self.num_clusters + 1) if self.boundaries is None else self.boundaries
        return edges[self.num_clusters - self.stage]

    def observe(self, loss: float) -> None:
        if loss < self.best:
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.bad > self.patience and self.stage < self.num_clusters:
            self.stage, self.best, self.bad = self.stage + 1, np.inf, 0
