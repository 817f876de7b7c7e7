"""Sparsity masks: the dense tensor is stored and updated, the forward pass sees it masked."""

from __future__ import annotations

import numpy as np

from .base import Reference


class NMSparsity(Reference):
    """N:M sparsity with the refined straight-through gradient SR-STE (Zhou et al., 2021; arXiv 2102.04010).

    Of every m consecutive entries along the axis (the last one; axis 1 of a rank-4 kernel) the n largest magnitudes
    stay, the lower index in a tie; what is left of a line is an error, or stays dense.  The gradient at the masked point passes to all entries, plus
    decay (1 - mask) w."""

    name = "nm_sparsity"
    kind = "mask"
    defaults = {"n": 2, "m": 4, "axis": None, "decay": 2e-4, "tail": "error"}
    settings = ({}, {"n": 1, "m": 2, "decay": 0.05}, {"n": 1, "axis": 0}, {"n": 3, "m": 4, "decay": 0.0},
                {"n": 4, "m": 4}, {"n": 1, "m": 3, "tail": "dense"})

    def mask(self, w: np.ndarray) -> np.ndarray:
        axis = self.axis if self.axis is not None else (1 if w.ndim == 4 else w.ndim - 1)
        if w.ndim == 0 or (w.shape[axis] % self.m and self.tail == "error"):
            raise ValueError(f"nm_sparsity: the length of axis {axis} is not a multiple of {self.m}")
        x = np.moveaxis(np.abs(w), axis, -1)
        whole = x.shape[-1] // self.m * self.m
        groups = x[..., :whole].reshape(*x.shape[:-1], -1, self.m)
        rank = np.argsort(np.argsort(-groups, axis=-1, kind="stable"), axis=-1, kind="stable")
        kept = np.ones(x.shape)
        kept[..., :whole] = (rank < self.n).reshape(*x.shape[:-1], whole)
        return np.moveaxis(kept, -1, axis)

    def forward(self, w: np.ndarray) -> np.ndarray:
        return w * self.mask(w)

    def gradient(self, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        return g + self.decay * (1 - self.mask(w)) * w
