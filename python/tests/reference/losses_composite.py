"""Losses of critics, halves of nets, segmentations and subspaces; weights as a layer sees them; samples' own models."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ObjectiveReference

Inputs = dict[str, np.ndarray]


class WGANLoss(ObjectiveReference):
    """Arjovsky, Chintala, Bottou, 2017; arXiv 1701.07875."""

    name = "wgan_loss"
    defaults = {"player": "critic"}
    settings = ({}, {"player": "generator"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = [{"fake": rng.standard_normal(m), "real": rng.standard_normal(n)} for m, n in ((1, 1), (5, 3), (2, 40))]
        return cases + ([{"fake": rng.standard_normal(4)}] if self.player == "generator" else [])

    def value(self, fake: np.ndarray, real: np.ndarray | None = None) -> float:
        return float(-fake.mean() if self.player == "generator" else fake.mean() - real.mean())

    def gradients(self, fake: np.ndarray, real: np.ndarray | None = None) -> Inputs:
        sign = -1 if self.player == "generator" else 1
        out = {"fake": np.full_like(fake, sign / fake.size)}
        return out if real is None else {**out, "real": np.full_like(real, 0.0 if sign < 0 else -1 / real.size)}


class GradientPenalty(ObjectiveReference):
    """Gulrajani et al., 2017; arXiv 1704.00028; r1: Mescheder, Geiger, Nowozin, 2018."""

    name = "gradient_penalty"
    defaults = {"weight": 10.0, "target": 1.0, "mode": "two_sided"}
    settings = ({}, {"mode": "one_sided", "target": 1.5}, {"mode": "r1", "weight": 0.3}, {"target": 0.0, "weight": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = [{"gradients": rng.standard_normal(s)} for s in ((3, 4), (2, 3, 2, 2), (5, 1))]
        zero = rng.standard_normal((3, 2))
        zero[1] = 0
        return [*cases, {"gradients": zero}]

    def smooth(self, gradients: np.ndarray) -> bool:
        return bool(np.all(np.any(gradients.reshape(len(gradients), -1), axis=1)))

    def value(self, gradients: np.ndarray) -> float:
        n = np.linalg.norm(gradients.reshape(len(gradients), -1), axis=1)
        if self.mode == "r1":
            return float(self.weight / 2 * np.mean(n**2))
        d = n - self.target
        return float(self.weight * np.mean((np.maximum(d, 0) if self.mode == "one_sided" else d) ** 2))

    def gradients(self, gradients: np.ndarray) -> Inputs:
        if self.mode == "r1":
            return {"gradients": self.weight / len(gradients) * gradients}
        n = np.linalg.norm(gradients.reshape(len(gradients), -1), axis=1)
        d = n - self.target
        d = np.maximum(d, 0) if self.mode == "one_sided" else d
        factor = np.divide(2 * self.weight / len(n) * d, n, out=np.zeros_like(n), where=n > 0)
        return {"gradients": factor.reshape((-1,) + (1,) * (gradients.ndim - 1)) * gradients}


class JacobianNuclear(ObjectiveReference):
    """Scarvelis, Solomon, 2024; arXiv 2405.14544."""

    name = "jacobian_nuclear"
    defaults = {"weight": 1.0, "sigma": 0.1}
    settings = ({}, {"weight": 0.3, "sigma": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = []
        for b, k, m in ((1, 1, 1), (6, 3, 4), (2, 9, 2)):
            h, g = rng.standard_normal((b, k)), rng.standard_normal((b, m))
            cases.append({"h": h, "h_noisy": h + 0.1 * rng.standard_normal(h.shape), "g": g, "g_noisy": g + 0.1 * rng.standard_normal(g.shape)})
        return cases

    def value(self, h: np.ndarray, h_noisy: np.ndarray, g: np.ndarray, g_noisy: np.ndarray) -> float:
        return float(self.weight / (2 * self.sigma**2 * len(h)) * (np.sum((h_noisy - h) ** 2) + np.sum((g_noisy - g) ** 2)))

    def gradients(self, h: np.ndarray, h_noisy: np.ndarray, g: np.ndarray, g_noisy: np.ndarray) -> Inputs:
        f = self.weight / (self.sigma**2 * len(h))
        return {"h": -f * (h_noisy - h), "h_noisy": f * (h_noisy - h), "g": -f * (g_noisy - g), "g_noisy": f * (g_noisy - g)}


def window_shares(labels: np.ndarray, classes: int, weights: np.ndarray, ignored: int, outside0: bool) -> np.ndarray:
    """Shares (N, C, H, W) of the labels under a window; neighbours that are left out have none."""
    half, (n, h, w) = len(weights) // 2, labels.shape
    padded = np.pad(labels, ((0, 0), (half, half), (half, half)), **({"mode": "constant", "constant_values": 0} if outside0 else {"mode": "edge"}))
    out = np.zeros((n, classes, h, w))
    for i in range(len(weights)):
        for j in range(len(weights)):
            seen = padded[:, i:i + h, j:j + w]
            for c in range(classes):
                out[:, c] += weights[i, j] * (seen == c) * (seen != ignored)
    total = out.sum(axis=1, keepdims=True)
    return out / np.where(total == 0, 1, total)


class Segmentation(ObjectiveReference):
    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = [{"logits": 2 * rng.standard_normal((n, c, h, w)), "labels": rng.integers(0, c, (n, h, w))}
                 for n, c, h, w in ((1, 2, 1, 1), (2, 3, 5, 4), (1, 4, 2, 7))]
        holes = {k: v.copy() for k, v in cases[1].items()}
        holes["labels"][0, 1:3, :2] = -100
        return [*cases, holes, {"logits": np.ones((1, 2, 2, 2)), "labels": np.full((1, 2, 2), -100)}]

    @staticmethod
    def softmax(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = z - z.max(axis=1, keepdims=True)
        log_p = m - np.log(np.sum(np.exp(m), axis=1, keepdims=True))
        return np.exp(log_p), log_p


class NACL(Segmentation):
    """Neighbour-aware calibration (Murugesan et al., 2023; arXiv 2303.06268)."""

    name = "nacl"
    defaults = {"weight": 0.1, "distance": "l1", "padding": "replicate", "on_softmax": False, "ksize": 3, "ignore_index": -100}
    settings = ({}, {"distance": "l2", "weight": 0.7}, {"padding": "class0", "ksize": 5}, {"on_softmax": True, "weight": 2.0},
                {"on_softmax": True, "distance": "l2"}, {"ksize": 1})

    def parts(self, logits: np.ndarray, labels: np.ndarray):
        c = logits.shape[1]
        tau = window_shares(labels, c, np.ones((self.ksize, self.ksize)), self.ignore_index, self.padding == "class0")
        on = (labels != self.ignore_index)[:, None]
        p, log_p = self.softmax(logits)
        hot = (np.arange(c)[None, :, None, None] == labels[:, None]).astype(float)
        return tau, on, p, log_p, hot, max(1, int(on.sum()))

    def value(self, logits: np.ndarray, labels: np.ndarray) -> float:
        tau, on, p, log_p, hot, count = self.parts(logits, labels)
        d = (p if self.on_softmax else logits) - tau
        penalty = np.abs(d) if self.distance == "l1" else d**2
        return float(np.sum(on * -hot * log_p) / count + self.weight * np.sum(on * penalty) / (count * logits.shape[1]))

    def gradients(self, logits: np.ndarray, labels: np.ndarray) -> Inputs:
        tau, on, p, _, hot, count = self.parts(logits, labels)
        d = (p if self.on_softmax else logits) - tau
        s = self.weight / (count * logits.shape[1]) * (np.sign(d) if self.distance == "l1" else 2 * d)
        if self.on_softmax:
            s = p * (s - np.sum(p * s, axis=1, keepdims=True))
        return {"logits": on * ((p - hot) / count + s)}


class SVLS(Segmentation):
    """Spatially varying label smoothing (Islam, Glocker, 2021; arXiv 2104.05788)."""

    name = "svls"
    defaults = {"sigma": 1.0, "ksize": 3, "ignore_index": -100}
    settings = ({}, {"sigma": 0.6, "ksize": 5}, {"ksize": 1})

    def targets(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        r = np.arange(self.ksize) - self.ksize // 2
        k = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * self.sigma**2))
        k[self.ksize // 2, self.ksize // 2] = 0
        k[self.ksize // 2, self.ksize // 2] = k.sum() or 1.0
        return window_shares(labels, logits.shape[1], k, self.ignore_index, False)

    def value(self, logits: np.ndarray, labels: np.ndarray) -> float:
        on = (labels != self.ignore_index)[:, None]
        return float(np.sum(on * -self.targets(logits, labels) * self.softmax(logits)[1]) / max(1, on.sum()))

    def gradients(self, logits: np.ndarray, labels: np.ndarray) -> Inputs:
        on = (labels != self.ignore_index)[:, None]
        return {"logits": on * (self.softmax(logits)[0] - self.targets(logits, labels)) / max(1, on.sum())}


class GODSLoss(ObjectiveReference):
    """Two frames of hyperplanes around normal data (Wang, Cherian, 2019)."""

    name = "gods_loss"
    defaults = {"eta": 0.01, "weight": 0.001, "thresh": 0.0}
    settings = ({}, {"eta": 0.5, "weight": 0.1}, {"eta": 0.0, "thresh": 0.2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = []
        for n, d, k in ((1, 1, 1), (7, 4, 2), (30, 5, 3)):
            frame = lambda: np.linalg.qr(rng.standard_normal((d, k)))[0].T.copy()  # noqa: E731
            cases.append({"x": rng.standard_normal((n, d)), "w1": frame(), "b1": rng.standard_normal(k), "w2": frame(), "b2": rng.standard_normal(k)})
        return cases

    def value(self, x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray) -> float:
        A, B = x @ w1.T + b1, x @ w2.T + b2
        low, high = np.maximum(self.eta - A.min(axis=1), 0), np.maximum(self.eta + B.max(axis=1), 0)
        return float(np.sum(low**2) + np.sum(high**2) + self.weight * (np.sum(A**2) + np.sum(B**2)))

    def gradients(self, x: np.ndarray, w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray) -> Inputs:
        A, B, i = x @ w1.T + b1, x @ w2.T + b2, np.arange(len(x))
        dA, dB = 2 * self.weight * A, 2 * self.weight * B
        dA[i, A.argmin(axis=1)] -= 2 * np.maximum(self.eta - A.min(axis=1), 0)
        dB[i, B.argmax(axis=1)] += 2 * np.maximum(self.eta + B.max(axis=1), 0)
        normal = (A.min(axis=1) > self.thresh) & (B.max(axis=1) < self.thresh)
        return {"w1": dA.T @ x, "b1": dA.sum(axis=0), "w2": dB.T @ x, "b2": dB.sum(axis=0), "normal": normal.astype(float)}


class ProxMatching(ObjectiveReference):
    """Fang, Buchanan, Sulam, 2024; arXiv 2310.14344."""

    name = "prox_matching"
    defaults = {"gamma_min": 0.05, "stages": 4, "pretrain_share": 0.5}
    settings = ({"gamma_min": 1.5}, {"gamma_min": 0.7, "stages": 3, "pretrain_share": 0.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = []
        for shape, progress in (((3, 4), None), ((2, 3, 2), 0.2), ((5, 1), 0.55), ((4, 2), 0.8), ((4, 2), 1.0)):
            case = {"f": rng.standard_normal(shape), "x": rng.standard_normal(shape)}
            cases.append(case if progress is None else {**case, "progress": np.array(progress)})
        return cases

    def gamma(self, progress: np.ndarray | None) -> float | None:
        if progress is None:
            return self.gamma_min
        if progress < self.pretrain_share:
            return None
        stage = min(int((float(progress) - self.pretrain_share) / (1 - self.pretrain_share) * self.stages), self.stages - 1)
        return self.gamma_min * 2 ** (self.stages - 1 - stage)

    def value(self, f: np.ndarray, x: np.ndarray, progress: np.ndarray | None = None) -> float:
        gamma = self.gamma(progress)
        if gamma is None:
            return float(np.mean(np.abs(f - x)))
        return float(np.mean(1 - np.exp(-np.sum((f - x).reshape(len(f), -1) ** 2, axis=1) / gamma**2)))

    def gradients(self, f: np.ndarray, x: np.ndarray, progress: np.ndarray | None = None) -> Inputs:
        gamma = self.gamma(progress)
        if gamma is None:
            return {"f": np.sign(f - x) / f.size}
        e = np.exp(-np.sum((f - x).reshape(len(f), -1) ** 2, axis=1) / gamma**2)
        return {"f": 2 / (len(f) * gamma**2) * e.reshape((-1,) + (1,) * (f.ndim - 1)) * (f - x)}


class Effective(ObjectiveReference):
    """value = <g, effective(w)>."""

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = [{"w": rng.standard_normal(s), "g": rng.standard_normal(s)} for s in ((1, 2), (4, 7), (30, 3))]
        zero = {"w": rng.standard_normal((3, 4)), "g": rng.standard_normal((3, 4))}
        zero["w"][1] = zero["g"][1] = 0  # the gradient of such a row is some 1/eps
        return [*cases, zero, {"w": cases[1]["w"]}]

    def effective(self, w: np.ndarray, **rest: Any) -> np.ndarray:
        raise NotImplementedError

    def pull(self, w: np.ndarray, g: np.ndarray, **rest: Any) -> np.ndarray:
        raise NotImplementedError

    def value(self, w: np.ndarray, g: np.ndarray | None = None, **rest: Any) -> float:
        return 0.0 if g is None else float(np.sum(g * self.effective(w, **rest)))

    def gradients(self, w: np.ndarray, g: np.ndarray | None = None, **rest: Any) -> Inputs:
        return {"w": self.pull(w, np.zeros_like(w) if g is None else g, **rest), "effective": self.effective(w, **rest)}


class WeightStandardization(Effective):
    """Qiao et al., 2019; arXiv 1903.10520."""

    name = "weight_standardization"
    defaults = {"eps": 1e-5}
    settings = ({}, {"eps": 0.3})

    def smooth(self, w: np.ndarray, g: np.ndarray | None = None) -> bool:
        return bool(np.all(w.std(axis=1) > 0))  # the curvature of a constant row is 1/eps

    def _scale(self, w: np.ndarray) -> np.ndarray:
        return np.sqrt(w.var(axis=1, keepdims=True) + self.eps)

    def effective(self, w: np.ndarray) -> np.ndarray:
        return (w - w.mean(axis=1, keepdims=True)) / self._scale(w)

    def pull(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        h = self.effective(w)
        return (g - g.mean(axis=1, keepdims=True) - h * np.mean(g * h, axis=1, keepdims=True)) / self._scale(w)


class WeightConditioning(Effective):
    """Row equilibration (Saratchandran, Wang, Lucey, 2024; arXiv 2409.03424)."""

    name = "weight_conditioning"
    defaults = {"eps": 1e-12, "detach": False}
    settings = ({}, {"detach": True}, {"eps": 1.0})

    def smooth(self, w: np.ndarray, g: np.ndarray | None = None) -> bool:
        return not self.detach and bool(np.all(np.any(w, axis=1)))

    def _norm(self, w: np.ndarray) -> np.ndarray:
        return np.maximum(np.linalg.norm(w, axis=1, keepdims=True), self.eps)

    def effective(self, w: np.ndarray) -> np.ndarray:
        return w / self._norm(w)

    def pull(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        n, u = self._norm(w), self.effective(w)
        moves = np.linalg.norm(w, axis=1, keepdims=True) >= self.eps
        return (g - (0.0 if self.detach else moves * u * np.sum(g * u, axis=1, keepdims=True))) / n


class QuantNoise(Effective):
    """The noise of rounding to so many bits (Shvetsov et al., 2022; arXiv 2208.14839)."""

    name = "quant_noise"
    defaults = {"bits": 8, "kind": "gaussian"}
    settings = ({}, {"bits": 2, "kind": "uniform"}, {"bits": 1})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        draw = (lambda s: rng.uniform(size=s)) if self.h["kind"] == "uniform" else rng.standard_normal
        cases = [{"w": rng.standard_normal(s), "noise": np.asarray(draw(s)), "g": rng.standard_normal(s)} for s in ((3, 4), (9,), (2, 2, 3))]
        return [*cases, {"w": np.full(4, 0.5), "noise": np.asarray(draw(4))}]

    def smooth(self, **inputs: np.ndarray) -> bool:
        return False  # the range counts as constant

    def effective(self, w: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return w + (w.max() - w.min()) / (2**self.bits - 1) * (noise - 0.5 if self.h["kind"] == "uniform" else noise / 2)

    def pull(self, w: np.ndarray, g: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return g
