"""Scaled gradient descent, the robust subgradient method, M-FAC, and width transfer."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import norm
from .base import Arrays, OptimizerReference, ScheduleReference


class ScaledGD(OptimizerReference):
    """Scaled gradient descent (Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu et al., 2023, arXiv:2302.01186): of Z Z', or of pairs L R'."""

    name = "scaled_gd"
    shapes = "matrix"
    defaults = {"lr": 0.5, "lam": 0.0, "pairs": "symmetric"}
    # A wide factor has a singular Gram matrix: with damping it is solved, without it the pseudo-inverse is meant.
    settings = ({"lr": 0.1, "lam": 0.5}, {"lr": 0.01, "lam": 0.1}, {"lr": 0.002})

    def start(self, params: Arrays) -> None: ...

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        old = [p.reshape(p.shape[0], -1).copy() for p in params]
        for k, (p, g) in enumerate(zip(params, grads)):
            F = old[k ^ 1] if self.pairs == "consecutive" else old[k]
            A = F.T @ F + self.lam * np.eye(F.shape[1])
            inverse = np.linalg.pinv(A, rcond=1e-13, hermitian=True) if self.lam == 0 else np.linalg.inv(A)
            p -= self.lr * (g.reshape(old[k].shape) @ inverse).reshape(p.shape)


class RobustSubGM(OptimizerReference):
    """The subgradient method (Ma, Fattahi, 2022; arXiv:2202.08788); the norm is over all tensors."""

    name = "robust_subgm"
    needs = ("loss_at",)
    defaults = {"lr": 0.1, "rule": "geometric", "rho": 0.95, "normalize": True, "f_star": 0.0}
    settings = ({}, {"rule": "constant", "lr": 0.02}, {"rho": 0.5, "normalize": False}, {"rule": "constant", "normalize": False},
                {"rule": "polyak", "lr": 0.3, "f_star": -2.0}, {"rule": "proportional", "lr": 0.01, "normalize": False})

    def start(self, params: Arrays) -> None:
        self.t = 0

    def step(self, params: Arrays, grads: Arrays, *, loss_at: Callable[[Arrays], float] | None = None, **oracles: Any) -> None:
        n = norm(grads)
        if self.rule == "polyak":
            length = self.lr * (loss_at(params) - self.f_star) / n**2 if n else 0.0
        elif self.rule == "proportional":
            length = self.lr * loss_at(params)
        else:
            length = self.lr * (self.rho**self.t if self.rule == "geometric" else 1.0)
            if self.normalize:
                length = length / n if n else 0.0
        self.t += 1
        for p, g in zip(params, grads):
            p -= length * g


class MFAC(OptimizerReference):
    """M-FAC (Frantar, Kurtic, Alistarh, 2021; arXiv:2107.03356): the Fisher matrix of the whole model, by the dense inverse where it is
    small and otherwise by the Woodbury formula."""

    name = "mfac"
    defaults = {"lr": 1e-3, "ngrads": 1024, "damp": 1e-5, "momentum": 0.9, "weight_decay": 0.0}
    # F^-1 multiplies what float32 rounds by up to 1/damp.
    settings = ({"damp": 0.1, "ngrads": 32}, {"lr": 0.02, "ngrads": 4, "damp": 0.5, "weight_decay": 0.1},
                {"lr": 0.02, "ngrads": 1, "damp": 0.3, "momentum": 0.0})

    def start(self, params: Arrays) -> None:
        n = sum(p.size for p in params)
        self.t, self.G, self.v = 0, np.zeros((self.ngrads, n)), np.zeros(n)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        m = self.ngrads
        x = np.concatenate([(g + self.weight_decay * p).ravel() for p, g in zip(params, grads)])
        self.G[self.t % m] = x
        self.t += 1
        if x.size <= 100:
            u = np.linalg.solve(self.damp * np.eye(x.size) + self.G.T @ self.G / m, x)
        else:
            u = (x - self.G.T @ np.linalg.solve(m * self.damp * np.eye(m) + self.G @ self.G.T, self.G @ x)) / self.damp
        self.v = self.momentum * self.v + (1 - self.momentum) * u
        start = 0
        for p in params:
            p -= self.lr * self.v[start : start + p.size].reshape(p.shape)
            start += p.size


class MupScaling(ScheduleReference):
    """The exponents of the width ratio (Yang, Littwin, 2023, arXiv:2308.01814; Ishikawa, Karakida, 2023, arXiv:2312.12226)."""

    name = "mup_scaling"
    required = ("inner",)
    defaults = {"optimizer": "adam", "role": "hidden", "width_mult": 1.0, "value": "lr"}
    # optimizer: role: (lr, init std, forward, eps, damping of the inputs, of the outputs); a vector is as an input
    table = {
        "adam": {"input": (0, 0, 0, -1, 0, 0), "hidden": (-1, -0.5, 0, -1, 0, 0), "output": (0, 0, -1, -1, 0, 0)},
        "sgd": {"input": (1, 0, 0, 0, 0, 0), "hidden": (0, -0.5, 0, 0, 0, 0), "output": (1, 0, -1, 0, 0, 0)},
        "kfac": {"input": (0, 0, 0, 0, 0, -1), "hidden": (0, -0.5, 0, 0, 1, -1), "output": (0, -1, 0, 0, 1, 0)},
        "shampoo": {"input": (0.5, 0, 0, -1, -1, -1), "hidden": (0, -0.5, 0, 0, 0, 0), "output": (-0.5, -1, 0, 1, 1, 1)},
        "muon": {"input": (0.5, 0, 0, 0, 0, 0), "hidden": (0, -0.5, 0, 0, 0, 0), "output": (-0.5, -1, 0, 0, 0, 0)},
        "muon_spectral": {"input": (0, 0, 0, 0, 0, 0), "hidden": (0, -0.5, 0, 0, 0, 0), "output": (0, -1, 0, 0, 0, 0)},
        "muon_match_rms": {"input": (0, 0, 0, 0, 0, 0), "hidden": (-0.5, -0.5, 0, 0, 0, 0), "output": (-1, -1, 0, 0, 0, 0)},
    }
    values = ("lr", "init_std", "forward", "eps", "damping_in", "damping_out")
    settings = tuple(
        {"inner": 0.3, "optimizer": o, "role": r, "width_mult": 8.0, "value": v}
        for o, roles in table.items() for r in roles for v in ("lr", "init_std", "forward", "eps", "damping_in", "damping_out")
    ) + ({"inner": 0.3, "width_mult": 4.0, "value": "weight_decay"}, {"inner": 0.3, "role": "vector", "width_mult": 4.0, "optimizer": "sgd"})

    def value(self, k: int) -> float:
        if self.h["value"] == "weight_decay":
            exponent = 1 if (self.optimizer, self.role) == ("adam", "hidden") else 0
        else:
            role = "input" if self.role == "vector" else self.role
            exponent = self.table[self.optimizer][role][self.values.index(self.h["value"])]
        return self.inner * self.width_mult**exponent
