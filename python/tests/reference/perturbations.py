"""Methods that ask for gradients at perturbed points; each stands before `inner`, the rule that takes the step."""

from __future__ import annotations

from typing import Callable, ClassVar

import numpy as np

from .base import Arrays, OptimizerReference


class Perturbation(OptimizerReference):
    """`perturbed` gives the gradient that the inner rule sees.  The parameters themselves never move away: every
    trial point is a copy."""

    kind = "perturbation"
    needs = ("gradient_at",)
    inner: ClassVar[str] = "sgd(lr=0.1, momentum=0.9)"

    def start(self, params: Arrays) -> None:
        self.buffers = [np.zeros_like(w) for w in params]

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Callable[[Arrays], Arrays]) -> Arrays:
        raise NotImplementedError

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None,
             gradient_at: Callable[[Arrays], Arrays] | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None) -> None:
        assert gradient_at is not None
        for w, b, g in zip(params, self.buffers, self.perturbed(params, grads, gradient_at)):
            b[...] = 0.9 * b + g
            w -= 0.1 * b


def _norm(grads: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(g * g) for g in grads)))


def _moved(params: Arrays, step: Arrays) -> Arrays:
    return [w + e for w, e in zip(params, step)]


class SAM(Perturbation):
    """Sharpness-aware minimization (Foret, Kleiner, Mobahi, Neyshabur, 2021; arXiv 2010.01412): the gradient at the
    worst point, to first order, of an l2 or l-infinity ball."""

    name = "sam"
    defaults = {"rho": 0.05, "eps": 1e-12, "norm": "l2"}
    settings = ({}, {"rho": 0.5}, {"rho": 0.1, "norm": "linf"}, {"rho": 0.1, "eps": 0.1}, {"rho": 0.0})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Callable[[Arrays], Arrays]) -> Arrays:
        if self.norm == "linf":
            e = [self.rho * np.sign(g) for g in grads]
        else:
            scale = self.rho / (_norm(grads) + self.eps) if _norm(grads) > 0 else 0.0
            e = [scale * g for g in grads]
        return gradient_at(_moved(params, e))


class FdGradReg(Perturbation):
    """Finite-difference gradient regularisation (Karakida et al., 2023; arXiv 2210.02720): g + gamma H g, the
    gradient of L + gamma/2 |g|^2, from one or two more gradients."""

    name = "fd_grad_reg"
    defaults = {"gamma": 0.01, "eps": 0.01, "scheme": "forward", "step": "absolute"}
    settings = ({}, {"gamma": 0.1, "scheme": "backward"}, {"gamma": 0.1, "scheme": "central"},
                {"gamma": 0.1, "step": "relative"}, {"gamma": 0.1, "eps": 0.1, "scheme": "central", "step": "relative"},
                {"gamma": 0.05, "eps": 0.05})

    def perturbed(self, params: Arrays, grads: Arrays, gradient_at: Callable[[Arrays], Arrays]) -> Arrays:
        h = self.eps if self.h["step"] == "absolute" else self.eps / (_norm(grads) + 1e-12)
        if not any(g.any() for g in grads):
            return [g.copy() for g in grads]
        low, high = {"forward": (0.0, h), "backward": (-h, 0.0), "central": (-h / 2, h / 2)}[self.scheme]

        def at(s: float) -> Arrays:
            return grads if s == 0 else gradient_at(_moved(params, [s * g for g in grads]))

        return [g + self.gamma / h * (b - a) for g, a, b in zip(grads, at(low), at(high))]
