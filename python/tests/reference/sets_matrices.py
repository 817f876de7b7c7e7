"""Sets of matrices by their singular values, and the graphs of operations."""

from __future__ import annotations

import itertools

import numpy as np

from .base import ConstraintReference
from .penalties_groups import l1_ball
from .penalties_terms import bisect
from .regularizers import rows


class _Singular(ConstraintReference):
    shapes = "matrix"

    def _map(self, w: np.ndarray, f) -> np.ndarray:
        U, s, Vt = np.linalg.svd(rows(w), full_matrices=False)
        return ((U * f(s)) @ Vt).reshape(w.shape)


class SpectralBall(_Singular):
    name = "spectral_ball"
    defaults = {"radius": 1.0}
    settings = ({}, {"radius": 0.3}, {"radius": 0.0})

    def project(self, w: np.ndarray) -> np.ndarray:
        return self._map(w, lambda s: np.minimum(s, self.radius))

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return self._map(g, lambda s: -self.radius * (s > 1e-12 * s[0]))


class NuclearBall(_Singular):
    name = "nuclear_ball"
    defaults = {"radius": 1.0}
    settings = ({}, {"radius": 0.3}, {"radius": 0.0})

    def project(self, w: np.ndarray) -> np.ndarray:
        return self._map(w, lambda s: l1_ball(s, self.radius))

    def lmo(self, g: np.ndarray) -> np.ndarray:
        return self._map(g, lambda s: -self.radius * (np.arange(len(s)) == 0))


class LowRank(_Singular):
    name = "low_rank"
    required = ("rank",)
    settings = ({"rank": 1}, {"rank": 3})
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and self.rank <= min(shape[0], np.prod(shape[1:]))

    def project(self, w: np.ndarray) -> np.ndarray:
        return self._map(w, lambda s: s * (np.arange(len(s)) < self.rank))


class _Graph(ConstraintReference):
    """Lines (inputs, output) of the last axis."""

    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return bool(shape) and shape[-1] >= 2

    def project(self, w: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(self._line, -1, w)

    def _line(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class GraphIdentity(_Graph):
    name = "graph_identity"

    def _line(self, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, x.mean())


class GraphSum(_Graph):
    """The hyperplane <(1, ..., 1, -1), x> = 0."""

    name = "graph_sum"

    def _line(self, x: np.ndarray) -> np.ndarray:
        a = np.append(np.ones(len(x) - 1), -1.0)
        return x - (a @ x) / len(x) * a


class GraphMax(_Graph):
    """The best of all ways to say which inputs are the maximum."""

    name = "graph_max"

    def _line(self, x: np.ndarray) -> np.ndarray:
        best, out = np.inf, x
        order = np.argsort(-x[:-1], kind="stable")
        for k in range(1, len(x)):
            u = x.copy()
            at = [*order[:k], len(x) - 1]
            u[at] = x[at].mean()
            if k < len(x) - 1 and x[order[k]] > u[-1]:
                continue
            cost = np.sum((u - x) ** 2)
            if cost < best:
                best, out = cost, u
        return out


class GraphReLU(_Graph):
    name = "graph_relu"

    def takes(self, shape: tuple[int, ...]) -> bool:
        return shape[-1:] == (2,)

    def _line(self, x: np.ndarray) -> np.ndarray:
        m = max(x.mean(), 0.0)
        a, b = np.array([min(x[0], 0.0), 0.0]), np.array([m, m])
        return a if np.sum((a - x) ** 2) < np.sum((b - x) ** 2) else b


class GraphSumReLU(_Graph):
    name = "graph_sum_relu"

    def _line(self, x: np.ndarray) -> np.ndarray:
        a, z = x[:-1], x[-1]
        n, s = len(a), x[:-1].sum()
        flat = np.append(a - max(s, 0.0) / n, 0.0)
        t = (z - s) / (n + 1)
        up = np.append(a + t, z - t) if z - t >= 0 else np.append(a - s / n, 0.0)
        return flat if np.sum((flat - x) ** 2) < np.sum((up - x) ** 2) else up


class GraphDot(_Graph):
    """Lines (a, b, z) with z = <a, b>; the multiplier by bisection."""

    name = "graph_dot"
    defaults = {"root_steps": 20}
    settings = ({"root_steps": 80},)
    limit = 10.0  # z is as large as the square of the other entries

    def takes(self, shape: tuple[int, ...]) -> bool:
        return bool(shape) and shape[-1] >= 3 and shape[-1] % 2 == 1

    def _line(self, x: np.ndarray) -> np.ndarray:
        d = len(x) // 2
        a, b, z = x[:d], x[d:-1], x[-1]
        p, q = a @ b, a @ a + b @ b
        edge = 1 - 1e-12
        t = float(bisect(lambda t: ((1 + t * t) * p + t * q) / (1 - t * t) ** 2 - z + t, np.array(-edge), np.array(edge)))
        return np.concatenate([(a + t * b) / (1 - t * t), (b + t * a) / (1 - t * t), [z - t]])


def least_cost(cost: np.ndarray) -> float:
    """Of all assignments, by trying them."""
    n = len(cost)
    return min(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(n)))
