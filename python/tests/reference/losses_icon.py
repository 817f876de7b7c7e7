"""The losses of I-Con, from their card."""

from __future__ import annotations

import numpy as np

from .losses_embeddings import through_unit, unit
from .losses_logits import Inputs
from .losses_views import _Both


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - np.max(z, axis=1, keepdims=True))
    return e / np.sum(e, axis=1, keepdims=True)


class IConKL(_Both):
    name = "icon_kl"
    defaults = {"alpha_q": 0.0, "alpha_p": 0.0, "mask_diagonal": True}
    settings = ({}, {"alpha_q": 0.3, "alpha_p": 0.1}, {"mask_diagonal": False, "alpha_q": 0.2})

    def wanted(self, rng: np.random.Generator, n: int, m: int) -> np.ndarray:
        p = rng.random((n, m)) * (rng.random((n, m)) < 0.7) + 1e-3
        if self.h.get("mask_diagonal", False):
            p[np.arange(min(n, m)), np.arange(min(n, m))] = 0
        return p / np.sum(p, axis=1, keepdims=True)

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"z": rng.standard_normal((n, m)), "p": self.wanted(rng, n, m)} for n, m in ((2, 2), (6, 6), (5, 9), (70, 70))]

    def kl(self, q: np.ndarray, p: np.ndarray, allowed: np.ndarray) -> tuple[float, np.ndarray]:
        """The value, and the derivative by q."""
        count = np.sum(allowed, axis=1, keepdims=True)
        pt = np.where(allowed, (1 - self.alpha_p) * p + self.alpha_p / count, 0.0)
        qt = np.where(allowed, (1 - self.alpha_q) * q + self.alpha_q / count, 1.0)
        return np.sum(pt * (np.log(np.where(pt > 0, pt, 1.0)) - np.log(qt))) / len(p), -(1 - self.alpha_q) * pt / qt / len(p)

    def by_logits(self, z: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
        allowed = ~np.eye(*z.shape, dtype=bool) if self.mask_diagonal else np.ones(z.shape, bool)
        q = softmax(np.where(allowed, z, -np.inf))
        value, d = self.kl(q, p, allowed)
        return value, q * (d - np.sum(q * d, axis=1, keepdims=True))

    def both(self, z, p):
        value, g = self.by_logits(z, p)
        return value, {"z": g}


class IConEmbedding(IConKL):
    name = "icon_embedding"
    defaults = {"alpha_q": 0.0, "alpha_p": 0.0, "kind": "gaussian", "sigma": 1.0, "mask_diagonal": True}
    settings = ({}, {"kind": "cosine", "sigma": 0.3, "alpha_q": 0.2}, {"kind": "student", "alpha_p": 0.1}, {"sigma": 2.0, "mask_diagonal": False})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal((n, d)), "p": self.wanted(rng, n, n)} for n, d in ((2, 3), (6, 4), (280, 3))]

    def both(self, x, p):
        kind, s = self.h["kind"], self.sigma
        u = unit(x) if kind == "cosine" else x
        if kind == "cosine":
            value, g = self.by_logits(u @ u.T / s, p)
            return value, {"x": through_unit(x, (g + g.T) @ u / s)}
        apart = u[:, None] - u[None]
        r = np.sum(apart**2, axis=2)
        value, g = self.by_logits(-np.log1p(r) if kind == "student" else -r / (2 * s * s), p)
        g = (g + g.T) * (-1 / (1 + r) if kind == "student" else -1 / (2 * s * s))
        return value, {"x": np.sum(2 * g[:, :, None] * apart, axis=1)}


class IConCluster(IConKL):
    name = "icon_cluster"
    defaults = {"alpha_q": 0.0, "alpha_p": 0.0}
    settings = ({}, {"alpha_q": 0.3, "alpha_p": 0.1})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"z": rng.standard_normal((n, c)), "p": self.wanted(rng, n, n)} for n, c in ((2, 2), (6, 3), (270, 4))]

    def both(self, z, p):
        f = softmax(z)
        m = np.sum(f, axis=0)
        value, d = self.kl(f @ (f / m).T, p, np.ones(p.shape, bool))
        df = (d + d.T) @ (f / m) - np.sum(f * (d @ f), axis=0) / m**2
        return value, {"z": f * (df - np.sum(f * df, axis=1, keepdims=True))}
