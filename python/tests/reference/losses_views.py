"""Losses of pairs of embeddings, of two views, and of classes with centres, from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .losses_embeddings import labelled, through_unit, unit, views
from .losses_logits import Inputs, labels, sigma, softplus


class _Both(ObjectiveReference):
    """`both` gives the value and all gradients."""

    def value(self, **x: np.ndarray) -> float:
        return float(self.both(**x)[0])

    def gradients(self, **x: np.ndarray) -> Inputs:
        return self.both(**x)[1]


class Alignment(_Both):
    name = "alignment"
    defaults = {"alpha": 2.0, "normalize": True}
    settings = ({}, {"alpha": 1.0}, {"alpha": 3.0, "normalize": False})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = views(rng)
        same = {"x": out[1]["x"], "y": out[1]["y"].copy()}
        same["y"][0] = same["x"][0]
        return [*out, same]

    def smooth(self, x: np.ndarray, y: np.ndarray) -> bool:
        return not np.any(np.all(x == y, axis=1))

    def both(self, x, y):
        fix, back = (unit, through_unit) if self.normalize else (lambda a: a, lambda _, g: g)
        apart = fix(x) - fix(y)
        r = np.linalg.norm(apart, axis=1, keepdims=True)
        g = np.where(r > 0, self.alpha * np.where(r > 0, r, 1.0) ** (self.alpha - 2), 0.0) * apart / len(x)
        return np.mean(r**self.alpha), {"x": back(x, g), "y": back(y, -g)}


class Uniformity(_Both):
    name = "uniformity"
    defaults = {"t": 2.0, "normalize": True}
    settings = ({}, {"t": 0.5, "normalize": False})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal(s)} for s in ((1, 3), (2, 3), (6, 2), (300, 3))]

    def both(self, x):
        n = len(x)
        if n == 1:
            return 0.0, {"x": 0 * x}
        u = unit(x) if self.normalize else x
        apart = u[:, None] - u[None]
        e = np.triu(np.exp(-self.t * np.sum(apart**2, axis=2)), 1)
        w = e / np.sum(e)
        w = w + w.T
        g = -2 * self.t * np.sum(w[:, :, None] * apart, axis=1)
        return np.log(np.sum(e) / (n * (n - 1) / 2)), {"x": through_unit(x, g) if self.normalize else g}


class AlignmentUniformity(_Both):
    name = "alignment_uniformity"
    defaults = {"align_weight": 1.0, "unif_weight": 1.0, "alpha": 2.0, "t": 2.0, "normalize": True}
    settings = ({}, {"align_weight": 0.5, "unif_weight": 2.0, "t": 0.7}, {"normalize": False, "alpha": 3.0, "t": 0.3}, {"unif_weight": 0.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng)

    def both(self, x, y):
        near, g = Alignment(alpha=self.alpha, normalize=self.normalize).both(x, y)
        spread = Uniformity(t=self.t, normalize=self.normalize)
        (a, ga), (b, gb) = spread.both(x), spread.both(y)
        half = self.unif_weight / 2
        return self.align_weight * near + half * (a + b), {
            "x": self.align_weight * g["x"] + half * ga["x"], "y": self.align_weight * g["y"] + half * gb["x"]}


class Triplet(_Both):
    name = "triplet"
    defaults = {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False, "squared": False, "reduction": "mean"}
    settings = ({}, {"margin": 0.5, "swap": True}, {"squared": True, "margin": 2.0}, {"p": 1.0}, {"p": 3.0, "swap": True, "eps": 0.0}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{k: rng.standard_normal(s) for k in ("a", "p", "n")} for s in ((1, 3), (300, 4), (5, 2))]

    def _distance(self, x, y):
        u = x - y
        if self.squared:
            return np.sum(u * u, axis=1), 2 * u
        v = u + self.eps
        r = np.sum(np.abs(v) ** self.h["p"], axis=1) ** (1 / self.h["p"])
        return r, np.sign(v) * (np.abs(v) / r[:, None]) ** (self.h["p"] - 1)

    def both(self, a, p, n):
        (ap, dap), (an, dan), (pn, dpn) = self._distance(a, p), self._distance(a, n), self._distance(p, n)
        other = (self.swap & (pn < an))[:, None]
        u = self.margin + ap - np.where(other[:, 0], pn, an)
        w = (u > 0)[:, None] / self.divisor(len(a))
        return np.sum(np.maximum(0, u)) / self.divisor(len(a)), {
            "a": w * (dap - np.where(other, 0, dan)), "p": w * (-dap - np.where(other, dpn, 0)), "n": w * np.where(other, dpn, dan)}


class TripletBatchHard(_Both):
    name = "triplet_batch_hard"
    defaults = {"margin": 0.3, "squared": False, "soft": False, "reduction": "mean"}
    settings = ({}, {"squared": True, "margin": 3.0}, {"soft": True}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return labelled(rng)

    def both(self, x, y):
        n, g, terms = len(x), np.zeros_like(x), []
        for i in range(n):
            r = np.sum((x - x[i]) ** 2, axis=1)
            positive, negative = (y == y[i]) & (np.arange(n) != i), y != y[i]
            if positive.any() and negative.any():
                terms.append((i, int(np.argmax(np.where(positive, r, -1))), int(np.argmin(np.where(negative, r, np.inf)))))
        value = 0.0
        for i, p, q in terms:
            d = [x[i] - x[p], x[i] - x[q]]
            r = [v @ v if self.squared else np.sqrt(v @ v) for v in d]
            s = [2 * v if self.squared else v / k if k > 0 else 0 * v for v, k in zip(d, r)]
            u = self.margin + r[0] - r[1]
            value += (softplus(u) if self.soft else max(0, u)) / self.divisor(len(terms))
            w = (sigma(u) if self.soft else u > 0) / self.divisor(len(terms))
            g[i] += w * (s[0] - s[1])
            g[p] -= w * s[0]
            g[q] += w * s[1]
        return value, {"x": g}


class ContrastivePair(_Both):
    name = "contrastive_pair"
    defaults = {"margin": 1.0, "reduction": "mean"}
    settings = ({}, {"margin": 3.0}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"x": rng.standard_normal((n, 3)), "y": rng.standard_normal((n, 3)), "s": labels(rng, n, 2)} for n in (1, 300)]
        return [*out, {"x": np.ones((2, 3)), "y": np.ones((2, 3)), "s": np.array([0, 1])}]

    def smooth(self, x, y, s) -> bool:
        return not np.array_equal(x, y)

    def both(self, x, y, s):
        d = x - y
        r = np.linalg.norm(d, axis=1)
        miss = np.maximum(0, self.margin - r)
        g = (s - (1 - s) * np.where(r > 0, miss / np.where(r > 0, r, 1.0), 0.0))[:, None] * d / self.divisor(len(x))
        return np.sum(s * r**2 + (1 - s) * miss**2) / 2 / self.divisor(len(x)), {"x": g, "y": -g}


class CosineEmbedding(_Both):
    name = "cosine_embedding"
    defaults = {"margin": 0.0, "reduction": "mean"}
    settings = ({}, {"margin": -0.4}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{**v, "t": rng.choice(np.array([-1, 1]), len(v["x"]))} for v in views(rng)]

    def both(self, x, y, t):
        u, v = unit(x), unit(y)
        c = np.sum(u * v, axis=1)
        slope = np.where(t == 1, -1.0, 1.0 * (c > self.margin))[:, None] / self.divisor(len(x))
        return np.sum(np.where(t == 1, 1 - c, np.maximum(0, c - self.margin))) / self.divisor(len(x)), {
            "x": through_unit(x, slope * v), "y": through_unit(y, slope * u)}


class SimSiam(_Both):
    name = "simsiam"
    defaults = {"reduction": "mean"}
    settings = ({}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"p": v["x"], "z": v["y"]} for v in views(rng)]
        return [*out, {**out[1], "q": rng.standard_normal((4, 5)), "w": rng.standard_normal((4, 5))}]

    def both(self, p, z, q=None, w=None):
        pairs = [("p", p, z)] + ([("q", q, w)] if q is not None else [])
        weight = -1 / (self.divisor(len(p)) * len(pairs))
        return weight * sum(np.sum(unit(a) * unit(b)) for _, a, b in pairs), {k: through_unit(a, weight * unit(b)) for k, a, b in pairs}


class CenterLoss(_Both):
    name = "center_loss"
    defaults = {"weight": 1.0, "alpha": 0.5}
    settings = ({}, {"weight": 0.1, "alpha": 1.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal((n, 3)), "y": labels(rng, n, 4), "centers": rng.standard_normal((4, 3))} for n in (1, 5, 300)]

    def both(self, x, y, centers):
        moved = centers.copy()
        for c in range(len(centers)):
            moved[c] -= self.alpha * np.sum(centers[c] - x[y == c], axis=0) / (1 + np.sum(y == c))
        d = x - centers[y]
        return self.weight / 2 * np.sum(d * d) / len(x), {"x": self.weight * d / len(x), "centers_next": moved}


class ProxyAnchor(_Both):
    name = "proxy_anchor"
    defaults = {"margin": 0.1, "alpha": 32.0}
    settings = ({}, {"margin": 0.3, "alpha": 4.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal((n, 3)), "y": labels(rng, n, c), "proxies": rng.standard_normal((c, 3))} for n, c in ((1, 1), (6, 5), (300, 3))]

    def both(self, x, y, proxies):
        u, v = unit(x), unit(proxies)
        s, own = u @ v.T, y[:, None] == np.arange(len(proxies))
        ep, en = own * np.exp(-self.alpha * (s - self.margin)), ~own * np.exp(self.alpha * (s + self.margin))
        sp, sn = np.sum(ep, axis=0), np.sum(en, axis=0)
        present, c = np.sum(np.any(own, axis=0)), len(proxies)
        d = self.alpha * (en / (1 + sn) / c - ep / (1 + sp) / present)
        return np.sum(np.log1p(sp)) / present + np.sum(np.log1p(sn)) / c, {
            "x": through_unit(x, d @ v), "proxies": through_unit(proxies, d.T @ u)}


class EnergyConfusion(_Both):
    name = "energy_confusion"
    kind = "regularizer"
    defaults = {"weight": 0.1}
    settings = ({}, {"weight": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"w": e["x"], "y": e["y"]} for e in labelled(rng)]

    def both(self, w, y):
        classes, value, g = np.unique(y), 0.0, np.zeros_like(w)
        pairs = [(a, b) for i, a in enumerate(classes) for b in classes[i + 1:]]
        for a, b in pairs:
            p, q = w[y == a], w[y == b]
            value += np.mean(np.sum((p[:, None] - q[None]) ** 2, axis=2)) / len(pairs)
            g[y == a] += 2 * (p - np.mean(q, axis=0)) / (len(p) * len(pairs))
            g[y == b] += 2 * (q - np.mean(p, axis=0)) / (len(q) * len(pairs))
        return self.weight * value, {"w": self.weight * g}


class BarlowTwins(_Both):
    name = "barlow_twins"
    defaults = {"lam": 0.0051, "eps": 1e-5}
    settings = ({}, {"lam": 1.0, "eps": 0.1})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng, ((2, 3), (9, 4), (200, 3)))

    def both(self, x, y):
        n = len(x)
        sd = [np.sqrt(np.var(v, axis=0) + self.eps) for v in (x, y)]
        a, b = ((v - np.mean(v, axis=0)) / s for v, s in zip((x, y), sd))
        c = a.T @ b / n
        eye = np.eye(c.shape[0])
        d = 2 * np.where(eye == 1, c - 1, self.lam * c) / n
        g = {}
        for key, z, s, back in (("x", a, sd[0], b @ d.T), ("y", b, sd[1], a @ d)):
            g[key] = (back - np.mean(back, axis=0) - z * np.mean(back * z, axis=0)) / s
        return np.sum(np.where(eye == 1, (c - 1) ** 2, self.lam * c**2)), g


class VICReg(_Both):
    name = "vicreg"
    defaults = {"sim": 25.0, "std": 25.0, "cov": 1.0, "gamma": 1.0, "eps": 1e-4}
    settings = ({}, {"sim": 1.0, "std": 2.0, "cov": 0.5, "gamma": 3.0, "eps": 0.1})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return views(rng, ((2, 3), (9, 4), (200, 3)))

    def both(self, x, y):
        n, d = x.shape
        value, g = self.sim * np.mean((x - y) ** 2), {}
        for key, v, other in (("x", x, y), ("y", y, x)):
            a = v - np.mean(v, axis=0)
            c = a.T @ a / (n - 1)
            sd = np.sqrt(np.diag(c) + self.eps)
            off = c - np.diag(np.diag(c))
            value += self.std / 2 * np.mean(np.maximum(0, self.gamma - sd)) + self.cov * np.sum(off**2) / d
            back = -self.std / 2 / d * (sd < self.gamma) * a / (sd * (n - 1)) + self.cov * 4 * a @ off / (d * (n - 1))
            g[key] = back - np.mean(back, axis=0) + 2 * self.sim * (v - other) / (n * d)
        return value, g


class TiCo(_Both):
    name = "tico"
    defaults = {"beta": 0.9, "rho": 8.0, "grad_through_batch": True}
    settings = ({}, {"grad_through_batch": False}, {"beta": 0.0, "rho": 1.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out, a = views(rng), rng.standard_normal((5, 5))
        return [*out, {**out[1], "c": a @ a.T / 5}]

    def smooth(self, **_: np.ndarray) -> bool:
        return self.grad_through_batch

    def both(self, x, y, c=None):
        n, u, v = len(x), unit(x), unit(y)
        batch = u.T @ u / n
        now = self.beta * (0 if c is None else c) + (1 - self.beta) * batch
        g = -v / n + 2 * self.rho * u @ now / n
        if self.grad_through_batch:
            g = g + 2 * self.rho * (1 - self.beta) * u @ batch / n
        return 1 - np.sum(u * v) / n + self.rho * np.sum((u @ now) * u) / n, {
            "x": through_unit(x, g), "y": through_unit(y, -u / n), "c_next": now}
