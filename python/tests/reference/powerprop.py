"""The metric of power-propagation."""

from __future__ import annotations

from typing import Callable

import numpy as np

from .base import Arrays, TransformReference


class PowerpropPrecond(TransformReference):
    """g <- alpha^2 (|theta| + eps)^(2 (alpha - 1)/alpha) g, the metric that training phi with theta = phi |phi|^(alpha - 1)
    induces.  That the position paper (Pascanu et al., 2025; arXiv 2507.12224) means this very construction is UNVERIFIED."""

    name = "powerprop_precond"
    defaults = {"alpha": 2.0, "eps": 0.0}
    settings = ({}, {"alpha": 1.0}, {"alpha": 1.5}, {"alpha": 1.25, "eps": 0.01}, {"alpha": 2.0, "eps": 0.1})

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        power = 2 * (self.alpha - 1) / self.alpha
        return [self.alpha**2 * (np.abs(w) + self.eps) ** power * g for g, w in zip(grads, params)]
