"""Scores of samples, and how gradients of samples or tasks agree, from their cards."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import DiagnosticReference


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class EL2N(DiagnosticReference):
    """|softmax(z) - onehot(y)| (Paul et al., 2021; arXiv 2107.07075)."""

    name = "el2n"
    defaults = {"order": 2}
    settings = ({}, {"order": 1})

    def examples(self, rng):
        return [{"z": s * rng.standard_normal((n, c)), "y": rng.integers(0, c, n)} for s, n, c in ((1, 1, 1), (2, 7, 3), (20, 300, 5))]

    def results(self, z, y):
        return {"scores": np.linalg.norm(softmax(z) - np.eye(z.shape[1])[y], ord=self.order, axis=1)}


class GraNd(DiagnosticReference):
    """Lengths of gradients of samples (Paul et al., 2021)."""

    name = "grand"

    def examples(self, rng):
        spoilt = rng.standard_normal((3, 4))
        spoilt[1, 2] = np.nan
        return [{"g": rng.standard_normal(s)} for s in ((1, 1), (5,), (4, 3, 2), (3, 5000))] + [{"g": spoilt}]

    def results(self, g):
        return {"scores": np.sqrt(np.sum(g.reshape(len(g), -1) ** 2, 1))}


class GraNdLastLayer(DiagnosticReference):
    """The gradient of a linear layer, made as a matrix for each sample (Paul et al., 2021)."""

    name = "grand_last_layer"
    defaults = {"bias": True}
    settings = ({}, {"bias": False})

    def examples(self, rng):
        return [{"z": 2 * rng.standard_normal((n, c)), "h": rng.standard_normal((n, d)), "y": rng.integers(0, c, n)}
                for n, c, d in ((1, 2, 1), (6, 4, 3), (90, 3, 7))]

    def results(self, z, h, y):
        error = softmax(z) - np.eye(z.shape[1])[y]
        inputs = np.hstack([h, np.ones((len(h), 1))]) if self.bias else h
        return {"scores": np.array([np.linalg.norm(np.outer(e, v)) for e, v in zip(error, inputs)])}


class ForgettingEvents(DiagnosticReference):
    """One pass from the start: nothing is forgotten yet; samples never right have as many events as there were passes."""

    name = "forgetting_events"

    def examples(self, rng):
        return [{"correct": rng.integers(-1, 2, n)} for n in (1, 4, 50)]

    def start(self, n: int) -> None:
        self.last, self.counts, self.learned, self.passes = [None] * n, np.zeros(n), np.zeros(n), 0

    def visit(self, correct: np.ndarray) -> dict[str, Any]:
        self.passes += 1
        for i, c in enumerate(correct):
            if c >= 0:
                self.counts[i] += self.last[i] == 1 and c == 0
                self.learned[i] = max(self.learned[i], c)
                self.last[i] = c
        return {"events": np.where(self.learned == 1, self.counts, self.passes), "learned": self.learned.copy()}

    def results(self, correct):
        self.start(len(correct))
        return self.visit(correct)


class OpposingSignals(DiagnosticReference):
    """The k largest falls and rises of losses, and the cosine of the groups' gradients (Rosenfeld, Risteski, 2023)."""

    name = "opposing_signals"
    defaults = {"k": 10}
    settings = ({}, {"k": 2})

    def examples(self, rng):
        out = []
        for n, p in ((1, 2), (5, 3), (40, 6)):
            case = {"before": rng.integers(0, 5, n).astype(float), "after": rng.integers(0, 5, n).astype(float)}
            out += [case, {**case, "g": rng.standard_normal((n, p))}]
        return out

    def results(self, before, after, g=None):
        change, n = after - before, len(before)
        down, up = np.argsort(change, kind="stable")[: self.k], np.argsort(-change, kind="stable")[: self.k]
        falling, rising = np.zeros(n), np.zeros(n)
        falling[down] = rising[up] = 1
        cosine = np.nan
        if g is not None:
            a, b = g[down].mean(0), g[up].mean(0)
            cosine = a @ b / np.sqrt(a @ a * (b @ b))
        return {"change": change, "falling": falling, "rising": rising, "overlap": np.sum(falling * rising), "cosine": cosine}


class GradientCosines(DiagnosticReference):
    name = "gradient_cosines"

    def examples(self, rng):
        zero = rng.standard_normal((3, 4))
        zero[1] = 0
        spoilt = rng.standard_normal((3, 4))
        spoilt[2, 0] = np.nan
        return [{"g": g} for g in (rng.standard_normal((1, 5)), rng.standard_normal((4, 3)), rng.standard_normal((6, 2, 9)), zero,
                                   np.array([[1.0, 0.0], [-1.0, 0.0]]), spoilt)]

    def results(self, g):
        g = g.reshape(len(g), -1)
        m, norms = len(g), np.sqrt(np.sum(g * g, 1))
        cosines, similarity = np.eye(m), np.eye(m)
        for i in range(m):
            for j in range(m):
                a, b = norms[i], norms[j]
                if i == j:
                    cosines[i, i] = similarity[i, i] = a / a if np.isnan(a) else 1.0
                else:
                    cosines[i, j] = g[i] @ g[j] / (a * b) if a != 0 and b != 0 else 0.0
                    similarity[i, j] = 2 * a * b / (a * a + b * b) if a != 0 and b != 0 else 0.0
        pairs = cosines[np.triu_indices(m, 1)]
        with np.errstate(divide="ignore"):
            diversity = np.sum(norms**2) / np.sum(g.sum(0) ** 2)
        return {"cosines": cosines, "similarity": similarity, "conflicts": np.sum(pairs < 0) / max(1, len(pairs)), "diversity": diversity}


def noise(squared: float, trace: float) -> dict[str, float]:
    return {"noise_scale": trace / squared if squared > 0 else np.inf, "squared_norm": squared, "trace": trace}


class GradientNoiseScale(DiagnosticReference):
    """One pass: the bias correction leaves the parts as they are (McCandlish et al., 2018; arXiv 1812.06162)."""

    name = "gradient_noise_scale"
    required = ("b_small", "b_big")
    defaults = {"decay": 0.99}
    settings = ({"b_small": 1, "b_big": 8}, {"b_small": 4, "b_big": 6, "decay": 0.0})

    def examples(self, rng):
        return [{"small": np.array(a), "big": np.array(b)} for a, b in ((3.0, 1.0), (1.0, 1.0), (9.0, 0.5))]

    def parts(self, small, big):
        squared = (self.b_big * big - self.b_small * small) / (self.b_big - self.b_small)
        return squared, (small - big) / (1 / self.b_small - 1 / self.b_big)

    def results(self, small, big):
        return noise(*self.parts(small, big))


class NoiseScalePerSample(DiagnosticReference):
    name = "noise_scale_per_sample"

    def examples(self, rng):
        return [{"g": m + rng.standard_normal(s)} for m, s in ((0, (2, 1)), (1, (9, 4)), (3, (5, 3, 7)))] + [{"g": np.ones((3, 2))}]

    def results(self, g):
        g = g.reshape(len(g), -1)
        trace = np.trace(np.atleast_2d(np.cov(g, rowvar=False)))
        return noise(np.sum(g.mean(0) ** 2) - trace / len(g), trace)


class GradientSubspaceFraction(DiagnosticReference):
    name = "gradient_subspace_fraction"

    def examples(self, rng):
        u = np.linalg.qr(rng.standard_normal((9, 4)))[0]
        return [{"u": u, "g": rng.standard_normal(9)}, {"u": u, "g": np.zeros(9)}, {"u": np.eye(1), "g": np.array([-2.0])}]

    def results(self, u, g):
        return {"value": np.sum((u.T @ g) ** 2) / np.sum(g * g) if np.any(g) else 0.0}


class SubspaceOverlap(DiagnosticReference):
    name = "subspace_overlap"

    def examples(self, rng):
        u, v = (np.linalg.qr(rng.standard_normal((9, k)))[0] for k in (4, 3))
        return [{"u": u, "v": v}, {"u": u, "v": u}]

    def results(self, u, v):
        return {"value": np.linalg.norm(u.T @ v) ** 2 / v.shape[1]}
