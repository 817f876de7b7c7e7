"""Sets: `project(w)` is the nearest point, `lmo(g)` a point of the set that minimises <g, u>."""

from __future__ import annotations

import numpy as np

from .base import ConstraintReference


class Box(ConstraintReference):
    """lo <= w <= hi."""

    name = "box"
    defaults = {"lo": -1.0, "hi": 1.0}
    settings = ({}, {"lo": -0.2, "hi": 0.5}, {"lo": 0.0, "hi": np.inf}, {"lo": 0.3, "hi": 0.3})

    def project(self, w: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(w, self.lo), self.hi)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        u = np.where(g > 0, self.lo, np.where(g < 0, self.hi, np.clip(0.0, self.lo, self.hi)))
        if np.isinf(u).any():
            raise ValueError("box: unbounded in this direction")
        return u


class Simplex(ConstraintReference):
    """w >= 0 with sum `radius`; the whole tensor or every slice along `axis` (Held, Wolfe, Crowder, 1974; Duchi et
    al., 2008).

    A point whose sum is right to 1e-15 times its length is inside and comes back as it is (the card gives no
    number)."""

    name = "simplex"
    defaults = {"radius": 1.0, "axis": None}
    settings = ({}, {"radius": 2.5}, {"axis": 0}, {"radius": 0.5, "axis": -1})

    def _project(self, w: np.ndarray) -> np.ndarray:
        r, n = self.radius, len(w)
        if n == 0 or (w >= 0).all() and abs(w.sum() - r) <= 1e-15 * n * r:
            return w.copy()
        u = np.sort(w)[::-1]
        theta = (np.cumsum(u) - r) / np.arange(1, n + 1)
        return np.maximum(w - theta[np.nonzero(u > theta)[0][-1]], 0.0)

    def _lmo(self, g: np.ndarray) -> np.ndarray:
        u = np.zeros(len(g))
        u[np.argmin(g)] = self.radius
        return u

    def project(self, w: np.ndarray) -> np.ndarray:
        if self.axis is None:
            return self._project(w.ravel()).reshape(w.shape)
        return np.apply_along_axis(self._project, self.axis, w)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        if self.axis is None:
            return self._lmo(g.ravel()).reshape(g.shape)
        return np.apply_along_axis(self._lmo, self.axis, g)


class L2Ball(ConstraintReference):
    """|w - center| <= radius; the whole tensor or every slice along `axis`.  `center` None is the origin."""

    name = "l2_ball"
    defaults = {"radius": 1.0, "center": None, "axis": None}
    settings = ({}, {"radius": 0.3}, {"radius": 0.3, "axis": 0}, {"radius": 0.3, "axis": -1}, {"radius": 1e6},
                {"radius": 0.0})

    def _norm(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(x * x, axis=self.axis, keepdims=True))

    def project(self, w: np.ndarray) -> np.ndarray:
        c = np.zeros_like(w) if self.center is None else np.asarray(self.center)
        n = self._norm(w - c)
        return np.where(n > self.radius, c + (w - c) * (self.radius / np.where(n > 0, n, 1.0)), w)

    def lmo(self, g: np.ndarray) -> np.ndarray:
        c = np.zeros_like(g) if self.center is None else np.asarray(self.center)
        n = self._norm(g)
        return c - self.radius * g / np.where(n > 0, n, 1.0)


def _sym(A: np.ndarray) -> np.ndarray:
    return (A + A.T) / 2


class Stiefel(ConstraintReference):
    """Matrices with orthonormal columns (rows, when there are fewer of them): Edelman, Arias, Smith, 1998,
    physics/9806030; Cayley step: Wen, Yin, 2013.

    All methods take and give tensors; inside, X is n x p with n >= p and X'X = I."""

    name = "stiefel"
    defaults = {"metric": "euclidean", "retraction": "qr"}
    settings = ({}, {"retraction": "polar"}, {"retraction": "cayley"}, {"metric": "canonical"},
                {"metric": "canonical", "retraction": "cayley"})
    shapes = "matrix"

    @staticmethod
    def _tall(w: np.ndarray) -> np.ndarray:
        if w.ndim < 2:
            raise ValueError("stiefel: a matrix is needed")
        x = w.reshape(w.shape[0], -1)
        return x if x.shape[0] >= x.shape[1] else x.T

    @staticmethod
    def _like(X: np.ndarray, w: np.ndarray) -> np.ndarray:
        flat = (w.shape[0], w.size // w.shape[0])
        return (X if X.shape == flat else X.T).reshape(w.shape)

    @staticmethod
    def _polar(X: np.ndarray) -> np.ndarray:
        U, _, Vt = np.linalg.svd(X, full_matrices=False)
        return U @ Vt

    def project(self, w: np.ndarray) -> np.ndarray:
        return self._like(self._polar(self._tall(w)), w)

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Orthogonal projection onto the tangent space at x."""
        X, G = self._tall(x), self._tall(u)
        return self._like(G - X @ _sym(X.T @ G), x)

    def egrad2rgrad(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return self.proj(x, g)
        X, G = self._tall(x), self._tall(g)
        return self._like(G - X @ G.T @ X, x)

    def inner(self, x: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        X, A, B = self._tall(x), self._tall(a), self._tall(b)
        if self.metric == "canonical":
            B = B - X @ (X.T @ B) / 2
        return float(np.sum(A * B))

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        X, U = self._tall(x), self._tall(u)
        if self.retraction == "qr":
            Q, R = np.linalg.qr(X + U)
            Y = Q * np.where(np.diag(R) < 0, -1.0, 1.0)
        elif self.retraction == "polar":
            Y = self._polar(X + U)
        else:
            eye = np.eye(len(X))
            PU = U - X @ (X.T @ U) / 2
            A = PU @ X.T - X @ PU.T
            Y = np.linalg.solve(eye - A / 2, (eye + A / 2) @ X)
        return self._like(Y, x)

    def transport(self, x: np.ndarray, y: np.ndarray, u: np.ndarray) -> np.ndarray:
        return self.proj(y, u)
