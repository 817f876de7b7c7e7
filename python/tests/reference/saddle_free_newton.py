"""Saddle-free Newton in a Krylov subspace."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import dot
from .base import Arrays, OptimizerReference


class SaddleFreeNewton(OptimizerReference):
    """|H|^-1 g in the Krylov space of the gradient (Pascanu et al., 2014, arXiv:1405.4604; Dauphin et al., 2014,
    arXiv:1406.2572), with the damping of the lowest loss."""

    name = "saddle_free_newton"
    needs = ("hvp", "loss_at")
    defaults = {"lr": 1.0, "order": 20, "dampings": (1, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6), "mode": "krylov", "damping": 0.0}
    settings = ({"lr": 0.3}, {"order": 3, "lr": 0.5, "dampings": (0.5, 0.1)}, {"order": 9, "dampings": (1e-3,), "lr": 0.1}, {"order": 1})

    def start(self, params: Arrays) -> None: ...

    def step(self, params: Arrays, grads: Arrays, *, hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             loss_at: Callable[[Arrays], float] | None = None, **oracles: Any) -> None:
        shapes, sizes = [p.shape for p in params], [p.size for p in params]

        def split(x: np.ndarray) -> Arrays:
            return [part.reshape(s) for part, s in zip(np.split(x, np.cumsum(sizes)[:-1]), shapes)]

        def flat(xs: Arrays) -> np.ndarray:
            return np.concatenate([np.ravel(x) for x in xs])

        norm = np.sqrt(dot(grads, grads))
        if norm == 0:
            return
        if self.mode == "exact":
            H = np.array([flat(hvp(params, split(e))) for e in np.eye(sum(sizes))])
            w, U = np.linalg.eigh((H + H.T) / 2)
            for p, x in zip(params, split(U @ ((U.T @ flat(grads)) / (np.abs(w) + self.damping)))):
                p -= self.lr * x
            return
        V, alpha, beta = [flat(grads) / norm], [], []
        limit = min(self.order, sum(sizes))
        while True:
            w = flat(hvp(params, split(V[-1])))
            alpha.append(w @ V[-1])
            if len(V) == limit:
                break
            for _ in range(2):
                w = w - np.array(V).T @ (np.array(V) @ w)
            b = np.linalg.norm(w)
            if b <= 1e-12 * max(1.0, abs(alpha[-1])):
                break
            beta.append(b)
            V.append(w / b)
        values, Y = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
        best = None
        for mu in self.dampings:
            d = split(-np.array(V).T @ (Y @ (norm * Y[0] / (np.abs(values) + mu))))
            loss = loss_at([p + self.lr * x for p, x in zip(params, d)])
            if best is None or loss < best[0]:
                best = loss, d
        if best:
            for p, x in zip(params, best[1]):
                p += self.lr * x
