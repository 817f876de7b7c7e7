"""Adam in a subspace: GaLore, Online Subspace Descent, COAP, and the columns of a cosine transform (with Trion); Dion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from ._per_tensor import PerTensor, ratio
from .base import Arrays
from .muon import orthogonalize


def leading(rows: np.ndarray) -> np.ndarray:
    """Rows with their entry of largest magnitude positive."""
    largest = np.argmax(np.abs(rows), axis=1)
    return rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]


class Subspace(PerTensor):
    """R = project(G); m, v, N = m/(sqrt(v) + eps) as Adam; the step goes back to all entries, decay after it.

    The rows of s.P are the directions.  Tensors that are no matrices, and those for which `rank_of` is 0, take plain Adam."""

    common = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        r = self.rank_of(p) if p.ndim == 2 else 0
        return SimpleNamespace(t=0, r=r, P=None, m=0.0, v=0.0, draw=None)

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        for i, s in enumerate(self.states):
            s.draw = lambda s=s, i=i: normal(s.t - 1)[i].ravel()
        super().step(params, grads)

    def rank_of(self, p: np.ndarray) -> int:
        return self.rank if self.rank <= min(p.shape) else 0

    def right(self, g: np.ndarray) -> bool:
        return g.shape[0] >= g.shape[1]

    def project(self, g: np.ndarray, P: np.ndarray) -> np.ndarray:
        return g @ P.T if self.right(g) else P @ g

    def back(self, R: np.ndarray, P: np.ndarray, g: np.ndarray) -> np.ndarray:
        return R @ P if self.right(g) else P.T @ R

    def singular(self, g: np.ndarray, r: int) -> np.ndarray:
        U, _, Vt = np.linalg.svd(g, full_matrices=False)
        return leading((Vt if self.right(g) else U.T)[:r])

    def units(self, g: np.ndarray, r: int) -> np.ndarray:
        return np.eye(g.shape[1] if self.right(g) else g.shape[0])[:r]

    def adam(self, R: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        s.m = self.beta1 * s.m + (1 - self.beta1) * R
        s.v = self.beta2 * s.v + (1 - self.beta2) * R**2
        a = np.sqrt(1 - self.beta2**s.t) / (1 - self.beta1**s.t) if self.correct_bias else 1.0
        return a * ratio(s.m, np.sqrt(s.v) + self.eps)

    def finish(self, p: np.ndarray, u: np.ndarray) -> None:
        p -= self.lr * u
        p -= self.lr * self.weight_decay * p

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        if s.r == 0:
            return self.finish(p, self.adam(g, s))
        P = self.before(g, s)
        self.finish(p, self.scale * self.back(self.adam(self.project(g, P), s), P, g))

    def before(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        """The projector of this step; moves s.P."""
        raise NotImplementedError


class GaLore(Subspace):
    """GaLore (Zhao et al., 2024; arXiv:2403.03507).  Moments stay as they are when the subspace changes."""

    name = "galore"
    required = ("rank",)
    defaults = {**Subspace.common, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    settings = (
        {"rank": 2},
        {"rank": 2, "lr": 0.02, "update_proj_gap": 5, "weight_decay": 0.1, "scale": 1.0},
        {"rank": 3, "lr": 0.02, "update_proj_gap": 7, "proj_type": "reverse_std", "correct_bias": False},
        {"rank": 1, "lr": 0.02, "update_proj_gap": 3, "proj_type": "left", "eps": 1e-3, "beta1": 0.5},
        {"rank": 4, "lr": 0.02, "update_proj_gap": 9, "proj_type": "right"},
    )

    def right(self, g: np.ndarray) -> bool:
        tall = g.shape[0] >= g.shape[1]
        return {"std": tall, "reverse_std": not tall, "left": False, "right": True}[self.proj_type]

    def before(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        if (s.t - 1) % self.update_proj_gap == 0:
            if np.any(g):
                s.P = self.singular(g, s.r)
            elif s.P is None:
                s.P = self.units(g, s.r)
        return s.P


class OnlineSubspaceDescent(Subspace):
    """Online Subspace Descent (Liang et al., 2024; arXiv:2408.12857)."""

    name = "online_subspace_descent"
    required = ("rank",)
    defaults = {**Subspace.common, "update_proj_gap": 200, "scale": 1.0, "proj_opt": "adamw", "proj_beta1": 0.9, "proj_beta2": 0.999,
                "proj_eps": 1e-8, "proj_weight_decay": 0.01, "ortho_penalty": 0.0}
    settings = (
        {"rank": 2},
        {"rank": 2, "lr": 0.02, "update_proj_gap": 20, "proj_beta2": 0.9, "proj_weight_decay": 0.2, "proj_eps": 1e-3},
        {"rank": 9, "lr": 0.02, "proj_opt": "sgd", "update_proj_gap": 10, "scale": 0.5, "weight_decay": 0.1},
        {"rank": 1, "lr": 0.02, "proj_opt": "sgd", "update_proj_gap": 5, "ortho_penalty": 0.3},
    )

    def rank_of(self, p: np.ndarray) -> int:
        return min(self.rank, *p.shape)

    def start(self, params: Arrays) -> None:
        super().start(params)
        for s in self.states:
            s.moves, s.pm, s.pv = 0, 0.0, 0.0

    @staticmethod
    def slope(X: np.ndarray, B: np.ndarray) -> np.ndarray:
        E = X @ B.T @ B - X
        return 2 * (B @ X.T @ E + B @ E.T @ X)

    def before(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        if s.t == 1:
            s.P = self.singular(g, s.r) if np.any(g) else self.units(g, s.r)
            return s.P
        P = s.P
        if np.any(g):
            X = (g if self.right(g) else g.T) / np.linalg.norm(g)
            D = self.slope(X, P) + self.ortho_penalty * 4 * (P @ P.T - np.eye(s.r)) @ P
            rate = 1 / self.update_proj_gap  # the step size is constant here
            s.moves += 1
            if self.proj_opt == "sgd":
                s.P = P - rate * D
            else:
                s.pm = self.proj_beta1 * s.pm + (1 - self.proj_beta1) * D
                s.pv = self.proj_beta2 * s.pv + (1 - self.proj_beta2) * D**2
                c1, c2 = 1 - self.proj_beta1**s.moves, 1 - self.proj_beta2**s.moves
                s.P = P * (1 - rate * self.proj_weight_decay) - rate * ratio(s.pm / c1, np.sqrt(s.pv / c2) + self.proj_eps)
        return P


class COAP(Subspace):
    """COAP (Xiao et al., 2024; arXiv:2412.00071), matrices only; the first sketch is of the first step's normal numbers."""

    name = "coap"
    defaults = {**Subspace.common, "rank": None, "rank_ratio": 4.0, "update_interval": 32, "reproject_factor": 5, "restore_state": False,
                "scale": 1.0, "proj_lr": 0.1, "proj_clip": 1.0}
    settings = (
        {},
        {"rank": 2, "lr": 0.02, "update_interval": 3, "reproject_factor": 2, "weight_decay": 0.1},
        {"rank": 2, "lr": 0.02, "update_interval": 2, "reproject_factor": 4, "restore_state": True, "proj_lr": 0.5},
        {"rank": None, "rank_ratio": 1.5, "lr": 0.02, "update_interval": 1, "reproject_factor": 10, "proj_clip": 0.01, "scale": 0.5},
    )

    def rank_of(self, p: np.ndarray) -> int:
        if self.rank is None:
            return max(int(min(p.shape) / self.rank_ratio), 1)
        return super().rank_of(p)

    def objective(self, P: np.ndarray, m: np.ndarray, g: np.ndarray) -> float:
        error = np.mean((self.back(self.project(g, P), P, g) - g) ** 2)
        z = self.back(m, P, g)
        norms = np.maximum(np.linalg.norm(z, axis=1), 1e-8) * np.maximum(np.linalg.norm(g, axis=1), 1e-8)
        return float(error * (1 - np.mean(np.sum(z * g, axis=1) / norms)))

    def slope(self, P: np.ndarray, m: np.ndarray, g: np.ndarray) -> np.ndarray:
        X = g if self.right(g) else g.T
        E = X @ P.T @ P - X
        error = np.mean(E**2)
        z = self.back(m, P, g)
        nz, ng = np.linalg.norm(z, axis=1, keepdims=True), np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-8)
        floor = np.maximum(nz, 1e-8)
        dot = np.sum(z * g, axis=1, keepdims=True)
        share = 1 - np.mean(dot / (floor * ng))
        by_z = -(g / (floor * ng) - np.where(nz > 1e-8, dot * z / (floor**3 * ng), 0.0)) / len(g)
        by_P = m.T @ by_z if self.right(g) else m @ by_z.T
        return OnlineSubspaceDescent.slope(X, P) / g.size * share + error * by_P

    def before(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        done = s.t - 1
        if done % self.update_interval:
            return s.P
        if not np.any(g):
            s.P = self.units(g, s.r) if s.P is None else s.P
            return s.P
        old = s.P
        if done % (self.update_interval * self.reproject_factor) == 0:
            A = g if self.right(g) else g.T
            omega = s.draw()[: A.shape[1] * s.r].reshape(A.shape[1], s.r) if done == 0 else old.T
            Q = np.linalg.qr(A @ omega)[0]
            s.P = leading(np.linalg.svd(Q.T @ A, full_matrices=False)[2][: s.r])
        else:
            D = self.slope(old, s.m, g)
            s.P = old - self.proj_lr * min(1.0, self.proj_clip / (np.linalg.norm(D) + 1e-6)) * D
        if self.restore_state and done > 0:
            full, roots = self.back(s.m, old, g), self.back(np.sqrt(s.v), old, g)
            s.m, s.v = self.project(full, s.P), self.project(roots, s.P) ** 2
        return s.P


def transform(n: int, basis: str) -> np.ndarray:
    """The orthonormal cosine transform: A @ Q is the type-II (type-III) transform of the rows of A."""
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    Q = np.sqrt(2 / n) * np.cos(np.pi * j * (2 * i + 1) / (2 * n))
    Q[:, 0] *= np.sqrt(0.5)
    return Q if basis == "dct2" else Q.T


def largest(scores: np.ndarray, r: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:r])


class DCTAdamW(PerTensor):
    """AdamW in the columns of a cosine transform (Modoranu et al., 2025; arXiv:2505.17967)."""

    name = "dct_adamw"
    required = ("rank",)
    defaults = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "update_proj_gap": 1, "rotate_subspace": True,
                "error_feedback": False, "ell": 1, "basis": "dct2", "max_shape": 32000}
    settings = (
        {"rank": 2},
        {"rank": 2, "lr": 0.02, "error_feedback": True, "weight_decay": 0.1, "update_proj_gap": 3},
        {"rank": 1, "lr": 0.02, "rotate_subspace": False, "ell": 2, "basis": "dct3", "eps": 1e-3},
        {"rank": 5, "lr": 0.02, "error_feedback": True, "beta1": 0.5},
        {"rank": 2, "lr": 0.02, "max_shape": 6, "error_feedback": True},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, m=0.0, v=0.0, error=0.0, index=None)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        p *= 1 - self.lr * self.weight_decay
        if p.ndim != 2 or max(p.shape) >= self.max_shape:
            p -= self.lr * self.adam(g, s)
            return
        if p.shape[0] < p.shape[1]:
            p, g = p.T, g.T  # the transform lies on the shorter side
        Q = transform(g.shape[1], self.basis)
        A = g + s.error
        if s.t == 1 or s.t % self.update_proj_gap == 0:
            old = s.index
            if np.any(A):
                s.index = largest(np.sum(np.abs(A @ Q) ** self.ell, axis=0), self.rank)
            elif old is None:
                s.index = np.arange(min(self.rank, len(Q)))
            if old is not None and self.rotate_subspace:
                R = (old[:, None] == s.index[None, :]).astype(float)
                s.m, s.v = s.m @ R, s.v @ R
        Qr = Q[:, s.index]
        a = A @ Qr
        if self.error_feedback:
            s.error = A - a @ Qr.T
        p -= self.lr * self.adam(a, s) @ Qr.T

    def adam(self, a: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        s.m = self.beta1 * s.m + (1 - self.beta1) * a
        s.v = self.beta2 * s.v + (1 - self.beta2) * a**2
        root = np.sqrt(1 - self.beta2**s.t)
        return root / (1 - self.beta1**s.t) * ratio(s.m, np.sqrt(s.v) + self.eps * root)


def shape_factor(kind: str, out: int, fan_in: int) -> float:
    return {"original": np.sqrt(max(1.0, out / fan_in)), "match_rms_adamw": 0.2 * np.sqrt(max(out, fan_in)), "spectral": np.sqrt(out / fan_in),
            "none": 1.0}[kind]


class Trion(PerTensor):
    """Trion (same paper): Muon on the largest columns of the momentum."""

    name = "trion"
    shapes = "matrix"
    required = ("rank",)
    defaults = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "scaling": "original", "ns_steps": 5,
                "ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7, "eps_mode": "clamp", "basis": "dct2"}
    settings = (
        {"rank": 2},
        {"rank": 9, "momentum": 0.5, "weight_decay": 0.1, "scaling": "spectral"},
        {"rank": 1, "basis": "dct3", "scaling": "match_rms_adamw", "ns_steps": 3},
        {"rank": 3, "scaling": "none", "eps_mode": "add", "ns_steps": 8, "ns_coefficients": (1.5, -0.5, 0.0)},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, M=np.zeros((p.shape[0], p.size // p.shape[0])))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.M += g.reshape(s.M.shape)
        out, fan_in = s.M.shape
        M = s.M.T if out < fan_in else s.M
        Q = transform(min(out, fan_in), self.basis)
        Qr = Q[:, largest(np.sum(np.abs(M @ Q), axis=0), self.rank)]
        a = M @ Qr
        M -= (1 - self.momentum) * a @ Qr.T
        O = orthogonalize(a, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.eps, eps_mode=self.eps_mode) @ Qr.T
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * shape_factor(self.scaling, out, fan_in) * (O.T if out < fan_in else O).reshape(p.shape)


class Dion(PerTensor):
    """Dion (Ahn, Xu, Abreu, Langford, 2025; arXiv:2504.05295)."""

    name = "dion"
    shapes = "matrix"
    defaults = {"lr": 0.01, "mu": 0.95, "rank_fraction": 1.0, "weight_decay": 0.01, "eps": 1e-8, "power_iters": 1}
    settings = (
        {},
        {"lr": 0.02, "mu": 0.5, "rank_fraction": 0.5, "weight_decay": 0.0, "eps": 0.01},
        {"lr": 0.02, "rank_fraction": 0.3, "power_iters": 3},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, M=np.zeros((p.shape[0], p.size // p.shape[0])), Q=None, draw=None)

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        for i, s in enumerate(self.states):
            if s.Q is None:
                side = min(s.M.shape)
                r = int(np.ceil(self.rank_fraction * side))
                s.Q = normal(0)[i].ravel()[: side * r].reshape(side, r)
        super().step(params, grads)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.M += g.reshape(s.M.shape)
        out, fan_in = s.M.shape
        M = s.M.T if out < fan_in else s.M
        R = s.Q
        for _ in range(self.power_iters):
            P = np.linalg.qr(M @ R)[0]
            R = M.T @ P
        M -= (1 - self.mu) * P @ R.T
        s.Q = R / (np.linalg.norm(R, axis=0) + self.eps)
        O = P @ s.Q.T
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * np.sqrt(out / fan_in) * (O.T if out < fan_in else O).reshape(p.shape)
