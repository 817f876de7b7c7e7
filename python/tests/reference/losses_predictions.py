"""Losses of whole predictions: divergences, entropies, overlaps, metrics; from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .losses_logits import Inputs, labels, log_softmax, sigma


def xlogx(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1.0))


class DistillationKL(ObjectiveReference):
    name = "distillation_kl"
    defaults = {"temperature": 1.0, "reduction": "mean"}
    settings = ({}, {"temperature": 4.0}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"s": 2 * rng.standard_normal(s), "t": 2 * rng.standard_normal(s)} for s in ((1, 3), (300, 5), (2, 3, 4))]
        return [*out, {"s": out[1]["s"], "t": out[1]["s"]}, {"s": rng.standard_normal((2, 3)), "t": np.array([[1000.0, 0, 0]] * 2)}]

    def _kl(self, s: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
        lp, lq, T = log_softmax(t / self.temperature), log_softmax(s / self.temperature), self.temperature
        n = self.divisor(lp[..., 0].size)
        return float(T * T * np.sum(np.exp(lp) * (lp - lq)) / n), T * (np.exp(lq) - np.exp(lp)) / n

    def value(self, **x: np.ndarray) -> float:
        return self._kl(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return {"s": self._kl(**x)[1]}


class SAF(ObjectiveReference):
    name = "saf"
    defaults = {"lam": 0.3, "temperature": 5.0, "start_epoch": 5, "delay": 3, "end_epoch": None}
    settings = ({}, {"lam": 0.8, "temperature": 2.0, "start_epoch": 0, "delay": 1, "end_epoch": 8})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        z, past = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
        buffer = rng.standard_normal((5, self.delay + 1, 3))
        out = [{"z": z, "past": past}, {"z": z, "past": z}, {"z": z, "past": past, "seen": np.array([1, 0, 1, 1, 0])}]
        return out + [{"z": z, "buffer": buffer, "epoch": np.array(e)} for e in (0, 3, 5, 6, 7, 9)]

    def _parts(self, z, past=None, buffer=None, epoch=None, seen=None):
        active = True
        if buffer is not None:
            e, slots = int(epoch), self.delay + 1
            past = buffer[:, (e - self.delay) % slots]
            active = e > self.start_epoch and (self.end_epoch is None or e < self.end_epoch)
        lp, lq = log_softmax(past / self.temperature), log_softmax(z / self.temperature)
        w = np.ones(len(z)) if seen is None else seen
        return lp, lq, (w if active else 0 * w)[:, None], len(z)

    def value(self, **x: np.ndarray) -> float:
        lp, lq, w, n = self._parts(**x)
        return float(self.lam * self.temperature**2 * np.sum(w * np.exp(lp) * (lp - lq)) / n)

    def gradients(self, **x: np.ndarray) -> Inputs:
        lp, lq, w, n = self._parts(**x)
        out = {"z": self.lam * self.temperature * w * (np.exp(lq) - np.exp(lp)) / n}
        if "buffer" in x:
            turned = x["buffer"].copy()
            turned[:, int(x["epoch"]) % (self.delay + 1)] = x["z"]
            out["buffer_next"] = turned
        return out


class _Logits(ObjectiveReference):
    first = "z"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [2 * rng.standard_normal(s) for s in ((1, 3), (300, 4), (6, 1))]
        return [{self.first: z} for z in (*out, np.zeros((2, 3)), np.array([[900.0, 0, 0], [0, 1.0, 2.0]]))]


class EntropyMinimization(_Logits):
    name = "entropy_minimization"
    defaults = {"weight": 1.0, "diversity": 0.0, "temperature": 1.0}
    settings = ({}, {"diversity": 0.7, "temperature": 2.0}, {"weight": 0.0, "diversity": 1.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [*super().examples(rng), {"z": rng.standard_normal((2, 3, 4))}]

    def value(self, z: np.ndarray) -> float:
        p = np.exp(log_softmax(z / self.temperature)).reshape(-1, z.shape[-1])
        return float(-self.weight * np.sum(xlogx(p)) / len(p) + self.diversity * np.sum(xlogx(np.mean(p, axis=0))))

    def gradients(self, z: np.ndarray) -> Inputs:
        lp = log_softmax(z / self.temperature).reshape(-1, z.shape[-1])
        p, n = np.exp(lp), len(lp)
        h = -np.sum(p * lp, axis=1, keepdims=True)
        mean = np.mean(p, axis=0)
        e = self.diversity * (np.log(np.where(mean > 0, mean, 1.0)) + 1) / n
        g = -self.weight * p * (lp + h) / n + p * (e - np.sum(e * p, axis=1, keepdims=True))
        return {"z": (g / self.temperature).reshape(z.shape)}


class TCMLoss(_Logits):
    name = "tcm_loss"
    defaults = {"floor": 1e-6}
    settings = ({}, {"floor": 0.1})

    def value(self, z: np.ndarray) -> float:
        lp = log_softmax(z)
        q = np.mean(np.exp(lp), axis=0)
        return float(np.sum(q * np.log(q + self.floor)) - np.sum(np.exp(lp) * lp) / len(z))

    def gradients(self, z: np.ndarray) -> Inputs:
        lp = log_softmax(z)
        p, b = np.exp(lp), len(z)
        q = np.mean(p, axis=0)
        e = (np.log(q + self.floor) + q / (q + self.floor)) / b - (lp + 1) / b
        return {"z": p * (e - np.sum(p * e, axis=1, keepdims=True))}


class ConfidencePenalty(_Logits):
    name = "confidence_penalty"
    kind = "regularizer"
    first = "w"
    defaults = {"beta": 0.1, "threshold": None}
    settings = ({}, {"beta": 1.0, "threshold": 0.6})

    def _entropy(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lp = log_softmax(w)
        h = -np.sum(np.exp(lp) * lp, axis=-1, keepdims=True)
        return h, -np.exp(lp) * (lp + h)

    def value(self, w: np.ndarray) -> float:
        h, _ = self._entropy(w)
        return float(self.beta * np.mean(-h if self.threshold is None else np.maximum(0, self.threshold - h)))

    def gradients(self, w: np.ndarray) -> Inputs:
        h, d = self._entropy(w)
        active = np.ones_like(h) if self.threshold is None else (h < self.threshold)
        return {"w": -self.beta * active * d / h.size}


class ZLoss(_Logits):
    name = "z_loss"
    kind = "regularizer"
    first = "w"
    defaults = {"weight": 1e-4}
    settings = ({}, {"weight": 0.5})

    def _log(self, w: np.ndarray) -> np.ndarray:
        return w - log_softmax(w)

    def value(self, w: np.ndarray) -> float:
        return float(self.weight * np.mean(self._log(w)[..., 0] ** 2))

    def gradients(self, w: np.ndarray) -> Inputs:
        return {"w": self.weight * 2 * self._log(w) * np.exp(log_softmax(w)) / w[..., 0].size}


class Dice(ObjectiveReference):
    name = "dice"
    defaults = {"smooth": 1.0, "squared": False}
    settings = ({}, {"squared": True}, {"smooth": 0.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"p": rng.random(s), "t": (rng.random(s) < 0.4).astype(float)} for s in ((2, 1), (300, 3), (2, 5, 2))]
        absent = {"p": np.array([[0.0, 0.3], [0.0, 0.9]]), "t": np.array([[0.0, 1.0], [0.0, 0.5]])}
        return [*out, absent]

    def smooth(self, p: np.ndarray, t: np.ndarray) -> bool:
        return bool(self.h["smooth"] > 0 or np.all(np.sum(p, axis=0) > 0))  # 0/0 counts as 0 by decree

    def _sums(self, p, t):
        p, t, s = p.reshape(-1, p.shape[-1]), t.reshape(-1, t.shape[-1]), self.h["smooth"]
        k = 2 if self.squared else 1
        return p, t, 2 * np.sum(p * t, 0) + s, np.sum(p**k, 0) + np.sum(t**k, 0) + s

    def value(self, p: np.ndarray, t: np.ndarray) -> float:
        _, _, a, b = self._sums(p, t)
        return float(np.mean(np.where(b == 0, 0.0, 1 - a / np.where(b == 0, 1.0, b))))

    def gradients(self, p: np.ndarray, t: np.ndarray) -> Inputs:
        q, u, a, b = self._sums(p, t)
        d = -(2 * u * b - a * (2 * q if self.squared else 1)) / np.where(b == 0, 1.0, b) ** 2 / p.shape[-1]
        return {"p": np.where(b == 0, 0.0, d).reshape(p.shape)}


class Tversky(Dice):
    name = "tversky"
    defaults = {"alpha": 0.3, "beta": 0.7, "gamma": 1.0, "smooth": 1.0}
    settings = ({}, {"gamma": 0.75, "alpha": 0.5, "beta": 0.2}, {"smooth": 0.0, "gamma": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        t = (rng.random((4, 2)) < 0.5).astype(float)
        return [*super().examples(rng), {"p": t, "t": t}]

    def smooth(self, p: np.ndarray, t: np.ndarray) -> bool:
        _, n, d = self._index(p, t)
        return bool(np.all(n != d))  # an index of exactly 1 has no gradient, by decree

    def _index(self, p, t):
        p, t, s = p.reshape(-1, p.shape[-1]), t.reshape(-1, t.shape[-1]), self.h["smooth"]
        n = np.sum(p * t, 0) + s
        d = n + self.alpha * np.sum(p * (1 - t), 0) + self.beta * np.sum((1 - p) * t, 0)
        return t, n, d

    def value(self, p: np.ndarray, t: np.ndarray) -> float:
        _, n, d = self._index(p, t)
        return float(np.mean(np.where(d == 0, 0.0, (1 - n / np.where(d == 0, 1.0, d)) ** self.gamma)))

    def gradients(self, p: np.ndarray, t: np.ndarray) -> Inputs:
        u, n, d = self._index(p, t)
        free = (d != 0) & (n != d)
        safe = np.where(free, d, 1.0)
        slope = (u * safe - n * (u + self.alpha * (1 - u) - self.beta * u)) / safe**2
        outer = self.gamma * np.where(free, 1 - n / safe, 1.0) ** (self.gamma - 1)
        return {"p": np.where(free, -outer * slope, 0.0).reshape(p.shape) / p.shape[-1]}


class AnyLoss(ObjectiveReference):
    """Partial derivatives of each metric written out by hand."""

    name = "anyloss"
    defaults = {"metric": "f_beta", "beta": 1.0, "amplify": 73.0, "from_logits": True}
    metrics = ("accuracy", "precision", "recall", "specificity", "f_beta", "g_mean", "g_mean_squared", "balanced_accuracy", "jaccard", "mcc")
    settings = (*({"metric": m} for m in metrics), {"beta": 2.0, "amplify": 10.0}, {"metric": "mcc", "from_logits": False, "amplify": 20.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n in (5, 300):
            y = labels(rng, n, 2)
            y[:2] = 0, 1
            z = 0.1 * rng.standard_normal(n)
            out.append({"z": z if self.from_logits else sigma(z), "y": y})
        return [*out, {**out[0], "y": np.ones(5, np.int64)}, {**out[0], "y": np.zeros(5, np.int64)}]

    def _counts(self, z, y):
        p = sigma(z) if self.from_logits else z
        a, r = sigma(self.amplify * (p - 0.5)), sigma(-self.amplify * (p - 0.5))
        return p, a, r, np.sum(y * a), np.sum((1 - y) * a), np.sum(y * r), np.sum((1 - y) * r)

    @staticmethod
    def _ratio(a: float, b: float, da: list[float], db: list[float]) -> tuple[float, np.ndarray]:
        if b == 0:
            return 0.0, np.zeros(4)
        return a / b, (np.array(da) * b - a * np.array(db)) / b**2

    def _metric(self, tp, fp, fn, tn) -> tuple[float, np.ndarray]:
        ratio, b2 = self._ratio, self.beta**2
        recall, specificity = ratio(tp, tp + fn, [1, 0, 0, 0], [1, 0, 1, 0]), ratio(tn, tn + fp, [0, 0, 0, 1], [0, 1, 0, 1])
        m = self.metric
        if m == "accuracy":
            return ratio(tp + tn, tp + fp + fn + tn, [1, 0, 0, 1], [1, 1, 1, 1])
        if m == "precision":
            return ratio(tp, tp + fp, [1, 0, 0, 0], [1, 1, 0, 0])
        if m == "recall":
            return recall
        if m == "specificity":
            return specificity
        if m == "f_beta":
            return ratio((1 + b2) * tp, (1 + b2) * tp + b2 * fn + fp, [1 + b2, 0, 0, 0], [1 + b2, 1, b2, 0])
        if m == "jaccard":
            return ratio(tp, tp + fp + fn, [1, 0, 0, 0], [1, 1, 1, 0])
        if m == "balanced_accuracy":
            return (recall[0] + specificity[0]) / 2, (recall[1] + specificity[1]) / 2
        if m in ("g_mean", "g_mean_squared"):
            q, d = recall[0] * specificity[0], recall[0] * specificity[1] + specificity[0] * recall[1]
            if m == "g_mean_squared":
                return q, d
            return np.sqrt(q), d / (2 * np.sqrt(q)) if q > 0 else np.zeros(4)
        e, f, g, h = tp + fp, tp + fn, tn + fp, tn + fn
        product = e * f * g * h
        if product == 0:
            return 0.0, np.zeros(4)
        d = np.array([f * g * h + e * g * h, f * g * h + e * f * h, e * g * h + e * f * g, e * f * h + e * f * g])
        s = np.sqrt(product)
        return (tp * tn - fp * fn) / s, np.array([tn, -fn, -fp, tp]) / s - (tp * tn - fp * fn) * d / (2 * s**3)

    def value(self, z: np.ndarray, y: np.ndarray) -> float:
        return float(1 - self._metric(*self._counts(z, y)[3:])[0])

    def gradients(self, z: np.ndarray, y: np.ndarray) -> Inputs:
        p, a, r, *counts = self._counts(z, y)
        d = self._metric(*counts)[1]
        da = y * (d[0] - d[2]) + (1 - y) * (d[1] - d[3])
        return {"z": -da * self.amplify * a * r * (sigma(z) * sigma(-z) if self.from_logits else 1)}
