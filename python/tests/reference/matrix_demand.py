"""Rules with an orthogonalised momentum: NorMuon, AdaMuon, Dion2, PolarGrad, Scion; and APOLLO, which projects."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._per_tensor import PerTensor, ratio
from .base import Arrays
from .muon import orthogonalize


def factor(rule: str, out: int, fan_in: int) -> float:
    return {"original": math.sqrt(max(1, out / fan_in)), "match_rms_adamw": 0.2 * math.sqrt(max(out, fan_in)),
            "spectral": math.sqrt(out / fan_in), "max": math.sqrt(max(out, fan_in)), "none": 1.0}[rule]


class _Momentum(PerTensor):
    shapes = "matrix"
    buffers = ("m",)

    def look(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        """The momentum, or the point ahead of it, as a matrix."""
        s.m = self.momentum * s.m + (1 - self.momentum) * g
        u = (1 - self.momentum) * g + self.momentum * s.m if self.nesterov else s.m
        return u.reshape(u.shape[0], -1)

    def polar(self, u: np.ndarray, mode: str = "clamp") -> np.ndarray:
        return orthogonalize(u, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.ns_eps, eps_mode=mode)


class NorMuon(_Momentum):
    """Li, Liu, Liang, Chen, Zhao, 2025 (arXiv:2510.05491)."""

    name = "normuon"
    defaults = {"lr": 0.02, "momentum": 0.95, "beta2": 0.95, "nesterov": True, "weight_decay": 0.0, "ns_steps": 5, "ns_coefficients": "simple",
                "ns_eps": 1e-7, "eps": 1e-10, "eps_at": "root", "axis": "row", "rescale": "preserve_norm", "adjust_lr": "original"}
    settings = (
        {},
        {"momentum": 0.8, "beta2": 0.5, "nesterov": False, "weight_decay": 0.3, "adjust_lr": "match_rms_adamw"},
        {"axis": "long", "eps_at": "floor", "eps": 0.05, "adjust_lr": "max", "beta2": 0.8},
        {"rescale": "match_rms", "eps": 1e-8, "ns_coefficients": "polar_express"},
        {"ns_coefficients": "quintic", "ns_steps": 7, "axis": "long", "adjust_lr": "spectral"},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        O = self.polar(self.look(g, s))
        out, fan_in = O.shape
        axis = 0 if self.axis == "long" and out < fan_in else 1
        mean = np.mean(O**2, axis=axis, keepdims=True)
        s.v = self.beta2 * getattr(s, "v", 0.0) + (1 - self.beta2) * mean
        W = ratio(O, np.sqrt(s.v) + self.eps if self.eps_at == "root" else np.sqrt(np.maximum(s.v, self.eps)))
        if self.rescale == "preserve_norm":
            W = W * ratio(np.linalg.norm(O), np.linalg.norm(W) + self.eps) * factor(self.adjust_lr, out, fan_in)
        else:
            W = W * ratio(0.2 * math.sqrt(out * fan_in), np.linalg.norm(W) + self.eps)
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * W.reshape(p.shape)


class AdaMuon(_Momentum):
    """Si, Zhang, Shen, 2025 (arXiv:2507.11005)."""

    name = "adamuon"
    buffers = ("m", "v")
    defaults = {"lr": 0.02, "momentum": 0.95, "beta2": 0.95, "nesterov": True, "sign": True, "weight_decay": 0.01, "eps": 1e-8,
                "bias_correction": False, "rms": 0.2, "ns_steps": 5, "ns_coefficients": "simple", "ns_eps": 1e-7}
    settings = (
        {},
        {"sign": False, "beta2": 0.999, "bias_correction": True, "weight_decay": 0.3},
        {"sign": False, "nesterov": False, "momentum": 0.7, "eps": 0.1, "rms": 1.0},
        {"ns_coefficients": "polar_express_8", "ns_steps": 8, "beta2": 0.5},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        u = self.look(g, s)
        O = self.polar(np.sign(u) if self.sign else u).reshape(p.shape)
        s.v = self.beta2 * s.v + (1 - self.beta2) * O**2
        W = ratio(O, np.sqrt(s.v / (1 - self.beta2**s.t if self.bias_correction else 1)) + self.eps)
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * W * self.rms * math.sqrt(p.size) / (np.linalg.norm(W) + self.eps)


class Dion2(PerTensor):
    """Microsoft, 2025 (arXiv:2512.16928), on one device."""

    name = "dion2"
    shapes = "matrix"
    buffers = ("m",)
    defaults = {"lr": 0.01, "fraction": 0.25, "ef_decay": 0.95, "weight_decay": 0.01, "adjust_lr": "spectral", "ns_steps": 5,
                "ns_coefficients": "polar_express", "ns_eps": 1e-8}
    settings = ({}, {"fraction": 0.6, "ef_decay": 0.5, "weight_decay": 0.3, "adjust_lr": "match_rms_adamw"},
                {"fraction": 1.0, "adjust_lr": "none", "ns_coefficients": "cans"})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.m = s.m + g
        M = s.m.reshape(p.shape[0], -1)  # a view: what is changed in it is changed in m
        P = p.reshape(M.shape)
        out, fan_in = M.shape
        if out > fan_in:
            M, P = M.T, P.T
        k = max(1, math.ceil(self.fraction * len(M)))
        chosen = np.sort(np.argsort(-np.abs(M).sum(axis=1), kind="stable")[:k])
        U = orthogonalize(M[chosen], ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.ns_eps)
        M[chosen] *= self.ef_decay
        p *= 1 - self.lr * self.weight_decay
        P[chosen] -= self.lr * factor(self.adjust_lr, out, fan_in) * U


class PolarGrad(_Momentum):
    """Lau, Long, Su, 2025 (arXiv:2505.21799)."""

    name = "polargrad"
    defaults = {"lr": 3e-4, "momentum": 0.95, "nesterov": False, "weight_decay": 0.01, "form": "ns", "alpha": 1.0, "ns_steps": 5,
                "ns_coefficients": "quintic", "ns_eps": 1e-15}
    settings = ({"lr": 0.02}, {"lr": 0.02, "form": "exact", "momentum": 0.5, "weight_decay": 0.3},
                {"lr": 0.02, "alpha": 0.5, "nesterov": True, "ns_coefficients": "simple"}, {"lr": 0.02, "form": "exact", "alpha": 0.0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        U = self.look(g, s)
        if self.form == "exact":
            O, nu = orthogonalize(U, method="svd"), np.linalg.norm(U, "nuc")
        else:
            O = self.polar(U)
            nu = np.sum(O * U)
        p *= 1 - self.lr * self.weight_decay
        p -= self.lr * nu**self.alpha * O.reshape(p.shape)


class Scion(PerTensor):
    """Pethick et al., 2025 (arXiv:2502.07529)."""

    name = "scion"
    buffers = ("b",)
    defaults = {"lr": 1e-3, "momentum": 0.1, "scale": 1.0, "norm": "auto", "unconstrained": False, "ns_steps": 5, "ns_coefficients": "simple",
                "eps": 1e-7}
    settings = tuple(
        [{"lr": 0.05}, {"lr": 0.05, "momentum": 1.0, "scale": 3.0, "unconstrained": True}]
        + [{"lr": 0.05, "norm": n, "momentum": 0.5, "scale": 2.0}
           for n in ("bias_rms", "col", "col_normalized", "embed_row", "row", "row_unnormalized", "sign", "sign_unnormalized")]
    )

    def direction(self, b: np.ndarray) -> np.ndarray:
        B = b.reshape(b.shape[0] if b.ndim > 1 else 1, -1)
        out, fan_in = B.shape
        kind = self.norm
        if kind == "auto":
            kind = "spectral_conv" if b.ndim > 2 else "spectral" if b.ndim == 2 else "bias_rms"
        if kind.startswith("spectral"):
            scale = {"spectral": math.sqrt(out / fan_in), "spectral_unnormalized": math.sqrt(out), "spectral_max": max(1, math.sqrt(out / fan_in)),
                     "spectral_conv": math.sqrt(out / b.shape[1]) / (b.shape[2] if b.ndim > 2 else 1) ** (b.ndim - 2)}[kind]
            D = scale * orthogonalize(B, ns_steps=self.ns_steps, ns_coefficients=self.ns_coefficients, eps=self.eps)
        elif kind in ("sign", "sign_unnormalized"):
            D = np.sign(B) / (fan_in if kind == "sign" else 1)
        else:
            axis = {"bias_rms": None, "col": 0, "col_normalized": 0}.get(kind, 1)
            mean = np.sqrt(np.mean(B**2, axis=axis, keepdims=True))
            length = np.linalg.norm(B, axis=1, keepdims=True)
            D = B / ({"col_normalized": mean * fan_in, "row": length * math.sqrt(fan_in), "row_unnormalized": length}.get(kind, mean) + 1e-8)
        return D.reshape(b.shape)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        s.b = (1 - self.momentum) * s.b + self.momentum * g
        if not self.unconstrained:
            p *= 1 - self.lr
        p -= self.lr * self.scale * self.direction(s.b)


class ScionMatrix(Scion):
    """The norms that only matrices have, under the same name: run by test_demand."""

    settings = tuple({"lr": 0.05, "norm": n, "momentum": 0.5, "scale": 2.0}
                     for n in ("spectral", "spectral_unnormalized", "spectral_max", "spectral_conv"))


class APOLLO(PerTensor):
    """Zhu et al., 2024 (arXiv:2412.05270).  The numbers of a projection are the first normal draws of the tensor at the step of the
    draw; a rank above the shorter side is the shorter side."""

    name = "apollo"
    shapes = "matrix"
    required = ("rank",)
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True, "update_proj_gap": 200,
                "scale": 1.0, "scale_type": "channel", "scale_front": False, "norm_growth": 1.01}
    settings = ({"rank": 2, "lr": 0.05}, {"rank": 1, "lr": 0.05, "scale_type": "tensor", "scale": 4.0, "update_proj_gap": 7, "weight_decay": 0.3},
                {"rank": 3, "lr": 0.05, "scale": 2.0, "scale_front": True, "beta2": 0.9, "update_proj_gap": 5, "norm_growth": 1.2},
                {"rank": 1, "lr": 0.02, "norm_growth": None, "correct_bias": False, "eps": 0.1})

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, m=0.0, v=0.0, norm=None)

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        normal = oracles["normal"]
        for i, (p, g, s) in enumerate(zip(params, grads, self.states)):
            s.t += 1
            G = g.reshape(g.shape[0], -1)
            tall = G.shape[0] >= G.shape[1]
            side = min(G.shape)
            r = min(self.rank, side)
            draws = np.ravel(normal((s.t - 1) // self.update_proj_gap * self.update_proj_gap)[i])
            P = draws[: r * side].reshape(r, side) / math.sqrt(r)
            R = G @ P.T if tall else P @ G
            s.m = self.beta1 * s.m + (1 - self.beta1) * R
            s.v = self.beta2 * s.v + (1 - self.beta2) * R**2
            N = ratio(s.m, np.sqrt(s.v) + self.eps)
            axis = None if self.scale_type == "tensor" else 1 if tall else 0
            U = G * (np.linalg.norm(N, axis=axis, keepdims=True) / (np.linalg.norm(R, axis=axis, keepdims=True) + 1e-8))
            if self.scale_front:
                U = U * math.sqrt(self.scale)
            if self.norm_growth is not None:
                n = np.linalg.norm(U)
                limit = 1.0 if s.norm is None else max(n / (s.norm + 1e-8), self.norm_growth) / self.norm_growth
                U = U / limit
                s.norm = n / limit
            if not self.scale_front:
                U = U * math.sqrt(self.scale)
            a = self.lr * (math.sqrt(1 - self.beta2**s.t) / (1 - self.beta1**s.t) if self.correct_bias else 1.0)
            p -= a * U.reshape(p.shape)
            p *= 1 - self.lr * self.weight_decay
