"""Manifolds: `egrad2rgrad` makes a gradient a tangent, `retract` a tangent step a point, `project` any tensor a point."""

from __future__ import annotations

import numpy as np

from .base import ConstraintReference
from .regularizers import rows


def sym(A: np.ndarray) -> np.ndarray:
    return (A + A.T) / 2


class _Round(ConstraintReference):
    """Rows of one norm."""

    def _rows(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(1, -1) if self.name == "sphere" else rows(w)

    def _r(self) -> float:
        return self.h.get("radius", 1.0)

    def project(self, w: np.ndarray) -> np.ndarray:
        x = self._rows(w)
        n = np.linalg.norm(x, axis=1, keepdims=True)
        first = np.eye(x.shape[1])[:1]
        return (self._r() * np.where(n > 0, x / np.where(n > 0, n, 1.0), first)).reshape(w.shape)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = self._rows(x), self._rows(u)
        return (U - X * np.sum(X * U, axis=1, keepdims=True) / self._r() ** 2).reshape(x.shape)

    egrad2rgrad = proj

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        if self.retraction == "project":
            return self.project(x + u)
        X, U, r = self._rows(x), self._rows(u), self._r()
        n = np.linalg.norm(U, axis=1, keepdims=True)
        return self.project((np.cos(n / r) * X + r * np.sin(n / r) * U / np.where(n > 0, n, 1.0)).reshape(x.shape))

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return -self.project(g)


class Sphere(_Round):
    name = "sphere"
    defaults = {"radius": 1.0, "retraction": "exp"}
    settings = ({}, {"radius": 2.5}, {"radius": 0.3, "retraction": "project"})


class Oblique(_Round):
    name = "oblique"
    defaults = {"retraction": "exp"}
    settings = ({}, {"retraction": "project"})


class Grassmann(ConstraintReference):
    name = "grassmann"
    defaults = {"retraction": "polar"}
    settings = ({}, {"retraction": "qr"}, {"retraction": "exp"})
    shapes = "matrix"
    bounded = False

    def _tall(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        return x if x.shape[0] >= x.shape[1] else x.T

    def _like(self, X: np.ndarray, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        return (X if x.shape[0] >= x.shape[1] else X.T).reshape(w.shape)

    @staticmethod
    def _polar(X: np.ndarray) -> np.ndarray:
        U, _, Vt = np.linalg.svd(X, full_matrices=False)
        return U @ Vt

    def project(self, w: np.ndarray) -> np.ndarray:
        return self._like(self._polar(self._tall(w)), w)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, G = self._tall(x), self._tall(u)
        return self._like(G - X @ (X.T @ G), x)

    egrad2rgrad = proj

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = self._tall(x), self._tall(u)
        if self.retraction == "polar":
            return self._like(self._polar(X + U), x)
        if self.retraction == "qr":
            Q, R = np.linalg.qr(X + U)
            return self._like(Q * np.where(np.diag(R) < 0, -1.0, 1.0), x)
        P, s, Vt = np.linalg.svd(U, full_matrices=False)
        return self._like(X @ Vt.T @ np.diag(np.cos(s)) @ Vt + P @ np.diag(np.sin(s)) @ Vt, x)


class PoincareBall(ConstraintReference):
    """Points along the last axis (Becigneul, Ganea, 2019; arXiv 1810.00760)."""

    name = "poincare_ball"
    defaults = {"c": 1.0, "eps": 1e-5, "retraction": "exp"}
    settings = ({"eps": 4e-3}, {"c": 0.3, "eps": 4e-3}, {"c": 2.0, "eps": 1e-2, "retraction": "project"})
    bounded = False

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sum(np.atleast_1d(a * b), axis=-1, keepdims=a.ndim > 0)

    def project(self, w: np.ndarray) -> np.ndarray:
        n, edge = np.sqrt(self._dot(w, w)), (1 - self.eps) / np.sqrt(self.c)
        return np.where(n > edge, w * edge / np.where(n > 0, n, 1.0), w)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return u

    def egrad2rgrad(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        return g * ((1 - self.c * self._dot(x, x)) / 2) ** 2

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        c, xy, xx, yy = self.c, self._dot(x, y), self._dot(x, x), self._dot(y, y)
        return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy)

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        x = self.project(x)
        if self.retraction == "project":
            return self.project(x + u)
        r, n = np.sqrt(self.c), np.sqrt(self._dot(u, u))
        lam = 2 / (1 - self.c * self._dot(x, x))
        return self.project(self.add(x, np.tanh(r * lam * n / 2) * u / (r * np.where(n > 0, n, 1.0))))


class Lorentz(ConstraintReference):
    """Points along the last axis of the hyperboloid <x, x> = -1/c (Nickel, Kiela, 2018; arXiv 1806.03417)."""

    name = "lorentz"
    defaults = {"c": 1.0}
    settings = ({}, {"c": 0.3}, {"c": 3.0})
    bounded = False

    @staticmethod
    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        flip = np.ones(a.shape[-1])
        flip[0] = -1
        return np.sum(flip * a * b, axis=-1, keepdims=True)

    def project(self, w: np.ndarray) -> np.ndarray:
        x = np.atleast_1d(w).copy()
        x[..., 0] = np.sqrt(1 / self.c + np.sum(x[..., 1:] ** 2, axis=-1))
        return x.reshape(w.shape)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = np.atleast_1d(x), np.atleast_1d(u)
        return (U + self.c * self.dot(X, U) * X).reshape(x.shape)

    def egrad2rgrad(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        G = np.atleast_1d(g).copy()
        G[..., 0] *= -1
        return self.proj(x, G.reshape(x.shape))

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = np.atleast_1d(x), np.atleast_1d(u)
        n = np.sqrt(np.maximum(self.c * self.dot(U, U), 0.0))
        return self.project((np.cosh(n) * X + np.where(n > 0, np.sinh(n) / np.where(n > 0, n, 1.0), 1.0) * U).reshape(x.shape))


class SPD(ConstraintReference):
    """Symmetric positive definite matrices, affine-invariant metric."""

    name = "spd"
    defaults = {"retraction": "exp", "eps": 1e-10}
    settings = ({"eps": 0.1}, {"retraction": "second", "eps": 0.1})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and shape[0] ** 2 == np.prod(shape)

    @staticmethod
    def power(x: np.ndarray, f) -> np.ndarray:
        e, V = np.linalg.eigh(x)
        return (V * f(e)) @ V.T

    def project(self, w: np.ndarray) -> np.ndarray:
        return self.power(sym(rows(w)), lambda e: np.maximum(e, self.eps)).reshape(w.shape)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return sym(rows(u)).reshape(x.shape)

    def egrad2rgrad(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        X = rows(x)
        return (X @ sym(rows(g)) @ X).reshape(x.shape)

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = rows(x), rows(u)
        if self.retraction == "second":
            return sym(X + U + U @ np.linalg.inv(X) @ U / 2).reshape(x.shape)
        half, back = self.power(X, np.sqrt), self.power(X, lambda e: 1 / np.sqrt(e))
        return sym(half @ self.power(sym(back @ U @ back), np.exp) @ half).reshape(x.shape)
