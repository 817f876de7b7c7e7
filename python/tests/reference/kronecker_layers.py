"""K-FAC and SINGD: preconditioners from the inputs of layers and the gradients at their pre-activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from support import Problem

from .base import Arrays, OptimizerReference


class Layers(OptimizerReference):
    """What the host answers for a layer is that of the tests' problem at this step; its loss is a mean over the rows."""

    def start(self, params: Arrays) -> None:
        self.t, self.buffers, self.state = 0, [np.zeros_like(p) for p in params], [{} for _ in params]

    def statistics(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, g = Problem.layer(None, p, self.t)  # type: ignore[arg-type]
        rows = len(x)
        n = rows if self.batch_size is None else self.batch_size
        each = g * n if self.loss == "mean" else g  # gradients of the losses of the samples
        positions = rows / n if self.spatial_average else 1.0
        return x.T @ x / n / positions**2, each.T @ each / rows

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        moves, gain = [], 0.0
        for p, g, s in zip(params, grads, self.state):
            if p.ndim < 2:
                moves.append((g, False))
                continue
            G = g.reshape(p.shape[0], -1)
            V = self.precondition(s, p, G)
            gain += self.lr**2 * np.sum(V * G)
            moves.append((V.reshape(p.shape), True))
        nu = self.scale(gain)
        for p, (V, layer), b in zip(params, moves, self.buffers):
            b[...] = self.momentum * b + (nu if layer else 1.0) * V + self.weight_decay * p
            p -= self.lr * b
        self.t += 1

    def scale(self, gain: float) -> float:
        return 1.0


class KFAC(Layers):
    name = "kfac"
    defaults = {"lr": 0.1, "damping": 1e-3, "factor_decay": 0.95, "factor_update_steps": 1, "inv_update_steps": 1, "kl_clip": 1e-3, "momentum": 0.9,
                "weight_decay": 0.0, "pi_damping": True, "method": "inverse", "loss": "mean", "batch_size": None, "spatial_average": False}
    settings = (
        {"damping": 0.1},
        {"damping": 0.3, "method": "eigen", "kl_clip": None, "lr": 0.01, "loss": "sum"},
        {"damping": 0.2, "factor_update_steps": 2, "inv_update_steps": 3, "pi_damping": False, "weight_decay": 0.1, "factor_decay": 0.5},
        {"damping": 0.2, "kl_clip": 0.1, "batch_size": 2.0, "method": "eigen", "inv_update_steps": 4, "momentum": 0.0},
        {"damping": 0.2, "batch_size": 2.0, "spatial_average": True},
    )

    def precondition(self, s, p, G):
        m, n = G.shape
        if self.t % self.factor_update_steps == 0:
            A, B = self.statistics(p)
            keep = self.factor_decay if s else 0.0
            s["A"], s["B"] = keep * s.get("A", 0) + (1 - keep) * A, keep * s.get("B", 0) + (1 - keep) * B
        if self.t % self.inv_update_steps == 0:
            A, B = s["A"], s["B"]
            if self.method == "eigen":
                wa, Qa = np.linalg.eigh(A)
                wb, Qb = np.linalg.eigh(B)
                s["pairs"] = np.maximum(wa, 0), Qa, np.maximum(wb, 0), Qb
            else:
                ta, tb = np.trace(A) / n, np.trace(B) / m
                pi = np.sqrt(ta / tb) if self.pi_damping and ta > 0 and tb > 0 else 1.0
                root = np.sqrt(self.damping)
                s["pairs"] = np.linalg.inv(A + pi * root * np.eye(n)), np.linalg.inv(B + root / pi * np.eye(m))
        if self.method == "eigen":
            wa, Qa, wb, Qb = s["pairs"]
            return Qb @ ((Qb.T @ G @ Qa) / (np.outer(wb, wa) + self.damping)) @ Qa.T
        Ai, Bi = s["pairs"]
        return Bi @ G @ Ai

    def scale(self, gain):
        return min(1.0, np.sqrt(self.kl_clip / abs(gain))) if self.kl_clip is not None and gain != 0 else 1.0


class SINGD(Layers):
    name = "singd"
    defaults = {"lr": 1e-3, "momentum": 0.9, "damping": 1e-3, "alpha1": None, "lr_cov": 1e-2, "weight_decay": 0.0, "T": 1, "variant": "ingd",
                "structure": "dense", "normalize_lr_cov": False, "loss": "mean", "batch_size": None, "spatial_average": False}
    settings = (
        {"lr": 0.02},
        {"variant": "ikfac", "alpha1": 0.0, "damping": 0.1, "T": 3, "lr": 0.05, "weight_decay": 0.1},
        {"structure": "diag", "lr": 0.05, "damping": 0.2, "momentum": 0.0, "loss": "sum"},
        {"normalize_lr_cov": True, "lr_cov": 0.3, "lr": 0.01, "variant": "ikfac", "batch_size": 3.0},
        {"normalize_lr_cov": True, "lr_cov": 0.1, "lr": 0.01, "structure": "diag", "T": 2},
    )

    def precondition(self, s, p, G):
        m, n = G.shape
        if not s:
            s.update(K=np.eye(n), C=np.eye(m), mK=np.zeros((n, n)), mC=np.zeros((m, m)))
        alpha = self.alpha1 if self.alpha1 is not None else {"ingd": 0.5, "ikfac": 0.0}[self.variant]
        K, C, lam = s["K"], s["C"], self.damping
        if self.t % self.T == 0:
            U, W = self.statistics(p)
            HK, KK, HC, CC = K.T @ U @ K, K.T @ K, C.T @ W @ C, C.T @ C
            half = 0.5 * (1 - alpha if self.normalize_lr_cov else 1)
            if self.variant == "ingd":
                nK = half * (np.trace(HC) / m * HK + lam * np.trace(CC) / m * KK - np.eye(n))
                nC = half * (np.trace(HK) / n * HC + lam * np.trace(KK) / n * CC - np.eye(m))
            else:
                nK, nC = half * (HK + lam * KK - np.eye(n)), half * (HC + lam * CC - np.eye(m))
            if self.structure == "diag":
                nK, nC = np.diag(np.diag(nK)), np.diag(np.diag(nC))
            s["mK"], s["mC"] = alpha * s["mK"] + nK, alpha * s["mC"] + nC
            rate = lambda M: self.lr_cov / (max(1.0, np.abs(M).max()) if self.normalize_lr_cov else 1.0)  # noqa: E731
            K, C = K - rate(s["mK"]) * K @ s["mK"], C - rate(s["mC"]) * C @ s["mC"]
            s["K"], s["C"] = K, C
        return C @ C.T @ G @ K @ K.T
