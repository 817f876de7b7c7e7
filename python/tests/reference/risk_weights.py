"""Weights of samples and constraints: tails, spectral risks, Kullback-Leibler balls, multipliers, penalties."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import WeightingReference


def losses_of(rng: np.random.Generator, sizes: tuple[int, ...] = (1, 2, 7, 20)) -> list[list[dict[str, Any]]]:
    """Fresh losses, then ties, then equal ones."""
    return [[{"losses": rng.uniform(0, 3, n)} for _ in range(3)] + [{"losses": np.round(rng.uniform(0, 3, n))},
                                                                    {"losses": np.full(n, 0.75)}] for n in sizes]


class CVaRWeights(WeightingReference):
    """Rockafellar, Uryasev, 2000."""

    name = "cvar_weights"
    defaults = {"alpha": 0.1, "lr_t": None}
    settings = ({}, {"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 0.33}, {"alpha": 0.3, "lr_t": 0.2})

    def start(self) -> None:
        self.t = 0.0

    def value(self, w: np.ndarray, losses: np.ndarray) -> float:
        return float(w @ losses) if self.lr_t is None else self.last + np.mean(np.maximum(losses - self.last, 0)) / self.alpha

    def step(self, losses: np.ndarray) -> np.ndarray:
        k = self.alpha * len(losses)
        if self.lr_t is not None:
            self.last, above = self.t, losses > self.t
            self.t -= self.lr_t * (1 - np.mean(above) / self.alpha)
            return above / k
        eta = np.sort(losses)[::-1][max(1, int(np.ceil(k - 1e-12))) - 1]
        w = np.where(losses > eta, 1 / k, 0.0)
        w[losses == eta] = (1 - w.sum()) / np.sum(losses == eta)
        return w

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return losses_of(rng)


def spectrum(kind: str, param: float | None, n: int) -> np.ndarray:
    i = np.arange(n + 1) / n
    if kind == "erm":
        return np.diff(i)
    if kind == "extremile":
        return np.diff(i ** (param or 2))
    if kind == "esrm":
        rho = param or 1
        return np.diff(np.exp(-rho * (1 - i))) / (1 - np.exp(-rho))
    p = param or 0.5
    return np.diff(np.maximum(i, 1 - p)) / p


def isotonic_minimum(z: np.ndarray, sigma: np.ndarray, kl: bool) -> np.ndarray:
    """The non-decreasing fit of the blocks' values, by the formula max over starts of min over ends (l2: means of
    z + 1/n - sigma; kl: logsumexp z - log sum sigma)."""
    n = len(z)

    def block(i: int, j: int) -> float:
        if not kl:
            return float(np.mean(z[i:j] + 1 / n - sigma[i:j]))
        total = sigma[i:j].sum()
        return float(np.logaddexp.reduce(z[i:j]) - np.log(total)) if total > 0 else np.inf

    return np.array([max(min(block(i, j) for j in range(k + 1, n + 1)) for i in range(k + 1)) for k in range(n)])


def spectral_weights(losses: np.ndarray, h: dict[str, Any]) -> np.ndarray:
    n, kl = len(losses), h["penalty"] == "kl"
    sigma = spectrum(h["kind"], h["param"], n) if h["sigma"] is None else np.asarray(h["sigma"], float)
    order = np.argsort(losses, kind="stable")
    q = np.empty(n)
    if h["shift_cost"] == 0:
        q[order] = sigma
        return q
    z = losses[order] / (h["shift_cost"] * (1 if kl else n))
    s = isotonic_minimum(z, sigma, kl)
    q[order] = np.exp(z - s) if kl else z + 1 / n - s
    return q


class SpectralRisk(WeightingReference):
    """Mehta, Roulet, Pillutla, Harchaoui, 2023 (arXiv 2310.13863)."""

    name = "spectral_risk"
    defaults = {"kind": "cvar", "param": None, "sigma": None, "shift_cost": 1.0, "penalty": "l2"}
    settings = ({}, {"shift_cost": 0.0}, {"shift_cost": 0.1}, {"penalty": "kl"}, {"penalty": "kl", "shift_cost": 0.2, "param": 0.3},
                {"kind": "extremile", "shift_cost": 0.05}, {"kind": "esrm", "param": 3.0, "penalty": "kl", "shift_cost": 0.1},
                {"kind": "erm"}, {"kind": "extremile", "param": 1.0, "shift_cost": 0.3})

    def step(self, losses: np.ndarray) -> np.ndarray:
        return spectral_weights(losses, self.h)

    def value(self, q: np.ndarray, losses: np.ndarray) -> float:
        n = len(q)
        d = np.sum(q[q > 0] * np.log(n * q[q > 0])) if self.penalty == "kl" else n / 2 * np.sum((q - 1 / n) ** 2)
        return float(q @ losses - self.shift_cost * d)

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return losses_of(rng)


class KLDROWeights(WeightingReference):
    """Tilted losses; the ball's temperature by golden-section search on the convex value + tau rho in log tau."""

    name = "kl_dro_weights"
    defaults = {"form": "penalised", "tau": 1.0, "rho": 1.0, "tau_min": 1e-3, "tau_max": 1e3}
    settings = ({}, {"tau": 0.2}, {"form": "ball", "rho": 0.1}, {"form": "ball", "rho": 0.0}, {"form": "ball", "rho": 9.0},
                {"form": "ball", "rho": 0.3, "tau_max": 0.5})

    @staticmethod
    def level(d: np.ndarray, tau: float) -> float:
        return float(tau * (np.logaddexp.reduce(d / tau) - np.log(len(d))))

    @staticmethod
    def divergence(d: np.ndarray, tau: float) -> float:
        p = np.exp(d / tau - np.logaddexp.reduce(d / tau))
        return float(np.sum(p[p > 0] * np.log(len(d) * p[p > 0])))

    def temperature(self, d: np.ndarray) -> float:
        if self.form == "penalised":
            return self.tau
        # the divergence falls with tau; where it is below rho throughout, the smallest tau is the best
        low, high = np.log(self.tau_min), np.log(self.tau_max)
        for _ in range(200):
            mid = (low + high) / 2
            low, high = (low, mid) if self.divergence(d, np.exp(mid)) < self.rho else (mid, high)
        return float(np.clip(np.exp((low + high) / 2), self.tau_min, self.tau_max))

    def above(self, losses: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
        return losses - (0 if reference is None else reference)

    def step(self, **inputs: np.ndarray) -> np.ndarray:
        d = self.above(**inputs)
        tau = self.temperature(d)
        return np.exp(d / tau - np.logaddexp.reduce(d / tau))

    def value(self, q: np.ndarray, **inputs: np.ndarray) -> float:
        d = self.above(**inputs)
        tau = self.temperature(d)
        return self.level(d, tau) + (tau * self.rho if self.form == "ball" else 0)

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        # equal losses have no best temperature for rho = 0: rounding decides
        return [run[:3] for run in losses_of(rng, (2, 3, 7, 20))]


class DRRhoWeights(KLDROWeights):
    """Wei, Lin, et al., 2025 (arXiv 2505.06699)."""

    name = "drrho_weights"

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return [[{**x, "reference": rng.uniform(0, 1, len(x["losses"]))} for x in run] for run in super().sequences(rng)]


class FeasibleLearning(WeightingReference):
    """Ramirez et al., 2025 (arXiv 2501.14912)."""

    name = "feasible_learning"
    required = ("samples",)
    defaults = {"eps": 0.0, "lr": 1e-2, "resilient": None, "kp": 0.0}
    settings = ({"samples": 6}, {"samples": 6, "eps": 1.0, "lr": 0.5}, {"samples": 9, "eps": 0.5, "lr": 0.3, "resilient": 2.0},
                {"samples": 6, "eps": 1.0, "lr": 0.5, "kp": 2.0})

    def start(self) -> None:
        self.multipliers, self.before = np.zeros(self.samples), {}

    def step(self, losses: np.ndarray, indices: np.ndarray) -> np.ndarray:
        out = []
        for loss, i in zip(losses, indices):
            e = loss - self.eps - (self.multipliers[i] / self.resilient if self.resilient else 0)
            change = e - self.before.get(i, e)
            self.before[i] = e
            self.multipliers[i] = max(0.0, self.multipliers[i] + self.lr * (e + self.kp * change))
            out.append(self.multipliers[i])
        return np.array(out)

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return [[{"losses": rng.uniform(0, 2, n), "indices": rng.permutation(6)[:n]} for _ in range(6)] for n in (1, 3, 6)] + [
            [{"losses": np.array([2.0, 0.1]), "indices": np.array([2, 2])}] * 2]


class FocalWeight(WeightingReference):
    """Lin et al., 2017 (arXiv 1708.02002), of the softmax."""

    name = "focal_weight"
    defaults = {"gamma": 2.0, "detach": False}
    settings = ({}, {"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0, "detach": True})

    def parts(self, z: np.ndarray, y: np.ndarray, alpha: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        level = np.logaddexp.reduce(z, axis=1)
        rows = np.arange(len(y))
        miss = np.array([np.exp(np.delete(row, k) - l).sum() for row, k, l in zip(z, y, level)])
        return (1.0 if alpha is None else alpha[y]) * np.minimum(miss, 1) ** self.gamma, z[rows, y] - level

    def step(self, **inputs: np.ndarray) -> np.ndarray:
        return self.parts(**inputs)[0]

    def value(self, q: np.ndarray, **inputs: np.ndarray) -> float:
        return float(np.mean(-q * self.parts(**inputs)[1]))

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        def batch(n: int, c: int, **more: Any) -> dict[str, Any]:
            return {"z": 3 * rng.standard_normal((n, c)), "y": rng.integers(0, c, n), **more}

        return [[batch(1, 2), batch(1, 2)], [batch(5, 3), batch(5, 3)], [batch(6, 4, alpha=rng.uniform(0.5, 2, 4))],
                [batch(3, 1)]]


class DisparateImpact(WeightingReference):
    """Hashemizadeh et al., 2023 (arXiv 2310.20673)."""

    name = "disparate_impact"
    required = ("baseline_all",)
    defaults = {"tol": 0.01, "lr": 1e-2, "memory": 0, "detach_model": False}
    settings = ({"baseline_all": 0.9}, {"baseline_all": 0.8, "tol": 0.0, "lr": 0.5}, {"baseline_all": 0.8, "lr": 0.5, "memory": 3},
                {"baseline_all": 0.95, "lr": 1.0, "detach_model": True})

    def start(self) -> None:
        self.multipliers: np.ndarray | None = None
        self.past: dict[int, list[float]] = {}

    def step(self, losses: np.ndarray, correct: np.ndarray, groups: np.ndarray, baseline: np.ndarray) -> np.ndarray:
        K, n = len(baseline), len(losses)
        if self.multipliers is None:
            self.multipliers = np.zeros(K)
        for g, c in zip(groups, correct):
            self.past.setdefault(int(g), []).append(float(c))
        accuracy = {k: np.mean(correct[groups == k]) for k in range(K) if np.any(groups == k)}
        mean = float(np.mean(correct))
        if self.memory:
            accuracy = {k: np.mean(v[-self.memory:]) for k, v in self.past.items() if len(v) >= self.memory}
            mean = float(np.mean(list(accuracy.values()))) if accuracy else 0.0
        for k, a in accuracy.items():
            strict = (baseline[k] - a) - (self.baseline_all - mean) - self.tol
            self.multipliers[k] = max(0.0, self.multipliers[k] + self.lr * strict)
        w = np.zeros(n)
        for k in range(K):
            if np.any(groups == k):
                w += self.multipliers[k] * ((groups == k) / np.sum(groups == k) - (0 if self.detach_model else 1 / n))
        return w

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        def batch(n: int, K: int) -> dict[str, Any]:
            return {"losses": rng.uniform(0, 2, n), "correct": rng.integers(0, 2, n).astype(float),
                    "groups": rng.integers(0, K, n), "baseline": np.linspace(0.7, 0.9, K)}

        return [[batch(8, 3) for _ in range(5)], [batch(4, 3) for _ in range(6)], [batch(2, 1) for _ in range(4)]]


class PenaltyMethod(WeightingReference):
    """Quadratic and exact penalties whose coefficients grow."""

    name = "penalty_method"
    defaults = {"coefficient": 1.0, "kind": "quadratic", "growth": 1.01, "tol": 1e-4, "restart": True, "equalities": 0}
    settings = ({}, {"kind": "exact", "growth": 2.0}, {"coefficient": 3.0, "equalities": 1, "growth": 1.5, "restart": False},
                {"growth": 1.5, "tol": 0.5, "equalities": 9})

    def start(self) -> None:
        self.p: np.ndarray | None = None

    def violations(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inequality = np.arange(len(c)) < len(c) - min(len(c), self.equalities)
        return np.where(inequality, np.maximum(c, 0), c), inequality

    def step(self, constraints: np.ndarray) -> np.ndarray:
        v, inequality = self.violations(constraints)
        if self.p is None:
            self.p = np.full(len(v), self.coefficient)
        self.used = self.p.copy()
        self.p = np.where(np.abs(v) > self.tol, self.p * self.growth, self.p)
        if self.restart:
            self.p = np.where(inequality & (v == 0), self.coefficient, self.p)
        return self.used * (np.sign(v) if self.kind_ == "exact" else v)

    def value(self, w: np.ndarray, constraints: np.ndarray) -> float:
        v = self.violations(constraints)[0]
        return float(np.sum(self.used * (np.abs(v) if self.kind_ == "exact" else v * v / 2)))

    @property
    def kind_(self) -> str:
        return self.h["kind"]

    def sequences(self, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
        return [[{"constraints": rng.standard_normal(m)} for _ in range(6)] for m in (1, 3, 5)] + [
            [{"constraints": np.array(x)} for x in ([0.5, 1.0], [0.0, -1.0], [2.0, 0.0])]]
