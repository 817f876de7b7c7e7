"""The total variation of displacement fields."""

from __future__ import annotations

import numpy as np

from .base import RegularizerReference


class FlowTV(RegularizerReference):
    """Shim, Chung, Heo, 2023 (arXiv 2312.15861)."""

    name = "flow_tv"
    has_prox = False
    defaults = {"weight": 2.0}
    settings = ({}, {"weight": 0.3})

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * sum(np.mean(np.abs(np.diff(w, axis=k))) for k in (1, 2) if w.shape[k] > 1))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        g = np.zeros_like(w)
        for k in (1, 2):
            if w.shape[k] > 1:
                d = np.diff(w, axis=k)
                s = self.weight * np.sign(d) / d.size
                pad = [(0, 0)] * 4
                pad[k] = (1, 0)
                g += np.pad(s, pad)
                pad[k] = (0, 1)
                g -= np.pad(s, pad)
        return g
