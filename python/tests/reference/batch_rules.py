"""Rules for the batch size, and for the learning rate when it changes."""

from __future__ import annotations

import math
import numpy as np

from .base import Reference


class BatchRule(Reference):
    """`batch(samples, size)`: the batch size after looking at the m per-sample gradients in the rows of `samples`."""

    kind = "schedule"
    calls = 0

    def need(self, samples: np.ndarray) -> float:
        """The batch size that would pass the test."""
        raise NotImplementedError

    def batch(self, samples: np.ndarray, size: int) -> int:
        self.calls += 1
        if len(samples) < 2 or self.calls % self.h.get("interval", 1):
            return size
        need = self.need(samples)
        return size if need <= size else int(min(np.ceil(need), self.max_batch))


class NormTest(BatchRule):
    """Norm test (Byrd, Chin, Nocedal, Wu, 2012; AdAdaGrad: Lau, Liu, Kolar, 2024, arXiv 2402.11215): the variance of
    the mean gradient must not exceed eta^2 times its squared norm.  `interval` = k tests at every k-th call."""

    name = "norm_test"
    required = ("max_batch",)
    defaults = {"eta": 0.5, "interval": 1, "coordinate": False, "parts": 1}
    settings = ({"max_batch": 4096}, {"max_batch": 100_000, "eta": 0.1}, {"max_batch": 20, "eta": 0.1},
                {"max_batch": 100_000, "coordinate": True}, {"max_batch": 4096, "interval": 3})

    def need(self, samples: np.ndarray) -> float:
        mean, V = samples.mean(axis=0), samples.var(axis=0, ddof=1)
        if not mean.any():
            return math.inf
        with np.errstate(divide="ignore"):
            if self.coordinate:
                return float(np.max(V[V > 0] / (self.eta ** 2 * mean[V > 0] ** 2), initial=0.0))
            return float(V.sum() / (self.eta ** 2 * (mean @ mean)))


class InnerProductTest(BatchRule):
    """Inner-product test, with `nu` the augmented one (Bollapragada, Byrd, Nocedal, 2018; arXiv 1710.11258).

    `max_batch` is not in the card's table, but "B update as norm_test" needs it."""

    name = "inner_product_test"
    required = ("max_batch",)
    defaults = {"theta": 0.5, "nu": None}
    settings = ({"max_batch": 4096}, {"max_batch": 100_000, "theta": 0.1}, {"max_batch": 100_000, "nu": 1.0},
                {"max_batch": 12, "theta": 0.1, "nu": 0.2})

    def need(self, samples: np.ndarray) -> float:
        mean = samples.mean(axis=0)
        square = mean @ mean
        if square == 0:
            return math.inf
        p = samples @ mean
        need = p.var(ddof=1) / (self.theta ** 2 * square ** 2)
        if self.nu is not None:
            q = samples - np.outer(p, mean) / square
            need = max(need, q.var(axis=0, ddof=1).sum() / (self.nu ** 2 * square))
        return float(need)


class BatchLrScaling(Reference):
    """Learning rate as a function of the batch size (Granziol, Zohren, Roberts, 2020; arXiv 2006.09092): in
    proportion for SGD, with the square root for Adam.  The cap `max_lr` is the host's (2/lambda_max for SGD); the
    spiked-model form of it, UNVERIFIED in the card, is not part of the rule."""

    name = "batch_lr_scaling"
    kind = "schedule"
    defaults = {"rule": "linear", "max_lr": math.inf}
    settings = ({}, {"rule": "sqrt"}, {"rule": "none"}, {"rule": "linear", "max_lr": 0.15})

    def rescale(self, lr: float, old: float, new: float) -> float:
        if old <= 0 or new <= 0:
            raise ValueError("batch_lr_scaling: a batch size must be positive")
        return min(lr * {"linear": new / old, "sqrt": math.sqrt(new / old), "none": 1.0}[self.rule], self.max_lr)
