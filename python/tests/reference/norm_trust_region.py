"""Steps of one length in a norm."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio
from .muon import orthogonalize


class NormTrustRegion(PerTensor):
    """Steps of one length in a norm (Kovalev, 2025; arXiv:2503.12645)."""

    name = "norm_trust_region"
    shapes = "matrix"  # for the norms of matrices; `auto` takes all, which the tests of its laws say
    defaults = {"radius": 0.01, "alpha": 0.1, "decay": 0.0, "norm": "auto", "ortho": "svd", "ns_steps": 5,
                "ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7}
    settings = ({}, {"radius": 0.05, "decay": 0.1, "norm": "rms_to_rms"}, {"norm": "spectral", "ortho": "newton_schulz", "alpha": 1.0},
                {"norm": "nuclear", "decay": 0.05}, {"norm": "l1_to_l2"}, {"norm": "l2_to_linf", "alpha": 0.5}, {"norm": "l2"},
                {"norm": "rms"}, {"norm": "linf", "decay": 0.01})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, m=None)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.m = g if s.m is None else (1 - self.alpha) * s.m + self.alpha * g
        p *= 1 - self.h["decay"]
        p -= self.radius * self.direction(s.m)

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
        elif kind == "linf":
            T = np.sign(M)
        elif kind in ("l1_to_l2", "l2_to_linf"):
            T = ratio(M, np.linalg.norm(M, axis=0 if kind == "l1_to_l2" else 1, keepdims=True))
        else:
            T = ratio(M, np.linalg.norm(M)) * (np.sqrt(M.size) if kind == "rms" else 1.0)
        return T.reshape(m.shape)
