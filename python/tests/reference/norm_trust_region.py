"""Steps of one length in a norm."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, ratio
from .base import Arrays, OptimizerReference
from .muon import orthogonalize


class NormTrustRegion(OptimizerReference):
    """Steps of one length in a norm (Kovalev, 2025; arXiv:2503.12645)."""

    name = "norm_trust_region"
    needs = ("gradient_at",)
    shapes = "matrix"  # for the norms of matrices; `auto` takes all, which the tests of its laws say
    defaults = {"radius": 0.01, "alpha": 0.1, "decay": 0.0, "norm": "auto", "ortho": "svd", "ns_steps": 5,
                "ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7, "extrapolate": False}
    settings = ({}, {"radius": 0.05, "decay": 0.1, "norm": "rms_to_rms"}, {"norm": "spectral", "ortho": "newton_schulz", "alpha": 1.0},
                {"norm": "nuclear", "decay": 0.05}, {"norm": "l1_to_l2"}, {"norm": "l2_to_linf", "alpha": 0.5}, {"norm": "l2"},
                {"norm": "rms"}, {"norm": "linf", "decay": 0.01}, {"norm": "l1_to_rms"}, {"norm": "rms_to_linf"}, {"norm": "sign_scaled"},
                {"norm": "frobenius", "extrapolate": True, "alpha": 0.4, "decay": 0.02})

    def start(self, params: Arrays) -> None:
        self.m, self.last = None, copies(params)

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None, **oracles: Any) -> None:
        if self.extrapolate:
            grads = gradient_at([p + (1 - self.alpha) / self.alpha * (p - q) for p, q in zip(params, self.last)])
            self.last = copies(params)
        self.m = copies(grads) if self.m is None else [(1 - self.alpha) * m + self.alpha * g for m, g in zip(self.m, grads)]
        for p, m in zip(params, self.m):
            p *= 1 - self.decay
            p -= self.radius * self.direction(m)

    def direction(self, m: np.ndarray) -> np.ndarray:
        kind = ("spectral" if m.ndim >= 2 else "l2") if self.norm == "auto" else self.norm
        M = m.reshape(m.shape[0], -1) if m.ndim >= 2 else m
        if kind in ("spectral", "rms_to_rms"):
            O = orthogonalize(M, method="svd" if self.ortho == "svd" else "ns", ns_steps=self.ns_steps,
                              ns_coefficients=self.ns_coefficients, eps=self.eps)
            T = O * (np.sqrt(M.shape[0] / M.shape[1]) if kind == "rms_to_rms" else 1.0)
        elif kind == "nuclear":
            U, _, Vt = np.linalg.svd(M)
            T = np.outer(U[:, 0], Vt[0])
        elif kind in ("linf", "sign_scaled"):
            T = np.sign(M) / (M.shape[1] if kind == "sign_scaled" else 1)
        elif kind in ("l1_to_l2", "l2_to_linf", "l1_to_rms", "rms_to_linf"):
            T = ratio(M, np.linalg.norm(M, axis=0 if kind.startswith("l1") else 1, keepdims=True))
            T *= {"l1_to_rms": np.sqrt(M.shape[0]), "rms_to_linf": 1 / np.sqrt(M.shape[1])}.get(kind, 1.0)
        else:
            T = ratio(M, np.linalg.norm(M)) * (np.sqrt(M.size) if kind == "rms" else 1.0)
        return T.reshape(m.shape)
