"""Equilibrium propagation, Jacobian symmetry, scattered SPSA: gradients without back-propagation."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference


class EPDelta(ObjectiveReference):
    """Laborieux, Zenke, 2023 (arXiv 2309.02214)."""

    name = "ep_delta"
    defaults = {"N": 2, "beta": 0.1}
    settings = ({}, {"N": 2, "beta": 0.7}, {"N": 4, "beta": 0.5}, {"N": 6})

    def examples(self, rng):
        N, out = self.h["N"], []
        out.append({"real": rng.standard_normal((N, 5)), "imag": rng.standard_normal((N, 5))})
        out.append({"real": rng.standard_normal((N, 3))})
        if N > 2:  # half of the states
            imag = rng.standard_normal((N // 2 + 1, 3))
            imag[[0, -1]] = 0
            out.append({"real": rng.standard_normal((N // 2 + 1, 3)), "imag": imag})
        broken = rng.standard_normal((N, 2))
        broken[0, 1] = np.nan
        return out + [{"real": broken}]

    def delta(self, real, imag=None, free=None):
        N = self.h["N"]
        a = np.nan_to_num(real) + 1j * np.nan_to_num(np.zeros_like(real) if imag is None else imag)
        if N == 1:
            return (a[0].real - free) / self.beta
        if len(a) != N:
            a = np.concatenate([a, np.conj(a[1:-1][::-1])])
        t = np.exp(2j * np.pi * np.arange(N) / N)
        return np.real(np.mean(a / (self.beta * t[:, None]), axis=0))

    def value(self, **a):
        return float(np.mean(self.delta(**a) ** 2) / 2)

    def gradients(self, **a):
        return {"delta": self.delta(**a)}


class EPWeightGrad(ObjectiveReference):
    name = "ep_weight_grad"
    settings = ({},)

    def examples(self, rng):
        return [{"delta": rng.standard_normal((b, o)), "pre": rng.standard_normal((b, i))} for b, o, i in ((1, 1, 1), (4, 3, 2))]

    def value(self, delta, pre):
        return float(np.sum((delta.T @ pre / len(pre)) ** 2) / 2)

    def gradients(self, delta, pre):
        return {"gradient": delta.T @ pre / len(pre)}


class JacobianHomeostasis(ObjectiveReference):
    name = "jacobian_homeostasis"
    defaults = {"coefficient": 1.0}
    settings = ({}, {"coefficient": 0.3})

    def examples(self, rng):
        return [dict(zip(("je", "jje", "e"), rng.standard_normal((3, k, d)))) for k, d in ((1, 1), (5, 4))]

    def value(self, je, jje, e):
        return float(self.coefficient * np.mean(np.sum(je**2, axis=1) - np.sum(e * jje, axis=1)) / je.shape[1])

    def gradients(self, je, jje, e):
        return {"je": 2 * self.coefficient * je / je.size, "jje": -self.coefficient * e / je.size}


class LocalSPSA(ObjectiveReference):
    """Deliot, Heitz, Belcour, 2024 (arXiv 2404.09758): the first pass."""

    name = "local_spsa"
    defaults = {"eps": 0.01, "reduce": "mean", "repetitions": 1}
    settings = ({}, {"reduce": "sum", "eps": 0.5}, {"repetitions": 3})

    def examples(self, rng):
        lists = np.array([[0, 1, -1], [2, -1, -1], [1, 3, 0], [-1, -1, -1]])
        base = {"plus": rng.standard_normal(4), "minus": rng.standard_normal(4), "signs": np.sign(rng.standard_normal(5)), "contributors": lists}
        return [base, {**base, "lengths": rng.uniform(0.1, 1, 5)}]

    def value(self, plus, minus, **rest):
        return float(np.sum(plus + minus) / 2)

    def gradients(self, plus, minus, signs, contributors, lengths=None):
        eps = np.full(len(signs), self.eps) if lengths is None else lengths
        total, count = np.zeros(len(signs)), np.zeros(len(signs))
        for p, those in enumerate(contributors):
            for j in those[those >= 0]:
                total[j] += (plus[p] - minus[p]) / (2 * eps[j]) * signs[j]
                count[j] += 1
        return {"gradient": total / np.maximum(count, 1) if self.h["reduce"] == "mean" else total, "count": count}
