"""Penalties of matrices: orthogonality, group orthogonality, spectral norms."""

from __future__ import annotations

import numpy as np

from .base import RegularizerReference
from .penalties_groups import l1_ball
from .regularizers import rows


def start(n: int) -> np.ndarray:
    """Where power iterations begin: the fractions of multiples of the golden ratio, centred, of norm one."""
    v = np.mod(np.arange(1, n + 1) * 0.6180339887498949, 1.0) - 0.5
    return v / np.linalg.norm(v)


class Orthogonality(RegularizerReference):
    """Soft, double-soft, mutual-coherence and SRIP penalties (Bansal, Chen, Wang, 2018; arXiv 1810.09102)."""

    name = "orthogonality"
    defaults = {"weight": 1e-4, "variant": "soft", "short_side": True, "power_iters": 2}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "short_side": False}, {"weight": 0.3, "variant": "double_soft"},
                {"weight": 0.3, "variant": "mutual_coherence"}, {"weight": 0.3, "variant": "srip"},
                {"weight": 0.3, "variant": "srip", "power_iters": 0}, {"weight": 0.3, "variant": "srip", "power_iters": 3, "short_side": False})
    shapes = "matrix"
    has_prox = False

    def _value_and_gradient(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        x = rows(w)
        flip = self.short_side and x.shape[0] < x.shape[1] and self.variant != "double_soft"
        A = x.T if flip else x
        M = A.T @ A - np.eye(A.shape[1])
        if self.variant in ("soft", "double_soft"):
            value, G = np.sum(M * M), 4 * A @ M
            if self.variant == "double_soft":
                N = A @ A.T - np.eye(len(A))
                value, G = value + np.sum(N * N), G + 4 * N @ A
        elif self.variant == "mutual_coherence":
            i, j = np.unravel_index(np.argmax(np.abs(M)), M.shape)
            E = np.zeros_like(M)
            E[i, j] = np.sign(M[i, j])
            value, G = np.abs(M[i, j]), A @ (E + E.T)
        else:
            if self.power_iters == 0:
                mus, V = np.linalg.eigh(M)
                k = np.argmax(np.abs(mus))
                mu, v = mus[k], V[:, k]
            else:
                v = start(len(M))
                for _ in range(self.power_iters):
                    v = M @ v
                    v = v / np.linalg.norm(v)
                mu = v @ M @ v
            value, G = np.abs(mu), 2 * np.sign(mu) * np.outer(A @ v, v)
        return float(self.weight * value), self.weight * (G.T if flip else G).reshape(w.shape)

    def value(self, w: np.ndarray) -> float:
        return self._value_and_gradient(w)[0]

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self._value_and_gradient(w)[1]


class GOR(RegularizerReference):
    """Group orthogonalisation (Kurtz, Bar, Giryes, 2023; arXiv 2306.10001)."""

    name = "gor"
    defaults = {"weight": 1e-4, "num_groups": 32, "mode": "inter", "min_group_size": 4}
    settings = ({}, {"weight": 0.3, "num_groups": 1}, {"weight": 0.3, "num_groups": 1, "mode": "intra"},
                {"weight": 0.3, "min_group_size": 1}, {"weight": 0.3, "num_groups": 4, "min_group_size": 1},
                {"weight": 0.3, "mode": "intra", "min_group_size": 1})
    shapes = "matrix"
    has_prox = False

    def _groups(self, c: int) -> int:
        return max(1, min(self.num_groups, c // self.min_group_size))

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and shape[0] % self._groups(shape[0]) == 0

    def _sets(self, c: int) -> list[np.ndarray]:
        blocks = np.arange(c).reshape(self._groups(c), -1)
        return list(blocks if self.mode == "inter" else blocks.T)

    def value(self, w: np.ndarray) -> float:
        x, total = rows(w), 0.0
        for s in self._sets(len(x)):
            B = x[s]
            G = B.T @ B if B.shape[0] >= B.shape[1] else B @ B.T
            total += np.sum((G - np.eye(len(G))) ** 2)
        return float(self.weight * total)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        g = np.zeros_like(x)
        for s in self._sets(len(x)):
            B = x[s]
            q, d = B.shape
            g[s] = 4 * B @ (B.T @ B - np.eye(d)) if q >= d else 4 * (B @ B.T - np.eye(q)) @ B
        return (self.weight * g).reshape(w.shape)


def leading(x: np.ndarray, n_iter: int = 0, u: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray]:
    """Exact, or after power iterations from u, at first from one fixed vector."""
    if n_iter == 0:
        U, s, Vt = np.linalg.svd(x, full_matrices=False)
        return s[0], U[:, 0], Vt[0]
    u = start(len(x)) if u is None else u
    for _ in range(n_iter):
        v = x.T @ u
        v = v / np.linalg.norm(v)
        u = x @ v
        u = u / np.linalg.norm(u)
    return u @ x @ v, u, v


class SpectralPenalty(RegularizerReference):
    """weight/2 sigma_1^2, or weight sigma_1 (Yoshida, Miyato, 2017; arXiv 1705.10941)."""

    name = "spectral_penalty"
    defaults = {"weight": 1e-4, "power": 2, "n_iter": 1}
    settings = ({}, {"weight": 0.3}, {"weight": 3.0}, {"weight": 0.3, "power": 1}, {"weight": 30.0, "power": 1}, {"weight": 0.3, "n_iter": 0},
                {"weight": 0.3, "power": 1, "n_iter": 5})
    shapes = "matrix"

    def value(self, w: np.ndarray) -> float:
        sigma = leading(rows(w))[0]
        return float(self.weight * (sigma**2 / 2 if self.power == 2 else sigma))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.along(w, *leading(rows(w)))

    def along(self, w: np.ndarray, sigma: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return (self.weight * (sigma if self.power == 2 else 1.0) * np.outer(u, v)).reshape(w.shape)

    def first_gradient(self, w: np.ndarray) -> np.ndarray:
        return self.along(w, *leading(rows(w), self.n_iter))

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k = t * self.weight
        if k == 0:
            return w.copy()
        U, s, Vt = np.linalg.svd(rows(w), full_matrices=False)
        if self.power == 1:
            return ((U * (s - l1_ball(s, k))) @ Vt).reshape(w.shape)
        # the scalar that minimises k/2 c^2 + sum (s - c)_+^2/2
        cuts = np.cumsum(s) / (np.arange(1, len(s) + 1) + k)
        return ((U * np.minimum(s, cuts.max())) @ Vt).reshape(w.shape)


class SpectralReg(RegularizerReference):
    """weight (sigma_1^k - 1)^2 for matrices, weight |b|^(2k) for vectors (Lewandowski et al., 2024; arXiv 2406.06811)."""

    name = "spectral_reg"
    defaults = {"weight": 1e-4, "k": 2, "n_iter": 1, "include_bias": True}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "k": 1}, {"weight": 0.01, "k": 3}, {"weight": 0.3, "include_bias": False},
                {"weight": 0.3, "n_iter": 4})
    has_prox = False

    def value(self, w: np.ndarray) -> float:
        if w.ndim < 2:
            return float(self.weight * np.sum(w * w) ** self.k) if self.include_bias else 0.0
        return float(self.weight * (leading(rows(w))[0] ** self.k - 1) ** 2)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        k = self.k
        if w.ndim < 2:
            return 2 * self.weight * k * np.sum(w * w) ** (k - 1) * w * self.include_bias
        return self.along(w, *leading(rows(w)))

    def along(self, w: np.ndarray, sigma: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        k = self.k
        return (2 * self.weight * (sigma**k - 1) * k * sigma ** (k - 1) * np.outer(u, v)).reshape(w.shape)

    def first_gradient(self, w: np.ndarray) -> np.ndarray:
        return self.gradient(w) if w.ndim < 2 else self.along(w, *leading(rows(w), self.n_iter))
