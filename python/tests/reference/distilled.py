"""Distilled data and surrogates: kernel ridge heads (Loo et al., 2023), random Fourier features (Shu et al., 2023)."""

from __future__ import annotations

import math

import numpy as np

import thalweg as tw

from .base import ObjectiveReference
from .solvers import Case, SolverReference


class KRRHead(ObjectiveReference):
    name = "krr_head"
    required = ("l2",)
    defaults = {"l2": None, "loss": "mse"}
    settings = ({"l2": 0.5}, {"l2": 2.0, "loss": "xent"})

    def examples(self, rng):
        def one(s, t, d, C):
            a = {"features_s": (s, d), "outputs_s": (s, C), "labels": (s, C), "features_t": (t, d), "outputs_t": (t, C), "targets": (t, C)}
            return {k: rng.standard_normal(v) for k, v in a.items()}

        return [one(3, 5, 2, 2), one(1, 1, 1, 1), {**one(4, 2, 3, 3), "log_temp": np.asarray(0.3)}]

    def predictions(self, features_s, outputs_s, labels, features_t, outputs_t, **rest):
        K = features_s @ features_s.T + self.l2 * np.eye(len(labels))
        return outputs_t + features_t @ features_s.T @ np.linalg.solve(K, labels - outputs_s)

    def value(self, **a):
        P, y = self.predictions(**a), a["targets"]
        if self.loss == "mse":
            return float(np.mean((P - y) ** 2) / 2)
        z = P * np.exp(a.get("log_temp", 0.0))
        level = np.log(np.sum(np.exp(z), axis=1, keepdims=True))
        return float(-np.mean(np.sum((y - y.min()) * (z - level), axis=1)))

    def gradients(self, **a):
        """By complex steps: nothing of the closed forms."""
        out = {"predictions": self.predictions(**a)}
        for name in a.keys() - {"targets"}:
            g = np.zeros(np.shape(a[name]))
            for i in np.ndindex(g.shape):
                moved = {k: np.asarray(v, complex) for k, v in a.items() if k != "targets"} | {"targets": a["targets"]}
                moved[name] = moved[name].copy()
                moved[name][i] += 1e-30j
                g[i] = self.step(**moved) / 1e-30
            out[name] = g
        return out

    def step(self, **a):
        P, y = self.predictions(**a), a["targets"]
        if self.loss == "mse":
            return np.imag(np.mean((P - y) ** 2) / 2)
        z = P * np.exp(a.get("log_temp", 0.0))
        level = np.log(np.sum(np.exp(z), axis=1, keepdims=True))
        return np.imag(-np.mean(np.sum((y - y.min()) * (z - level), axis=1)))


class RCIGCombine(ObjectiveReference):
    name = "rcig_combine"
    settings = ({},)

    def examples(self, rng):
        g, i = rng.standard_normal((2, 3, 2))
        spoilt = i.copy()
        spoilt[0, 0], spoilt[1, 1] = np.nan, np.inf
        return [{"direct": g, "implicit": i}, {"direct": g, "implicit": 9 * i}, {"direct": g, "implicit": spoilt},
                {"direct": 0 * g, "implicit": i}, {"direct": g, "implicit": 0 * i}]

    def sum(self, direct, implicit):
        d, i = (np.where(np.isfinite(v), v, 0.0) for v in (direct, implicit))
        a, b = np.linalg.norm(d), np.linalg.norm(i)
        return d + (i * a / b if b > a else i)

    def value(self, **a):
        return float(np.linalg.norm(self.sum(**a)))

    def gradients(self, **a):
        return {"combined": self.sum(**a)}


class RFFSurrogate(SolverReference):
    name = "rff_surrogate"
    defaults = {"kernel": "matern52", "lengthscale": 1.0, "noise": 1e-6, "features": 10000, "seed": 0}
    settings = ({"features": 40, "noise": 1e-2}, {"features": 30, "kernel": "rbf", "lengthscale": 0.7, "noise": 0.1, "seed": 4})
    limit, limit32 = 1e-8, 2e-3

    def cases(self, rng):
        a = {"points": rng.standard_normal((6, 2)), "values": rng.standard_normal(6), "queries": rng.standard_normal((3, 2))}
        shared = {"frequencies": rng.standard_normal((20, 2)), "phases": rng.uniform(0, 2 * np.pi, 20)}
        return [Case(a, dict), Case({**a, **shared}, dict)]

    def solve(self, inputs, ask):
        X, y, Z = inputs["points"], inputs["values"], inputs["queries"]
        draw = lambda k, *shape: tw.random_normal(self.seed, 0, k, 0, n=int(np.prod(shape))).reshape(shape)  # noqa: E731
        if "frequencies" in inputs:
            W = inputs["frequencies"]
        else:
            W = draw(0, self.features, X.shape[1])
            if self.kernel == "matern52":
                W = W * np.sqrt(5 / np.sum(draw(1, self.features, 5) ** 2, axis=1, keepdims=True))
        M, l = len(W), self.lengthscale
        normal = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
        b = inputs["phases"] if "phases" in inputs else 2 * np.pi * normal(draw(2, M))
        phi = np.sqrt(2 / M) * np.cos(X @ W.T / l + b)
        w = phi.T @ np.linalg.solve(phi @ phi.T + self.noise * np.eye(len(X)), y)
        at = Z @ W.T / l + b
        return {"weights": w, "mean": np.sqrt(2 / M) * np.cos(at) @ w, "gradient": -np.sqrt(2 / M) * (np.sin(at) * w) @ W / l,
                "outcome": "converged"}
