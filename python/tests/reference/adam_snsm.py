"""Subset-Norm step size and Subspace-Momentum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from ._per_tensor import PerTensor, ratio
from .base import Arrays


class AdamSNSM(PerTensor):
    """Adam with Subset-Norm and Subspace-Momentum (Nguyen, Nguyen, 2024; arXiv:2411.07120), for 2-D tensors.

    `subset`: `rowcol` (rows if out >= in, else columns), k (groups of the largest divisor of n that is <= k), -k
    (k' = floor(sqrt(n)/k) in place of k) or `off`.  `rank=None` is full momentum; so is a rank >= the smaller side.
    Other tensors take the same step without either.  On a refresh the buffer is reset before the step (unlike the
    authors' code); with `keep_momentum` it stays and is read in the new basis, whose vectors have their entry of
    largest magnitude positive and whose lines ascend.  `uniform` takes the r lines with the largest of the first draws of
    that step's normals for the tensor (ties: lowest index).
    """

    name = "adam_snsm"
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "subset": "rowcol", "rank": None, "proj": "svd",
                "gap": 200, "keep_momentum": False, "weight_decay": 0.0, "correct_bias": True}
    settings = (
        {},
        {"lr": 0.02, "beta2": 0.95, "weight_decay": 0.2, "subset": 4},
        {"lr": 0.02, "beta2": 1.0, "subset": -2, "correct_bias": False},
        {"lr": 0.02, "rank": 2, "gap": 7},
        {"lr": 0.02, "rank": 2, "gap": 7, "proj": "topk", "subset": "off"},
        {"lr": 0.02, "rank": 1, "gap": 7, "keep_momentum": True, "eps": 0.01},
        {"lr": 0.02, "rank": 2, "gap": 7, "proj": "uniform"},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, v=0.0, m=0.0, basis=None, draws=None)

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        for i, s in enumerate(self.states):
            s.draws = lambda s=s, i=i: normal(s.t - 1)[i]
        super().step(params, grads)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        matrix = p.ndim == 2 and p.size > 0
        sums = self.subset_sums(g) if matrix else g**2
        s.v = s.v + sums if self.beta2 == 1 else self.beta2 * s.v + (1 - self.beta2) * sums
        numerator = self.momentum(g, s, matrix)
        c1 = c2 = 1.0
        if self.correct_bias:
            c1, c2 = 1 - self.beta1**s.t, 1 - self.beta2**s.t if self.beta2 < 1 else 1.0
        p -= self.lr * np.sqrt(c2) / c1 * ratio(numerator, np.sqrt(s.v) + self.eps)
        p *= 1 - self.lr * self.weight_decay

    def subset_sums(self, g: np.ndarray) -> np.ndarray:
        """The sum of g^2 over the subset of each entry, broadcastable to g."""
        if self.subset == "off":
            return g**2
        if self.subset == "rowcol":
            return np.sum(g**2, axis=1 if g.shape[0] >= g.shape[1] else 0, keepdims=True)
        k = self.subset if self.subset > 0 else int(np.sqrt(g.size) / -self.subset)
        k = max(d for d in range(1, max(k, 1) + 1) if g.size % d == 0)
        return np.repeat(np.sum((g**2).reshape(-1, k), axis=1), k).reshape(g.shape)

    def momentum(self, g: np.ndarray, s: SimpleNamespace, matrix: bool) -> np.ndarray:
        if not matrix or self.rank is None or self.rank >= min(g.shape):
            s.m = self.beta1 * s.m + (1 - self.beta1) * g
            return s.m
        tall = g.shape[0] >= g.shape[1]
        if s.t == 1 or s.t % self.gap == 0:
            s.basis = self.choose_basis(g, tall, s)
            if not self.keep_momentum:
                s.m = 0.0
        # The rows of the basis are orthonormal.  svd projects the shorter side; topk and uniform pick lines of the longer.
        right = tall == (self.proj == "svd")
        down = (lambda x: x @ s.basis.T) if right else (lambda x: s.basis @ x)
        lift = (lambda c: c @ s.basis) if right else (lambda c: s.basis.T @ c)
        c = down(g)
        s.m = self.beta1 * s.m + (1 - self.beta1) * c
        return lift(s.m) + (g - lift(c))

    def choose_basis(self, g: np.ndarray, tall: bool, s: SimpleNamespace) -> np.ndarray:
        if self.proj == "svd":
            left, _, right = np.linalg.svd(g, full_matrices=False)
            vectors = (right if tall else left.T)[: self.rank]
            largest = np.argmax(np.abs(vectors), axis=1)
            return vectors * np.sign(vectors[np.arange(self.rank), largest])[:, None]
        lines = g if tall else g.T
        score = np.sum(lines**2, axis=1) if self.proj == "topk" else s.draws().ravel()[: len(lines)]
        chosen = np.argsort(-score, kind="stable")[: self.rank]
        return np.eye(len(lines))[np.sort(chosen)]
