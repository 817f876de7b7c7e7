"""Transformations of gradients and of updates."""

from __future__ import annotations

from typing import Callable

import numpy as np

from .base import Arrays, TransformReference


def _global_norm(arrays: Arrays, p: float) -> float:
    x = np.abs(np.concatenate([a.ravel() for a in arrays])) if arrays else np.zeros(0)
    if p == np.inf:
        return float(np.max(x, initial=0.0))
    return float(x.sum() if p == 1 else np.sum(x ** p) ** (1 / p))


class ClipGlobalNorm(TransformReference):
    """Norm clipping (Pascanu, Mikolov, Bengio, 2012; arXiv 1211.5063).

    Two cards describe it.  This one scales by max_norm/(n + eps) only when n > max_norm, with eps = 0 (optax); torch,
    the other card, has eps = 1e-6 and always multiplies by min(1, max_norm/(n + eps)): they differ only for n within
    eps below max_norm.  A NaN or infinite n multiplies (the default policy).  `norm` is the norm before clipping,
    with `per_tensor` the largest one."""

    name = "clip_global_norm"
    defaults = {"max_norm": 1.0, "norm_type": 2.0, "per_tensor": False, "eps": 0.0}
    settings = ({}, {"max_norm": 0.3, "norm_type": 1.0}, {"max_norm": 0.3, "norm_type": np.inf},
                {"max_norm": 0.5, "eps": 1e-6}, {"max_norm": 0.5, "per_tensor": True}, {"max_norm": 1e6})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        groups = [[g] for g in grads] if self.per_tensor else [grads]
        norms = [_global_norm(group, self.norm_type) for group in groups]
        self.norm = max(norms, default=0.0)
        return [g * (self.max_norm / (n + self.eps)) if not n <= self.max_norm else g.copy()
                for group, n in zip(groups, norms) for g in group]


class ClipValue(TransformReference):
    """Every entry into [-max_value, max_value]; NaN stays."""

    name = "clip_value"
    required = ("max_value",)
    settings = ({"max_value": 0.5}, {"max_value": 0.01}, {"max_value": 1e6})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        return [np.clip(g, -self.max_value, self.max_value) for g in grads]


class CoordinateClip(TransformReference):
    """Coordinate-wise clipping (Pan, Li, 2023; arXiv 2306.00204): at `threshold`, or such that a `fraction` of the
    entries of each tensor is cut; exactly one of the two is given.

    Whether the paper's quantile is per tensor or global is UNVERIFIED; per tensor here.  `nonzero_floor`, which keeps
    the bound at the smallest nonzero magnitude when more than n - k entries are 0, is off by default (the card gives
    none)."""

    name = "coordinate_clip"
    defaults = {"threshold": None, "fraction": None, "nonzero_floor": False}
    settings = ({"threshold": 0.25}, {"fraction": 0.25}, {"fraction": 0.9}, {"fraction": 0.0},
                {"fraction": 0.5, "nonzero_floor": True})

    def _bound(self, x: np.ndarray) -> float:
        if self.threshold is not None or x.size == 0:
            return self.threshold or 0.0
        size = np.sort(np.abs(x), axis=None)[::-1]
        c = size[min(int(self.fraction * x.size), x.size - 1)]
        if c == 0 and self.nonzero_floor and size[0] > 0:
            c = size[size > 0][-1]
        return float(c)

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        return [np.clip(g, -self._bound(g), self._bound(g)) for g in grads]


class GradientNoise(TransformReference):
    """Annealed Gaussian noise (Neelakantan et al., 2015; arXiv 1511.06807): variance eta/(1 + t)^gamma, t from 0."""

    name = "gradient_noise"
    defaults = {"eta": 0.3, "gamma": 0.55}
    settings = ({}, {"eta": 0.01}, {"eta": 1.0, "gamma": 1.0}, {"gamma": 0.0}, {"eta": 0.0})
    t = 0  # calls so far

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        t, self.t = self.t, self.t + 1
        sigma = np.sqrt(self.eta / (1 + t) ** self.gamma)
        assert normal is not None
        return [g + sigma * xi for g, xi in zip(grads, normal(t))]


class Cautious(TransformReference):
    """Cautious masking of an update (Liang et al., 2024; arXiv 2411.16085): only the entries that agree in sign with
    the gradient stay.  `update` is the direction u of theta <- theta - lr u, before the learning rate and without
    decay.

    `mean` divides by the kept fraction, at least 1e-3 (UNVERIFIED in the card; it is what the public ports do, timm
    and descendants of the authors' code); `count` multiplies by n/(kept + 1), the paper's form."""

    name = "cautious"
    defaults = {"scale": "mean"}
    settings = ({}, {"scale": "count"}, {"scale": "none"})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        assert update is not None
        out = []
        for u, g in zip(update, grads):
            mask = u * g > 0
            kept = np.count_nonzero(mask)
            scale = {"mean": 1 / max(kept / max(u.size, 1), 1e-3), "count": u.size / (kept + 1), "none": 1.0}
            out.append(np.where(mask, u * scale[self.scale], 0.0))
        return out


class GradientAccumulate(TransformReference):
    """Accumulates `every` gradients: None until the k-th call, then their mean, sum, or mean weighted by `count`
    samples."""

    name = "gradient_accumulate"
    defaults = {"every": 4, "mode": "mean"}
    settings = ({}, {"every": 3, "mode": "sum"}, {"every": 3, "mode": "weighted"}, {"every": 1})
    acc: Arrays | None = None

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None, count: float = 1.0) -> Arrays | None:
        if self.acc is None:
            self.acc, self.calls, self.samples = [np.zeros_like(g) for g in grads], 0, 0.0
        weight = count if self.mode == "weighted" else 1.0
        self.acc = [a + weight * g for a, g in zip(self.acc, grads)]
        self.calls, self.samples = self.calls + 1, self.samples + count
        return self.flush() if self.calls == self.every else None

    def flush(self) -> Arrays | None:
        """What a window gives that is full or ends early; None when it is empty."""
        if self.acc is None:
            return None
        divisor = {"mean": self.calls, "sum": 1.0, "weighted": self.samples}[self.mode]
        out, self.acc = [a / divisor for a in self.acc], None
        return out


class TrAct(TransformReference):
    """TrAct (Petersen, Borgelt, Ermon, 2024; arXiv 2410.23970): first-layer weight gradient G' X (X'X/n + lam I)^-1
    from the inputs X (n, in) and the gradients G (n, out) at the pre-activations; it replaces G' X."""

    name = "tract"
    defaults = {"lam": 0.1}
    settings = ({}, {"lam": 1e-3}, {"lam": 10.0})
    shapes = "matrix"

    def gradient(self, X: np.ndarray, G: np.ndarray) -> np.ndarray:
        n = len(X)
        ridge = X.T @ X / n + self.lam * np.eye(X.shape[1])
        return np.linalg.solve(ridge, X.T @ G).T

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None,
                  layers: list[tuple[np.ndarray, np.ndarray]] | None = None) -> Arrays:
        """`layers` holds (X, G) for each tensor; `grads` gives only the shapes."""
        assert layers is not None
        return [self.gradient(X, G).reshape(g.shape) for g, (X, G) in zip(grads, layers)]
