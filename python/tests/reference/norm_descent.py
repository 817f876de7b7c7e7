"""Steepest descent under norms (Bernstein, Newhouse, 2024; arXiv:2409.20325)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._per_tensor import zeros
from .base import Arrays, OptimizerReference
from .muon import orthogonalize


def maximiser(g: np.ndarray, norm: str, polar: Any) -> np.ndarray:
    """T of the unit ball with the largest <g, T>."""
    G = g.reshape(g.shape[0] if g.ndim > 1 else 1, -1)
    out, fan_in = G.shape
    if norm == "auto":
        norm = "rms_to_rms" if g.ndim > 1 else "rms"

    def over(n: np.ndarray) -> np.ndarray:
        return np.where(n > 0, G / np.where(n > 0, n, 1.0), 0.0)

    if norm == "nuclear":
        U, _, Vt = np.linalg.svd(G, full_matrices=False)
        T = np.outer(U[:, 0], Vt[0])
    else:
        T = {
            "l2": lambda: over(np.linalg.norm(G, keepdims=True)), "rms": lambda: over(np.sqrt(np.mean(G**2, keepdims=True))),
            "linf": lambda: np.sign(G), "sign_scaled": lambda: np.sign(G) / fan_in,
            "spectral": lambda: polar(G), "rms_to_rms": lambda: math.sqrt(out / fan_in) * polar(G),
            "l1_to_l2": lambda: over(np.linalg.norm(G, axis=0, keepdims=True)),
            "l1_to_rms": lambda: math.sqrt(out) * over(np.linalg.norm(G, axis=0, keepdims=True)),
            "l2_to_linf": lambda: over(np.linalg.norm(G, axis=1, keepdims=True)),
            "rms_to_linf": lambda: over(np.linalg.norm(G, axis=1, keepdims=True)) / math.sqrt(fan_in),
        }[norm]()
    return T.reshape(g.shape)


class NormDescent(OptimizerReference):
    name = "norm_descent"
    defaults = {"lr": 0.1, "norm": "auto", "weight_decay": 0.0, "ortho": "svd", "ns_steps": 5, "ns_coefficients": "simple", "eps": 1e-7,
                "scale": "dual", "momentum": 0.0}
    settings = ({"lr": 1e-3}, {"lr": 1e-3, "momentum": 0.8, "weight_decay": 3.0}, {"lr": 0.02, "scale": "per_tensor", "norm": "l2"},
                {"lr": 0.02, "scale": "unit", "norm": "linf", "momentum": 0.5}, {"lr": 0.02, "scale": "unit", "norm": "l1_to_rms"},
                {"lr": 1e-3, "norm": "rms_to_linf", "momentum": 0.9}, {"lr": 1e-3, "norm": "sign_scaled", "scale": "per_tensor"},
                {"lr": 0.01, "ortho": "newton_schulz", "scale": "unit", "ns_coefficients": "quintic"})

    def start(self, params: Arrays) -> None:
        self.m = zeros(params)

    def polar(self, G: np.ndarray) -> np.ndarray:
        if self.ortho == "svd":
            return orthogonalize(G, method="svd")
        return orthogonalize(G, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.eps)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.m = [self.h.get("momentum", 0.0) * m + (1 - self.h.get("momentum", 0.0)) * g for m, g in zip(self.m, grads)]
        directions = [maximiser(m, self.norm, self.polar) for m in self.m]
        duals = [float(np.sum(m * T)) for m, T in zip(self.m, directions)]
        for p, T, dual in zip(params, directions, duals):
            p *= 1 - self.lr * self.weight_decay
            p -= self.lr * {"dual": sum(duals), "per_tensor": dual, "unit": 1.0}[self.scale] * T


class NormDirection(NormDescent):
    name = "norm_direction"
    defaults = {**{k: v for k, v in NormDescent.defaults.items() if k != "momentum"}, "scale": "unit"}
    settings = ({"lr": 0.02}, {"lr": 0.02, "norm": "l2_to_linf", "scale": "per_tensor"}, {"lr": 0.02, "norm": "l1_to_l2", "weight_decay": 0.3})


class NormDirectionOfMatrices(NormDirection):
    """The norms that only matrices have, under the same name: run by test_demand."""

    shapes = "matrix"
    settings = ({"lr": 0.02, "norm": "spectral"}, {"lr": 0.02, "norm": "nuclear", "scale": "per_tensor"})
