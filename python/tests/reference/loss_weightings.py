"""One loss of those of several tasks; the gradient for the losses is the weights."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference

Examples = list[dict[str, np.ndarray]]


def softmax(y: np.ndarray) -> np.ndarray:
    e = np.exp(y - y.max())
    return e / e.sum()


class UncertaintyWeighting(ObjectiveReference):
    """Kendall, Gal and Cipolla, 2018 (arXiv 1705.07115)."""

    name = "uncertainty_weighting"

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"losses": rng.uniform(0, 3, m), "s": rng.standard_normal(m)} for m in (1, 2, 7)]

    def value(self, losses: np.ndarray, s: np.ndarray) -> float:
        return float(np.sum(losses / (2 * np.exp(s)) + s / 2))

    def gradients(self, losses: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
        return {"losses": 0.5 / np.exp(s), "s": 0.5 - 0.5 * losses / np.exp(s)}


class IMTLL(ObjectiveReference):
    """Liu et al., 2021."""

    name = "imtl_l"

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"losses": rng.uniform(0, 3, m), "s": rng.standard_normal(m)} for m in (1, 2, 7)]

    def value(self, losses: np.ndarray, s: np.ndarray) -> float:
        return float(np.exp(s) @ losses - s.sum())

    def gradients(self, losses: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
        return {"losses": np.exp(s), "s": np.exp(s) * losses - 1}


class STCH(ObjectiveReference):
    """Lin et al., 2024 (arXiv 2402.19078)."""

    name = "stch"
    defaults = {"mu": 0.1}
    settings = ({}, {"mu": 2.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [
            {"losses": rng.uniform(0, 3, 1)},
            {"losses": rng.uniform(0, 3, 4)},
            {"losses": rng.uniform(0, 3, 3), "weights": rng.uniform(0, 1, 3)},
            {"losses": rng.uniform(0, 3, 3), "weights": rng.uniform(0, 1, 3), "reference": rng.standard_normal(3)},
        ]

    def _y(self, losses: np.ndarray, weights: np.ndarray | None, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        w = np.full(len(losses), 1 / len(losses)) if weights is None else weights
        return w, w * (losses - (0 if reference is None else reference))

    def value(self, losses: np.ndarray, weights: np.ndarray | None = None, reference: np.ndarray | None = None) -> float:
        y = self._y(losses, weights, reference)[1] / self.mu
        return float(self.mu * np.logaddexp.reduce(y))

    def gradients(self, losses: np.ndarray, weights: np.ndarray | None = None, reference: np.ndarray | None = None) -> dict[str, np.ndarray]:
        w, y = self._y(losses, weights, reference)
        return {"losses": w * softmax(y / self.mu)}


class VREx(ObjectiveReference):
    """Krueger et al., 2021 (arXiv 2003.00688)."""

    name = "vrex"
    defaults = {"lam": 10.0}
    settings = ({}, {"lam": 0.0}, {"lam": 0.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"losses": rng.uniform(0, 3, m)} for m in (1, 2, 6)]

    def value(self, losses: np.ndarray) -> float:
        return float(losses.mean() + self.lam * losses.var())

    def gradients(self, losses: np.ndarray) -> dict[str, np.ndarray]:
        return {"losses": 1 / len(losses) + 2 * self.lam * (losses - losses.mean()) / len(losses)}


class GroupDRO(ObjectiveReference):
    """Sagawa et al., 2020 (arXiv 1911.08731): the value whose gradient is the new q."""

    name = "group_dro"
    defaults = {"eta": 0.01}
    settings = ({}, {"eta": 1.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [
            {"losses": rng.uniform(0, 3, 1)},
            {"losses": rng.uniform(0, 3, 4)},
            {"losses": rng.uniform(0, 3, 4), "q": np.array([0.1, 0.2, 0.0, 0.7])},
            {"losses": rng.uniform(0, 3, 3), "adjust": rng.uniform(0, 1, 3)},
            {"losses": np.array([np.log(2), 0.0, np.nan]), "adjust": np.array([0.0, 0.0, 9.0])},  # the third is absent
        ]

    def raised(self, losses: np.ndarray, q: np.ndarray | None = None, adjust: np.ndarray | None = None) -> np.ndarray:
        q = np.ones(len(losses)) if q is None else q
        grown = np.exp(self.eta * (losses + (0 if adjust is None else adjust)))
        return np.where(np.isnan(losses), 1.0, grown) * q / q.sum()

    def value(self, **a: np.ndarray) -> float:
        return float(np.log(np.sum(self.raised(**a))) / self.eta)

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        q = self.raised(**a)
        return {"losses": q / q.sum()}
