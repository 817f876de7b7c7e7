"""Objectives, and the regularizers that look at more than the weights, from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference


def log_sigmoid(z: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -z)


class SumLogConcave(ObjectiveReference):
    """F = -log sum_s exp(-f_s) (Achab, 2023; arXiv 2309.15298)."""

    name = "sum_log_concave"

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [
            {"f": rng.standard_normal(1)},
            {"f": 3 * rng.standard_normal(7)},
            {"f": 1000 + rng.standard_normal(5), "grads": rng.standard_normal((5, 3))},
            {"f": np.array([0.0, np.inf, 1.0]), "grads": rng.standard_normal((3, 9))},
            {"f": np.array([-900.0, 900.0]), "grads": rng.standard_normal((2, 1))},
        ]

    def value(self, f: np.ndarray, grads: np.ndarray | None = None) -> float:
        top = np.max(-f)
        return float(-(top + np.log(np.sum(np.exp(-f - top)))))

    def gradients(self, f: np.ndarray, grads: np.ndarray | None = None) -> dict[str, np.ndarray]:
        w = np.exp(-f + self.value(f))
        return {"f": w} if grads is None else {"f": w, "x": w @ grads}


class CheckeredRegression(ObjectiveReference):
    """-mean log P(y|z), P the probability that the number of negative factors has the parity of y (Achab, 2023;
    arXiv 2309.15298): log-parity recursions from the left and from the right."""

    name = "checkered_regression"

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        labels = lambda n: rng.choice(np.array([-1, 1]), n)  # noqa: E731
        return [
            {"z": rng.standard_normal((1, 1)), "y": labels(1)},
            {"z": 2 * rng.standard_normal((5, 3)), "y": labels(5)},
            {"z": 10 * rng.standard_normal((700, 6)), "y": labels(700)},
            {"z": 800 * rng.choice(np.array([-1.0, 1.0]), (6, 4)), "y": labels(6)},
            {"z": np.array([[0.0, 3.0], [0.0, 0.0]]), "y": np.array([1, -1])},
        ]

    @staticmethod
    def _prefix(z: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(log P(even), log P(odd)) of the first 0, 1, ..., m factors, for every row."""
        even, odd = np.zeros(len(z)), np.full(len(z), -np.inf)
        out = [(even, odd)]
        for column in z.T:
            plus, minus = log_sigmoid(column), log_sigmoid(-column)
            even, odd = np.logaddexp(even + plus, odd + minus), np.logaddexp(odd + plus, even + minus)
            out.append((even, odd))
        return out

    def value(self, z: np.ndarray, y: np.ndarray) -> float:
        even, odd = self._prefix(z)[-1]
        return float(-np.mean(np.where(y > 0, even, odd)))

    def gradients(self, z: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        left, right = self._prefix(z), self._prefix(z[:, ::-1])[::-1]
        even, odd = left[-1]
        log_p = np.where(y > 0, even, odd)
        g = np.empty_like(z)
        for j, column in enumerate(z.T):
            (le, lo), (re, ro) = left[j], right[j + 1]
            rest_even, rest_odd = np.logaddexp(le + re, lo + ro), np.logaddexp(le + ro, lo + re)
            same, other = np.where(y > 0, rest_even, rest_odd), np.where(y > 0, rest_odd, rest_even)
            factor = np.exp(log_sigmoid(column) + log_sigmoid(-column) - log_p)
            g[:, j] = -factor * (np.exp(same) - np.exp(other)) / len(z)
        return {"z": g}


class RNNVanishing(ObjectiveReference):
    """alpha/B sum_t sum_b (|u|/|delta| - 1)^2, u = (W' delta) * slope (Pascanu, Mikolov, Bengio, 2012; arXiv 1211.5063).

    The averaging is the card's: the sum over time, the mean over samples."""

    name = "rnn_vanishing"
    kind = "regularizer"
    defaults = {"alpha": 1.0}
    settings = ({}, {"alpha": 0.3}, {"alpha": 0.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for h, t, b in ((1, 1, 1), (4, 3, 2), (9, 2, 40)):
            w, delta = rng.standard_normal((h, h)), rng.standard_normal((t, b, h))
            cases.append({"w": w, "delta": delta, "slope": rng.uniform(0.1, 1.0, (t, b, h))})
        broken = {k: v.copy() for k, v in cases[1].items()}
        broken["delta"][0, 0] = 0
        broken["slope"][1, 1] = 0
        return [*cases, broken]

    def smooth(self, w: np.ndarray, delta: np.ndarray, slope: np.ndarray) -> bool:
        return bool(np.all(slope))  # |u| is not differentiable at 0

    def _terms(self, w: np.ndarray, delta: np.ndarray, slope: np.ndarray):
        for d, s in zip(delta.reshape(-1, len(w)), slope.reshape(-1, len(w))):
            c = np.sqrt(np.sum(d * d))
            if c > 0:
                u = (w.T @ d) * s
                yield d, s, u, c, np.sqrt(np.sum(u * u))

    def value(self, w: np.ndarray, delta: np.ndarray, slope: np.ndarray) -> float:
        terms = [(n / c - 1) ** 2 for _, _, _, c, n in self._terms(w, delta, slope)]
        return float(self.alpha / delta.shape[1] * np.sum(terms))

    def gradients(self, w: np.ndarray, delta: np.ndarray, slope: np.ndarray) -> dict[str, np.ndarray]:
        g = np.zeros_like(w)
        for d, s, u, c, n in self._terms(w, delta, slope):
            if n > 0:
                g += 2 * (n / c - 1) / (c * n) * np.outer(d, u * s)
        return {"w": self.alpha / delta.shape[1] * g}
