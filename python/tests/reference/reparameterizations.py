"""Weights that are made of the tensors that are trained: weight and spectral normalisation, trained thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np

import thalweg as tw

from .base import ObjectiveReference

Inputs = dict[str, np.ndarray]


class WeightNorm(ObjectiveReference):
    """Salimans, Kingma, 2016; arXiv 1602.07868.  The first pass of an object."""

    name = "weight_norm"
    defaults = {"axis": "row", "log_gain": False}
    settings = ({}, {"axis": "all"}, {"log_gain": True}, {"axis": "all", "log_gain": True})

    def groups(self, v: np.ndarray) -> int:
        return 1 if self.axis == "all" else len(v)

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for shape in ((1,), (4, 7), (5, 3, 2, 2), (40, 3)):
            v = rng.standard_normal(shape)
            out.append({"v": v, "gain": rng.standard_normal(self.groups(v)), "g": rng.standard_normal(shape)})
        return [*out, {k: out[1][k] for k in ("v", "gain")}, {**out[2], "pre": 3 * rng.standard_normal((11, 5)) + 1}]

    def split(self, v: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """v by groups, their norms, their unit vectors, and the factors."""
        rows = v.reshape(len(gain), -1)
        n = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
        return rows, n, rows / n, (np.exp(gain) if self.log_gain else gain)[:, None]

    def value(self, v: np.ndarray, gain: np.ndarray, g: np.ndarray | None = None, pre: np.ndarray | None = None) -> float:
        _, _, u, factor = self.split(v, gain)
        return 0.0 if g is None else float(np.sum(g * (factor * u).reshape(v.shape)))

    def gradients(self, v: np.ndarray, gain: np.ndarray, g: np.ndarray | None = None, pre: np.ndarray | None = None) -> Inputs:
        _, n, u, factor = self.split(v, gain)
        G = np.zeros_like(u) if g is None else g.reshape(u.shape)
        d = np.sum(G * u, axis=1, keepdims=True)
        start, bias = n[:, 0], np.zeros(len(gain))
        if pre is not None:
            columns = pre.reshape(1, -1) if self.axis == "all" else pre.T
            start, bias = 1 / columns.std(axis=1), -columns.mean(axis=1) / columns.std(axis=1)
        return {"v": (factor / n * (G - d * u)).reshape(v.shape), "gain": (factor * d if self.log_gain else d)[:, 0],
                "effective": (factor * u).reshape(v.shape), "norms": n[:, 0],
                "init_gain": np.log(start) if self.log_gain else start, "init_bias": bias}


def unit(x: np.ndarray, eps: float) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), eps)


class SpectralNorm(ObjectiveReference):
    """Miyato et al., 2018; arXiv 1802.05957.  `gradients` is one pass of an object that begins; `step` goes on."""

    name = "spectral_norm"
    defaults = {"n_iter": 1, "eps": 1e-12, "target": 1.0, "mode": "divide", "seed": 0}
    settings = ({}, {"n_iter": 3, "target": 2.5, "seed": 7}, {"mode": "clip", "target": 4.0}, {"eps": 0.7})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        shapes = ((3,), (6, 4), (4, 5, 2), (2, 130))
        cases = [{"w": rng.standard_normal(s), "g": rng.standard_normal(s), "u0": rng.standard_normal(s[0])} for s in shapes]
        small = {"w": 0.2 * rng.standard_normal((6, 4)), "g": rng.standard_normal((6, 4)), "u0": rng.standard_normal(6)}  # norms below 0.7
        drawn = [{"w": 2 + rng.standard_normal(s), "g": rng.standard_normal(s)} for s in ((5, 4), (1, 3))]
        zero = {"w": np.zeros((3, 2)), "g": rng.standard_normal((3, 2))}
        rest = {**cases[1], "training": np.array(0)}
        return [*cases, small, *drawn, zero, rest, {**drawn[0], "training": np.array(0)}, {"w": drawn[0]["w"]}]

    def smooth(self, **inputs: np.ndarray) -> bool:
        return False  # u and v count as constant; test_reparameterizations.py holds them

    def begin(self, w: np.ndarray) -> None:
        """Before the first pass: u is drawn, and warmed up."""
        W = w.reshape(len(w), -1)
        self.u, self.v = unit(tw.random_normal(self.seed, 0, 0, 0, len(w)), 0.0), np.zeros(W.shape[1])
        self.turn(W, 15)

    def turn(self, W: np.ndarray, steps: int) -> None:
        for _ in range(steps):
            if np.any(W.T @ self.u):
                self.v = unit(W.T @ self.u, self.eps)
                if np.any(W @ self.v):
                    self.u = unit(W @ self.v, self.eps)

    def step(self, w: np.ndarray, g: np.ndarray | None = None, u0: np.ndarray | None = None, training: Any = 1) -> tuple[float, Inputs]:
        W = w.reshape(len(w), -1)
        G = np.zeros_like(W) if g is None else g.reshape(W.shape)
        if u0 is not None:
            self.u, self.v = unit(u0, 0.0), unit(W.T @ unit(u0, 0.0), self.eps)
        elif not hasattr(self, "u"):
            self.begin(w)
        self.turn(W, self.n_iter if training else 0)
        sigma = float(self.u @ W @ self.v)
        pull, effective = G, W
        if sigma != 0 and (self.mode == "divide" or sigma > self.target):
            effective = self.target * W / sigma
            pull = self.target * (G / sigma - np.sum(G * W) / sigma**2 * np.outer(self.u, self.v))
        return float(np.sum(G * effective)), {
            "w": pull.reshape(w.shape), "effective": effective.reshape(w.shape), "sigma": np.array(sigma),
            "u": self.u, "v": self.v.reshape(w.shape[1:])}

    def value(self, **inputs: np.ndarray) -> float:
        return SpectralNorm(**self.h).step(**inputs)[0]

    def gradients(self, **inputs: np.ndarray) -> Inputs:
        return SpectralNorm(**self.h).step(**inputs)[1]


class AutoSparse(ObjectiveReference):
    """Kundu et al., 2023; arXiv 2304.06941.  The first pass of an object, or the one of `t`."""

    name = "autosparse"
    required = ("total",)
    defaults = {"alpha0": 0.75, "schedule": "cosine", "s_init": -5.0, "l0": -6.0, "l1": 6.0}
    settings = ({"total": 10}, {"total": 10, "schedule": "sigmoid"}, {"total": 7, "schedule": "sigmoid_cosine", "l0": -2.0, "l1": 9.0},
                {"total": 4, "schedule": "linear", "alpha0": 1.0}, {"total": 4, "schedule": "constant"},
                {"total": 3, "alpha0": 0.0, "s_init": -0.5})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        def case(shape: tuple[int, ...], s: float) -> Inputs:
            return {"w": rng.standard_normal(shape), "s": np.array(s), "g": rng.standard_normal(shape)}

        cases = [{**case((3, 4), -0.5), "t": np.array(t)} for t in (0, 1, 3, 4, 5, 10, 11)]
        border = {"w": np.array([0.5, -0.5, 0.0, 0.75]), "s": np.array(0.0), "g": np.ones(4)}
        return [*cases, case((), -1.0), case((2, 2, 3), 40.0), case((5000,), -0.2), border, {"w": rng.standard_normal(9)},
                {"w": rng.standard_normal(9), "g": rng.standard_normal(9), "training": np.array(0)}]

    def alpha(self, t: float) -> float:
        if t > self.total:
            return 0.0
        x = t / self.total
        cosine, sigmoid = (1 + np.cos(np.pi * x)) / 2, 1 - 1 / (1 + np.exp(-(self.l0 + (self.l1 - self.l0) * x)))
        share = {"cosine": cosine, "sigmoid": sigmoid, "sigmoid_cosine": max(cosine, sigmoid), "linear": 1 - x, "constant": 1.0}
        return float(self.alpha0 * share[self.schedule])

    def threshold(self, s: Any) -> float:
        return 1 / (1 + np.exp(-float(self.s_init if s is None else s)))

    def smooth(self, w: np.ndarray, s: Any = None, t: Any = 0, **rest: Any) -> bool:
        return self.alpha(float(t)) == 0 and bool(np.all(np.abs(np.abs(w) - self.threshold(s)) > 1e-4))

    def effective(self, w: np.ndarray, s: Any) -> np.ndarray:
        return np.sign(w) * np.maximum(np.abs(w) - self.threshold(s), 0)

    def value(self, w: np.ndarray, s: Any = None, g: np.ndarray | None = None, **rest: Any) -> float:
        return 0.0 if g is None else float(np.sum(g * self.effective(w, s)))

    def gradients(self, w: np.ndarray, s: Any = None, g: np.ndarray | None = None, t: Any = 0, training: Any = 1) -> Inputs:
        T, a = self.threshold(s), self.alpha(float(t))
        G = np.zeros_like(w) if g is None else g
        h = np.where(np.abs(w) > T, 1.0, a)
        out = {"w": G * h, "effective": self.effective(w, s), "alpha": np.array(a), "threshold": np.array(T)}
        return out if s is None else {**out, "s": np.array(-T * (1 - T) * np.sum(G * np.sign(w) * h))}
