"""Sets of numbers, lines and vectors: `project(w)` is the nearest point, `lmo(g)` a point that minimises <g, u>."""

from __future__ import annotations

import numpy as np

from .base import ConstraintReference
from .penalties_groups import l1_ball, rising
from .regularizers import rows


class NonNegative(ConstraintReference):
    name = "non_negative"
    bounded = False

    def project(self, w: np.ndarray) -> np.ndarray:
        return np.maximum(w, 0.0)


class WeightClip(ConstraintReference):
    name = "weight_clip"
    defaults = {"clip": 0.01}
    settings = ({}, {"clip": 0.5})

    def project(self, w: np.ndarray) -> np.ndarray:
        return np.clip(w, -self.clip, self.clip)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return -self.clip * np.sign(g)


class LinfBall(ConstraintReference):
    name = "linf_ball"
    defaults = {"radius": 1.0}
    settings = ({}, {"radius": 0.2}, {"radius": 0.0})

    def project(self, w: np.ndarray) -> np.ndarray:
        return np.clip(w, -self.radius, self.radius)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return -self.radius * np.sign(g)


def along(f, axis: int | None, w: np.ndarray) -> np.ndarray:
    return f(w.ravel()).reshape(w.shape) if axis is None else np.apply_along_axis(f, axis, w)


class L1Ball(ConstraintReference):
    name = "l1_ball"
    defaults = {"radius": 1.0, "axis": None}
    settings = ({}, {"radius": 0.3}, {"radius": 0.3, "axis": 0}, {"radius": 2.0, "axis": -1}, {"radius": 0.0})

    def project(self, w: np.ndarray) -> np.ndarray:
        return along(lambda x: l1_ball(x, self.radius), self.axis, w)

    def _lmo(self, g: np.ndarray) -> np.ndarray:
        k = np.argmax(np.abs(g))
        return -self.radius * np.sign(g[k]) * (np.arange(len(g)) == k)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return along(self._lmo, self.axis, g)


class CappedSimplex(ConstraintReference):
    """0 <= w <= cap with a given sum, by bisection."""

    name = "capped_simplex"
    defaults = {"total": 1.0, "cap": 1.0, "axis": None}
    settings = ({}, {"total": 0.5, "cap": 0.5}, {"total": 0.75, "axis": 0}, {"total": 0.6, "cap": 0.7, "axis": -1}, {"total": 0.0})

    def _project(self, x: np.ndarray) -> np.ndarray:
        low, high = x.min() - self.cap, x.max()
        for _ in range(200):
            middle = (low + high) / 2
            above = np.sum(np.clip(x - middle, 0, self.cap)) > self.total
            low, high = (middle, high) if above else (low, middle)
        return np.clip(x - high, 0, self.cap)

    def project(self, w: np.ndarray) -> np.ndarray:
        return along(self._project, self.axis, w)

    def _lmo(self, g: np.ndarray) -> np.ndarray:
        u, rest = np.zeros(len(g)), self.total
        for k in np.argsort(g, kind="stable"):
            u[k] = min(self.cap, rest)
            rest -= u[k]
        return u

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return along(self._lmo, self.axis, g)


class MaxNorm(ConstraintReference):
    """Rows of norm at most max_norm."""

    name = "max_norm"
    defaults = {"max_norm": 3.0}
    settings = ({}, {"max_norm": 0.5})

    def project(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        n = np.linalg.norm(x, axis=1, keepdims=True)
        return np.where(n > self.max_norm, x * (self.max_norm / np.where(n > 0, n, 1.0)), x).reshape(w.shape)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        x = rows(g)
        n = np.linalg.norm(x, axis=1, keepdims=True)
        return (-self.max_norm * x / np.where(n > 0, n, 1.0)).reshape(g.shape)


class L0Ball(ConstraintReference):
    """At most k entries that are not zero."""

    name = "l0_ball"
    required = ("k",)
    settings = ({"k": 0}, {"k": 1}, {"k": 6})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return self.k <= np.prod(shape, dtype=int)

    def project(self, w: np.ndarray) -> np.ndarray:
        u = np.zeros(w.size)
        keep = np.argsort(-np.abs(w.ravel()), kind="stable")[: self.k]
        u[keep] = w.ravel()[keep]
        return u.reshape(w.shape)


class Monotone(ConstraintReference):
    """Numbers that do not fall."""

    name = "monotone"
    bounded = False

    def project(self, w: np.ndarray) -> np.ndarray:
        return rising(w.ravel()).reshape(w.shape)


class Halfspace(ConstraintReference):
    name = "halfspace"
    required = ("a", "b")
    settings = ({"a": [1.0, -2.0, 0.5, 0.0, 1.0, 3.0, 2.0], "b": 0.5}, {"a": [0.0] * 7, "b": 0.0})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return np.prod(shape, dtype=int) == len(self.a)

    def _excess(self, w: np.ndarray) -> float:
        return max(np.dot(self.a, w.ravel()) - self.b, 0.0)

    def project(self, w: np.ndarray) -> np.ndarray:
        a = np.asarray(self.a)
        return w - (self._excess(w) / max(a @ a, 1e-300) * a).reshape(w.shape)


class Hyperplane(Halfspace):
    name = "hyperplane"

    def _excess(self, w: np.ndarray) -> float:
        return np.dot(self.a, w.ravel()) - self.b


class Affine(ConstraintReference):
    """A w = b; contradictory equations in the sense of least squares."""

    name = "affine"
    required = ("A", "b")
    defaults = {"A": None, "b": None, "least_squares": False}
    _A = [[1.0, -2.0, 0.5, 0.0, 1.0, 3.0, 2.0], [0.0, 1.0, 1.0, -1.0, 2.0, 0.0, 1.0]]
    settings = ({"A": _A, "b": [0.5, -1.0]}, {"A": [*_A, _A[0]], "b": [0.5, -1.0, 0.7], "least_squares": True})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return np.prod(shape, dtype=int) == 7

    def project(self, w: np.ndarray) -> np.ndarray:
        A = np.asarray(self.A)
        return w - (np.linalg.pinv(A) @ (A @ w.ravel() - np.asarray(self.b))).reshape(w.shape)


class SecondOrderCone(ConstraintReference):
    """The norm of all entries but the last is at most the last."""

    name = "second_order_cone"
    bounded = False

    def project(self, w: np.ndarray) -> np.ndarray:
        x, s = w.ravel()[:-1], w.ravel()[-1]
        n = np.linalg.norm(x)
        if n <= s:
            return w.copy()
        c = max((n + s) / 2, 0.0)
        return np.append(c * x / max(n, 1e-300), c).reshape(w.shape)


class PSDCone(ConstraintReference):
    """Symmetric matrices with eigenvalues of at least eps."""

    name = "psd_cone"
    defaults = {"eps": 0.0}
    settings = ({}, {"eps": 0.1})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and shape[0] ** 2 == np.prod(shape)

    def project(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        e, V = np.linalg.eigh((x + x.T) / 2)
        return ((V * np.maximum(e, self.eps)) @ V.T).reshape(w.shape)


class DoublyStochastic(ConstraintReference):
    """Rows and columns of sum 1, no negative entries; tolerances small enough to reach the nearest point."""

    name = "doubly_stochastic"
    defaults = {"iters": 100, "temperature": 1.0, "tol": 1e-6, "projection": "euclidean"}
    settings = ({"projection": "sinkhorn", "iters": 30}, {"projection": "sinkhorn", "iters": 7, "temperature": 0.3},
                {"iters": 50}, {"iters": 200000, "tol": 1e-17})

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and shape[0] ** 2 == np.prod(shape)

    def project(self, w: np.ndarray) -> np.ndarray:
        x, n = rows(w), len(w)
        if self.projection == "sinkhorn":
            L = x / self.temperature
            for _ in range(self.iters):
                for axis in (1, 0):
                    L = L - L.max(axis, keepdims=True)
                    L = L - np.log(np.sum(np.exp(L), axis, keepdims=True))
            return np.exp(L).reshape(w.shape)
        p = np.zeros_like(x)
        for _ in range(self.iters):
            r, c = x.sum(1, keepdims=True) - 1, x.sum(0, keepdims=True) - 1
            y = x - r / n - c / n + r.sum() / n**2 + p
            new = np.maximum(y, 0.0)
            p, moved, x = y - new, np.max(np.abs(new - x)), new
            if moved <= self.tol:
                break
        return x.reshape(w.shape)
