"""Optimizers that hold a manifold or a regularizer: Riemannian rules, and proximal ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from . import manifolds, penalties_terms, regularizers
from ._per_tensor import PerTensor
from .base import ConstraintReference


class Euclidean(ConstraintReference):
    """The whole space; every element is a point."""

    name = "euclidean"
    bounded = False

    def project(self, w: np.ndarray) -> np.ndarray:
        return w.copy()

    def proj(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return u

    egrad2rgrad = proj

    def retract(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return x + u


def transport(m: Any, x: np.ndarray, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """u, tangent at x, at y."""
    if m.name == "euclidean":
        return u
    if m.name == "sphere":
        return u - np.sum(y * u) / (m.radius**2 + np.sum(x * y)) * (x + y)
    if m.name == "poincare_ball":
        # gyr[y, -x] is linear, and its definition loses digits near the boundary: long double, and short vectors
        c, (x, y, u) = m.c, (np.asarray(a, np.longdouble) for a in (x, y, u))
        short = 0.3 / np.sqrt(np.maximum(c * m._dot(u, u), np.finfo(float).tiny))
        turned = m.add(-m.add(y, -x), m.add(y, m.add(-x, short * u))) / short
        return np.asarray(turned * (1 - c * m._dot(y, y)) / (1 - c * m._dot(x, x)), np.float64)
    if m.name == "lorentz":
        return u + m.c * m.dot(y, u) / (1 - m.c * m.dot(x, y)) * (x + y)
    if m.name == "spd":
        half = root(x)
        inverse = np.linalg.inv(half)
        e = half @ root(inverse @ y @ inverse) @ inverse
        return e @ u @ e.T
    return m.proj(y, u)


def root(a: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((a + a.T) / 2)
    return (vectors * np.sqrt(values)) @ vectors.T


def squares(m: Any, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """<u, u> of every factor, in a shape that broadcasts against u."""
    if m.name == "euclidean":
        return u * u
    if m.name == "oblique":
        rows = regularizers.rows(u)
        return np.sum(rows * rows, axis=1).reshape((-1,) + (1,) * (u.ndim - 1)) if u.ndim > 1 else np.sum(u * u)
    if m.name == "poincare_ball":
        return (2 / (1 - m.c * m._dot(x, x))) ** 2 * m._dot(u, u)
    if m.name == "lorentz":
        return np.maximum(m.dot(u, u), 0)
    if m.name == "spd":
        return np.trace(np.linalg.solve(x, u) @ np.linalg.solve(x, u))
    if m.name == "stiefel":
        return np.asarray(m.inner(x, u, u))
    return np.sum(u * u)


class Riemannian(PerTensor):
    """One tensor after the other."""

    def turn(self, x: np.ndarray, r: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        raise NotImplementedError

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        x = self.manifold.project(p) if s.t == 1 else p.copy()
        r = self.manifold.egrad2rgrad(x, g + self.weight_decay * p)
        y = self.manifold.retract(x, -self.lr * self.turn(x, r, s))
        if self.stabilize is not None and s.t % self.stabilize == 0:
            y = self.manifold.project(y)
        if hasattr(s, "m"):
            s.m = transport(self.manifold, x, y, s.m)
        p[...] = y


class RiemannianSGD(Riemannian):
    """Bonnabel, 2013, arXiv 1111.5280; Becigneul, Ganea, 2019, arXiv 1810.00760."""

    name = "riemannian_sgd"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "stabilize": 10,
                "manifold": Euclidean()}
    settings = ({"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
                {"lr": 0.05, "momentum": 0.9, "nesterov": True, "stabilize": None},
                {"lr": 0.1, "momentum": 0.9, "manifold": manifolds.Sphere(radius=2.0)},
                {"lr": 0.1, "momentum": 0.5, "manifold": manifolds.Oblique()},
                {"lr": 0.1, "momentum": 0.5, "stabilize": 3, "manifold": manifolds.PoincareBall(c=0.5, eps=1e-2)})

    def turn(self, x: np.ndarray, r: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        if self.momentum == 0:
            return r
        s.m = r if s.t == 1 else self.momentum * s.m + (1 - self.dampening) * r
        return r + self.momentum * s.m if self.nesterov else s.m


class RiemannianAdam(Riemannian):
    name = "riemannian_adam"
    buffers = ("m",)
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False,
                "bias_correction": True, "stabilize": 10, "manifold": Euclidean()}
    settings = ({"lr": 0.1}, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1, "amsgrad": True},
                {"lr": 0.05, "beta2": 0.8, "bias_correction": False, "eps": 1e-3, "stabilize": None},
                {"lr": 0.1, "amsgrad": True, "manifold": manifolds.Sphere(retraction="project")},
                {"lr": 0.05, "manifold": manifolds.Oblique(), "weight_decay": 0.1},
                {"lr": 0.05, "beta1": 0.5, "manifold": manifolds.PoincareBall(eps=1e-2)})

    def turn(self, x: np.ndarray, r: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        q = squares(self.manifold, x, r)
        s.m = self.beta1 * s.m + (1 - self.beta1) * r
        s.v = self.beta2 * getattr(s, "v", 0.0) + (1 - self.beta2) * q
        s.most = np.maximum(getattr(s, "most", 0.0), s.v)
        v = s.most if self.amsgrad else s.v
        if self.bias_correction:
            return s.m / (1 - self.beta1**s.t) / (np.sqrt(v / (1 - self.beta2**s.t)) + self.eps)
        return s.m / (np.sqrt(v) + self.eps)


class RiemannianAdagrad(Riemannian):
    name = "riemannian_adagrad"
    defaults = {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.0, "stabilize": 10, "manifold": Euclidean()}
    settings = ({"lr": 0.1}, {"lr": 0.3, "eps": 1e-2, "weight_decay": 0.1, "stabilize": 3},
                {"lr": 0.1, "manifold": manifolds.PoincareBall(c=2.0, eps=1e-2, retraction="project")})

    def turn(self, x: np.ndarray, r: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        s.total = getattr(s, "total", 0.0) + squares(self.manifold, x, r)
        return r / (np.sqrt(s.total) + self.eps)


class _Proximal(PerTensor):
    def prox(self, y: np.ndarray, t: Any) -> np.ndarray:
        return y if self.regularizer is None else self.regularizer.prox(y, t)


class ProxSGD(_Proximal):
    name = "prox_sgd"
    buffers = ("v",)
    defaults = {"regularizer": None, "lr": 1e-2, "momentum": 0.0}
    settings = ({}, {"regularizer": regularizers.L1(weight=0.05), "lr": 0.1}, {"regularizer": regularizers.GroupLasso(weight=0.05, axis="row"), "momentum": 0.9})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.v = self.momentum * s.v + g
        p[...] = self.prox(p - self.lr * s.v, self.lr)


class ProxAdam(_Proximal):
    """ProxGen: Yun, Lozano, Yang, 2021, arXiv 2006.07065."""

    name = "prox_adam"
    buffers = ("m", "v")
    defaults = {"regularizer": None, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "skip_zero_grad": True}
    settings = (
        {"lr": 0.1},
        {"lr": 0.1, "regularizer": regularizers.L1(weight=0.05)},
        {"lr": 0.1, "regularizer": regularizers.L2(weight=0.3), "beta1": 0.5, "eps": 0.1, "skip_zero_grad": False},
        {"lr": 0.1, "regularizer": regularizers.ElasticNet(weight=0.1)},
        {"lr": 0.1, "regularizer": penalties_terms.LogCosh(weight=0.2)},
        {"lr": 0.1, "regularizer": penalties_terms.HuberPenalty(weight=0.2)},
        {"lr": 0.1, "regularizer": penalties_terms.MCP(weight=0.1)},
        {"lr": 0.1, "regularizer": regularizers.GroupLasso(weight=0.05, axis="row"), "beta2": 0.9},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.v = self.beta2 * s.v + (1 - self.beta2) * g * g
        d = np.sqrt(s.v / (1 - self.beta2**s.t)) + self.eps
        if self.skip_zero_grad:
            d = np.where(s.v == 0, 1.0, d)
        y = p - self.lr / d * (s.m / (1 - self.beta1**s.t))
        if isinstance(self.regularizer, regularizers.GroupLasso):
            p[...] = self.prox(y, self.lr / np.mean(d))
        else:
            steps = np.broadcast_to(self.lr / d, y.shape)
            if isinstance(self.regularizer, (penalties_terms.LogCosh, penalties_terms.HuberPenalty)):
                p[...] = self.prox(y, steps)  # written for steps of any shape
            else:
                pairs = zip(y.ravel(), steps.ravel())
                p[...] = np.reshape([self.prox(np.asarray(a), float(t)) for a, t in pairs], y.shape)
