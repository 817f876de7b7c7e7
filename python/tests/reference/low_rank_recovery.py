"""Scaled gradient descent, the robust subgradient method, M-FAC, and width transfer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, norm
from .base import Arrays, OptimizerReference, ScheduleReference


class ScaledGD(PerTensor):
    """Symmetric scaled gradient descent (Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu et al., 2023, arXiv:2302.01186)."""

    name = "scaled_gd"
    shapes = "matrix"
    defaults = {"lr": 0.5, "lam": 0.0}
    # A wide factor has a singular Gram matrix: with damping it is solved, without it the pseudo-inverse is meant.
    settings = ({"lr": 0.1, "lam": 0.5}, {"lr": 0.01, "lam": 0.1}, {"lr": 0.002})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        Z = p.reshape(p.shape[0], -1)
        A = Z.T @ Z + self.lam * np.eye(Z.shape[1])
        inverse = np.linalg.pinv(A, rcond=1e-13, hermitian=True) if self.lam == 0 else np.linalg.inv(A)
        p -= self.lr * (g.reshape(Z.shape) @ inverse).reshape(p.shape)


class RobustSubGM(OptimizerReference):
    """The subgradient method (Ma, Fattahi, 2022; arXiv:2202.08788); the norm is over all tensors."""

    name = "robust_subgm"
    defaults = {"lr": 0.1, "rule": "geometric", "rho": 0.95, "normalize": True}
    settings = ({}, {"rule": "constant", "lr": 0.02}, {"rho": 0.5, "normalize": False}, {"rule": "constant", "normalize": False})

    def start(self, params: Arrays) -> None:
        self.t = 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        length = self.lr * (self.rho**self.t if self.rule == "geometric" else 1.0)
        self.t += 1
        total = norm(grads) if self.normalize else 1.0
        for p, g in zip(params, grads):
            p -= length / total * g


class MFAC(PerTensor):
    """M-FAC (Frantar, Kurtic, Alistarh, 2021; arXiv:2107.03356), with a Fisher matrix a tensor, by the dense inverse where it is
    small and otherwise by the Woodbury formula."""

    name = "mfac"
    defaults = {"lr": 1e-3, "ngrads": 32, "damp": 1e-5, "momentum": 0.9, "weight_decay": 0.0}
    # F^-1 multiplies what float32 rounds by up to 1/damp.
    settings = ({"damp": 0.1}, {"lr": 0.02, "ngrads": 4, "damp": 0.5, "weight_decay": 0.1}, {"lr": 0.02, "ngrads": 1, "damp": 0.3, "momentum": 0.0})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, G=np.zeros((self.ngrads, p.size)), v=np.zeros_like(p))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        m = self.ngrads
        x = (g + self.weight_decay * p).ravel()
        s.G[(s.t - 1) % m] = x
        if x.size <= 100:
            u = np.linalg.solve(self.damp * np.eye(x.size) + s.G.T @ s.G / m, x)
        else:
            u = (x - s.G.T @ np.linalg.solve(m * self.damp * np.eye(m) + s.G @ s.G.T, s.G @ x)) / self.damp
        s.v = self.momentum * s.v + (1 - self.momentum) * u.reshape(p.shape)
        p -= self.lr * s.v


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
