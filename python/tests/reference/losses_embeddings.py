"""Losses that compare all embeddings of a batch, from their cards: dense matrices of similarities."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .losses_logits import Inputs, labels, log_softmax, sigma, softplus


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def through_unit(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The pull-back of u = x/max(|x|, 1e-12)."""
    norm, u = np.linalg.norm(x, axis=1, keepdims=True), unit(x)
    return np.where(norm > 1e-12, (g - np.sum(g * u, axis=1, keepdims=True) * u) / np.maximum(norm, 1e-12), g / 1e-12)


def logsumexp(a: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Over the last axis, -inf of nothing."""
    a = np.where(where, a, -np.inf)
    top = np.max(a, axis=-1, keepdims=True, initial=-1e300)
    with np.errstate(divide="ignore"):
        return (top + np.log(np.sum(np.exp(a - top), axis=-1, keepdims=True)))[..., 0]


def shares(a: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Softmax over the entries that count; zeros in rows with none."""
    log = logsumexp(a, where)[..., None]
    return np.where(where, np.exp(np.where(where, a, 0.0) - np.where(np.isfinite(log), log, 0.0)), 0.0)


class _Similarities(ObjectiveReference):
    """A loss of S = u u' for normalised rows u; `loss` gives the value and dS, with both S_ij and S_ji counted in it."""

    def settled(self, x: Inputs) -> np.ndarray:
        """The rows before they are normalised."""
        return np.concatenate([x["x"], x["y"]]) if x["y"].dtype.kind == "f" else x["x"]

    def loss(self, s: np.ndarray, **x: np.ndarray) -> tuple[float, np.ndarray]:
        raise NotImplementedError

    def rows(self, raw: np.ndarray) -> np.ndarray:
        return unit(raw) if self.h.get("normalize", True) else raw

    def back(self, raw: np.ndarray, g: np.ndarray) -> np.ndarray:
        return through_unit(raw, g) if self.h.get("normalize", True) else g

    def value(self, **x: np.ndarray) -> float:
        u = self.rows(self.settled(x))
        return float(self.loss(u @ u.T, **x)[0])

    def gradients(self, **x: np.ndarray) -> Inputs:
        raw = self.settled(x)
        u = self.rows(raw)
        d = self.loss(u @ u.T, **x)[1]
        g = self.back(raw, (d + d.T) @ u)
        n = len(x["x"])
        return {"x": g[:n], "y": g[n:]} if len(g) > n else {"x": g}


def labelled(rng: np.random.Generator, sizes=((1, 3, 1), (7, 4, 2), (300, 3, 5), (5, 2, 1))) -> list[Inputs]:
    cases = [{"x": rng.standard_normal((n, d)), "y": labels(rng, n, c)} for n, d, c in sizes]
    return [*cases, {"x": rng.standard_normal((4, 3)), "y": np.arange(4)}]


def views(rng: np.random.Generator, sizes=((1, 3), (4, 5), (140, 3))) -> list[Inputs]:
    return [{"x": rng.standard_normal(s), "y": rng.standard_normal(s)} for s in sizes]


class SupCon(_Similarities):
    name = "supcon"
    defaults = {"temperature": 0.1, "base_temperature": None, "relu": False, "normalize": True, "variant": "out"}
    settings = ({}, {"variant": "in", "temperature": 0.3}, {"relu": True, "base_temperature": 0.07}, {"normalize": False, "temperature": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        dead = rng.standard_normal((5, 3))
        dead[1] = -np.abs(dead[1])
        return [*labelled(rng), {"x": dead, "y": np.array([0, 0, 1, 1, 0])}]

    def smooth(self, x: np.ndarray, y: np.ndarray) -> bool:
        return not (self.relu and np.any(np.all(x < 0, axis=1)))

    def rows(self, raw: np.ndarray) -> np.ndarray:
        return super().rows(np.maximum(raw, 0) if self.relu else raw)

    def back(self, raw: np.ndarray, g: np.ndarray) -> np.ndarray:
        if not self.relu:
            return super().back(raw, g)
        return super().back(np.maximum(raw, 0), g) * (raw > 0)

    def pairs(self, y: np.ndarray, **_: np.ndarray) -> np.ndarray:
        return y[:, None] == y

    def loss(self, s: np.ndarray, **x: np.ndarray) -> tuple[float, np.ndarray]:
        tau, others = self.temperature, ~np.eye(len(s), dtype=bool)
        positive = self.pairs(**x) & others
        count = np.sum(positive, axis=1, keepdims=True)
        kept = count[:, 0] > 0
        if not np.any(kept):
            return 0.0, 0 * s
        lp = s / tau - logsumexp(s / tau, others)[:, None]
        p, safe = np.where(others, np.exp(np.minimum(lp, 0)), 0.0), np.maximum(count, 1)
        if self.h.get("variant", "out") == "out":
            terms, d = -np.sum(positive * np.where(positive, lp, 0), axis=1) / safe[:, 0], p - positive / safe
        else:
            inside = np.where(kept, np.sum(p * positive, axis=1), 1.0)
            terms, d = -np.log(inside / safe[:, 0]), p - p * positive / inside[:, None]
        scale = 1.0 if self.h.get("base_temperature") is None else tau / self.base_temperature
        k = np.sum(kept)
        return scale * np.sum(terms[kept]) / k, scale * d * kept[:, None] / (tau * k)


class NTXent(SupCon):
    name = "nt_xent"
    defaults = {"temperature": 0.5, "normalize": True}
    settings = ({}, {"temperature": 0.07}, {"normalize": False, "temperature": 3.0})
    relu = False  # no such hyper-parameter

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng)

    def pairs(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pair = np.tile(np.arange(len(x)), 2)
        return pair[:, None] == pair


class CAREEquivariance(_Similarities):
    name = "care_equivariance"
    defaults = {"chunks": 1}
    settings = ({}, {"chunks": 2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng, ((2, 3), (6, 4), (60, 5)))

    def loss(self, s: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        n, value, d = len(x), 0.0, np.zeros_like(s)
        c = n // self.chunks
        for k in range(self.chunks):
            a = slice(k * c, (k + 1) * c)
            b = slice(n + k * c, n + (k + 1) * c)
            apart = (s[a, a] - s[b, b]) * (1 - np.eye(c))
            value += 2 / c * np.sum(apart**2) / self.chunks
            d[a, a] += 4 / c * apart / self.chunks
            d[b, b] -= 4 / c * apart / self.chunks
        return value, d


class CARE(_Similarities):
    name = "care"
    defaults = {"weight": 0.01, "temperature": 0.5, "chunks": 1}
    settings = ({}, {"weight": 0.7, "chunks": 2, "temperature": 0.2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng, ((2, 3), (6, 4), (60, 5)))

    def loss(self, s: np.ndarray, **x: np.ndarray) -> tuple[float, np.ndarray]:
        a, da = NTXent(temperature=self.temperature).loss(s, **x)
        b, db = CAREEquivariance(chunks=self.chunks).loss(s, **x)
        return a + self.weight * b, da + self.weight * db


class InfoNCE(ObjectiveReference):
    name = "info_nce"
    defaults = {"temperature": 0.07, "symmetric": False, "normalize": True}
    settings = ({}, {"symmetric": True}, {"temperature": 2.0, "normalize": False, "symmetric": True})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"q": rng.standard_normal(s), "k": rng.standard_normal(s)} for s in ((1, 3), (6, 4), (290, 3))]
        out.append({**out[1], "extra": rng.standard_normal((3, 4)), "log_scale": np.array(1.3)})
        return [*out, {**out[0], "extra": rng.standard_normal((2, 3))}, {**out[1], "log_scale": np.array(0.2)}]

    def both(self, q, k, extra=None, log_scale=None):
        scale = 1 / self.temperature if log_scale is None else np.exp(log_scale)
        n, fix = len(q), unit if self.normalize else lambda a: a
        u, v = fix(q), fix(k)
        w = np.concatenate([v, fix(extra)]) if extra is not None else v
        lp = log_softmax(scale * u @ w.T)
        d = (np.exp(lp) - np.eye(*lp.shape)) / n
        value = -np.mean(np.diag(lp))
        if self.symmetric:
            back = log_softmax(scale * v @ u.T)
            value, d = (value - np.mean(np.diag(back))) / 2, d / 2
            d[:, :n] += ((np.exp(back) - np.eye(n)) / n / 2).T
        s, pull = u @ w.T, through_unit if self.normalize else lambda _, g: g
        g = {"q": pull(q, scale * d @ w), "k": pull(k, scale * d[:, :n].T @ u)}
        if log_scale is not None:
            g["log_scale"] = np.array(np.sum(d * s) * scale)
        return float(value), g

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return self.both(**x)[1]


class SigmoidContrastive(ObjectiveReference):
    name = "sigmoid_contrastive"
    defaults = {"log_scale": np.log(10.0), "bias": -10.0}
    settings = ({}, {"log_scale": 0.0, "bias": -3.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"x": rng.standard_normal(s) / 2, "y": rng.standard_normal(s) / 2} for s in ((1, 3), (6, 4), (270, 3))]
        return [*out, {**out[1], "log_scale": np.array(0.7), "bias": np.array(-1.5)}]

    def both(self, x, y, log_scale=None, bias=None):
        t = np.exp(self.h["log_scale"] if log_scale is None else log_scale)
        b = self.h["bias"] if bias is None else bias
        n, s = len(x), x @ y.T
        sign = 2 * np.eye(n) - 1
        d = -sign * sigma(-sign * (t * s + b)) / n
        g = {"x": t * d @ y, "y": t * d.T @ x}
        if log_scale is not None:
            g |= {"log_scale": np.array(np.sum(d * t * s)), "bias": np.array(np.sum(d))}
        return float(np.sum(softplus(-sign * (t * s + b))) / n), g

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return self.both(**x)[1]


def circle_terms(s_p, s_n, has_p, has_n, m: float, gamma: float):
    """lp, ln and their slopes with the weights a_p, a_n frozen."""
    a_p, a_n = np.maximum(0, 1 + m - s_p), np.maximum(0, s_n + m)
    return -gamma * a_p * (s_p - (1 - m)), gamma * a_n * (s_n - m), -gamma * a_p * has_p, gamma * a_n * has_n


class Circle(_Similarities):
    name = "circle"
    defaults = {"margin": 0.25, "gamma": 80.0, "mode": "anchor"}
    settings = ({}, {"margin": 0.4, "gamma": 5.0}, {"mode": "batch", "gamma": 10.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return labelled(rng)

    def smooth(self, **_: np.ndarray) -> bool:
        return False  # a_p and a_n are held constant

    def loss(self, s: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        others = ~np.eye(len(s), dtype=bool)
        if self.mode == "batch":
            others = np.triu(others)
        positive, negative = (y[:, None] == y) & others, (y[:, None] != y) & others
        if self.mode == "batch":
            flat = [a.reshape(1, -1) for a in (s, positive, negative)]
            value, d = self._anchors(*flat)
            return value, d.reshape(s.shape)
        return self._anchors(s, positive, negative)

    def _anchors(self, s, positive, negative):
        lp, ln, dp, dn = circle_terms(s, s, positive, negative, self.margin, self.gamma)
        kept = np.any(positive, axis=1) & np.any(negative, axis=1)
        if not np.any(kept):
            return 0.0, 0 * s
        z = np.where(kept, logsumexp(lp, positive) + logsumexp(ln, negative), 0.0)
        d = (sigma(z) * kept)[:, None] * (shares(lp, positive) * dp + shares(ln, negative) * dn)
        return np.sum(softplus(z) * kept) / np.sum(kept), d / np.sum(kept)


class CircleFromSimilarities(ObjectiveReference):
    name = "circle_from_similarities"
    defaults = {"margin": 0.25, "gamma": 80.0}
    settings = ({}, {"margin": 0.4, "gamma": 10.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"s_p": rng.uniform(-1, 1, (n, p)), "s_n": rng.uniform(-1, 1, (n, q))} for n, p, q in ((1, 1, 1), (5, 1, 9), (300, 3, 4))]

    def smooth(self, **_: np.ndarray) -> bool:
        return False

    def both(self, s_p, s_n):
        p, q = np.ones(s_p.shape, bool), np.ones(s_n.shape, bool)
        lp, ln, dp, dn = circle_terms(s_p, s_n, p, q, self.margin, self.gamma)
        z = logsumexp(lp, p) + logsumexp(ln, q)
        g = sigma(z)[:, None] / len(z)
        return float(np.mean(softplus(z))), {"s_p": g * shares(lp, p) * dp, "s_n": g * shares(ln, q) * dn}

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return self.both(**x)[1]


class MultiSimilarity(_Similarities):
    name = "multi_similarity"
    defaults = {"alpha": 2.0, "beta": 50.0, "base": 0.5}
    settings = ({}, {"alpha": 1.0, "beta": 4.0, "base": 0.2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return labelled(rng)

    def loss(self, s: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        others, n = ~np.eye(len(s), dtype=bool), len(s)
        p, q = (y[:, None] == y) & others, y[:, None] != y
        ep, eq = p * np.exp(-self.alpha * (s - self.base)), q * np.exp(self.beta * (s - self.base))
        sp, sq = np.sum(ep, axis=1, keepdims=True), np.sum(eq, axis=1, keepdims=True)
        return np.sum(np.log1p(sp) / self.alpha + np.log1p(sq) / self.beta) / n, (eq / (1 + sq) - ep / (1 + sp)) / n
