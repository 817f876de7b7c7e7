"""Draws that the host makes by inversion, proximal points of one sample, and the dual weights of a smooth function."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize

from .base import DiagnosticReference, ObjectiveReference, WeightingReference


class NestedDropout(ObjectiveReference):
    """The first k features, k drawn once for the batch (Rippel, Gelbart, Adams, 2014; arXiv 1402.0915)."""

    name = "nested_dropout"
    required = ("sigma",)
    defaults = {"mu": 0.0}
    settings = ({"sigma": 3.0}, {"sigma": 100.0}, {"sigma": 0.4, "mu": 2.0}, {"sigma": 0.01, "mu": 500.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for shape, u in (((3, 6), 0.1), ((2, 2, 4), 0.7), ((5,), 0.999), ((1, 9), 0.0)):
            cases.append({"z": rng.standard_normal(shape), "u": np.array(u), "g": rng.standard_normal(shape)})
        return [*cases, {"z": np.ones((2, 3)), "u": np.array(0.5)}]

    def kept(self, n: int, u: np.ndarray) -> int:
        z = -((np.arange(1, n + 1) - self.mu) / self.sigma) ** 2
        p = np.exp(z - z.max())
        return min(int(np.searchsorted(np.cumsum(p), float(u) * p.sum(), side="right")) + 1, n)

    def value(self, z: np.ndarray, u: np.ndarray, g: np.ndarray | None = None) -> float:
        return 0.0 if g is None else float(np.sum((g * z)[..., : self.kept(z.shape[-1], u)]))

    def gradients(self, z: np.ndarray, u: np.ndarray, g: np.ndarray | None = None) -> dict[str, Any]:
        k = self.kept(z.shape[-1], u)
        mask = np.arange(z.shape[-1]) < k
        return {"z": np.zeros_like(z) if g is None else g * mask, "effective": z * mask, "kept": np.array(float(k))}


class LocalODEReg(DiagnosticReference):
    """Pal, Edelman, Rackauckas, 2023; arXiv 2303.02262."""

    name = "local_ode_reg"
    defaults = {"mode": "unbiased"}
    settings = ({}, {"mode": "biased"})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [{"times": np.cumsum(rng.uniform(0.1, 1, n)), "u": np.array(u)} for n, u in ((1, 0.4), (2, 0.9), (7, 0.0), (7, 0.5), (7, 0.97))]

    def results(self, times: np.ndarray, u: np.ndarray) -> dict[str, Any]:
        if self.mode == "biased":
            at = int(np.floor(u * (len(times) - 1)))
            return {"time": times[at], "index": float(at)}
        t = times[0] + u * (times[-1] - times[0])
        return {"time": t, "index": float(max(0, np.searchsorted(times[:-1], t, side="right") - 1))}


class ProxPoint(DiagnosticReference):
    """argmin of loss(u) + |u - x|^2/(2 lr), searched along a (Davis, Drusvyatskiy, 2019; arXiv 1803.06523)."""

    name = "prox_point"
    required = ("lr",)
    defaults = {"loss": "square"}
    settings = ({"lr": 0.3}, {"lr": 5.0}, {"lr": 0.2, "loss": "phase"}, {"lr": 3.0, "loss": "phase"})
    limit = 1e5  # phase: the search brackets a minimum to some 1e-8; the float32 limit is that of the values

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = [{"x": rng.standard_normal(n), "a": rng.standard_normal(n), "b": np.array(b)} for n, b in ((1, 0.5), (4, 2.0), (9, 0.1))]
        return [*cases, {"x": np.ones(3), "a": np.zeros(3), "b": np.array(1.0)}]

    def results(self, x: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
        b = float(b)
        if not np.any(a):
            return {"point": x}
        if self.loss == "square":  # (I + lr a a') u = x + lr b a
            return {"point": np.linalg.solve(np.eye(len(x)) + self.lr * np.outer(a, a), x + self.lr * b * a)}
        model = lambda s: abs((a @ (x + s * a)) ** 2 - b) + s * s * (a @ a) / (2 * self.lr)  # noqa: E731
        grid = np.linspace(-5, 5, 4001) * (1 + abs(a @ x) + np.sqrt(b)) / (a @ a)
        k = int(np.argmin([model(s) for s in grid]))
        s = optimize.minimize_scalar(model, bounds=(grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]), method="bounded", options={"xatol": 1e-13}).x
        return {"point": x + s * a}


class ManifoldLipschitzDual(WeightingReference):
    """Samples where a function is steep weigh more (Cervino et al., 2023; arXiv 2210.00301)."""

    name = "manifold_lipschitz_dual"
    defaults = {"loss_bound": 0.1, "lr_lam": 0.1, "lr_mu": 0.1, "mu0": 1.0}
    settings = ({}, {"lr_lam": 5.0, "lr_mu": 3.0, "loss_bound": 0.6})

    def start(self) -> None:
        self.lam: np.ndarray | None = None
        self.mu = self.mu0

    def step(self, f: np.ndarray, w: np.ndarray, loss: np.ndarray) -> np.ndarray:
        n = len(f)
        lam = np.ones(n) if self.lam is None else self.lam
        s = 0.5 * np.sum(w * np.sum((f[:, None] - f[None]) ** 2, axis=2), axis=1)
        v = (lam + self.lr_lam * s) / n
        low, high = v.min() - 1.0, v.max()
        for _ in range(200):  # bisection for the threshold of the simplex
            t = (low + high) / 2
            low, high = (t, high) if np.maximum(v - t, 0).sum() > 1 else (low, t)
        self.lam = n * np.maximum(v - (low + high) / 2, 0)
        self.mu = max(0.0, self.mu + self.lr_mu * (float(loss) - self.loss_bound))
        return self.lam

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        runs = []
        for n, c in ((1, 2), (6, 3)):
            x = rng.standard_normal((n, 2))
            w = np.exp(-np.sum((x[:, None] - x[None]) ** 2, axis=2) / 4)
            runs.append([{"f": rng.standard_normal((n, c)), "w": w, "loss": np.array(rng.uniform(0, 1))} for _ in range(5)])
        return runs
