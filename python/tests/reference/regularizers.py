"""Penalties: value, (sub)gradient, prox(w, t) = argmin_u |u - w|^2/2 + t value(u); sign(0) = 0, prox(w, 0) = w."""

from __future__ import annotations

import math

import numpy as np

from .base import RegularizerReference


def rows(w: np.ndarray) -> np.ndarray:
    """The matrix view: axis 0 against the rest; a vector (or a number) is one row."""
    return w.reshape(w.shape[0], math.prod(w.shape[1:])) if w.ndim >= 2 else w.reshape(1, -1)


def soft(w: np.ndarray, k: float) -> np.ndarray:
    return np.sign(w) * np.maximum(np.abs(w) - k, 0.0)


def norm(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Euclidean norm, scaled by the largest magnitude so that tiny groups do not underflow; the axis is kept."""
    top = np.max(np.abs(x), axis=axis, keepdims=True, initial=0.0)
    safe = np.where(top > 0, top, 1.0)
    return top * np.sqrt(np.sum((x / safe) ** 2, axis=axis, keepdims=True))


class L1(RegularizerReference):
    """weight |w|_1 (lasso: Tibshirani, 1996)."""

    name = "l1"
    defaults = {"weight": 1e-4}
    settings = ({}, {"weight": 0.3}, {"weight": 0.0})

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.abs(w).sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * np.sign(w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return soft(w, t * self.weight) if t > 0 else w.copy()


class L2(RegularizerReference):
    """weight/2 |w|^2 (ridge: Hoerl, Kennard, 1970); its gradient is the coupled weight decay."""

    name = "l2"
    defaults = {"weight": 1e-4}
    settings = ({}, {"weight": 0.3}, {"weight": 0.0})

    def value(self, w: np.ndarray) -> float:
        return float(self.weight / 2 * np.sum(w * w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * w

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return w / (1 + t * self.weight)


class ElasticNet(RegularizerReference):
    """weight (l1_ratio |w|_1 + (1 - l1_ratio)/2 |w|^2) (Zou, Hastie, 2005; scikit-learn's parameters)."""

    name = "elastic_net"
    defaults = {"weight": 1e-4, "l1_ratio": 0.5}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "l1_ratio": 0.9}, {"weight": 0.3, "l1_ratio": 0.0},
                {"weight": 0.3, "l1_ratio": 1.0})

    def value(self, w: np.ndarray) -> float:
        r = self.l1_ratio
        return float(self.weight * (r * np.abs(w).sum() + (1 - r) / 2 * np.sum(w * w)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * (self.l1_ratio * np.sign(w) + (1 - self.l1_ratio) * w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        k = t * self.weight
        return soft(w, k * self.l1_ratio) / (1 + k * (1 - self.l1_ratio)) if t > 0 else w.copy()


class GroupLasso(RegularizerReference):
    """weight sqrt(size) sum of the Euclidean norms of the rows, of the columns, or of the tensor (Yuan,
    Lin, 2006)."""

    name = "group_lasso"
    defaults = {"weight": 1e-4, "axis": "row", "scale_by_size": True}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "axis": "col"}, {"weight": 0.3, "axis": "all"},
                {"weight": 0.3, "scale_by_size": False}, {"weight": 0.3, "axis": "col", "scale_by_size": False})

    def _groups(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The matrix view, the norms of its groups (broadcastable against it), and the coefficient."""
        x = rows(w)
        along = None if self.axis == "all" or w.ndim < 2 else {"row": 1, "col": 0}[self.axis]
        size = x.size if along is None else x.shape[along]
        return x, norm(x, along), self.weight * (np.sqrt(size) if self.scale_by_size else 1.0)

    def value(self, w: np.ndarray) -> float:
        _, n, c = self._groups(w)
        return float(c * n.sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x, n, c = self._groups(w)
        return (c * x / np.where(n > 0, n, 1.0)).reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        if t == 0:
            return w.copy()
        x, n, c = self._groups(w)
        return (x * np.maximum(1 - t * c / np.where(n > 0, n, 1.0), 0.0)).reshape(w.shape)


class NuclearNorm(RegularizerReference):
    """weight times the sum of the singular values (Fazel, 2002; prox: Cai, Candes, Shen, 2008, arXiv 0810.3286)."""

    name = "nuclear_norm"
    defaults = {"weight": 1e-4, "rtol": 1e-12}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "rtol": 0.4})
    shapes = "matrix"

    def _svd(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if w.ndim < 2:
            raise ValueError("nuclear_norm: a matrix is needed")
        return np.linalg.svd(rows(w), full_matrices=False)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * self._svd(w)[1].sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        U, s, Vt = self._svd(w)
        keep = s > self.rtol * s.max(initial=0.0)
        return (self.weight * U[:, keep] @ Vt[keep]).reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        if t == 0:
            return w.copy()
        U, s, Vt = self._svd(w)
        return ((U * soft(s, t * self.weight)) @ Vt).reshape(w.shape)


class NormLoss(RegularizerReference):
    """weight sum over rows of (1 - |w_r|)^2 (Georgiou, Schmitt, Back, Chen, Lew, 2021; arXiv 2103.06583).

    As in the card: eps inside the root (its place UNVERIFIED), default weight 0.01 (UNVERIFIED), eps = 0
    in the prox."""

    name = "norm_loss"
    defaults = {"weight": 0.01, "eps": 1e-8}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "eps": 0.01})

    def _norms(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(x * x, axis=1, keepdims=True) + self.eps)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.sum((1 - self._norms(rows(w))) ** 2)) if w.size else 0.0

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        n = self._norms(x)
        return (2 * self.weight * (1 - 1 / np.where(n > 0, n, 1.0)) * x).reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        if t == 0:
            return w.copy()
        x, k = rows(w), 2 * t * self.weight
        n = norm(x, 1)
        return (x * np.where(n > 0, (n + k) / (1 + k) / np.where(n > 0, n, 1.0), 0.0)).reshape(w.shape)
