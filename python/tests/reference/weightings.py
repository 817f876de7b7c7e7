"""Weightings, from their cards: one object remembers the passes before."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import WeightingReference


class DWA(WeightingReference):
    """m softmax((L_prev / L_older) / T) (Liu, Johns, Davison, 2019; arXiv 1803.10704)."""

    name = "dwa"
    defaults = {"temperature": 2.0}
    settings = ({}, {"temperature": 0.5})

    def start(self) -> None:
        self.older: np.ndarray | None = None

    def step(self, losses: np.ndarray) -> np.ndarray:
        ratio = np.zeros_like(losses)
        if self.older is not None:
            ratio = np.divide(losses, self.older, out=np.ones_like(losses), where=self.older != 0)
        self.older = losses.copy()
        e = np.exp((ratio - ratio.max()) / self.temperature)
        return len(losses) * e / e.sum()

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return [
            [{"losses": rng.uniform(0.1, 2, m)} for _ in range(6)] for m in (1, 2, 5)
        ] + [[{"losses": np.array(x)} for x in ([0.0, 1.0], [1.0, 0.5], [2.0, 0.0], [1.0, 1.0])]]
