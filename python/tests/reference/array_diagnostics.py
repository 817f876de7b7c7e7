"""Diagnostics of arrays, from their cards."""

from __future__ import annotations

import numpy as np

from .base import DiagnosticReference


class EffectiveRank(DiagnosticReference):
    """Four measures of the singular values (Roy, Vetterli, 2007; Rudelson, Vershynin, 2007)."""

    name = "effective_rank"
    defaults = {"rtol": None}
    settings = ({}, {"rtol": 0.3})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        low = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 7))
        return [{"x": x} for x in (rng.standard_normal((5, 9)), 1e-3 * rng.standard_normal((8, 8)), low + 1e-9,
                                   np.eye(6), np.ones((3, 4)), np.zeros((2, 3)), np.array([[2.5]]))]

    def results(self, x: np.ndarray) -> dict[str, float]:
        names = ("entropy", "participation", "stable", "numeric")
        s = np.linalg.svd(x, compute_uv=False)
        if s.max() == 0:
            return dict.fromkeys(names, 0.0)
        p = s / s.sum()
        p = p[p > 0]
        rtol = max(x.shape) * np.finfo(self.dtype).eps if self.rtol is None else self.rtol
        return dict(zip(names, (np.exp(-np.sum(p * np.log(p))), np.sum(s**2) ** 2 / np.sum(s**4),
                                np.sum(s**2) / s.max() ** 2, float(np.sum(s > rtol * s.max())))))
