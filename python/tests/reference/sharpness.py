"""Sharpness-aware perturbations beside `sam`."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Callable

import numpy as np

from .base import Arrays, Reference
from .perturbations import Perturbation, _moved, _norm

Gradient = Callable[[Arrays], Arrays]


def _dot(a: Arrays, b: Arrays) -> float:
    return float(sum(np.sum(x * y) for x, y in zip(a, b)))


def _along(direction: Arrays, radius: float, norm: float, eps: float) -> Arrays:
    return [radius / (norm + eps) * d if norm > 0 else 0 * d for d in direction]


class ASAM(Perturbation):
    """Adaptive SAM (Kwon et al., 2021; arXiv 2102.11600)."""

    name = "asam"
    defaults = {"rho": 0.5, "eta": 0.01, "normalized": True, "eps": 1e-12}
    settings = ({}, {"rho": 0.1, "eta": 0.0}, {"rho": 0.1, "normalized": False}, {"rho": 0.2, "eps": 0.1})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        t = [np.abs(w) + self.eta if self.normalized else np.ones_like(w) for w in params]
        norm = _norm([a * g for a, g in zip(t, grads)])
        return gradient_at(_moved(params, _along([a * a * g for a, g in zip(t, grads)], self.rho, norm, self.eps)))


class SAMON(Perturbation):
    """SAM on normalisation layers (Mueller et al., 2023; arXiv 2306.04226), with all tensors flagged; `of` says which."""

    name = "sam_on"
    defaults = {"rho": 0.5, "mode": "asam_elementwise", "eta": 0.01, "perturb": True, "normalize": True, "norm": "l2",
                "eps": 1e-16}
    settings = ({}, {"rho": 0.1, "mode": "sam"}, {"rho": 0.1, "norm": "linf"},
                {"rho": 0.1, "mode": "sam", "norm": "linf"}, {"normalize": False},
                {"mode": "asam_layerwise"}, {"rho": 0.1, "mode": "asam_layerwise", "eta": 0.5, "norm": "linf"},
                {"mode": "asam_layerwise", "normalize": False})

    def _metric(self, w: np.ndarray) -> np.ndarray:
        if self.mode == "asam_layerwise":
            return np.full_like(w, np.linalg.norm(w) * (1 + self.eta))
        return np.abs(w) + self.eta if self.mode == "asam_elementwise" else np.ones_like(w)

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient, of: list[int] | None = None,
                  plain: tuple[int, ...] = ()) -> Arrays:
        chosen = ([] if not self.perturb else range(len(params))) if of is None else of
        t = {i: np.ones_like(params[i]) if i in plain or not self.normalize else self._metric(params[i]) for i in chosen}
        point = [w.copy() for w in params]
        if self.h["norm"] == "linf":
            for i in chosen:
                point[i] = params[i] + self.rho * t[i] * np.sign(grads[i])
            return gradient_at(point)
        norm = _norm([t[i] * grads[i] for i in chosen])
        for i in chosen:
            point[i] = params[i] + _along([t[i] ** 2 * grads[i]], self.rho, norm, self.eps)[0]
        return gradient_at(point)


class USAM(Perturbation):
    """Unnormalised SAM (Andriushchenko and Flammarion, 2022; arXiv 2206.06232)."""

    name = "usam"
    defaults = {"rho": 0.05}
    settings = ({}, {"rho": 0.3}, {"rho": 0.0})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        return gradient_at(_moved(params, [self.rho * g for g in grads]))


class DNSAM(Perturbation):
    """SAM with deterministic normalisation (Compagnoni et al., 2023; arXiv 2301.08203); `full_norm` is what was
    observed last, the norm of the minibatch gradient before."""

    name = "dnsam"
    defaults = {"rho": 0.05, "eps": 1e-12}
    settings = ({}, {"rho": 0.3})
    full_norm: float | None = None

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        norm = _norm(grads) if self.full_norm is None else self.full_norm
        return gradient_at(_moved(params, _along(grads, self.rho, norm, self.eps)))


class TRAM(Perturbation):
    """Trust region aware minimization (Sherborne et al., 2024; arXiv 2310.03646); `divergence` is what was observed."""

    name = "tram"
    defaults = {"scale": 1.0, "adaptive": True, "eps": 1e-12}
    settings = ({}, {"scale": 0.3, "adaptive": False})
    divergence = 0.0

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        t = [np.abs(w) if self.adaptive else np.ones_like(w) for w in params]
        norm = _norm([a * g for a, g in zip(t, grads)])
        e = _along([a * a * g for a, g in zip(t, grads)], self.scale * self.divergence, norm, self.eps)
        return gradient_at(_moved(params, e))


class GNP(Perturbation):
    """Gradient-norm penalty (Zhao et al., 2022; arXiv 2202.03599)."""

    name = "gnp"
    defaults = {"r": 0.05, "alpha": 0.8, "eps": 1e-12}
    settings = ({}, {"r": 0.3, "alpha": 0.4}, {"alpha": 0.0}, {"alpha": 1.0})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        away = gradient_at(_moved(params, _along(grads, self.r, _norm(grads), self.eps)))
        return [(1 - self.alpha) * g + self.alpha * a for g, a in zip(grads, away)]


class GSAM(Perturbation):
    """Surrogate-gap guided SAM (Zhuang et al., 2022; arXiv 2203.08065)."""

    name = "gsam"
    defaults = {"rho": 0.05, "alpha": 0.4, "eps": 1e-12, "adaptive": False}
    settings = ({}, {"rho": 0.3}, {"rho": 0.3, "adaptive": True}, {"alpha": 0.0}, {"rho": 0.2, "eps": 0.1})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        t = [np.abs(w) if self.adaptive else np.ones_like(w) for w in params]
        norm = _norm([a * g for a, g in zip(t, grads)])
        e = _along([a * a * g for a, g in zip(t, grads)], self.rho, norm, self.eps)
        new = gradient_at(_moved(params, e))
        a, b = _norm(grads), _norm(new)
        if a == 0 or b == 0:
            return [n - self.alpha * g for n, g in zip(new, grads)]
        cosine = _dot(grads, new) / (a * b + self.eps)
        across = [g - cosine * a * n / (b + self.eps) for g, n in zip(grads, new)]
        return [n - self.alpha * v for n, v in zip(new, across)]


class FriendlySAM(Perturbation):
    """Friendly SAM (Li et al., 2024; arXiv 2403.12350)."""

    name = "friendly_sam"
    defaults = {"rho": 0.05, "sigma": 1.0, "lmbda": 0.9, "eps": 1e-12}
    settings = ({}, {"rho": 0.3, "lmbda": 0.6}, {"rho": 0.3, "sigma": 0.5}, {"sigma": 0.0})
    average: Arrays | None = None

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        if self.average is None:
            d, self.average = grads, [g.copy() for g in grads]
        else:
            d = [g - self.sigma * m for g, m in zip(grads, self.average)]
            self.average = [self.lmbda * m + (1 - self.lmbda) * g for m, g in zip(self.average, grads)]
        return gradient_at(_moved(params, _along(d, self.rho, _norm(d), self.eps)))


class LookSAM(Perturbation):
    """LookSAM (Liu et al., 2022; arXiv 2203.02714)."""

    name = "looksam"
    defaults = {"rho": 0.05, "k": 5, "alpha": 0.7, "scope": "global", "eps": 1e-12}
    # a short perturbation of many entries leaves few digits of the part across the gradient
    settings = ({"rho": 5.0}, {"rho": 9.0, "k": 3}, {"k": 1}, {"k": 2, "alpha": 0.0})
    t = 0

    def _scoped(self, read: Callable[[Arrays, Arrays], float], left: Arrays, right: Arrays) -> list[float]:
        if self.scope == "global":
            return [read(left, right)] * len(left)
        return [read([a], [b]) for a, b in zip(left, right)]

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        t, self.t = self.t, self.t + 1
        norm = _norm(grads)
        if t % self.k == 0:
            away = gradient_at(_moved(params, _along(grads, self.rho, norm, self.eps)))
            share = self._scoped(lambda g, a: _dot(g, a) / max(_norm(g), self.eps) ** 2, grads, away)
            self.across = [a - c * g for a, g, c in zip(away, grads, share)]
            return away
        factor = self._scoped(lambda g, v: self.alpha * _norm(g) / (_norm(v) + 1e-8), grads, self.across)
        return [g + c * v for g, v, c in zip(grads, self.across, factor)]


class AMP(Perturbation):
    """Adversarial model perturbation (Zheng et al., 2021; arXiv 2010.04925)."""

    name = "amp"
    defaults = {"epsilon": 0.5, "inner_lr": 1.0, "inner_iter": 1, "scope": "tensor"}
    settings = ({}, {"epsilon": 0.1, "inner_iter": 3}, {"epsilon": 100.0, "inner_lr": 0.2, "inner_iter": 2},
                {"epsilon": 0.0}, {"scope": "global"}, {"epsilon": 0.3, "inner_iter": 2, "scope": "global"})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        d = [np.zeros_like(w) for w in params]
        for _ in range(self.inner_iter):
            d = [a + self.inner_lr * g for a, g in zip(d, grads)]
            norms = [_norm([a]) if self.scope == "tensor" else _norm(d) for a in d]
            d = [min(1.0, self.epsilon / (n + 1e-12)) * a for a, n in zip(d, norms)]
            grads = gradient_at(_moved(params, d))
        return grads


class FSAM(Perturbation):
    """Fisher-masked sparse SAM (Zhong et al., 2022; arXiv 2210.05497); `fixed` tensors are perturbed whole."""

    name = "fsam"
    defaults = {"rho": 0.05, "keep_ratio": 0.1, "refresh_every": 100, "maskable": True, "eps": 1e-7}
    settings = ({}, {"rho": 0.3, "keep_ratio": 0.3, "refresh_every": 4}, {"keep_ratio": 1.0},
                {"keep_ratio": 0.001}, {"maskable": False}, {"rho": 0.3, "keep_ratio": 0.5, "refresh_every": 1})
    t, fixed = 0, ()

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        if self.t % self.refresh_every == 0:
            free = [i for i in range(len(grads)) if self.maskable and i not in self.fixed]
            self.mask = [np.ones_like(g) for g in grads]
            if free:
                fisher = np.concatenate([np.ravel(grads[i] ** 2) for i in free])
                chosen = np.zeros(fisher.size)
                chosen[np.argsort(-fisher, kind="stable")[: int(self.keep_ratio * fisher.size)]] = 1
                at = np.cumsum([0] + [grads[i].size for i in free])
                for i, a, b in zip(free, at, at[1:]):
                    self.mask[i] = chosen[a:b].reshape(grads[i].shape)
        self.t += 1
        e = _along(grads, self.rho, _norm(grads), self.eps)
        return gradient_at(_moved(params, [m * x for m, x in zip(self.mask, e)]))


class Noisy:
    """Those that draw a standard normal number for each entry of a step."""

    t = 0

    def displacement(self, params: Arrays, grads: Arrays, z: Arrays) -> Arrays:
        raise NotImplementedError

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Gradient | None = None,
             normal: Callable[[int], Arrays] | None = None, **more: Any) -> None:
        assert gradient_at is not None
        z = normal(self.t) if normal is not None else [np.zeros_like(w) for w in params]
        self.t += 1
        away = gradient_at(_moved(params, self.displacement(params, grads, z)))
        super().step(params, grads, gradient_at=lambda _: away)  # type: ignore[misc]

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        return gradient_at(params)


class AvgSAM(Perturbation):
    """Average-direction SAM (Zhu et al., 2023; arXiv 2306.02913): the mean of the gradients at random points nearby."""

    name = "avg_sam"
    defaults = {"sigma": 0.01, "draws": 1}
    settings = ({}, {"sigma": 0.3}, {"sigma": 0.0}, {"sigma": 0.3, "draws": 3})
    t = 0

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Gradient | None = None,
             normal: Callable[[int], Arrays] | None = None, **more: Any) -> None:
        assert gradient_at is not None
        found = []
        for k in range(self.draws):
            z = normal(self.t * self.draws + k) if normal is not None else [np.zeros_like(w) for w in params]
            found.append(gradient_at(_moved(params, [self.sigma * x for x in z])))
        self.t += 1
        mean = [sum(parts) / self.draws for parts in zip(*found)]
        super().step(params, grads, gradient_at=lambda _: mean)

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Gradient) -> Arrays:
        return gradient_at(params)


class ESAM(Noisy, Perturbation):
    """Efficient SAM (Du et al., 2022; arXiv 2110.03141): stochastic weight perturbation, entry by entry."""

    name = "esam"
    defaults = {"rho": 0.05, "beta": 0.6, "eps": 1e-12}
    settings = ({}, {"rho": 0.3, "beta": 0.2}, {"rho": 0.3, "beta": 1.0})

    def displacement(self, params: Arrays, grads: Arrays, z: Arrays) -> Arrays:
        below = np.inf if self.beta == 1 else NormalDist().inv_cdf(self.beta)
        e = _along(grads, self.rho / self.beta, _norm(grads), self.eps)
        return [np.where(x < below, a, 0.0) for a, x in zip(e, z)]


class ImbSAM(Reference):
    """Imbalanced SAM (Zhou et al., 2023; arXiv 2308.07815)."""

    name, kind = "imbsam", "perturbation"
    defaults = {"rho": 0.05, "eps": 1e-16}

    def perturbed(self, params: Arrays, gradient_at: Callable[[Arrays, int], Arrays]) -> Arrays:
        head, tail = gradient_at(params, 0), gradient_at(params, 1)
        if _norm(tail) == 0:
            return head
        away = gradient_at(_moved(params, _along(tail, self.rho, _norm(tail), self.eps)), 1)
        return [h + t for h, t in zip(head, away)]


class IGNITE(Reference):
    """IGNITE (Dao et al., 2024)."""

    name, kind = "ignite", "perturbation"
    defaults = {"rho": 0.05, "r": 0.05, "lambda0": 1e-3, "eta_lambda": 1e-3, "epsilon": 0.1, "clamp": False}
    multiplier: float | None = None

    def perturbed(self, params: Arrays, gradient_at: Callable[[Arrays, int], Arrays]) -> Arrays:
        lam = self.lambda0 if self.multiplier is None else self.multiplier
        g, p = gradient_at(params, 0), gradient_at(params, 1)
        norm = _norm(p)
        away = gradient_at(_moved(params, _along(p, self.r, norm, 0.0)), 1)
        self.multiplier = lam + self.eta_lambda * (self.rho * norm - self.epsilon)
        if self.clamp:
            self.multiplier = max(0.0, self.multiplier)
        return [a + lam * self.rho / self.r * (c - b) for a, b, c in zip(g, p, away)]
