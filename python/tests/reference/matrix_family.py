"""Norm balls, Newton-Schulz as a transform and its coefficient sets, diagnostics of matrices and of games."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, ConstraintReference, DiagnosticReference, TransformReference
from .solvers import Case, SolverReference

# (triples, cycles, safety) of the card
FIVE = [4.0848, -6.8946, 2.9270, 3.9505, -6.3029, 2.6377, 3.7418, -5.5913, 2.3037, 2.8769, -3.1427, 1.2046, 2.8366, -3.0525, 1.2012]
RAW = [8.28721201814563, -23.595886519098837, 17.300387312530933, 4.107059111542203, -2.9478499167379106, 0.5448431082926601, 3.9486908534822946,
       -2.908902115962949, 0.5518191394370137, 3.3184196573706015, -2.488488024314874, 0.51004894012372, 2.300652019954817, -1.6689039845747493,
       0.4188073119525673, 1.891301407787398, -1.2679958271945868, 0.37680408948524835, 1.8750014808534479, -1.2500016453999487, 0.3750001645474248,
       1.875, -1.25, 0.375]
SETS: dict[str, tuple[np.ndarray, bool, float]] = {
    "simple": (np.array([3.4445, -4.7750, 2.0315]), True, 1.0),
    "cubic": (np.array([1.5, -0.5, 0.0]), True, 1.0),
    "quintic": (np.array(FIVE), True, 1.0),
    "dion": (np.array(FIVE), True, 1.0),
    "polar_express": (np.array([8.156554524902461, -22.48329292557795, 15.878769915207462, 4.042929935166739, -2.808917465908714, 0.5000178451051316,
                                3.8916678022926607, -2.772484153217685, 0.5060648178503393, 3.285753657755655, -2.3681294933425376, 0.46449024233003106,
                                2.3465413258596377, -1.7097828382687081, 0.42323551169305323]), False, 1.02),
    "polar_express_raw": (np.array(RAW), False, 1.0),
    "polar_express_8": (np.array(RAW) / np.concatenate([np.tile(1.01 ** np.array([1, 3, 5]), 7), np.ones(3)]), False, 1.0),
    "polar_express_105": (np.array(RAW[:15]) / np.tile(1.05 ** np.array([1, 3, 5]), 5), False, 1.0),
    "cans": (np.array([8.4703, -25.1081, 18.6293, 4.1828, -3.1087, 0.5806, 3.9619, -2.9541, 0.5630, 3.2866, -2.4647, 0.5074, 2.2737, -1.6447, 0.4162]), False, 1.0),
    "aol": (np.array([4.0098, -7.0585, 2.4635, 3.4585, -5.5479, 2.5959, 2.7573, -3.2939, 1.4254, 2.7215, -3.0494, 1.3169]), True, 1.0),
    "aol_2": (np.array([4.6051, -9.6552, 5.6769, 4.7505, -6.0861, 2.1790, 2.7763, -2.3190, 0.5523, 2.4231, -2.2861, 0.8193]), True, 1.0),
    "deepseek": (np.array([3.4445, -4.7750, 2.0315] * 8 + [2, -1.5, 0.5] * 2), False, 1.0),
    "cubic5": (np.array([3.3656576, -3.3420992, 0, 2.5744352, -1.4957376, 0, 2.5368962, -1.4312570, 0, 2.4418906, -1.2764040, 0, 2.2230472, -0.9630650, 0]), False, 1.0),
}


def triples(coefficients: Any, steps: int) -> np.ndarray:
    values, cycles, _ = SETS[coefficients] if isinstance(coefficients, str) else (np.ravel(coefficients), False, 1.0)
    rows = np.asarray(values, float).reshape(-1, 3)
    return np.array([rows[k % len(rows) if cycles else min(k, len(rows) - 1)] for k in range(steps)])


class CoefficientSets(SolverReference):
    name = "ns_coefficient_sets"
    defaults = {"ns_steps": 5, "ns_coefficients": "simple", "safety": None}
    settings = ({},) + tuple({"ns_coefficients": name, "ns_steps": steps} for name, steps in zip(SETS, (7, 3, 6, 2, 8, 9, 8, 5, 4, 6, 3, 11, 7))) + (
        {"ns_coefficients": (2.0, -1.5, 0.5), "safety": 1.3},)
    limit32 = 1e-2

    def cases(self, rng):
        return [Case({"sigma": np.linspace(0.02, 0.7, 9)}, dict)]

    def solve(self, inputs, ask):
        rows = triples(self.ns_coefficients, self.ns_steps)
        named = isinstance(self.ns_coefficients, str)
        safety = self.safety if self.safety is not None else SETS[self.ns_coefficients][2] if named else 1.0
        s = inputs["sigma"] / safety
        for a, b, c in rows:
            s = a * s + b * s**3 + c * s**5
        return {"mapped": s, "coefficients": rows, "safety": safety, "cycles": float(named and SETS[self.ns_coefficients][1]),
                "scaling": 2.0 if named and self.ns_coefficients.startswith("aol") else 0.0, "outcome": "converged"}


class NewtonSchulz(TransformReference):
    name = "newton_schulz"
    shapes = "matrix"
    defaults = {"ns_steps": 5, "ns_coefficients": "simple", "eps": 1e-7, "eps_mode": "add", "safety": None, "method": "ns"}
    settings = ({}, {"ns_coefficients": "cubic", "ns_steps": 12}, {"ns_coefficients": "polar_express", "eps_mode": "clamp"}, {"method": "svd"},
                {"ns_coefficients": (2.0, -1.5, 0.5), "safety": 1.1, "ns_steps": 3})

    def transform(self, grads: Arrays, *, params: Arrays | None = None, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        return [self.factor(g.reshape(g.shape[0], -1)).reshape(g.shape) for g in grads]

    def factor(self, x: np.ndarray) -> np.ndarray:
        if self.method == "svd":
            u, s, vt = np.linalg.svd(x, full_matrices=False)
            return u @ np.diag((s > s.max() * max(x.shape) * 2.3e-16).astype(float)) @ vt
        if x.shape[0] > x.shape[1]:
            return self.factor(x.T).T
        named = isinstance(self.ns_coefficients, str)
        n = np.linalg.norm(x) * (self.safety or (SETS[self.ns_coefficients][2] if named else 1.0))
        x = x / (n + self.eps) if self.eps_mode == "add" else x / max(n, self.eps)
        for a, b, c in triples(self.ns_coefficients, self.ns_steps):
            A = x @ x.T
            x = a * x + (b * A + c * A @ A) @ x
        return x


class NormLMO(ConstraintReference):
    name = "norm_lmo"
    defaults = {"norm": "l2", "radius": 1.0, "ortho": "svd"}
    settings = tuple({"norm": n, "radius": r} for n, r in (
        ("l2", 1.0), ("frobenius", 0.5), ("linf", 0.3), ("rms", 0.7), ("spectral", 1.2), ("rms_to_rms", 0.4), ("nuclear", 2.0), ("l1_to_l2", 0.6),
        ("l1_to_rms", 0.5), ("l2_to_linf", 0.8), ("rms_to_linf", 1.1), ("sign_scaled", 0.9)))

    def view(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(w.shape[0], -1) if w.ndim >= 2 else w.reshape(1, -1)

    def value(self, w: np.ndarray) -> float:
        m = self.view(w)
        do, di = m.shape
        return {
            "l2": lambda: np.linalg.norm(m), "frobenius": lambda: np.linalg.norm(m), "linf": lambda: np.abs(m).max(),
            "rms": lambda: np.sqrt(np.mean(m**2)), "spectral": lambda: np.linalg.norm(m, 2), "rms_to_rms": lambda: np.sqrt(di / do) * np.linalg.norm(m, 2),
            "nuclear": lambda: np.linalg.norm(m, "nuc"), "l1_to_l2": lambda: np.linalg.norm(m, axis=0).max(),
            "l1_to_rms": lambda: np.linalg.norm(m, axis=0).max() / np.sqrt(do), "l2_to_linf": lambda: np.linalg.norm(m, axis=1).max(),
            "rms_to_linf": lambda: np.sqrt(di) * np.linalg.norm(m, axis=1).max(), "sign_scaled": lambda: di * np.abs(m).max(),
        }[self.norm]()

    def dual(self, g: np.ndarray) -> float:
        m = self.view(g)
        do, di = m.shape
        return {
            "l2": lambda: np.linalg.norm(m), "frobenius": lambda: np.linalg.norm(m), "linf": lambda: np.abs(m).sum(),
            "rms": lambda: np.sqrt(m.size) * np.linalg.norm(m), "spectral": lambda: np.linalg.norm(m, "nuc"),
            "rms_to_rms": lambda: np.sqrt(do / di) * np.linalg.norm(m, "nuc"), "nuclear": lambda: np.linalg.norm(m, 2),
            "l1_to_l2": lambda: np.linalg.norm(m, axis=0).sum(), "l1_to_rms": lambda: np.sqrt(do) * np.linalg.norm(m, axis=0).sum(),
            "l2_to_linf": lambda: np.linalg.norm(m, axis=1).sum(), "rms_to_linf": lambda: np.linalg.norm(m, axis=1).sum() / np.sqrt(di),
            "sign_scaled": lambda: np.abs(m).sum() / di,
        }[self.norm]()

    def lmo(self, g: np.ndarray) -> np.ndarray:
        m = self.view(g)
        do, di = m.shape
        over = lambda axis: m / np.where((n := np.linalg.norm(m, axis=axis, keepdims=True)) == 0, 1, n)  # noqa: E731
        if self.norm in ("spectral", "rms_to_rms", "nuclear"):
            u, s, vt = np.linalg.svd(m, full_matrices=False)
            if self.norm == "nuclear":
                t = np.outer(u[:, 0], vt[0]) * (s[0] > 0)
            else:
                t = u @ np.diag((s > s[0] * max(m.shape) * 2.3e-16).astype(float)) @ vt * (1 if self.norm == "spectral" else np.sqrt(do / di))
        else:
            size = np.linalg.norm(m)
            t = {"l2": lambda: m / (size or 1), "frobenius": lambda: m / (size or 1), "rms": lambda: m / (size or 1) * np.sqrt(m.size), "linf": lambda: np.sign(m),
                 "sign_scaled": lambda: np.sign(m) / di, "l1_to_l2": lambda: over(0), "l1_to_rms": lambda: over(0) * np.sqrt(do),
                 "l2_to_linf": lambda: over(1), "rms_to_linf": lambda: over(1) / np.sqrt(di)}[self.norm]()
        return -self.radius * t.reshape(g.shape)

    def project(self, w: np.ndarray) -> np.ndarray:
        m, r = self.view(w), self.radius
        do, di = m.shape
        if self.norm in ("spectral", "rms_to_rms", "nuclear"):
            u, s, vt = np.linalg.svd(m, full_matrices=False)
            if self.norm == "nuclear":
                lo, hi = -r, s.max()
                for _ in range(200):
                    mid = (lo + hi) / 2
                    lo, hi = (mid, hi) if np.maximum(s - mid, 0).sum() > r else (lo, mid)
                new = s if s.sum() <= r else np.maximum(s - hi, 0)
            else:
                new = np.minimum(s, r * (1 if self.norm == "spectral" else np.sqrt(do / di)))
            return (u @ np.diag(new) @ vt).reshape(w.shape)
        if self.norm in ("linf", "sign_scaled"):
            most = r if self.norm == "linf" else r / di
            return np.clip(w, -most, most)
        axis, most = {"l2": (None, r), "frobenius": (None, r), "rms": (None, r * np.sqrt(m.size)), "l1_to_l2": (0, r), "l1_to_rms": (0, r * np.sqrt(do)),
                      "l2_to_linf": (1, r), "rms_to_linf": (1, r / np.sqrt(di))}[self.norm]
        n = np.linalg.norm(m, axis=axis, keepdims=True)
        return (m * np.where(n > most, most / np.where(n == 0, 1, n), 1.0)).reshape(w.shape)


class OperatorNorms(DiagnosticReference):
    name = "operator_norms"
    defaults = {"kind": "input_1_to_rms"}
    settings = ({}, {"kind": "hidden_rms_to_rms"}, {"kind": "output_rms_to_inf"})

    def examples(self, rng):
        return [{"w": w} for w in (rng.standard_normal((4, 7)), rng.standard_normal((6, 2)), np.zeros((2, 3)), np.array([[2.5]]))]

    def results(self, w: np.ndarray) -> dict[str, Any]:
        m, n = w.shape
        out = {"input_1_to_rms": np.sqrt((w**2).sum(0).max() / m), "hidden_rms_to_rms": np.sqrt(n / m) * np.linalg.norm(w, 2),
               "output_rms_to_inf": np.sqrt(n * (w**2).sum(1).max())}
        return out | {"norm": out[self.h["kind"]]}


class DirectionalSharpness(DiagnosticReference):
    name = "directional_sharpness"

    def examples(self, rng):
        h = np.diag([1.0, -2.0, 3.0])
        u = rng.standard_normal(3)
        return [{"u": u, "hu": h @ u, "g": rng.standard_normal(3)}, {"u": u.reshape(1, 3), "hu": (h @ u).reshape(1, 3)}, {"u": 0 * u, "hu": 0 * u, "g": u}]

    def results(self, u, hu, g=None):
        return {"sharpness": np.sum(u * hu) / np.sum(u * u) if np.any(u) else 0.0, "curvature": np.sum(u * hu), "slope": np.sum(u * g) if g is not None else 0.0}


class GameDrift(DiagnosticReference):
    name = "game_drift"
    defaults = {"lr_first": 0.1, "lr_second": 0.1, "player": "first", "alternating": False, "n_first": 1, "n_second": 1, "cancel_self": False, "cancel_interaction": True}
    settings = ({"lr_first": 0.1, "lr_second": 0.3}, {"lr_first": 0.1, "lr_second": 0.3, "player": "second", "cancel_self": True},
                {"lr_first": 0.2, "lr_second": 0.3, "alternating": True, "n_first": 2}, {"lr_first": 0.2, "lr_second": 0.3, "alternating": True, "player": "second", "n_second": 3,
                                                                                     "cancel_interaction": False, "cancel_self": True})

    def examples(self, rng):
        a, b, c = rng.standard_normal((3, 2, 4))
        return [{"g": a, "self_term": b, "interaction": c}, {"g": a, "interaction": c}, {"g": a}]

    def results(self, g, self_term=None, interaction=None):
        one, two = self.lr_first, self.lr_second
        own = one if self.player == "first" else two
        s, i = own / 2, own / 2
        if self.alternating:
            s, i = (one / (2 * self.n_first), one / 2) if self.player == "first" else (two / (2 * self.n_second), -two / 2 * (2 * one / two - 1))
        a, b = s * (0 * g if self_term is None else self_term), i * (0 * g if interaction is None else interaction)
        return {"drift": a + b, "corrected": g - a * self.cancel_self - b * self.cancel_interaction, "c_self": s, "c_interaction": i}


class QKClip(DiagnosticReference):
    name = "qk_clip"
    defaults = {"tau": 100.0, "alpha": 0.5, "role": "query", "key_heads": None}
    settings = ({}, {"tau": 5.0, "role": "key"}, {"tau": 5.0, "alpha": 0.3}, {"tau": 5.0, "role": "query_rotary"}, {"tau": 5.0, "role": "key_rotary"},
                {"tau": 5.0, "role": "key", "key_heads": 2, "alpha": 0.3}, {"tau": 5.0, "key_heads": 2, "alpha": 0.3})

    def examples(self, rng):
        logits = np.array([3.0, 20.0, 150.0, -np.inf])
        return [{"w": rng.standard_normal((8, 3)), "logits": logits}, {"w": rng.standard_normal((4, 1)), "logits": np.array([np.nan, np.inf, 7.0, 90.0])}]

    def results(self, w, logits):
        h = len(logits)
        known = ~np.isnan(logits) & (logits != np.inf)
        gamma = np.where(known, self.tau / np.maximum(np.where(known, logits, 0), self.tau), 1.0)
        keys = self.key_heads or h
        kappa = np.repeat((gamma ** (1 - self.alpha)).reshape(keys, -1).max(1), h // keys)
        f = {"query": gamma**self.alpha if keys == h else gamma / kappa, "key": kappa[:: h // keys], "query_rotary": gamma,
             "key_rotary": np.ones(keys)}[self.role]
        rows = np.repeat(f, len(w) // len(f))
        return {"count": float(np.sum(gamma < 1)), "clipped": w * rows.reshape((-1,) + (1,) * (w.ndim - 1)), "factors": gamma, "unknown": float(np.sum(~known))}
