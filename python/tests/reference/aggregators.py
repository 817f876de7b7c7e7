"""Aggregation of the gradients of several objectives, the rows of a Jacobian J, into one: J' a."""

from __future__ import annotations

import numpy as np

from .base import AggregatorReference


class PCGrad(AggregatorReference):
    """Gradient surgery (Yu et al., 2020; arXiv 2001.06782).

    Row i of `permutations` (m, m) is the order in which task i meets the others (its own entry is passed over);
    without it every task meets them in index order."""

    name = "pcgrad"
    defaults = {"reduction": "sum"}
    settings = ({}, {"reduction": "mean"})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        G = jacobian @ jacobian.T
        m = len(G)
        orders = np.tile(np.arange(m), (m, 1)) if permutations is None else permutations
        total = np.zeros(m)
        for i in range(m):
            c = np.eye(m)[i]  # r = J' c
            for j in orders[i]:
                if j != i and G[j] @ c < 0 and G[j, j] > 0:
                    c[j] -= G[j] @ c / G[j, j]
            total += c
        return total / m if self.reduction == "mean" else total


def nonnegative_least_squares(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """min |A s - b| subject to s >= 0, exactly, by the active-set method of Lawson and Hanson (1974).

    Every accepted point solves the least squares problem of its free columns by an orthogonal factorisation, so the
    error is a few rounding errors times the condition of A, which is the root of that of A'A."""
    n = A.shape[1]
    s, free = np.zeros(n), np.zeros(n, dtype=bool)
    tol = 1e-12 * max(1.0, float(np.abs(A.T @ A).max(initial=0.0))) * max(1.0, float(np.abs(b).max(initial=0.0)))
    for _ in range(50 * n + 50):
        slope = A.T @ (b - A @ s)
        if free.all() or slope[~free].max() <= tol:
            return s
        free[np.flatnonzero(~free)[np.argmax(slope[~free])]] = True
        while True:
            z = np.zeros(n)
            z[free] = np.linalg.lstsq(A[:, free], b, rcond=None)[0]
            out = free & (z <= 0)
            if not out.any():
                break
            s += np.min(s[out] / (s[out] - z[out])) * (z - s)  # back to the boundary
            free &= s > 1e-15 * max(1.0, np.abs(s).max())
            s[~free] = 0.0
        s = z
    raise RuntimeError("the active set did not settle")


class UPGrad(AggregatorReference):
    """UPGrad (Quinton, Rey, 2024; arXiv 2406.16232): the mean of the projections of the gradients onto the cone of
    directions that conflict with none of them.

    The dual problem min v'Gv subject to v >= u has v = u + s, s >= 0, min |A s + A u| with A'A = G.  A stacks J' over
    sqrt(reg_eps) I, so that G itself is never factored."""

    name = "upgrad"
    defaults = {"pref": None, "norm_eps": 1e-4, "reg_eps": 1e-4}
    settings = ({}, {"reg_eps": 0.01}, {"norm_eps": 1e6}, {"norm_eps": 0.0, "reg_eps": 1e-8})

    def gramian(self, jacobian: np.ndarray) -> np.ndarray:
        A = self._root(jacobian)
        return A.T @ A

    def _root(self, jacobian: np.ndarray) -> np.ndarray:
        m, trace = len(jacobian), float(np.sum(jacobian ** 2))
        J = np.zeros_like(jacobian) if trace < self.norm_eps or trace == 0 else jacobian / np.sqrt(trace)
        return np.vstack([J.T, np.sqrt(self.reg_eps) * np.eye(m)])

    def duals(self, jacobian: np.ndarray) -> np.ndarray:
        """The v_i, one a row."""
        m = len(jacobian)
        pref = np.full(m, 1 / m) if self.pref is None else np.asarray(self.pref, dtype=np.float64)
        A = self._root(jacobian)
        return np.array([u + nonnegative_least_squares(A, -A @ u) for u in np.diag(pref)])

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        if not np.isfinite(jacobian).all():
            return np.full(len(jacobian), np.nan)
        return self.duals(jacobian).sum(axis=0)
