"""Layers of embeddings and memberships: doubly stochastic matrices, the zero-shot loss of generalized sum pooling."""

from __future__ import annotations

import numpy as np

from .losses_logits import Inputs, log_softmax
from .losses_views import _Both


class SinkhornDoublyStochastic(_Both):
    """Ding et al., 2023; arXiv 2301.01805; the marginal equations by least squares."""

    name = "sinkhorn_doubly_stochastic"
    defaults = {"eta": 0.1, "iters": 10_000, "tol": 1e-12}
    settings = ({}, {"eta": 0.5}, {"eta": 2.0, "tol": 1e-9}, {"iters": 3, "eta": 0.3})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n in (1, 4, 9):
            u = rng.standard_normal((n, 3))
            u /= np.linalg.norm(u, axis=1, keepdims=True)
            out += [{"s": 0.3 * u @ u.T}, {"s": 0.3 * rng.standard_normal((n, n)), "dpi": rng.standard_normal((n, n))}]
        return out

    def smooth(self, s, dpi=None) -> bool:
        return self.iters > 100  # the gradient is that of the fixed point

    def both(self, s, dpi=None):
        p = np.exp((s - s.max()) / self.eta)
        for _ in range(self.iters):
            p = p / p.sum(1, keepdims=True)
            p = p / p.sum(0)
            if np.max(np.abs(p.sum(1) - 1)) < self.tol:
                break
        if dpi is None:
            return 0.0, {"s": 0 * s, "pi": p}
        n = len(s)
        system = np.block([[np.diag(p.sum(1)), p], [p.T, np.diag(p.sum(0))]])
        ab = np.linalg.lstsq(system, np.concatenate([(p * dpi).sum(1), (p * dpi).sum(0)]), rcond=1e-12)[0]
        return np.sum(dpi * p), {"s": p * (dpi - ab[:n, None] - ab[None, n:]) / self.eta, "pi": p}


class GSPZeroShot(_Both):
    """Gurbuz et al., 2023; arXiv 2308.09228; derivatives of the ridge map by its closed form."""

    name = "gsp_zero_shot"
    defaults = {"ridge": 0.05, "scale": 9.5, "margin": 0.0}
    settings = ({}, {"margin": 0.2}, {"ridge": 1.0, "scale": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"a": rng.random((2 * h, k)), "y": np.tile(rng.integers(0, c, h), 2), "e": rng.standard_normal((c, p)) / 3}
                for h, k, c, p in ((1, 2, 2, 1), (3, 4, 3, 5), (8, 3, 4, 2))]

    def both(self, a, y, e):
        h, value, ga, ge = len(a) // 2, 0.0, np.zeros_like(a), np.zeros_like(e)
        for one, two in ((slice(0, h), slice(h, None)), (slice(h, None), slice(0, h))):
            t1, t2, label = a[one], a[two], np.eye(len(e))[y[two]]
            inverse = np.linalg.inv(t1 @ t1.T + self.ridge * np.eye(h))
            fitted = inverse @ e[y[one]]
            lp = log_softmax(self.scale * (t2 @ t1.T @ fitted @ e.T - self.margin * label))
            value -= np.sum(label * lp) / h / 2
            d = self.scale * (np.exp(lp) - label) / h / 2
            ge += d.T @ t2 @ t1.T @ fitted
            told = d @ e
            ga[two] += told @ fitted.T @ t1
            np.add.at(ge, y[one], inverse @ t1 @ t2.T @ told)
            push = inverse @ t1 @ t2.T @ told @ fitted.T
            ga[one] += fitted @ told.T @ t2 - (push + push.T) @ t1
        return value, {"a": ga, "e": ge}
