"""Losses of embeddings with temperatures that adapt, or with domains, from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .losses_embeddings import _Similarities, logsumexp, shares, unit, views
from .losses_logits import Inputs, labels


class MACLFromSimilarities(ObjectiveReference):
    name = "macl_from_similarities"
    defaults = {"temperature": 0.1, "alpha": 0.5, "a0": 0.0, "reweight": True}
    settings = ({}, {"alpha": 0.0, "reweight": False}, {"alpha": 1.0, "a0": -0.5, "temperature": 0.3})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"pos": rng.uniform(-0.3, 1, n), "neg": rng.uniform(-1, 1, (n, k))} for n, k in ((1, 1), (4, 6), (200, 3))]

    def smooth(self, **_: np.ndarray) -> bool:
        return self.alpha == 0 and not self.reweight  # else tau and V are held constant

    def rows(self, pos, neg, tau, valid=None):
        """Terms, dpos and dneg, before the mean."""
        valid = np.ones(neg.shape, bool) if valid is None else valid
        log_neg = logsumexp(neg / tau, valid)
        log_all = np.logaddexp(pos / tau, log_neg)
        rest = np.exp(log_neg - log_all)
        v = 1 / rest if self.reweight else np.ones_like(rest)
        return v * (log_all - pos / tau), -v * rest / tau, (v * rest)[:, None] / tau * shares(neg / tau, valid)

    def tau(self, aligned: float) -> float:
        return self.temperature * (1 + self.alpha * (aligned - self.a0))

    def value(self, pos, neg) -> float:
        return float(np.mean(self.rows(pos, neg, self.tau(np.mean(pos)))[0]))

    def gradients(self, pos, neg) -> Inputs:
        _, dp, dn = self.rows(pos, neg, self.tau(np.mean(pos)))
        return {"pos": dp / len(pos), "neg": dn / len(pos)}


class MACL(_Similarities):
    name = "macl"
    defaults = MACLFromSimilarities.defaults
    settings = MACLFromSimilarities.settings

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": (a := rng.standard_normal(s)), "y": a + rng.standard_normal(s)} for s in ((1, 3), (4, 5), (140, 3))]

    def smooth(self, **_: np.ndarray) -> bool:
        return self.alpha == 0 and not self.reweight

    def loss(self, s: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        n, lists = len(x), MACLFromSimilarities(**self.h)
        if n == 1:
            return 0.0, 0 * s
        i, j = np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)
        valid = np.ones(s.shape, bool)
        valid[i, i] = valid[i, j] = False
        terms, dp, dn = lists.rows(s[i, j], s, lists.tau(np.mean(s[i, j])), valid)
        dn[i, j] += dp
        return np.mean(terms), dn / (2 * n)


class IsoGCLR(_Similarities):
    name = "isogclr"
    defaults = {"gamma": 0.8, "tau_init": 0.07, "tau_min": 0.05, "tau_max": 1.0, "rho": 6.0, "tau_lr": 1e-3, "beta_u": 0.9, "grad_clip": 3.0}
    settings = ({"tau_init": 0.3}, {"gamma": 0.5, "tau_init": 0.5, "rho": 0.1, "tau_lr": 0.1, "beta_u": 0.4, "grad_clip": 0.5})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = views(rng, ((1, 3), (4, 5), (140, 3)))
        seen = {"s": rng.uniform(0.5, 2, 4), "tau": rng.uniform(0.2, 1, 4), "u": rng.standard_normal(4)}
        return [*out, {**out[1], **seen}, {**out[1], **seen, "index": np.array([3, 8, 3, 5])}]

    def smooth(self, **_: np.ndarray) -> bool:
        return False  # W is held constant

    def all(self, z: np.ndarray, x, y, s=None, tau=None, u=None, index=None):
        b = len(x)
        temperature = np.full(b, self.tau_init) if tau is None else tau
        two, sample = np.tile(temperature, 2)[:, None], np.tile(np.arange(b) if index is None else index, 2)
        valid = sample[:, None] != sample
        k = np.sum(valid, axis=1)
        e = np.where(valid, np.exp(z / two), 0.0)
        g = np.sum(e, axis=1) / np.maximum(k, 1)
        new = g if s is None else (1 - self.gamma) * np.tile(s, 2) + self.gamma * g
        w = e / np.where(k > 0, k * new, 1.0)[:, None]
        pos = np.arange(2 * b)[:, None] == (np.arange(2 * b) + b) % (2 * b)
        if b == 1:
            pos = 0 * pos
        before = np.zeros(b) if u is None else u
        with np.errstate(divide="ignore"):
            slope = np.log(new) + self.rho - np.sum(w * z, axis=1) / two[:, 0]
        slope = (slope[:b] + slope[b:]) / 2
        average = (1 - self.beta_u) * before + self.beta_u * np.clip(slope, -self.grad_clip, self.grad_clip)
        none = k[:b] == 0
        return (np.sum(w * z - pos * z) / b, (w - pos) / b, {
            "s_next": np.where(none, 0.0 if s is None else s, (new[:b] + new[b:]) / 2),
            "tau_next": np.where(none, temperature, np.clip(temperature - self.tau_lr * average, self.tau_min, self.tau_max)),
            "u_next": np.where(none, before, average)})

    def loss(self, z: np.ndarray, **x: np.ndarray) -> tuple[float, np.ndarray]:
        return self.all(z, **x)[:2]

    def gradients(self, **x: np.ndarray) -> Inputs:
        u = unit(self.settled(x))
        return {**super().gradients(**x), **self.all(u @ u.T, **x)[2]}


class CADBottleneck(_Similarities):
    name = "cad_bottleneck"
    kind = "regularizer"
    defaults = {"temperature": 0.07, "flipped": True, "normalize": True, "weight": 1.0}
    settings = ({}, {"flipped": False, "temperature": 0.5, "weight": 0.3}, {"normalize": False, "temperature": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"w": rng.standard_normal((n, 3)), "domain": labels(rng, n, 2)} for n in (6, 280)]
        return [*out, {**out[0], "y": labels(rng, 6, 2)}, {"w": rng.standard_normal((3, 2)), "domain": np.ones(3, np.int64)}]

    def settled(self, x: Inputs) -> np.ndarray:
        return x["w"]

    def loss(self, s: np.ndarray, w, domain, y=None) -> tuple[float, np.ndarray]:
        base = ~np.eye(len(s), dtype=bool)
        if y is not None:
            base &= y[:, None] == y
        target = base & ((domain[:, None] != domain) == self.flipped)
        kept = np.any(target, axis=1)
        if not np.any(kept):
            return 0.0, 0 * s
        z, sign, k = s / self.temperature, -1 if self.flipped else 1, np.sum(kept)
        log = np.where(kept, logsumexp(z, target), 0.0) - np.where(kept, logsumexp(z, base), 0.0)
        d = (shares(z, target) - shares(z, base)) * kept[:, None]
        return self.weight * sign * np.sum(log) / k, self.weight * sign * d / (k * self.temperature)

    def gradients(self, **x: np.ndarray) -> Inputs:
        raw = x["w"]
        u = self.rows(raw)
        d = self.loss(u @ u.T, **x)[1]
        return {"w": self.back(raw, (d + d.T) @ u)}
