"""Plasticity rules that run against the gradient for some units."""

from __future__ import annotations

from typing import Callable

import numpy as np

from .base import Arrays, TransformReference


class CurlDescent(TransformReference):
    """Curl descent (Ninou, Kadmon, Cayco-Gajic, 2025; arXiv 2510.02765): a fixed sign for each unit along an axis.

    floor(fraction n + 1/2) units are flipped.  The card leaves the draw open; here they are those with the largest of n
    normal numbers (ties: lowest index), drawn at the first call.  Tensors of rank 0 and 1 have no synapses and keep
    their gradient."""

    name = "curl_descent"
    defaults = {"axis": 1, "fraction": 0.1, "seed": 0, "units": None}
    settings = ({"fraction": 0.4, "seed": 11}, {"axis": 0, "fraction": 0.5, "seed": 11}, {"fraction": 0.0},
                {"fraction": 1.0, "seed": 11}, {"units": [0, 2]}, {"axis": 0, "units": [1]})
    signs: list[np.ndarray] | None = None

    def sign(self, shape: tuple[int, ...], z: np.ndarray) -> np.ndarray:
        if len(shape) < 2:
            return np.ones(())
        n = shape[self.axis]
        if self.units is not None:
            chosen = np.array(self.units, dtype=int)
        else:
            chosen = np.argsort(-z.ravel()[:n], kind="stable")[: int(np.floor(self.fraction * n + 0.5))]
        s = np.ones(n)
        s[chosen] = -1
        return s.reshape([n if i == self.axis else 1 for i in range(len(shape))])

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        if self.signs is None:
            draws = normal(0) if normal else [np.zeros(g.shape) for g in grads]
            self.signs = [self.sign(g.shape, z) for g, z in zip(grads, draws)]
        return [g * s for g, s in zip(grads, self.signs)]
