"""Shampoo, SOAP and their Kullback-Leibler relatives: one square matrix an axis."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Iterator

import numpy as np

from ._per_tensor import PerTensor, ratio


def along(x: np.ndarray, axis: int, m: np.ndarray) -> np.ndarray:
    """m times x along an axis."""
    return np.moveaxis(np.tensordot(m, x, axes=(1, axis)), 0, axis)


def unfold(x: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def gram(x: np.ndarray, axis: int) -> np.ndarray:
    u = unfold(x, axis)
    return u @ u.T


def descending(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w, V = np.linalg.eigh(a)
    return w[::-1], V[:, ::-1]


def eigenbasis(a: np.ndarray) -> np.ndarray:
    """Eigenvectors, descending.  LAPACK leaves the basis of a null space to rounding; here it is the one in which
    diag(1, 2, ..., n) is diagonal (descending), which for a zero matrix is the reversed identity."""
    w, V = descending(a)
    null = w <= 1e-13 * max(w[0], 0.0)
    if np.any(null):
        N = V[:, null]
        V = np.hstack([V[:, ~null], N @ descending(N.T @ (np.arange(1, len(a) + 1)[:, None] * N))[1]])
    return V


def cut(shape: tuple[int, ...], side: int | None) -> Iterator[tuple[slice, ...]]:
    """The blocks of a tensor, the last axis fastest."""
    if side is None:
        yield tuple(slice(None) for _ in shape)
        return
    yield from itertools.product(*[[slice(i, i + side) for i in range(0, d, side)] for d in shape])


class Blocked(PerTensor):
    """A rule on the blocks of a tensor: `block(p, g, s)` sees each as a tensor of its own (rank 0 as one number)."""

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        x = np.atleast_1d(p)
        return SimpleNamespace(t=0, blocks=[(b, self.fresh_block(x[b])) for b in cut(x.shape, self.block_size)])

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        x, y = p.reshape(p.shape or (1,)), np.atleast_1d(g)
        for where, own in s.blocks:
            own.t += 1
            self.block(x[where], y[where], own)

    def fresh_block(self, p: np.ndarray) -> SimpleNamespace:
        raise NotImplementedError

    def block(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        """Changes p in place."""
        raise NotImplementedError


class Shampoo(Blocked):
    """Shampoo (Gupta, Koren, Singer, 2018; arXiv:1802.09568)."""

    name = "shampoo"
    defaults = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "beta1": 0.0, "beta2": 1.0, "eps": 1e-4, "eps_at": "init",
                "exponent": None, "precondition_frequency": 1, "start_preconditioning_step": 1, "max_preconditioner_dim": 8192,
                "grafting": "none", "graft_beta2": 0.999, "graft_eps": 1e-8, "bias_correction": False, "weight_decay": 0.0,
                "decoupled_decay": True, "block_size": None}
    # Roots that are some steps old meet directions of which they know only the damping: it is large there, so that
    # float32 still knows it.
    settings = (
        {},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "eps": 0.1, "precondition_frequency": 3},
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "beta1": 0.9, "beta2": 0.9, "eps": 0.1, "bias_correction": True,
         "eps_at": "root", "weight_decay": 0.1, "decoupled_decay": False},
        {"lr": 0.05, "grafting": "adam", "graft_beta2": 0.9, "eps": 0.1, "start_preconditioning_step": 4},
        {"lr": 0.05, "grafting": "adagrad", "eps": 0.1, "exponent": 2.5, "max_preconditioner_dim": 5, "beta1": 0.5},
        {"lr": 0.05, "grafting": "sgd", "eps": 0.1, "block_size": 3, "precondition_frequency": 5, "beta2": 0.95},
    )

    def fresh_block(self, p: np.ndarray) -> SimpleNamespace:
        axes = [k for k, d in enumerate(p.shape) if d <= self.max_preconditioner_dim]
        start = self.eps if self.eps_at == "init" else 0.0
        return SimpleNamespace(t=0, axes=axes, L={k: start * np.eye(p.shape[k]) for k in axes},
                               R={k: np.eye(p.shape[k]) for k in axes}, m=np.zeros_like(p), v=np.zeros_like(p), buffer=np.zeros_like(p))

    def block(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        corrected = self.bias_correction
        if not self.decoupled_decay:
            g = g + self.weight_decay * p
        for k in s.axes:
            new = gram(g, k)
            s.L[k] = s.L[k] + new if self.beta2 == 1 else self.beta2 * s.L[k] + (1 - self.beta2) * new
        if s.t % self.precondition_frequency == 0 or s.t == self.start_preconditioning_step:
            c = 1 - self.beta2**s.t if corrected and self.beta2 < 1 else 1.0
            e = self.exponent or 2 * p.ndim
            for k in s.axes:
                w, V = np.linalg.eigh(s.L[k] / c)
                w = w - min(w[0], 0.0) + (self.eps if self.eps_at == "root" else 0.0)
                s.R[k] = (V * w ** (-1 / e)) @ V.T
        d = g
        if self.beta1 > 0:
            s.m = self.beta1 * s.m + (1 - self.beta1) * g
            d = s.m / (1 - self.beta1**s.t) if corrected else s.m
        graft = d
        if self.grafting == "adagrad":
            s.v = s.v + g**2
            graft = ratio(d, np.sqrt(s.v) + self.graft_eps)
        elif self.grafting == "adam":
            s.v = self.graft_beta2 * s.v + (1 - self.graft_beta2) * g**2
            graft = ratio(d, np.sqrt(s.v / (1 - self.graft_beta2**s.t)) + self.graft_eps)
        u = graft
        if s.t >= self.start_preconditioning_step:
            u = d
            for k in s.axes:
                u = along(u, k, s.R[k])
            if self.grafting != "none":
                u = u * np.linalg.norm(graft) / (np.linalg.norm(u) + 1e-16)
        if self.decoupled_decay:
            u = u + self.weight_decay * p
        if self.momentum > 0:
            s.buffer = self.momentum * s.buffer + u
            u = u + self.momentum * s.buffer if self.nesterov else s.buffer
        p -= self.lr * u


class SOAP(Blocked):
    """SOAP (Vyas et al., 2024; arXiv:2409.11321)."""

    name = "soap"
    defaults = {"lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "shampoo_beta": -1.0, "eps": 1e-8, "weight_decay": 0.01,
                "precondition_frequency": 10, "max_precond_dim": 10000, "precondition_1d": False, "normalize_grads": False,
                "correct_bias": True, "block_size": None}
    settings = (
        {},
        {"lr": 0.02, "precondition_frequency": 4, "weight_decay": 0.1, "shampoo_beta": 0.8},
        {"lr": 0.02, "max_precond_dim": 4, "normalize_grads": True, "beta1": 0.9, "beta2": 0.99},
        {"lr": 0.02, "block_size": 2, "correct_bias": False, "precondition_frequency": 3},
    )

    def fresh_block(self, p: np.ndarray) -> SimpleNamespace:
        axes = [k for k, d in enumerate(p.shape) if d <= self.max_precond_dim]
        if p.ndim < 2 and not self.precondition_1d:
            axes = []
        return SimpleNamespace(t=0, axes=axes, G={}, Q={}, m=np.zeros_like(p), v=np.zeros_like(p))

    def turned(self, x: np.ndarray, s: SimpleNamespace, back: bool = False) -> np.ndarray:
        for k in s.axes:
            x = along(x, k, s.Q[k] if back else s.Q[k].T)
        return x

    def block(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        b = self.beta2 if self.shampoo_beta < 0 else self.shampoo_beta
        if s.t == 1:
            for k in s.axes:
                s.G[k] = (1 - b) * gram(g, k)
                s.Q[k] = eigenbasis(s.G[k])
            return
        t = s.t - 1
        q = self.turned(g, s)
        s.m = self.beta1 * s.m + (1 - self.beta1) * q
        s.v = self.beta2 * s.v + (1 - self.beta2) * q**2
        a = self.lr * (np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t) if self.correct_bias else 1.0)
        u = self.turned(ratio(s.m, np.sqrt(s.v) + self.eps), s, back=True)
        if self.normalize_grads:
            u = u / (1e-30 + np.sqrt(np.mean(u**2)))
        p -= a * u
        p -= self.lr * self.weight_decay * p
        full = self.turned(s.m, s, back=True)
        for k in s.axes:
            s.G[k] = b * s.G[k] + (1 - b) * gram(g, k)
        if t % self.precondition_frequency == 0:
            for k in s.axes:
                order = np.argsort(-np.diag(s.Q[k].T @ s.G[k] @ s.Q[k]), kind="stable")
                s.v = np.take(s.v, order, axis=k)
                s.Q[k] = np.linalg.qr(s.G[k] @ s.Q[k][:, order])[0]
            s.m = self.turned(full, s)


def squeezed(x: np.ndarray) -> np.ndarray:
    """A view without axes of length 1; one of them stays where there are no others."""
    return np.atleast_1d(np.squeeze(x))


class KLShampoo(Blocked):
    """KL-Shampoo (Lin, Lowe, Dangel, Eschenhagen, Xu, Grosse, 2025; arXiv:2509.03378)."""

    name = "kl_shampoo"
    shapes = "matrix"
    defaults = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.98, "shampoo_beta": -1.0, "eps": 1e-8, "weight_decay": 0.01,
                "precondition_frequency": 10, "normalize_grads": False, "init_factor": 0.1, "max_root": 4000.0, "block_size": None}
    settings = (
        {},
        {"lr": 0.02, "precondition_frequency": 4, "weight_decay": 0.1, "shampoo_beta": 0.9},
        {"lr": 0.02, "normalize_grads": True, "max_root": None, "init_factor": 0.5, "eps": 0.1},
        {"lr": 0.02, "block_size": 3, "precondition_frequency": 7, "max_root": 3.0, "beta2": 0.9},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        if p.ndim < 2:
            raise ValueError(f"{self.name}: only tensors of rank 2 or more")
        return super().fresh(p.reshape([d for d in p.shape if d != 1]))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        shape = [d for d in p.shape if d != 1]
        super().update(p.reshape(shape), g.reshape(shape), s)

    def fresh_block(self, p: np.ndarray) -> SimpleNamespace:
        p = squeezed(p)
        return SimpleNamespace(t=0, S={}, Q={}, r={}, m=np.zeros_like(p), v=np.zeros_like(p))

    def turned(self, x: np.ndarray, s: SimpleNamespace, back: bool = False) -> np.ndarray:
        for k in range(x.ndim):
            x = along(x, k, s.Q[k] if back else s.Q[k].T)
        return x

    def direction(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        R = np.ones_like(g)
        for k in range(g.ndim):
            R = along(R, k, np.diag(s.r[k]))
        return self.turned(self.turned(s.m, s) * R / (1 + R * self.eps), s, back=True)

    def renew(self, s: SimpleNamespace) -> None:
        for k in s.Q:
            s.Q[k] = np.linalg.qr(s.S[k] @ s.Q[k])[0]

    def block(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        p, g = squeezed(p), squeezed(g)
        b = self.beta2 if self.shampoo_beta < 0 else self.shampoo_beta
        share = [d / p.size for d in p.shape]
        if s.t == 1:
            for k, d in enumerate(p.shape):
                s.S[k] = (1 - b) * gram(g, k) * share[k]
                s.Q[k] = eigenbasis(s.S[k])
                s.r[k] = np.full(d, 1 / np.sqrt(self.init_factor))
            return
        u = self.direction(g, s)
        new = {}
        for k, d in enumerate(p.shape):
            h = g
            for j in range(p.ndim):
                if j != k:
                    h = along(h, j, (s.Q[j] * s.r[j]).T)
            s.S[k] = b * s.S[k] + (1 - b) * gram(h, k) * share[k]
            squares = np.mean(unfold(along(h, k, s.Q[k].T), k) ** 2, axis=1)
            lam = b * ratio(s.r[k] > 0, s.r[k] ** 2) + (1 - b) * squares
            cap = np.inf if self.max_root is None else max(10.0, min(d, self.max_root))
            with np.errstate(divide="ignore"):
                new[k] = np.where(lam > 0, np.minimum(1 / np.sqrt(lam), cap), 0.0)
        s.r = new
        if (s.t - 1) % self.precondition_frequency == 0:
            self.renew(s)
        if self.normalize_grads:
            u = u / (1e-30 + np.sqrt(np.mean(u**2)))
        p -= self.lr * u
        p *= 1 - self.lr * self.weight_decay


class KLSOAP(KLShampoo):
    """KL-SOAP, Adam in the eigenbasis of KL-Shampoo (same paper)."""

    name = "kl_soap"
    settings = KLShampoo.settings

    def direction(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        q = self.turned(g, s)
        s.m = self.beta1 * s.m + (1 - self.beta1) * q
        s.v = self.beta2 * s.v + (1 - self.beta2) * q**2
        return self.turned(ratio(s.m, np.sqrt(s.v) + self.eps), s, back=True)

    def renew(self, s: SimpleNamespace) -> None:
        full = self.turned(s.m, s, back=True)
        super().renew(s)
        s.m = self.turned(full, s)
