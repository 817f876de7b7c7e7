"""Objectives of representations, images, estimators and features, from their cards."""

from __future__ import annotations

from math import comb

import numpy as np

from .losses_logits import Inputs, sigma
from .losses_views import _Both


class UFMProximity(_Both):
    name = "ufm_proximity"
    defaults = {"lam_w": 5e-3, "lam_h": 5e-3}
    settings = ({}, {"lam_w": 0.3, "lam_h": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"h": rng.standard_normal((d, n)), "w": rng.standard_normal((k, d)), "h0": rng.standard_normal((d, n)),
                 "y": rng.standard_normal((k, n))} for d, n, k in ((1, 1, 1), (4, 6, 3), (5, 300, 4))]

    def both(self, h, w, h0, y):
        n, k, rest = h.shape[1], len(w), w @ h - y
        value = np.sum(rest**2) / (2 * n) + self.lam_w / (2 * k) * np.sum(w**2) + self.lam_h / (2 * n) * np.sum((h - h0) ** 2)
        return value, {"h": (w.T @ rest + self.lam_h * (h - h0)) / n, "w": rest @ h.T / n + self.lam_w * w / k}


class FCCov(_Both):
    """v_ab as they are defined, one by one."""

    name = "fccov"
    defaults = {"ridge": 1.0}
    settings = ({}, {"ridge": 0.0}, {"ridge": 0.2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n, d in ((1, 2), (6, 3), (40, 2)):
            r = rng.standard_normal((n, 2))
            out.append({"u": rng.standard_normal((n, d)), "distances": np.linalg.norm(r[:, None] - r[None], axis=2)})
        return [*out, {"u": out[1]["u"], "distances": rng.integers(0, 3, (6, 6)).astype(float)}]

    def both(self, u, distances):
        n, c = len(u), u - np.mean(u, axis=0)
        if n == 1:
            return 0.0, {"u": np.zeros_like(u)}
        smaller = distances[:, None, :] < distances[:, :, None]  # a, b, i
        v = np.einsum("abi,id->abd", smaller, c) / n
        cov = c.T @ c / n - np.eye(u.shape[1])
        g = 2 / n**3 * np.einsum("abi,abd->id", smaller, v)
        g = g - np.mean(g, axis=0) - 4 * self.ridge / n * c @ cov
        return np.sum(v**2) / n**2 - self.ridge * np.sum(cov**2), {"u": g}


class EdgeGuidedMSE(_Both):
    name = "edge_guided_mse"
    defaults = {"edge_factor": 1.5, "other_factor": 0.5, "until": 8000}
    settings = ({}, {"edge_factor": 3.0, "until": 5})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"p": rng.random((*s, 3)), "t": rng.random((*s, 3)), "mask": rng.choice([0.0, 0.3, 1.0], s)} for s in ((1,), (5, 7), (300,))]
        return out + [{**out[1], "step": np.array(k)} for k in (0, 3, 6)]

    def both(self, p, t, mask, step=None):
        m = mask[..., None]
        w = self.edge_factor * m**2 + self.other_factor * (1 - m) ** 2
        if step is not None and not (step % 2 == 0 and step < self.until):
            w = np.ones_like(w)
        return np.sum(w * (p - t) ** 2) / p.size, {"p": 2 * w * (p - t) / p.size}


class BinomialURE(_Both):
    name = "binomial_ure"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for size in (1, 6, 300):
            n = rng.integers(1, 9, size)
            n[0] = 4
            out.append({"x": rng.binomial(n, 0.4), "n": n, "m": rng.random(size), "w": rng.random(size)})
        return out

    def both(self, x, n, m, w):
        k = n > 1
        p = x / n
        v = p * (1 - p) / np.where(k, n - 1, 1)
        b = (p - m) ** 2 - v
        return np.mean((w**2 * v + (1 - w) ** 2 * b)[k]), {
            "m": -2 * k * (1 - w) ** 2 * (p - m) / np.sum(k), "w": k * (2 * w * v - 2 * (1 - w) * b) / np.sum(k)}


class FeatureGradients(_Both):
    """With the matrix A, and the derivative of each of its powers."""

    name = "feature_gradients"
    defaults = {"order": 4, "penalty": 1.0, "classification": False}
    settings = ({}, {"order": 2, "penalty": 0.3}, {"order": 1, "classification": True}, {"order": 3, "penalty": 0.0})
    table = {1: (0.60355337,), 2: (1.52705001, -0.34841729), 3: (2.90254224, -1.87216745, 0.0), 4: (4.63445685, -5.19936195, 0.0, 1.50391676)}

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n, d in ((2, 1), (8, 3), (60, 5)):
            x = rng.standard_normal((n, d))
            y = x[:, 0] + 0.3 * rng.standard_normal(n)
            out.append({"scores": rng.standard_normal(d), "x": x, "y": np.sign(y) if self.classification else y})
        return out

    def _z(self, scores, x, y):
        s, n = sigma(scores), len(y)
        a = np.triu(x @ np.diag(s) @ x.T, 1)
        power = [np.linalg.matrix_power(a, k) for k in range(self.order + 1)]
        z, ds = 0.0, np.zeros_like(s)
        for i, c in enumerate(self.table[self.order]):
            if comb(n, i + 2) == 0:
                continue
            z += c / comb(n, i + 2) * y @ power[i + 1] @ y
            for k in range(len(s)):
                u = np.triu(np.outer(x[:, k], x[:, k]), 1)
                ds[k] += c / comb(n, i + 2) * sum(y @ power[j] @ u @ power[i - j] @ y for j in range(i + 1))
        return s, z, ds

    def smooth(self, **x: np.ndarray) -> bool:
        return not self.classification or 0.0 < self._z(**x)[1] < 1.0

    def both(self, scores, x, y):
        s, z, ds = self._z(scores, x, y)
        w = self.penalty / (self.penalty + 1)
        f, outer = 1 - z, -1.0
        if self.classification:
            root = np.sqrt(np.clip(z, 0, 1))
            f, outer = (1 - root) / 2, -0.5 / (2 * (root + 1e-8)) * (0.01 if z < 0 else -0.01 if z > 1 else 1.0)
        g = (1 - w) * outer * ds + w / len(s)
        return (1 - w) * f + w * np.mean(s), {"scores": g * s * (1 - s)}


class MPADDirection(_Both):
    name = "mpad_direction"
    defaults = {"b": 20.0, "alpha": 1.0}
    settings = ({}, {"b": 100.0, "alpha": 0.3}, {"b": 0.01}, {"b": 55.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"w": rng.standard_normal(d), "x": rng.standard_normal((n, d))} for n, d in ((2, 1), (7, 3), (60, 4))]
        return [*out, {**out[1], "found": rng.standard_normal((2, 3))}]

    def both(self, w, x, found=None):
        i, j = np.triu_indices(len(x), 1)
        apart = x[i] - x[j]
        p = apart @ w
        chosen = np.argsort(np.abs(p), kind="stable")[:max(1, int(self.h["b"] / 100 * len(p)))]
        value, g = np.mean(np.abs(p[chosen])), np.mean(np.sign(p[chosen])[:, None] * apart[chosen], axis=0)
        if found is not None:
            value, g = value - self.alpha * np.sum((found @ w) ** 2), g - 2 * self.alpha * (found @ w) @ found
        return value, {"w": g}


class GeneralizedSumPooling(_Both):
    """The threshold by Newton's method from the middle, damped; the vector-Jacobian product through dense Jacobians."""

    name = "generalized_sum_pooling"
    defaults = {"transport_ratio": 0.5, "gamma": 20.0}
    settings = ({}, {"transport_ratio": 0.3, "gamma": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n, k, m in ((1, 1, 2), (3, 4, 5), (20, 2, 9)):
            c = {"c": rng.random((n, k, m))}
            out += [c, {**c, "dw": rng.standard_normal((n, m)), "da": rng.standard_normal((n, k))}]
        return [*out, {"c": np.full((1, 2, 4), 0.3), "dw": rng.standard_normal((1, 4))}]

    def _sample(self, c, dw, da):
        k, m = c.shape
        mu, g, z = self.transport_ratio, self.gamma, -self.gamma * c
        top = np.max(z, axis=0)
        kappa = top + np.log(np.sum(np.exp(z - top), axis=0))
        low, high = -np.max(kappa) - 50, -np.min(kappa) + 50
        for _ in range(200):
            tau = (low + high) / 2
            low, high = (tau, high) if np.mean(sigma(tau + kappa)) < mu else (low, tau)
        s, a = sigma(tau + kappa), np.exp(z - kappa)
        w, share = s / mu, a @ s / (m * mu)
        spread = s * sigma(-tau - kappa)
        ds_dkappa = np.diag(spread) - np.outer(spread, spread) / np.sum(spread)
        grad = np.zeros_like(c)
        for i in range(k):
            for j in range(m):  # by c_ij: kappa_j moves by -g a_ij, column j of a by -g a_ij (e_i - a_j)
                ds = ds_dkappa[:, j] * (-g * a[i, j])
                column = -g * a[i, j] * ((np.arange(k) == i) - a[:, j])
                grad[i, j] = dw @ ds / mu + da @ (a @ ds + column * s[j]) / (m * mu)
        return dw @ w + da @ share, grad, w, share

    def both(self, c, dw=None, da=None):
        n, k, m = c.shape
        dw, da = np.zeros((n, m)) if dw is None else dw, np.zeros((n, k)) if da is None else da
        parts = [self._sample(*v) for v in zip(c, dw, da)]
        value, g, w, a = (np.array(v) for v in zip(*parts))
        return np.sum(value), {"c": g, "w": w, "a": a}


class AttributionPriorTV(_Both):
    name = "attribution_prior_tv"
    kind = "regularizer"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"w": rng.standard_normal(s)} for s in ((1, 1, 1), (2, 3, 5), (40, 4, 1))]

    def both(self, w):
        g, value = np.zeros_like(w), 0.0
        for axis in (1, 2):
            d = np.diff(w, axis=axis)
            value += np.sum(np.abs(d)) / len(w)
            edge = np.zeros_like(np.take(w, [0], axis=axis))
            s = np.sign(d) / len(w)
            g += np.concatenate([edge, s], axis=axis) - np.concatenate([s, edge], axis=axis)
        return value, {"w": g}


class AttributionPriorGraph(_Both):
    name = "attribution_prior_graph"
    kind = "regularizer"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n, p in ((1, 1), (4, 5), (30, 8)):
            e = rng.random((p, p)) * (rng.random((p, p)) < 0.5)
            out.append({"w": rng.standard_normal((n, p)), "edges": e + e.T})
        return out

    def both(self, w, edges):
        m, laplacian = np.mean(np.abs(w), axis=0), np.diag(np.sum(edges, axis=1)) - edges
        return m @ laplacian @ m, {"w": np.sign(w) * 2 * (laplacian @ m) / len(w)}


class AttributionPriorGini(_Both):
    name = "attribution_prior_gini"
    kind = "regularizer"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        equal = np.array([[1.0, -2.0, 2.0, 2.0, 0.5]])
        return [*({"w": rng.standard_normal(s)} for s in ((1, 1), (4, 5), (30, 8))), {"w": np.zeros((2, 3))}, {"w": equal}]

    def smooth(self, w: np.ndarray) -> bool:
        m = np.mean(np.abs(w), axis=0)
        return len(np.unique(m)) == len(m)

    def both(self, w):
        m, p = np.mean(np.abs(w), axis=0), w.shape[1]
        if np.sum(m) == 0:
            return 0.0, {"w": 0 * w}
        apart = m[:, None] - m
        value = -np.sum(np.abs(apart)) / (p * np.sum(m))
        return value, {"w": np.sign(w) / len(w) * (-2 * np.sum(np.sign(apart), axis=1) / (p * np.sum(m)) - value / np.sum(m))}


def knn_kl(x, y, k, k_xy):
    """The divergence of two samples by neighbours, and its gradient by y; arXiv 2306.11670."""
    (n, d), m = x.shape, len(y)
    root = lambda a: np.sqrt(np.maximum(a, 1e-10))  # noqa: E731
    nu, rho = root(np.sum((x[:, None] - y[None]) ** 2, -1)), root(np.sort(np.sum((x[:, None] - x[None]) ** 2, -1) + np.diag(np.full(n, -1.0)), 1)[:, k])
    slope = (y[None] - x[:, None]) / (nu * (nu + 1e-8))[..., None]
    if k_xy is None:
        value, g = np.mean(np.log(nu + 1e-8)), d / (n * m) * slope.sum(0)
        constant = np.mean([np.log(k * m / (j * (n - 1))) for j in range(1, m + 1)])
    else:
        near = np.argsort(nu, axis=1, kind="stable")[:, k_xy - 1]
        value, g = np.mean(np.log(nu[np.arange(n), near] + 1e-8)), np.zeros_like(y)
        np.add.at(g, near, d / n * slope[np.arange(n), near])
        constant = np.log(k * m / (k_xy * (n - 1)))
    return d * value - d * np.mean(np.log(rho + 1e-8)) + constant, g


class KNNKL(_Both):
    name = "knn_kl"
    defaults = {"k": 5, "k_xy": None}
    settings = ({}, {"k": 1}, {"k_xy": 3}, {"k": 2, "k_xy": 1})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal((n, d)), "y": rng.standard_normal((m, d))} for n, m, d in ((6, 3, 1), (40, 9, 4))]

    def both(self, x, y):
        value, g = knn_kl(x, y, self.k, self.k_xy)
        return value, {"y": g}


class GradientMatchCost(_Both):
    name = "gradient_match_cost"
    defaults = {"kind": "cosine"}
    settings = ({}, {"kind": "l2"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"a": rng.standard_normal(s), "b": rng.standard_normal(s)} for s in ((1,), (40,), (3, 4))]
        return [*out, {"a": np.zeros(3), "b": np.ones(3)}]

    def smooth(self, a, b) -> bool:
        return bool(np.any(a))

    def both(self, a, b):
        if self.h["kind"] == "l2":
            return np.sum((a - b) ** 2), {"a": 2 * (a - b)}
        p, q = np.linalg.norm(a), np.linalg.norm(b)
        if p == 0 or q == 0:
            return 1.0, {"a": 0 * a}
        c = np.sum(a * b) / (p * q)
        return 1 - c, {"a": -(b / (p * q) - c * a / p**2)}
