"""Muon and the orthogonalisation by Newton-Schulz that it uses."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from .base import Arrays, OptimizerReference

PRESETS: dict[str, list[tuple[float, float, float]]] = {
    "quintic": [(3.4445, -4.7750, 2.0315)],
    "cubic": [(1.5, -0.5, 0.0)],
    "dion": [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
             (2.8366, -3.0525, 1.2012)],
    "polar_express": [(8.156554524902461, -22.48329292557795, 15.878769915207462),
                      (4.042929935166739, -2.808917465908714, 0.5000178451051316),
                      (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
                      (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
                      (2.3465413258596377, -1.7097828382687081, 0.42323551169305323)],
}
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]


def orthogonalize(matrix: np.ndarray, *, ns_steps: int = 5, ns_coefficients: Coefficients = "quintic",
                  eps: float = 1e-7, eps_mode: str = "add", safety: float | None = None,
                  method: str = "ns") -> np.ndarray:
    """The polar factor of a matrix, approximately by Newton-Schulz or exactly by an SVD (card `newton_schulz`;
    Bjorck, Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv 2505.16932).

    Coefficients are a preset, one triple, or one triple a step (the last one repeats).  `safety` None is 1.02 for
    polar_express, else 1."""
    if method == "svd":
        U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
        keep = s > s.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps  # a zero singular value stays zero
        return U[:, keep] @ Vt[keep]
    if safety is None:
        safety = 1.02 if ns_coefficients == "polar_express" else 1.0
    triples = PRESETS[ns_coefficients] if isinstance(ns_coefficients, str) else np.reshape(ns_coefficients, (-1, 3))
    X = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    n = np.linalg.norm(X) * safety
    X = X / (max(n, eps) if eps_mode == "clamp" else n + eps)
    for i in range(ns_steps):
        a, b, c = triples[min(i, len(triples) - 1)]
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if matrix.shape[0] > matrix.shape[1] else X


class Muon(OptimizerReference):
    """Muon, momentum orthogonalised by Newton-Schulz (Jordan et al., 2024; Liu et al., 2025, arXiv 2502.16982, for
    match_rms_adamw; analysis: Kovalev, 2025, arXiv 2503.12645).

    torch's rule in the working precision, for tensors of any rank >= 2 as (out, rest)."""

    name = "muon"
    shapes = "matrix"
    defaults = {"lr": 1e-3, "momentum": 0.95, "nesterov": True, "weight_decay": 0.1, "ns_steps": 5,
                "ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7, "eps_mode": "clamp", "adjust_lr": "original",
                "momentum_form": "sum"}
    settings = ({}, {"lr": 0.02, "nesterov": False, "weight_decay": 0.0},
                {"lr": 0.02, "momentum_form": "ema", "eps_mode": "add"},
                {"lr": 0.02, "adjust_lr": "match_rms_adamw", "momentum": 0.0},
                {"lr": 0.02, "adjust_lr": "spectral", "momentum_form": "ema", "nesterov": False, "ns_steps": 3},
                {"lr": 0.02, "adjust_lr": "none", "ns_steps": 6,
                 "ns_coefficients": ((3.0, -3.2, 1.2), (1.5, -0.5, 0.0))})

    def start(self, params: Arrays) -> None:
        if any(w.ndim < 2 for w in params):
            raise ValueError("muon: only tensors of rank 2 or more")
        self.B = [np.zeros_like(w) for w in params]

    def step(self, params: Arrays, grads: Arrays, *, loss: float | None = None,
             gradient_at: Callable[[Arrays], Arrays] | None = None,
             hvp: Callable[[Arrays, Arrays], Arrays] | None = None,
             normal: Callable[[int], Arrays] | None = None) -> None:
        mu = self.momentum
        new = 1.0 if self.momentum_form == "sum" else 1 - mu
        for w, g, B in zip(params, grads, self.B):
            B[...] = mu * B + new * g
            U = new * g + mu * B if self.nesterov else B
            M = U.reshape(U.shape[0], -1)
            O = orthogonalize(M, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.eps,
                              eps_mode=self.eps_mode)
            out, fan_in = M.shape
            s = {"original": np.sqrt(max(1.0, out / fan_in)), "match_rms_adamw": 0.2 * np.sqrt(max(out, fan_in)),
                 "spectral": np.sqrt(out / fan_in), "none": 1.0}[self.adjust_lr]
            w *= 1 - self.lr * self.weight_decay
            w -= self.lr * s * O.reshape(w.shape)
