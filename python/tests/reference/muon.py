"""Muon and the orthogonalisation by Newton-Schulz that it uses."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from .base import Arrays, OptimizerReference

Triples = list[tuple[float, float, float]]
_RAW: Triples = [(8.28721201814563, -23.595886519098837, 17.300387312530933), (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                 (3.9486908534822946, -2.908902115962949, 0.5518191394370137), (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                 (2.300652019954817, -1.6689039845747493, 0.4188073119525673), (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                 (1.8750014808534479, -1.2500016453999487, 0.3750001645474248), (1.875, -1.25, 0.375)]
_FIVE: Triples = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
                  (2.8366, -3.0525, 1.2012)]
_SIMPLE = (3.4445, -4.7750, 2.0315)


def _safer(triples: Triples, by: float) -> Triples:
    return [(a / by, b / by**3, c / by**5) for a, b, c in triples]


PRESETS: dict[str, Triples] = {
    "simple": [_SIMPLE],
    "cubic": [(1.5, -0.5, 0.0)],
    "quintic": _FIVE,
    "dion": _FIVE,
    "polar_express": [(8.156554524902461, -22.48329292557795, 15.878769915207462),
                      (4.042929935166739, -2.808917465908714, 0.5000178451051316),
                      (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
                      (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
                      (2.3465413258596377, -1.7097828382687081, 0.42323551169305323)],
    "polar_express_raw": _RAW,
    "polar_express_8": [*_safer(_RAW[:-1], 1.01), _RAW[-1]],
    "polar_express_105": _safer(_RAW[:5], 1.05),
    "cans": [(8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.5630), (3.2866, -2.4647, 0.5074),
             (2.2737, -1.6447, 0.4162)],
    "aol": [(4.0098, -7.0585, 2.4635), (3.4585, -5.5479, 2.5959), (2.7573, -3.2939, 1.4254), (2.7215, -3.0494, 1.3169)],
    "aol_2": [(4.6051, -9.6552, 5.6769), (4.7505, -6.0861, 2.1790), (2.7763, -2.3190, 0.5523), (2.4231, -2.2861, 0.8193)],
    "deepseek": [_SIMPLE] * 8 + [(2.0, -1.5, 0.5)] * 2,
    "cubic5": [(3.3656576, -3.3420992, 0.0), (2.5744352, -1.4957376, 0.0), (2.5368962, -1.4312570, 0.0), (2.4418906, -1.2764040, 0.0),
               (2.2230472, -0.9630650, 0.0)],
}
CYCLES = {"simple", "cubic", "quintic", "dion", "aol", "aol_2"}  # begin again after the last triple; the others repeat it
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]


def orthogonalize(matrix: np.ndarray, *, ns_steps: int = 5, ns_coefficients: Coefficients = "simple",
                  eps: float = 1e-7, eps_mode: str = "add", safety: float | None = None, method: str = "ns",
                  scaling: str = "set", form: str = "standard", resets: Sequence[int] = (2,)) -> np.ndarray:
    """The polar factor of a matrix, approximately by Newton-Schulz or exactly by an SVD (cards `newton_schulz` and
    `ns_coefficient_sets`; Bjorck, Bowie, 1971; Jordan et al., 2024; Polar Express: Amsel et al., 2025, arXiv 2505.16932).

    Coefficients are a preset, one triple, or one triple a step.  `safety` None is 1.02 for polar_express, else 1;
    `scaling` "set" is aol for the sets of that name, else frobenius."""
    if method == "svd":
        U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
        keep = s > s.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps  # a zero singular value stays zero
        return U[:, keep] @ Vt[keep]
    if safety is None:
        safety = 1.02 if ns_coefficients == "polar_express" else 1.0
    if scaling == "set":
        scaling = "aol" if ns_coefficients in ("aol", "aol_2") else "frobenius"
    triples = PRESETS[ns_coefficients] if isinstance(ns_coefficients, str) else np.reshape(ns_coefficients, (-1, 3))
    cycles = isinstance(ns_coefficients, str) and ns_coefficients in CYCLES
    X = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    if scaling in ("frobenius", "spectral"):
        n = np.linalg.norm(X, None if scaling == "frobenius" else 2) * safety
        X = X / (max(n, eps) if eps_mode == "clamp" else n + eps)
    else:
        A = X @ X.T
        d = np.abs(A).sum(axis=1) if scaling == "aol" else np.full(len(A), np.linalg.norm(A))
        X = X / np.sqrt(np.maximum(d, eps))[:, None]
    R, Q = X @ X.T, None
    for i in range(ns_steps):
        a, b, c = triples[i % len(triples) if cycles else min(i, len(triples) - 1)]
        if form == "gram":
            if i in resets and Q is not None:
                X = Q @ X
                R, Q = X @ X.T, None
            P = a * np.eye(len(R)) + b * R + c * R @ R
            Q = P if Q is None else P @ Q
            R = P @ R @ P
        else:
            A = X @ X.T
            X = a * X + (b * A + c * A @ A) @ X
    if Q is not None:
        X = Q @ X
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
