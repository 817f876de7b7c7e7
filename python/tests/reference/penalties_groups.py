"""Penalties of groups, orders and rows."""

from __future__ import annotations

import numpy as np

from .base import RegularizerReference
from .regularizers import GroupLasso, rows, soft


def l1_ball(x: np.ndarray, radius: float) -> np.ndarray:
    """The projection of a vector on |x|_1 <= radius, by sorting."""
    if radius <= 0:
        return 0 * x
    if np.abs(x).sum() <= radius:
        return x.copy()
    u = np.sort(np.abs(x))[::-1]
    theta = (np.cumsum(u) - radius) / np.arange(1, len(u) + 1)
    return soft(x, theta[np.nonzero(u > theta)[0][-1]])


def rising(x: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence, by its definition as a minimum of maxima of means."""
    n = len(x)
    total = np.concatenate([[0.0], np.cumsum(x)])
    mean = lambda j, k: (total[k + 1] - total[j]) / (k + 1 - j)  # noqa: E731
    return np.array([max(min(mean(j, k) for k in range(i, n)) for j in range(i + 1)) for i in range(n)])


class L21(RegularizerReference):
    """weight times the sum of the norms of rows, columns, or the tensor."""

    name = "l21"
    defaults = {"weight": 1e-4, "axis": "row"}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "axis": "col"}, {"weight": 0.3, "axis": "all"}, {"weight": 0.0})

    def _norms(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = rows(w)
        along = None if self.axis == "all" or w.ndim < 2 else 1 if self.axis == "row" else 0
        return x, np.sqrt(np.sum(x * x, axis=along, keepdims=True))

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * self._norms(w)[1].sum())

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x, n = self._norms(w)
        return (self.weight * x / np.where(n > 0, n, 1.0)).reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        x, n = self._norms(w)
        return w.copy() if t == 0 else (x * np.maximum(1 - t * self.weight / np.where(n > 0, n, 1.0), 0.0)).reshape(w.shape)


class SparseGroupLasso(RegularizerReference):
    """weight (l1_ratio |w|_1 + (1 - l1_ratio) group lasso) (Simon et al., 2013)."""

    name = "sparse_group_lasso"
    defaults = {"weight": 1e-4, "l1_ratio": 0.5, "axis": "row", "scale_by_size": True}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "l1_ratio": 0.2, "axis": "col"}, {"weight": 0.3, "axis": "all"},
                {"weight": 0.3, "l1_ratio": 0.8, "scale_by_size": False}, {"weight": 0.3, "l1_ratio": 1.0}, {"weight": 0.3, "l1_ratio": 0.0})

    def _groups(self) -> GroupLasso:
        return GroupLasso(weight=self.weight * (1 - self.l1_ratio), axis=self.axis, scale_by_size=self.scale_by_size)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * self.l1_ratio * np.abs(w).sum() + self._groups().value(w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * self.l1_ratio * np.sign(w) + self._groups().gradient(w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return self._groups().prox(soft(w, t * self.weight * self.l1_ratio), t) if t > 0 else w.copy()


class L1Inf(RegularizerReference):
    """weight times the sum of the largest magnitudes of the groups."""

    name = "l1_inf"
    defaults = {"weight": 1e-4, "axis": "row"}
    settings = ({}, {"weight": 0.3}, {"weight": 0.9, "axis": "col"}, {"weight": 0.9, "axis": "all"}, {"weight": 30.0})

    def _each(self, w: np.ndarray, f) -> np.ndarray:
        if self.axis == "all" or w.ndim < 2:
            return f(w.ravel()).reshape(w.shape)
        return np.apply_along_axis(f, 1 if self.axis == "row" else 0, rows(w)).reshape(w.shape)

    def value(self, w: np.ndarray) -> float:
        x = rows(w)
        along = None if self.axis == "all" or w.ndim < 2 else 1 if self.axis == "row" else 0
        return float(self.weight * np.sum(np.max(np.abs(x), axis=along)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        def first(x: np.ndarray) -> np.ndarray:
            k = np.argmax(np.abs(x))
            return self.weight * np.sign(x[k]) * (np.arange(len(x)) == k)

        return self._each(w, first)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        return self._each(w, lambda x: x - l1_ball(x, t * self.weight))


class Slope(RegularizerReference):
    """weight sum_i seq_i |w|_(i) (Bogdan et al., 2015)."""

    name = "slope"
    defaults = {"weight": 1e-4, "seq": None}
    settings = ({}, {"weight": 0.3}, {"weight": 2.0}, {"weight": 0.0})

    def _seq(self, n: int) -> np.ndarray:
        return np.linspace(1.0, 1 / n, n) if self.seq is None else np.asarray(self.seq, np.float64)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.sum(self._seq(w.size) * np.sort(np.abs(w.ravel()))[::-1]))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        order = np.argsort(-np.abs(w.ravel()), kind="stable")
        g = np.zeros(w.size)
        g[order] = self.weight * self._seq(w.size)
        return (g * np.sign(w.ravel())).reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        x = w.ravel()
        order = np.argsort(-np.abs(x), kind="stable")
        fitted = -rising(-(np.abs(x)[order] - t * self.weight * self._seq(x.size)))
        u = np.zeros(x.size)
        u[order] = np.maximum(fitted, 0.0)
        return (u * np.sign(x)).reshape(w.shape)


class SumOfNorms(RegularizerReference):
    """weight sum_{i<j} c_ij |x_i - x_j| over the rows; the prox by the card's dual iteration."""

    name = "sum_of_norms"
    defaults = {"weight": 1.0, "coef": None, "max_iter": 200, "tol": 1e-8}
    settings = ({}, {"weight": 0.1}, {"weight": 0.02, "max_iter": 7}, {"weight": 0.3, "tol": 1e-3}, {"weight": 0.0})
    shapes = "matrix"

    def _pairs(self, n: int) -> list[tuple[int, int, float]]:
        c = np.ones((n, n)) if self.coef is None else np.asarray(self.coef)
        return [(i, j, c[i, j]) for i in range(n) for j in range(i + 1, n) if c[i, j] > 0]

    def value(self, w: np.ndarray) -> float:
        x = rows(w)
        return float(self.weight * sum(c * np.linalg.norm(x[i] - x[j]) for i, j, c in self._pairs(len(x))))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        x = rows(w)
        g = np.zeros_like(x)
        for i, j, c in self._pairs(len(x)):
            d = x[i] - x[j]
            n = np.linalg.norm(d)
            if n > 0:
                g[i] += self.weight * c * d / n
                g[j] -= self.weight * c * d / n
        return g.reshape(w.shape)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        x, k = rows(w), t * self.weight
        n, pairs = len(x), self._pairs(len(x))
        if k == 0 or not pairs:
            return w.copy()
        i, j, radius = (np.array(v) for v in zip(*pairs))
        radius = k * radius[:, None]

        def primal(z: np.ndarray) -> np.ndarray:
            u = x.copy()
            np.subtract.at(u, i, z)
            np.add.at(u, j, z)
            return u

        z = y = np.zeros((len(pairs), x.shape[1]))
        m = 1.0
        for _ in range(self.max_iter):
            u = primal(y)
            new = y + (u[i] - u[j]) / n
            size = np.linalg.norm(new, axis=1, keepdims=True)
            new = np.where(size > radius, new * radius / np.where(size > 0, size, 1.0), new)
            after = (1 + np.sqrt(1 + 4 * m * m)) / 2
            change, y, z, m = np.max(np.abs(new - z)), new + (m - 1) / after * (new - z), new, after
            if change <= self.tol:
                break
        return primal(z).reshape(w.shape)


class FLOPsReg(RegularizerReference):
    """weight sum_j (mean_i |a_ij|)^2 (Paria et al., 2020; arXiv 2004.05665)."""

    name = "flops_reg"
    defaults = {"weight": 1.0}
    settings = ({}, {"weight": 0.3}, {"weight": 0.0})
    shapes = "matrix"
    has_prox = False

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.sum(np.abs(rows(w)).mean(0) ** 2))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        a = rows(w)
        return (2 * self.weight * np.abs(a).mean(0) * np.sign(a) / len(a)).reshape(w.shape)


class ActivationL1(RegularizerReference):
    """weight mean_i sum_j |a_ij| (same paper)."""

    name = "activation_l1"
    defaults = {"weight": 1.0}
    settings = ({}, {"weight": 0.3})
    shapes = "matrix"
    has_prox = False

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.abs(rows(w)).sum() / len(w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.weight * np.sign(w) / len(w)


class LeastVolume(RegularizerReference):
    """weight exp(mean_j log(s_j + eta)), s_j the standard deviations of the columns (Chen, Fuge, 2024)."""

    name = "least_volume"
    defaults = {"weight": 1e-3, "eta": 1.0, "ddof": 1}
    settings = ({}, {"weight": 0.3}, {"weight": 0.3, "eta": 0.01}, {"weight": 2.0, "ddof": 0})
    shapes = "matrix"
    has_prox = False

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.exp(np.mean(np.log(rows(w).std(0, ddof=self.ddof) + self.eta))))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        z = rows(w)
        s = z.std(0, ddof=self.ddof)
        c = np.where(s > 0, self.value(w) / (z.shape[1] * (s + self.eta) * (len(z) - self.ddof) * np.where(s > 0, s, 1.0)), 0.0)
        return (c * (z - z.mean(0))).reshape(w.shape)
