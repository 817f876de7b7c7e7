"""Objectives of local learning rules and of dual bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ObjectiveReference

Examples = list[dict[str, np.ndarray]]


class NoPropLoss(ObjectiveReference):
    """Li, Teh, Pascanu, 2025 (arXiv 2503.24322)."""

    name = "noprop_loss"
    defaults = {"weight": 1.0, "alpha_bar0": 0.0}
    settings = ({}, {"weight": 0.3, "alpha_bar0": 0.2}, {"weight": 0.0, "alpha_bar0": 0.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [dict(zip(("prediction", "target"), rng.standard_normal((2, n, d)))) for n, d in ((1, 1), (4, 3))]

    def value(self, prediction: np.ndarray, target: np.ndarray) -> float:
        a, d = self.alpha_bar0, target.shape[1]
        kl = 0.5 * (a * np.sum(target**2, axis=1) - d * a - d * np.log(1 - a))
        return float(np.mean(self.weight * np.sum((prediction - target) ** 2, axis=1) + kl))

    def gradients(self, prediction: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        g = 2 * self.weight * (prediction - target) / len(target)
        return {"prediction": g, "target": self.alpha_bar0 * target / len(target) - g}


class NodePerturbation(ObjectiveReference):
    """Williams, 1992; Werfel, Xie, Seung, 2003."""

    name = "node_perturbation"
    required = ("sigma",)
    settings = ({"sigma": 0.1}, {"sigma": 2.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"change": 0.1 * rng.standard_normal(b), "noise": 0.1 * rng.standard_normal((b, o)), "activity": rng.standard_normal((b, i))}
                for b, o, i in ((1, 1, 1), (6, 2, 3))]

    def value(self, change: np.ndarray, noise: np.ndarray, activity: np.ndarray) -> float:
        return float(np.mean((change / self.sigma) ** 2))

    def gradients(self, change: np.ndarray, noise: np.ndarray, activity: np.ndarray) -> dict[str, np.ndarray]:
        return {"gradient": (noise * change[:, None]).T @ activity / self.sigma**2 / len(change)}


class DualCompletionBounds(ObjectiveReference):
    """Tanneau, Van Hentenryck, 2024 (arXiv 2402.03086)."""

    name = "dual_completion_bounds"

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"y": rng.uniform(0, 1, m), "a": rng.standard_normal((m, n)), "b": rng.standard_normal(m), "c": rng.standard_normal(n),
                 "low": -rng.uniform(0, 2, n), "high": rng.uniform(0, 2, n)} for m, n in ((1, 1), (3, 5))]

    def vertex(self, y: Any, a: Any, c: Any, low: Any, high: Any, **rest: Any) -> np.ndarray:
        return np.where(c - a.T @ y > 0, low, high)

    def value(self, **a: np.ndarray) -> float:
        r = a["c"] - a["a"].T @ a["y"]
        return float(-(a["b"] @ a["y"] + a["low"] @ np.maximum(r, 0) - a["high"] @ np.maximum(-r, 0)))

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        x = self.vertex(**a)
        return {"y": a["a"] @ x - a["b"], "x": x}


class DualCompletionRSOC(ObjectiveReference):
    """Tanneau, Van Hentenryck, 2024 (arXiv 2402.03086)."""

    name = "dual_completion_rsoc"

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"y": np.asarray(-rng.uniform(0, 1)), "d": rng.uniform(0.5, 1, n), "e": rng.uniform(0.5, 2, n), "r": rng.uniform(0.1, 1, n),
                 "b": np.asarray(1.5)} for n in (1, 4)]

    def value(self, y: Any, d: Any, e: Any, r: Any, b: Any) -> float:
        sigma = -np.sqrt(2 * (d - r * y) * e)
        return float(-(b * y - np.sqrt(2) * sigma.sum()))

    def gradients(self, y: Any, d: Any, e: Any, r: Any, b: Any) -> dict[str, np.ndarray]:
        return {"y": np.asarray(-(b - np.sum(r * np.sqrt(e / (d - r * y)))))}
