"""PSGD: preconditioners on Lie groups, fitted to pairs of vectors (Li, 2015, arXiv:1512.04202; Pooladzandi, Li, 2024, arXiv:2402.04553)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from ._per_tensor import PerTensor
from .base import Arrays, OptimizerReference
from .kronecker import along, gram, unfold

TINY = np.finfo(np.float64).tiny


def fraction(normal: Callable[[int], Arrays], step: int) -> float:
    """A uniform number of a step: the distribution function at its first draw."""
    return 0.5 * math.erfc(-normal(step)[0].ravel()[0] / math.sqrt(2))


def stretched(x: np.ndarray, axis: int, q: np.ndarray) -> np.ndarray:
    """diag(q) times x along an axis."""
    return x * q.reshape([-1 if k == axis else 1 for k in range(x.ndim)])


def lower_bound(A: np.ndarray) -> float:
    """Of the spectral norm: one step of the power method from the largest row or column."""
    top = np.max(np.abs(A))
    if top == 0:
        return 0.0
    A = A / top
    rows, columns = np.sum(A**2, axis=1), np.sum(A**2, axis=0)
    i, j = np.argmax(rows), np.argmax(columns)
    if columns[j] > rows[i]:
        x = A.T @ A[:, j]
        return float(top * np.linalg.norm(A @ (x / np.linalg.norm(x))))
    x = A @ A[i]
    return float(top * np.linalg.norm(A.T @ (x / np.linalg.norm(x))))


class PSGDKron(PerTensor):
    """One triangular or diagonal factor an axis, fitted to the momentum or the gradient (whitening), or to Hessian-vector products."""

    name = "psgd_kron"
    defaults = {"lr": 3e-4, "b1": 0.9, "weight_decay": 0.0, "precond_lr": 0.1, "precond_init_scale": 1.0, "max_size_triangular": 8192,
                "min_ndim_triangular": 2, "memory_save_mode": "none", "merge_dims": True, "momentum_into_precond_update": True,
                "clip_rms": 1.1, "update_prob": None, "balance_prob": 0.01, "fit": "whiten"}
    needs = ("hvp",)
    settings = (
        {},
        {"lr": 0.02, "fit": "newton"},
        {"lr": 0.02, "fit": "newton", "update_prob": 0.4, "precond_lr": 0.5, "balance_prob": 0.5, "merge_dims": False},
        {"lr": 0.02, "fit": "newton", "precond_init_scale": None, "b1": 0.5, "memory_save_mode": "one_diag"},
        {"lr": 0.02, "update_prob": 0.3, "weight_decay": 0.1, "clip_rms": 0.5, "balance_prob": 0.5},
        {"lr": 0.02, "merge_dims": False, "momentum_into_precond_update": False, "precond_init_scale": None, "b1": 0.5},
        {"lr": 0.02, "min_ndim_triangular": 0, "max_size_triangular": 6, "precond_init_scale": 0.3, "precond_lr": 0.5},
        {"lr": 0.02, "memory_save_mode": "one_diag", "clip_rms": 5.0, "balance_prob": 1.0},
        {"lr": 0.02, "memory_save_mode": "smart_one_diag", "merge_dims": False},
        {"lr": 0.02, "memory_save_mode": "all_diag", "b1": 0.0},
    )

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) <= 2 or not self.merge_dims:
            return shape or (1,)
        first, second = (math.prod(shape[:-1]), shape[-1]), (shape[0], math.prod(shape[1:]))
        return first if first[1] - first[0] <= second[1] - second[0] else second

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        shape = self.view(p.shape)
        top = max(shape)
        last = max(k for k, d in enumerate(shape) if d == top)

        def saved(k: int) -> bool:
            mode = self.memory_save_mode
            alone = shape.count(top) == 1 and len(shape) > 1
            return mode == "all_diag" or (k == last and (mode == "one_diag" or (mode == "smart_one_diag" and alone)))

        diagonal = [saved(k) or d <= 1 or d > self.max_size_triangular or len(shape) < self.min_ndim_triangular
                    for k, d in enumerate(shape)]
        return SimpleNamespace(t=0, shape=shape, diagonal=diagonal, Q=None, m=np.zeros(shape), since=0)

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None, **oracles: Any) -> None:
        products = hvp(params, normal(self.states[0].t)) if self.h["fit"] == "newton" else None
        for i, s in enumerate(self.states):
            s.product = None if products is None else products[i].reshape(s.shape)
            s.noise = lambda s=s, i=i: normal(s.t - 1)[i].reshape(s.shape)
            s.coin = lambda s=s: fraction(normal, s.t - 1 + (1 << 40))
        super().step(params, grads)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        x, g = p.reshape(s.shape), g.reshape(s.shape)
        if s.Q is None:
            scale = self.precond_init_scale
            if scale is None and s.product is not None:
                scale = np.mean(s.noise() ** 2) ** 0.25 * np.mean(s.product**4) ** (-1 / 8)
            elif scale is None:
                scale = np.mean(g**4) ** (-1 / 8)
            entry = scale ** (1 / len(s.shape))
            s.Q = [np.full(d, entry) if flat else entry * np.eye(d) for d, flat in zip(s.shape, s.diagonal)]
        s.m = self.b1 * s.m + (1 - self.b1) * g
        m = s.m / (1 - self.b1**s.t)
        probability = self.update_prob or np.clip(np.exp(-0.001 * (s.t - 1 - 500)), 0.03, 1.0)
        s.since += 1
        if s.since >= 1 / probability:
            s.since = 0
            self.turn(s, (m if self.momentum_into_precond_update else g) if s.product is None else s.product)
        u = m
        for k, Q in enumerate(s.Q):
            u = stretched(u, k, Q**2) if s.diagonal[k] else along(u, k, Q.T @ Q)
        u = u * min(1.0, self.clip_rms / (np.sqrt(np.mean(u**2)) + 1e-12))
        if p.ndim >= 2:
            u = u + self.weight_decay * x
        x -= self.lr * u

    def turn(self, s: SimpleNamespace, X: np.ndarray) -> None:
        if not np.any(X):
            return
        if len(s.Q) > 1 and s.coin() < self.balance_prob:
            tops = [np.max(np.abs(Q)) for Q in s.Q]
            s.Q = [Q * np.exp(np.mean(np.log(tops))) / top for Q, top in zip(s.Q, tops)]
        V = s.noise()
        A, B = X if s.product is not None else X + np.sqrt(2.0**-23) * np.mean(np.abs(X)) * V, V
        for k, Q in enumerate(s.Q):
            if s.diagonal[k]:
                A, B = stretched(A, k, Q), stretched(B, k, 1 / Q)
            else:
                A, B = along(A, k, Q), along(B, k, np.linalg.inv(Q).T)
        for k, Q in enumerate(s.Q):
            if s.diagonal[k]:
                one, two = np.sum(unfold(A, k) ** 2, axis=1), np.sum(unfold(B, k) ** 2, axis=1)
                s.Q[k] = Q - self.precond_lr / max(np.max(one + two), TINY) * (one - two) * Q
            else:
                one, two = gram(A, k), gram(B, k)
                s.Q[k] = Q - self.precond_lr / max(lower_bound(one + two), TINY) * np.triu(one - two) @ Q


class PSGD(OptimizerReference):
    """What the three others share.  All tensors are one vector with one preconditioner; `alone`: each is a vector of its own."""

    alone = False
    common = {"lr": 0.01, "precond_lr": None, "momentum": 0.0, "normalizer": "second", "update_probability": 1.0, "grad_clip_max_norm": None,
              "preconditioner_init_scale": None, "fit": "newton"}
    # The first normalizer with an exact fit of one number divides rounding by rounding: it starts elsewhere.
    variants = (
        {},
        {"lr": 0.1, "normalizer": "first", "precond_lr": 0.05, "momentum": 0.8, "grad_clip_max_norm": 1.5, "preconditioner_init_scale": 0.5},
        {"lr": 0.1, "fit": "whiten", "preconditioner_init_scale": 0.7},
        {"lr": 0.1, "fit": "whiten", "update_probability": 0.5, "normalizer": "first"},
        {"lr": 0.1, "update_probability": 0.4, "precond_lr": 0.5, "preconditioner_init_scale": 0.5},
    )
    needs = ("hvp",)
    most_elements = 1500

    def start(self, params: Arrays) -> None:
        self.t = 0
        self.spans = [[i] for i in range(len(params))] if self.alone else [list(range(len(params)))]
        self.states = [SimpleNamespace() for _ in self.spans]

    def step(self, params: Arrays, grads: Arrays, *, hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        t = self.t
        fits = fraction(normal, t + (1 << 40)) < self.update_probability
        v = normal(t)
        products = hvp(params, v) if self.fit == "newton" else None
        for span, s in zip(self.spans, self.states):
            def flat(xs: Arrays, span: list[int] = span) -> np.ndarray:
                return np.concatenate([np.ravel(xs[i]) for i in span])

            g, a = flat(grads), flat(v)
            b = flat(products) if products is not None else g + 2.0**-13 * np.mean(np.abs(g)) * a
            if t == 0:
                self.begin(s, g.size, lambda step, flat=flat: flat(normal(step)))
            if fits and np.any(a) and np.any(b):
                if s.scale is None:
                    s.scale = np.mean(a**2) ** 0.25 * np.mean(b**4) ** (-1 / 8) if self.fit == "newton" else np.mean(g**4) ** (-1 / 8)
                    self.rescale(s)
                s.balances = fraction(normal, t + (2 << 40)) < self.h.get("balance_prob", 0.0)
                self.update_factors(s, a, b)
            s.m = self.momentum * s.m + (1 - self.momentum) * g
            u = s.m if s.scale is None else self.P(s, s.m)
            if self.grad_clip_max_norm is not None:
                u = u * min(1.0, self.grad_clip_max_norm / np.linalg.norm(u))
            at = 0
            for i in span:
                params[i] -= self.lr * u[at : at + params[i].size].reshape(params[i].shape)
                at += params[i].size
        self.t += 1

    def begin(self, s: SimpleNamespace, n: int, normal: Callable[[int], np.ndarray]) -> None:
        s.n, s.m, s.scale = n, np.zeros(n), self.preconditioner_init_scale
        self.shape_factors(s, normal)
        if s.scale is not None:
            self.rescale(s)

    @property
    def rate(self) -> float:
        return self.precond_lr or (0.1 if self.normalizer == "second" else 0.01)

    def shape_factors(self, s: SimpleNamespace, normal: Callable[[int], np.ndarray]) -> None: ...

    def rescale(self, s: SimpleNamespace) -> None:
        raise NotImplementedError

    def update_factors(self, s: SimpleNamespace, v: np.ndarray, h: np.ndarray) -> None:
        raise NotImplementedError

    def P(self, s: SimpleNamespace, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class PSGDLRA(PSGD):
    """Q = (I + U V') diag(d).  U moves where the first entry of v is not negative, else V."""

    name = "psgd_lra"
    defaults = {**PSGD.common, "rank": 10, "balance_prob": 0.01}
    settings = (*PSGD.variants, {"lr": 0.1, "rank": 2, "balance_prob": 0.5}, {"lr": 0.1, "rank": 0})

    def shape_factors(self, s: SimpleNamespace, normal: Callable[[int], np.ndarray]) -> None:
        r = self.rank
        scale = 1 / np.sqrt(s.n * (r + 10))
        s.U = scale * np.array([normal((3 << 40) + j) for j in range(r)]).reshape(r, s.n).T
        s.V = scale * np.array([normal((4 << 40) + j) for j in range(r)]).reshape(r, s.n).T

    def rescale(self, s: SimpleNamespace) -> None:
        s.d = np.full(s.n, s.scale)

    def P(self, s: SimpleNamespace, x: np.ndarray) -> np.ndarray:
        y = s.d * x
        y = y + s.U @ (s.V.T @ y)
        return s.d * (y + s.V @ (s.U.T @ y))

    def update_factors(self, s: SimpleNamespace, v: np.ndarray, h: np.ndarray) -> None:
        norm = np.linalg.norm
        if s.balances and s.U.size:
            rho = np.sqrt(norm(s.U) / norm(s.V))
            s.U, s.V = s.U / rho, s.V * rho
        U, V, d = s.U, s.V, s.d
        a = d * h + U @ (V.T @ (d * h))
        Ph = d * (a + V @ (U.T @ a))
        W = np.eye(U.shape[1]) + V.T @ U
        b = v / d - V @ np.linalg.solve(W.T, U.T @ (v / d))
        iP = (b - U @ np.linalg.solve(W, V.T @ b)) / d
        if U.size:
            F = V if v[0] >= 0 else U  # first: the norm of a difference, second: a bound of it, as in psgd_torch
            a2, b2 = F @ (F.T @ a), F @ (F.T @ b)
            mu = norm(a) * norm(a2) + norm(b) * norm(b2) if self.normalizer == "second" else norm(np.outer(a, a2) - np.outer(b, b2))
            if v[0] >= 0:
                D = np.outer(a, a @ V @ W) - np.outer(b, b @ V @ W)
                s.U = U - self.rate / (mu + TINY) * D
            else:
                D = np.outer(a + V @ (U.T @ a), a @ U) - np.outer(b + V @ (U.T @ b), b @ U)
                s.V = V - self.rate / (mu + TINY) * D
        slope = Ph * h - v * iP
        if self.normalizer == "second":
            mu = self.rate * np.min(1 / np.sqrt(Ph**2 + v**2 + TINY) / np.sqrt(h**2 + iP**2 + TINY))
        else:
            mu = self.rate / max(np.max(np.abs(slope)), TINY)
        s.d = d - mu * d * slope


class PSGDXMat(PSGD):
    """Q = diag(a) + antidiag(b)."""

    name = "psgd_xmat"
    defaults = PSGD.common
    settings = PSGD.variants

    def rescale(self, s: SimpleNamespace) -> None:
        s.a, s.b = np.full(s.n, s.scale), np.zeros(s.n)

    def P(self, s: SimpleNamespace, x: np.ndarray) -> np.ndarray:
        a, b, f = s.a, s.b, np.flip
        return (a**2 + f(b**2)) * x + (a * b + f(a * b)) * f(x)

    def update_factors(self, s: SimpleNamespace, v: np.ndarray, h: np.ndarray) -> None:
        a, b, f = s.a, s.b, np.flip
        q = a * h + b * f(h)
        w = (f(a) * v - f(b) * f(v)) / (a * f(a) - b * f(b))
        A, B = q**2 - w**2, q * f(q) - w * f(w)
        if s.n % 2:
            B[s.n // 2] = 0
        top = np.max(q**2 + w**2) if self.normalizer == "second" else max(np.max(np.abs(A)), np.max(np.abs(B)))
        mu = self.rate / max(top, TINY)
        s.a, s.b = a - mu * (A * a + B * f(b)), b - mu * (A * b + B * f(a))


class PSGDDense(PSGD):
    """Q upper triangular."""

    name = "psgd_dense"
    alone = True  # a triangle has the square of its side
    defaults = PSGD.common
    settings = PSGD.variants
    largest = 300  # elements of the tensor in tests of large ones: Q has the square of it

    def rescale(self, s: SimpleNamespace) -> None:
        s.Q = s.scale * np.eye(s.n)

    def P(self, s: SimpleNamespace, x: np.ndarray) -> np.ndarray:
        return s.Q.T @ (s.Q @ x)

    def update_factors(self, s: SimpleNamespace, v: np.ndarray, h: np.ndarray) -> None:
        a, b = s.Q @ h, np.linalg.solve(s.Q.T, v)
        D = np.triu(np.outer(a, a) - np.outer(b, b))
        mu = self.rate / (a @ a + b @ b if self.normalizer == "second" else max(lower_bound(D), TINY))
        s.Q = s.Q - mu * D @ s.Q
