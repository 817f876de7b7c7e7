"""Weights and combinations of the gradients of several tasks, the rows of a Jacobian J."""

from __future__ import annotations

import itertools
import math
from typing import Any, Sequence

import numpy as np

from .aggregators import nonnegative_least_squares
from .base import AggregatorReference, Reference


class Aggregation(Reference):
    """What is no weighted sum of the gradients, or has not a number of tasks of its own: `combine` gives the update."""

    kind = "aggregator"

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        raise NotImplementedError


def faces(m: int) -> Any:
    for size in range(1, m + 1):
        yield from map(list, itertools.combinations(range(m), size))


def shortest(J: np.ndarray) -> np.ndarray:
    """The weights of the shortest vector in the hull of the rows, by trying every face.

    On a face w = w0 + Z y, with the weights adding up to 1: a least squares problem on the rows, never on J J'."""
    m, best, least = len(J), np.eye(len(J))[0], math.inf
    for face in faces(m):
        rows = J[face]
        y = np.linalg.lstsq((rows[1:] - rows[0]).T, -rows[0], rcond=None)[0] if len(face) > 1 else np.zeros(0)
        w = np.concatenate([[1 - y.sum()], y])
        if (w >= -1e-12).all() and np.linalg.norm(w @ rows) < least * (1 - 1e-13):
            best, least = np.zeros(m), float(np.linalg.norm(w @ rows))
            best[face] = w
    return best


class MGDA(AggregatorReference):
    """Multiple gradient descent (Desideri, 2012; Sener and Koltun, 2018)."""

    name = "mgda"
    defaults = {"normalize": "none"}
    settings = ({}, {"normalize": "l2"})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        f = np.ones(len(jacobian))
        if self.normalize == "l2":
            norms = np.linalg.norm(jacobian, axis=1)
            f = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        return shortest(jacobian * f[:, None]) * f


class DualProj(AggregatorReference):
    """Projection of the mean onto the dual cone (Lopez-Paz and Ranzato, 2017)."""

    name = "dualproj"
    defaults = {"pref": None, "norm_eps": 1e-4, "reg_eps": 1e-4}
    settings = ({}, {"reg_eps": 0.01}, {"norm_eps": 1e6}, {"norm_eps": 0.0, "reg_eps": 1e-8})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        m, trace = len(jacobian), float(np.sum(jacobian**2))
        u = np.full(m, 1 / m) if self.pref is None else np.asarray(self.pref, float)
        J = np.zeros_like(jacobian) if trace < self.norm_eps or trace == 0 else jacobian / math.sqrt(trace)
        A = np.vstack([J.T, math.sqrt(self.reg_eps) * np.eye(m)])
        return u + nonnegative_least_squares(A, -A @ u)


class CAGrad(AggregatorReference):
    """Conflict-averse gradient descent (Liu et al., 2021; arXiv 2110.14048): the convex problem is solved on every
    face by Newton's method, and the best face kept."""

    name = "cagrad"
    defaults = {"c": 0.5, "rescale": "none", "norm_eps": 1e-4}
    settings = ({}, {"c": 0.2, "rescale": "squared"}, {"c": 0.9, "rescale": "linear"}, {"c": 0.0}, {"norm_eps": 1e6})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        m, trace = len(jacobian), float(np.sum(jacobian**2))
        if trace < self.norm_eps or trace == 0:
            return np.zeros(m)
        G, b = jacobian @ jacobian.T / trace, np.full(m, 1 / m)
        s = self.c * math.sqrt(b @ G @ b)
        divisor = {"none": 1.0, "squared": 1 + self.c**2, "linear": 1 + self.c}[self.rescale]
        if s == 0:
            return b / divisor

        def value(w: np.ndarray) -> float:
            return float(w @ G @ b + s * math.sqrt(max(0.0, w @ G @ w)))

        best = min((self._on_face(G, G @ b, s, face) for face in faces(m)), key=value)
        q = math.sqrt(max(0.0, best @ G @ best))
        return np.zeros(m) if q < self.norm_eps else (b + s / q * best) / divisor

    @staticmethod
    def _on_face(G: np.ndarray, lin: np.ndarray, s: float, face: list[int]) -> np.ndarray:
        n, out = len(face), np.zeros(len(G))
        K, f, w = G[np.ix_(face, face)], lin[face], np.full(n, 1 / n)

        def value(w: np.ndarray) -> float:
            return float(w @ f + s * math.sqrt(w @ K @ w))

        for _ in range(100 if n > 1 else 0):
            q = math.sqrt(w @ K @ w)
            slope, hessian = f + s * K @ w / q, s * (K / q - np.outer(K @ w, K @ w) / q**3)
            kkt = np.block([[hessian, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
            d = np.linalg.lstsq(kkt, np.append(-slope, 0.0), rcond=None)[0][:n]
            t = 1.0
            while value(w + t * d) > value(w) + 1e-15 and t > 1e-10:
                t /= 2
            w = w + t * d
        out[face] = w
        return out if (w >= -1e-12).all() else np.eye(len(G))[face[0]]


class IMTLG(AggregatorReference):
    """Impartial gradient balance (Liu et al., 2021)."""

    name = "imtl_g"

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        scale = np.linalg.norm(jacobian)
        if scale == 0:
            return np.zeros(len(jacobian))
        J = jacobian / scale
        v = np.linalg.pinv(J @ J.T, rcond=len(J) * 2.0**-52) @ np.linalg.norm(J, axis=1)
        return np.zeros(len(J)) if abs(v.sum()) < 1e-12 else v / v.sum()


def balance(A: np.ndarray, power: float) -> np.ndarray:
    """a > 0 with (A a)_i = a_i^-power, one coordinate after the other by bisection of its increasing equation."""
    a = np.ones(len(A))
    for _ in range(2000):
        before = a.copy()
        for i in range(len(A)):
            rest = A[i] @ a - A[i, i] * a[i]
            low, high = -60.0, 60.0  # of the logarithm
            for _ in range(120):
                mid = (low + high) / 2
                above = A[i, i] * math.exp(mid) + rest > math.exp(-power * mid)
                low, high = (low, mid) if above else (mid, high)
            a[i] = math.exp((low + high) / 2)
        if np.max(np.abs(a - before) / a) < 1e-15:
            break
    return a


class NashMTL(AggregatorReference):
    """Nash bargaining (Navon et al., 2022; arXiv 2202.01017)."""

    name = "nash_mtl"
    defaults = {"max_norm": 1.0, "update_every": 1, "ridge": 0.0}
    settings = ({}, {"max_norm": 0.0}, {"max_norm": 5.0, "ridge": 0.1})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        G = jacobian @ jacobian.T
        s = float(np.linalg.norm(G))
        if s == 0:
            return np.zeros(len(G))
        a = balance(G / s + self.ridge * np.eye(len(G)), 1.0) / math.sqrt(s)
        norm = float(np.linalg.norm(jacobian.T @ a))
        return a * self.max_norm / norm if norm > self.max_norm > 0 else a


class FairGrad(AggregatorReference):
    """Alpha-fair weights (Ban and Ji, 2024; arXiv 2402.15638)."""

    name = "fairgrad"
    defaults = {"alpha": 1.0}
    settings = ({}, {"alpha": 0.5}, {"alpha": 2.0}, {"alpha": 10.0}, {"alpha": 0.0})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        return np.ones(len(jacobian)) if self.alpha == 0 else balance(jacobian @ jacobian.T, 1 / self.alpha)


class AlignedMTL(AggregatorReference):
    """Independent component alignment (Senushkin et al., 2023; arXiv 2305.19000)."""

    name = "aligned_mtl"
    defaults = {"pref": None, "scale_mode": "min"}
    settings = ({}, {"scale_mode": "median"}, {"scale_mode": "rmse"})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        m = len(jacobian)
        pref = np.full(m, 1 / m) if self.pref is None else np.asarray(self.pref, float)
        values, V = np.linalg.eigh(jacobian @ jacobian.T)
        kept = values > values[-1] * m * 2.0**-52
        if not kept.any():
            return pref
        values, V = values[kept], V[:, kept]
        sigma = {"min": values[0], "median": values[(len(values) - 1) // 2], "rmse": values.mean()}[self.scale_mode]
        return math.sqrt(sigma) * V @ np.diag(values**-0.5) @ V.T @ pref


class GradVac(AggregatorReference):
    """Gradient vaccine (Wang et al., 2021; arXiv 2010.05874), on the vectors themselves; phi stays from call to call."""

    name = "gradvac"
    defaults = {"beta": 0.5, "eps": 1e-8}
    settings = ({}, {"beta": 0.0}, {"beta": 1.0})
    phi: np.ndarray | None = None

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        m = len(jacobian)
        orders = np.tile(np.arange(m), (m, 1)) if permutations is None else permutations
        if self.phi is None:
            self.phi = np.zeros((m, m))
        total = np.zeros(m)
        for i in range(m):
            c = np.eye(m)[i]
            for j in orders[i]:
                if j == i:
                    continue
                r, g, phi = jacobian.T @ c, jacobian[j], self.phi[i, j]
                size, other = np.linalg.norm(r), np.linalg.norm(g)
                cos = r @ g / (size * other + self.eps)
                if cos < phi:
                    root, sine = math.sqrt(max(0.0, 1 - cos**2)), math.sqrt(max(0.0, 1 - phi**2))
                    c[j] += size * (phi * root - cos * sine) / (other * sine + self.eps)
                self.phi[i, j] = (1 - self.beta) * phi + self.beta * cos
            total += c
        return total


class ConFIG(AggregatorReference):
    """Conflict-free direction (Liu et al., 2024; arXiv 2408.11104): through the pseudo-inverse of the unit rows."""

    name = "config"
    defaults = {"pref": None}

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        norms = np.linalg.norm(jacobian, axis=1)
        pref = np.ones(len(norms)) if self.pref is None else np.asarray(self.pref, float)
        units = np.divide(jacobian, norms[:, None], out=np.zeros_like(jacobian), where=norms[:, None] > 0)
        inverse = np.linalg.pinv(units)
        d = inverse @ pref
        if not d.any():
            return np.zeros(len(norms))
        u = d / np.linalg.norm(d)
        return np.linalg.lstsq(jacobian.T, (jacobian @ u).sum() * u, rcond=None)[0]


class Krum(Aggregation):
    """Krum (Blanchard et al., 2017)."""

    name = "krum"
    defaults = {"n_selected": 1, "squared": True}
    required = ("n_byzantine",)

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        d = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=2)
        d = d**2 if self.squared else d
        nearest = np.sort(d, axis=1)[:, 1 : 1 + len(d) - self.n_byzantine - 2]
        return jacobian[np.argsort(nearest.sum(axis=1), kind="stable")[: self.n_selected]].mean(axis=0)


class GeometricMedian(AggregatorReference):
    """The geometric median by Weiszfeld's iteration (Pillutla et al., 2019; arXiv 1912.13445)."""

    name = "geometric_median"
    defaults = {"iters": 100, "tol": 1e-6, "nu": 1e-12, "weights": None}
    settings = ({}, {"iters": 3}, {"tol": 1e-12, "iters": 1000}, {"nu": 100.0})

    def weights(self, jacobian: np.ndarray, *, permutations: np.ndarray | None = None) -> np.ndarray:
        w = np.ones(len(jacobian)) if self.h["weights"] is None else np.asarray(self.h["weights"], float)
        c = w / w.sum()
        for _ in range(self.iters):
            z = c @ jacobian
            b = w / np.maximum(np.linalg.norm(jacobian - z, axis=1), self.nu)
            c = b / b.sum()
            if np.linalg.norm(c @ jacobian - z) <= self.tol * max(1.0, float(np.linalg.norm(z))):
                break
        return c


class CoordinateMedian(Aggregation):
    """The median of every entry."""

    name = "coordinate_median"

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        return np.median(jacobian, axis=0)


class TrimmedMean(Aggregation):
    """The mean of every entry without the smallest and the largest (Yin et al., 2018; arXiv 1803.01498)."""

    name = "trimmed_mean"
    defaults = {"trim": 1}

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        return np.sort(jacobian, axis=0)[self.trim : len(jacobian) - self.trim].mean(axis=0)


class GradDrop(Aggregation):
    """Gradient sign dropout (Chen et al., 2020; arXiv 2010.06808); `uniform` has one number a column."""

    name = "graddrop"
    defaults = {"leak": None}

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        leak = np.zeros(len(jacobian)) if self.leak is None else np.asarray(self.leak, float)
        size = np.abs(jacobian).sum(axis=0)
        share = np.divide(jacobian.sum(axis=0), size, out=np.zeros_like(size), where=size > 0)
        P, U = (1 + share) / 2, draws["uniform"]
        mask = ((P > U) & (jacobian > 0)) | ((P < U) & (jacobian < 0))
        return ((leak[:, None] + (1 - leak[:, None]) * mask) * jacobian).sum(axis=0)


class RandomLossWeighting(Aggregation):
    """Random loss weighting (Lin et al., 2022; arXiv 2111.10603); `normal` has one number a task."""

    name = "random_loss_weighting"

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        e = np.exp(draws["normal"])
        return e / e.sum() @ jacobian


class SAMGS(Aggregation):
    """Similarity-aware momentum gradient surgery (Borsani et al., 2025; arXiv 2506.06130)."""

    name = "sam_gs"
    defaults = {"gamma": 0.7, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "trigger": "mean", "match_sum": True,
                "max_norm": 1.0}
    t = 0

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        J, m = jacobian, len(jacobian)
        if self.t == 0:
            self.m, self.v = np.zeros_like(J), 0.0
        self.t += 1
        norms = np.linalg.norm(J, axis=1)
        pairs = [(a, b) for a, b in itertools.combinations(norms, 2)]
        alike = [2 * a * b / (a * a + b * b) if a or b else 1.0 for a, b in pairs]
        S = float(np.mean(alike)) if alike else 1.0
        self.m = self.beta1 * self.m + (1 - self.beta1) * J
        self.v = self.beta2 * self.v + (1 - self.beta2) * (1 - S) ** 2 + self.eps
        if S < self.gamma if self.trigger == "mean" else min(alike, default=1.0) < self.gamma:
            g = sum(row / n * norms.mean() for row, n in zip(J, norms) if n > 0) + 0 * J[0]
        else:
            momentum = np.abs(self.m / (1 - self.beta1**self.t))
            g = (J * momentum).sum(axis=0) / math.sqrt(self.v / (1 - self.beta2**self.t))
        g = m * g if self.match_sum else g
        return g * min(1.0, self.max_norm / (np.linalg.norm(g) + 1e-6)) if self.max_norm > 0 else g


class Bloop(Aggregation):
    """Bilevel orthogonal projection with a moving average (Hsieh et al., 2024; arXiv 2402.02998)."""

    name = "bloop"
    defaults = {"lam": 0.1, "ema": 0.01, "eps": 1e-7, "init": "grad", "ratio_upper_bound": None, "use_ratio_only": False}
    m: np.ndarray | None = None

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        g, a = jacobian
        if self.m is None:
            self.m = g.copy() if self.init == "grad" else np.zeros_like(g)
        self.m = self.m + self.ema * (g - self.m)
        r = self.m @ a / (self.m @ self.m + self.eps)
        r = r if self.ratio_upper_bound is None else min(r, self.ratio_upper_bound)
        if self.use_ratio_only:
            return (1 - self.lam * r) * g + self.lam * a
        return g + self.lam * (a - r * self.m)


class ProGrad(Aggregation):
    """Parts along a second gradient are removed (Zhu et al., 2023; Li et al., 2024, arXiv 2409.05381)."""

    name = "prograd"
    defaults = {"mode": "remove_aligned", "lam": 5.0, "scope": "tensor"}

    def combine(self, jacobian: np.ndarray, *, sizes: Sequence[int] | None = None, **draws: Any) -> np.ndarray:
        whole = self.scope == "global" or sizes is None
        ends = [jacobian.shape[1]] if whole else np.cumsum(sizes)
        return np.concatenate([self._one(*part) for part in np.split(jacobian, ends[:-1], axis=1)])

    def _one(self, g: np.ndarray, h: np.ndarray) -> np.ndarray:
        d = g @ h
        acts = d > 0 if self.mode == "remove_aligned" else d < 0
        return g - self.lam * d / (h @ h) * h if acts else g.copy()


class ODICE(Aggregation):
    """Orthogonal-gradient value learning (Mao et al., 2024; arXiv 2402.00348)."""

    name = "odice"
    defaults = {"eta": 1.0, "tiny": 1e-10}

    def combine(self, jacobian: np.ndarray, **draws: Any) -> np.ndarray:
        f, b, linear = jacobian
        return f + self.eta * (b - f @ b / max(f @ f, self.tiny) * f) + linear
