"""Losses of single predictions, pairs of predictions and whole masks, from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .losses_logits import Inputs, labels, log_softmax, sigma, softplus

RESIDUALS = ((1,), (700,), (3, 4), ())


class _Pair(ObjectiveReference):
    """`both` gives the terms and their derivatives; the mean is over all of them."""

    defaults = {"reduction": "mean"}
    settings = ({}, {"reduction": "sum"})
    first = "p"

    def value(self, **x: np.ndarray) -> float:
        return float(np.sum(self.both(**x)[0]) / self._divisor(**x))

    def gradients(self, **x: np.ndarray) -> Inputs:
        return {self.first: self.both(**x)[1] / self._divisor(**x)}

    def _divisor(self, **x: np.ndarray) -> int:
        return x[self.first].size if self.reduction == "mean" else 1

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"p": 2 * rng.standard_normal(s), "t": rng.standard_normal(s)} for s in map(tuple, RESIDUALS)]


class MSE(_Pair):
    name = "mse"

    def both(self, p: np.ndarray, t: np.ndarray):
        return (p - t) ** 2, 2 * (p - t)


class Huber(_Pair):
    name = "huber"
    defaults = {"delta": 1.0, "reduction": "mean"}
    settings = ({}, {"delta": 0.3, "reduction": "sum"}, {"delta": 50.0}, {"delta": float("inf")})

    def both(self, p: np.ndarray, t: np.ndarray):
        d, a = p - t, self.delta
        far = np.abs(d) > a
        return np.where(far, (a * (np.abs(d) - a / 2)) if np.isfinite(a) else 0.0, d * d / 2), np.clip(d, -a, a)


class Quantile(_Pair):
    name = "quantile"
    defaults = {"tau": 0.5, "kappa": 0.0, "reduction": "mean"}
    settings = ({}, {"tau": 0.9}, {"tau": 0.2, "kappa": 0.7}, {"kappa": 5.0, "reduction": "sum"})

    def both(self, p: np.ndarray, t: np.ndarray):
        u, k = t - p, self.kappa
        w = np.where(u >= 0, self.tau, 1 - self.tau)
        if k == 0:
            return w * np.abs(u), -w * np.sign(u)
        return w * np.where(np.abs(u) <= k, u * u / 2, k * (np.abs(u) - k / 2)) / k, -w * np.clip(u, -k, k) / k


class PoissonNLL(_Pair):
    name = "poisson_nll"
    first = "z"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"z": rng.standard_normal(s), "t": rng.poisson(2.0, s).astype(float)} for s in ((1,), (500,), (2, 3))]

    def both(self, z: np.ndarray, t: np.ndarray):
        return np.exp(z) - t * z, np.exp(z) - t


class GaussianNLL(ObjectiveReference):
    name = "gaussian_nll"
    defaults = {"eps": 1e-6, "full": False, "reduction": "mean"}
    settings = ({}, {"full": True, "reduction": "sum"}, {"eps": 0.5})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"m": rng.standard_normal(s), "var": rng.uniform(0.2, 2.0, s), "t": rng.standard_normal(s)} for s in ((1,), (400,), (2, 3))]

    def smooth(self, m: np.ndarray, var: np.ndarray, t: np.ndarray) -> bool:
        return bool(np.all(var > self.eps))  # the derivative passes through the floor

    def _parts(self, m, var, t):
        v = np.maximum(var, self.eps)
        return v, m - t, m.size if self.reduction == "mean" else 1

    def value(self, **x: np.ndarray) -> float:
        v, d, n = self._parts(**x)
        return float(np.sum((np.log(v) + d * d / v) / 2 + (np.log(2 * np.pi) / 2 if self.full else 0)) / n)

    def gradients(self, **x: np.ndarray) -> Inputs:
        v, d, n = self._parts(**x)
        return {"m": d / v / n, "var": (1 / v - d * d / v**2) / 2 / n}


class BCEWithLogits(_Pair):
    name = "bce_with_logits"
    defaults = {"pos_weight": 1.0, "label_smoothing": 0.0, "reduction": "mean"}
    settings = ({}, {"pos_weight": 3.0, "reduction": "sum"}, {"pos_weight": [0.5, 2.0, 1.0], "label_smoothing": 0.2})
    first = "z"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"z": 2 * rng.standard_normal(s), "t": rng.random(s)} for s in ((3,), (300, 3), (2, 2, 3))]
        out[1]["weight"] = rng.random((300, 3))
        return [*out, {"z": 400 * rng.choice([-1.0, 1.0], (4, 3)), "t": rng.choice([0.0, 1.0], (4, 3))}]

    def both(self, z: np.ndarray, t: np.ndarray, weight: np.ndarray | float = 1.0):
        t = t * (1 - self.label_smoothing) + self.label_smoothing / 2
        c = 1 + (np.asarray(self.pos_weight) - 1) * t
        return weight * ((1 - t) * z + c * softplus(-z)), weight * ((1 - t) - c * sigma(-z))


class Hinge(_Pair):
    name = "hinge"
    defaults = {"margin": 1.0, "power": 1, "reduction": "mean"}
    settings = ({}, {"margin": 0.5, "power": 2}, {"reduction": "sum"})
    first = "s"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"s": 2 * rng.standard_normal(s), "y": rng.choice(np.array([-1, 1]), s)} for s in ((1,), (300,), (2, 5))]

    def both(self, s: np.ndarray, y: np.ndarray):
        u = np.maximum(0.0, self.margin - y * s)
        return u**self.power, -y * self.power * u ** (self.power - 1) * (u > 0)


class MultiMargin(ObjectiveReference):
    name = "multi_margin"
    defaults = Hinge.defaults
    settings = Hinge.settings

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"z": rng.standard_normal(s), "y": labels(rng, s[:-1], s[-1])} for s in ((1, 1), (1, 4), (300, 4), (2, 3, 5))]

    def both(self, z: np.ndarray, y: np.ndarray):
        hot = np.eye(z.shape[-1])[y]
        u = np.maximum(0.0, self.margin - np.sum(z * hot, -1, keepdims=True) + z) * (1 - hot)
        d = self.power * u ** (self.power - 1) * (u > 0)
        n = z.shape[-1] * (z[..., 0].size if self.reduction == "mean" else 1)
        return float(np.sum(u**self.power) / n), (d - hot * np.sum(d, -1, keepdims=True)) / n

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return {"z": self.both(**x)[1]}


class DomainBCE(ObjectiveReference):
    name = "domain_bce"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"z": rng.standard_normal(n), "flag": rng.choice(np.array([0, 1]), n)} for n in (2, 300)] + [
            {"z": rng.standard_normal(3), "flag": np.ones(3, np.int64)}, {"z": rng.standard_normal(1), "flag": np.zeros(1, np.int64)}]

    def value(self, z: np.ndarray, flag: np.ndarray) -> float:
        parts = [softplus(-z[flag == 1]), softplus(z[flag == 0])]
        return float(sum(np.mean(p) / 2 for p in parts if len(p)))

    def gradients(self, z: np.ndarray, flag: np.ndarray) -> Inputs:
        return {"z": (sigma(z) - flag) / (2 * np.where(flag == 1, np.sum(flag == 1), np.sum(flag == 0)))}


class Flooding(ObjectiveReference):
    name = "flooding"
    defaults = {"b": 0.0, "per_sample": False}
    settings = ({}, {"b": 0.5}, {"b": 0.5, "per_sample": True})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"loss": np.array(0.25)}, {"loss": rng.random(6)}, {"loss": np.array([0.5, 1.5, 0.0])}, {"loss": rng.random((2, 3))}]

    def smooth(self, loss: np.ndarray) -> bool:
        return bool(np.all(np.abs(loss - self.b) > 1e-3))

    def value(self, loss: np.ndarray) -> float:
        return float(np.mean(np.abs((loss if self.per_sample else np.mean(loss)) - self.b)) + self.b)

    def gradients(self, loss: np.ndarray) -> Inputs:
        return {"loss": np.sign((loss if self.per_sample else np.mean(loss)) - self.b) * np.ones_like(loss) / loss.size}


class DPO(ObjectiveReference):
    name = "dpo"
    defaults = {"beta": 0.1, "label_smoothing": 0.0, "reduction": "mean"}
    settings = ({}, {"beta": 0.5, "label_smoothing": 0.2}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
        return [{k: -scale * rng.random(n) for k in names} for n, scale in ((1, 1.0), (200, 40.0), (3, 400.0))]

    def _h(self, chosen, rejected, ref_chosen, ref_rejected):
        return self.beta * ((chosen - rejected) - (ref_chosen - ref_rejected))

    def value(self, **x: np.ndarray) -> float:
        h, e = self._h(**x), self.label_smoothing
        return float(np.sum((1 - e) * softplus(-h) + e * softplus(h)) / self.divisor(len(h)))

    def gradients(self, **x: np.ndarray) -> Inputs:
        h, e = self._h(**x), self.label_smoothing
        d = self.beta * (e * sigma(h) - (1 - e) * sigma(-h)) / self.divisor(len(h))
        return {"chosen": d, "rejected": -d}


class UnifiedPolicyGradient(ObjectiveReference):
    name = "unified_policy_gradient"
    defaults = {"mask": "none", "eps_low": 0.2, "eps_high": 0.2, "reduction": "token_mean", "length": None}
    settings = ({}, {"mask": "clip"}, {"mask": "clip", "eps_low": 0.1, "eps_high": 0.4, "reduction": "fixed_length", "length": 64.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for s in ((1,), (300,), (3, 5)):
            logp = -3 * rng.random(s)
            out.append({"logp": logp, "advantage": rng.standard_normal(s), "logp_ref": logp + 0.4 * rng.standard_normal(s)})
        out[2]["token_mask"] = rng.choice(np.array([0, 1]), (3, 5))
        idle = {**out[2], "token_mask": np.zeros((3, 5), np.int64)}
        return [*out, idle, {k: v for k, v in out[1].items() if k != "logp_ref"}]

    def smooth(self, **x: np.ndarray) -> bool:
        return "logp_ref" in x  # without one the value says nothing of the policy

    def _parts(self, logp, advantage, logp_ref=None, token_mask=None):
        r = np.ones_like(logp) if logp_ref is None else np.exp(logp - logp_ref)
        m = np.ones_like(logp) if token_mask is None else token_mask
        n = self.length if self.reduction == "fixed_length" else np.sum(m)
        return r, advantage, m if np.sum(m) else 0 * logp, n if np.sum(m) else 1

    def value(self, **x: np.ndarray) -> float:
        r, a, m, n = self._parts(**x)
        terms = r * a
        if self.mask == "clip":
            terms = np.minimum(terms, np.clip(r, 1 - self.eps_low, 1 + self.eps_high) * a)
        return float(-np.sum(m * terms) / n)

    def gradients(self, **x: np.ndarray) -> Inputs:
        r, a, m, n = self._parts(**x)
        held = ((a > 0) & (r > 1 + self.eps_high)) | ((a < 0) & (r < 1 - self.eps_low))
        return {"logp": -m * r * a / n * (~held if self.mask == "clip" else 1)}
