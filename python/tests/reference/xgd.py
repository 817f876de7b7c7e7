"""Cross-gradient descent."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, OptimizerReference


class XGD(OptimizerReference):
    """Cross-gradient descent for sum-log-concave optimization (Achab, 2023; arXiv:2309.15298), the weights of the reference point fixed."""

    name = "xgd"
    needs = ("task_gradients",)
    required = ("lr", "q")
    settings = ({"lr": 0.1, "q": [0.5, 0.5]}, {"lr": 0.3, "q": [2.0]}, {"lr": 0.2, "q": [1.0, 0.0, 3.0]})

    def step(self, params: Arrays, grads: Arrays, *, task_gradients: Callable[[int], list[Arrays]] | None = None,
             **oracles: Any) -> None:
        q = np.array(self.q) / np.sum(self.q)
        parts = task_gradients(len(q))
        for k, p in enumerate(params):
            p -= self.lr * sum(w * part[k] for w, part in zip(q, parts))
