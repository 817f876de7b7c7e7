"""Gradients of tasks, where their signs agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from .surgery import Aggregation


class ANDMask(Aggregation):
    """AND-mask (Parascandolo et al., 2020; arXiv 2009.00329); the columns are those of one tensor."""

    name = "and_mask"
    defaults = {"tau": 1.0}

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        mask = np.abs(np.sign(jacobian).sum(axis=0) / len(jacobian)) >= self.tau
        share = mask.mean() if mask.size else 0.0
        return mask * jacobian.mean(axis=0) / (1e-10 + share)
