"""One loss of those of several tasks; the gradient for the losses is the weights."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference, WeightingReference

Examples = list[dict[str, np.ndarray]]
Runs = list[list[dict[str, np.ndarray]]]


def softmax(y: np.ndarray) -> np.ndarray:
    e = np.exp(y - y.max())
    return e / e.sum()


class UncertaintyWeighting(ObjectiveReference):
    """Kendall, Gal and Cipolla, 2018 (arXiv 1705.07115)."""

    name = "uncertainty_weighting"
    defaults = {"init": 0.0, "lr": 0.01}

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"losses": rng.uniform(0, 3, m), "s": rng.standard_normal(m)} for m in (1, 2, 7)]

    def value(self, losses: np.ndarray, s: np.ndarray) -> float:
        return float(np.sum(losses / (2 * np.exp(s)) + s / 2))

    def gradients(self, losses: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
        return {"losses": 0.5 / np.exp(s), "s": 0.5 - 0.5 * losses / np.exp(s)}


class IMTLL(ObjectiveReference):
    """Liu et al., 2021."""

    name = "imtl_l"
    defaults = {"init": 0.0, "lr": 0.01}

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


class ODICELoss(ObjectiveReference):
    """Mao et al., 2024 (arXiv 2402.00348): the conjugate at residuals."""

    name = "odice_loss"
    defaults = {"lambda": 0.6, "f": "pearson"}
    settings = ({}, {"f": "kl"}, {"lambda": 0.4})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"y": rng.uniform(-4, 3, n)} for n in (1, 7)] + [{"y": np.array([-2.5, -1.0, 0.5, 6.0])}]

    def value(self, y: np.ndarray) -> float:
        if self.f == "kl":
            return float(self.h["lambda"] * np.mean(np.exp(y - 1)))
        w = np.maximum(y / 2 + 1, 0)
        return float(self.h["lambda"] * np.mean(y * w - (w - 1) ** 2))

    def gradients(self, y: np.ndarray) -> dict[str, np.ndarray]:
        w = np.exp(y - 1) if self.f == "kl" else np.maximum(y / 2 + 1, 0)
        return {"y": self.h["lambda"] * w / len(y), "policy_weight": np.minimum(w if self.f == "kl" else np.maximum(y, 0), 100)}


class VREx(WeightingReference):
    """Krueger et al., 2021 (arXiv 2003.00688): the variance weighs 1 in the first passes."""

    name = "vrex"
    defaults = {"lam": 10.0, "anneal_iters": 500}
    settings = ({}, {"lam": 0.0, "anneal_iters": 0}, {"lam": 3.0, "anneal_iters": 2})

    def start(self) -> None:
        self.passes, self.present = 0, 0.0

    def step(self, losses: np.ndarray) -> np.ndarray:
        self.present = self.lam if self.passes >= self.anneal_iters else 1.0
        self.passes += 1
        return 1 / len(losses) + 2 * self.present * (losses - losses.mean()) / len(losses)

    def value(self, weights: np.ndarray, losses: np.ndarray) -> float:
        return float(losses.mean() + self.present * losses.var())

    def sequences(self, rng: np.random.Generator) -> Runs:
        return [[{"losses": rng.uniform(0, 3, m)} for _ in range(4)] for m in (1, 2, 6)]


class GroupDRO(WeightingReference):
    """Sagawa et al., 2020 (arXiv 1911.08731)."""

    name = "group_dro"
    defaults = {"eta": 0.01}
    settings = ({}, {"eta": 1.5})
    refuses_nan = False  # a group that is not in the batch

    def start(self) -> None:
        self.q: np.ndarray | None = None

    def step(self, losses: np.ndarray, adjust: np.ndarray | None = None) -> np.ndarray:
        grown = np.exp(self.eta * (losses + (0 if adjust is None else adjust)))
        q = (np.ones(len(losses)) if self.q is None else self.q) * np.where(np.isnan(losses), 1.0, grown)
        self.q = q / q.sum()
        return self.q

    def sequences(self, rng: np.random.Generator) -> Runs:
        plain: Runs = [[{"losses": rng.uniform(0, 3, m)} for _ in range(6)] for m in (1, 2, 5)]
        return plain + [[{"losses": rng.uniform(0, 3, 3), "adjust": np.array([0.0, 0.5, 1.0])} for _ in range(4)]]


class ESAMSelect(WeightingReference):
    """Sharpness-sensitive data selection of Efficient SAM (Du et al., 2022; arXiv 2110.03141)."""

    name = "esam_select"
    defaults = {"gamma": 0.5}
    settings = ({}, {"gamma": 0.3}, {"gamma": 1.0})

    def step(self, losses: np.ndarray, before: np.ndarray) -> np.ndarray:
        k = max(int(np.floor(self.gamma * len(losses))), 1)
        weights = np.zeros(len(losses))
        weights[np.argsort(-(losses - before), kind="stable")[:k]] = 1 / k
        return weights

    def sequences(self, rng: np.random.Generator) -> Runs:
        ties = {"losses": np.array([2.0, 1.0, 3.0, 1.0, 2.0]), "before": np.array([1.0, 0.0, 2.0, 2.0, 1.0])}
        return [[{"losses": rng.uniform(0, 3, m), "before": rng.uniform(0, 3, m)} for _ in range(2)] for m in (1, 4, 9)] + [[ties]]
