"""Averages of the parameters along a run."""

from __future__ import annotations

import numpy as np

from .base import Arrays, AverageReference, OptimizerReference


class Ema(AverageReference):
    """Exponential moving average of the parameters, copied or zero start (the second is Adam's debiasing: Kingma,
    Ba, 2014).

    The card divides by 1 - d^n; with `warmup` the rates differ, and 1 - d_1 d_2 ... d_n is what makes a constant
    sequence come out exactly (the card's check).  Both are the same without warm-up.  `debias` means nothing with
    `first=copy`."""

    name = "ema"
    defaults = {"decay": 0.999, "first": "copy", "debias": False, "warmup": False}
    settings = ({}, {"decay": 0.9}, {"decay": 0.9, "first": "zero"}, {"decay": 0.9, "first": "zero", "debias": True},
                {"decay": 0.9, "warmup": True}, {"decay": 0.9, "first": "zero", "debias": True, "warmup": True})

    def start(self, params: Arrays) -> None:
        self.a = [np.zeros_like(w) for w in params]
        self.n, self.left = 0, 1.0  # updates so far; weight that the zero start still has

    def update(self, params: Arrays) -> None:
        d = min(self.decay, (1 + self.n) / (10 + self.n)) if self.warmup else self.decay
        for a, w in zip(self.a, params):
            a[...] = w if self.n == 0 and self.first == "copy" else d * a + (1 - d) * w
        self.n, self.left = self.n + 1, self.left * d

    def value(self) -> Arrays:
        if self.debias and self.first == "zero" and self.n:
            return [a / (1 - self.left) for a in self.a]
        return self.a


class Swa(AverageReference):
    """Uniform average of the iterates (Polyak, Ruppert; stochastic weight averaging: Izmailov et al., 2018,
    arXiv 1803.05407)."""

    name = "swa"
    defaults = {"start": 0, "freq": 1}
    settings = ({}, {"start": 4}, {"freq": 3}, {"start": 2, "freq": 4})

    def start(self, params: Arrays) -> None:
        self.a = [np.zeros_like(w) for w in params]
        self.calls = self.n = 0

    def update(self, params: Arrays) -> None:
        since = self.calls - self.h["start"]  # calls count from 0
        self.calls += 1
        if since >= 0 and since % self.freq == 0:
            self.n += 1
            for a, w in zip(self.a, params):
                a += (w - a) / self.n

    def value(self) -> Arrays:
        if self.n == 0:
            raise ValueError("swa: nothing averaged yet")
        return self.a


class PolyDecayAverage(AverageReference):
    """Polynomial-decay averaging (Shamir, Zhang, 2013, arXiv 1212.1824; shipped with DoG, arXiv 2302.12022)."""

    name = "poly_decay_average"
    defaults = {"gamma": 8.0}
    settings = ({}, {"gamma": 0.0}, {"gamma": 2.5})

    def start(self, params: Arrays) -> None:
        self.a = [np.zeros_like(w) for w in params]
        self.k = 0

    def update(self, params: Arrays) -> None:
        self.k += 1
        c = (self.gamma + 1) / (self.gamma + self.k)
        for a, w in zip(self.a, params):
            a[...] = (1 - c) * a + c * w

    def value(self) -> Arrays:
        return self.a


class TrajectoryMoments(AverageReference):
    """The direction that time averages of a walk on the sphere estimate (arXiv:2603.06028): the normalised mean, or the
    leading eigenvector of the mean of theta theta^T.  Its sign is free; that of the present theta is taken."""

    name = "trajectory_moments"
    defaults = {"order": 1}
    settings = ({}, {"order": 2})

    def start(self, params: Arrays) -> None:
        self.t = 0
        self.sums = [np.zeros(w.size if self.order == 1 else (w.size, w.size)) for w in params]

    def update(self, params: Arrays) -> None:
        self.t += 1
        self.last = [w.copy() for w in params]
        for s, w in zip(self.sums, params):
            s += w.ravel() if self.order == 1 else np.outer(w, w)

    def value(self) -> Arrays:
        axes = [s if self.order == 1 else np.linalg.eigh(s)[1][:, -1] for s in self.sums]
        if self.order == 2:
            axes = [a if a @ w.ravel() >= 0 else -a for a, w in zip(axes, self.last)]
        return [(a / np.linalg.norm(a)).reshape(w.shape) if a.any() else w for a, w in zip(axes, self.last)]


class Lookahead(AverageReference):
    """Lookahead (Zhang, Lucas, Hinton, Ba, 2019; arXiv 1907.08610): every k-th call the slow weights move towards the
    fast ones, which then start again from them.  `value` is the slow weights.

    `pullback=reset` starts the state of the inner rule afresh at each synchronisation: `update` does it when `inner`
    is given.  The card does not say whether the inner step count is reset too; afresh means that it is."""

    name = "lookahead"
    defaults = {"k": 5, "alpha": 0.5, "pullback": "keep"}
    settings = ({}, {"k": 1, "alpha": 0.8}, {"k": 3, "alpha": 1.0}, {"k": 4, "alpha": 0.3, "pullback": "reset"})

    def start(self, params: Arrays) -> None:
        self.slow = [w.copy() for w in params]
        self.calls = 0

    def update(self, params: Arrays, inner: OptimizerReference | None = None) -> None:
        self.calls += 1
        if self.calls % self.k:
            return
        for s, w in zip(self.slow, params):
            s += self.alpha * (w - s)
            w[...] = s
        if self.pullback == "reset" and inner is not None:
            inner.start(params)

    def value(self) -> Arrays:
        return self.slow
