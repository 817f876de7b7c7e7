"""Two-layer ReLU networks as convex problems (Pilanci, Ergen; Bai, Gautam, Sojoudi; Mishkin, Pilanci)."""

from __future__ import annotations

from typing import Any

import numpy as np

import thalweg as tw

from .base import ObjectiveReference
from .solvers import Case, SolverReference


def problem(rng: np.random.Generator, P: int = 3, n: int = 6, d: int = 2) -> dict[str, np.ndarray]:
    X = rng.standard_normal((n, d))
    return {"v": rng.standard_normal((P, d)), "w": rng.standard_normal((P, d)), "x": X, "y": rng.standard_normal(n),
            "patterns": (X @ rng.standard_normal((d, P)) >= 0).T.astype(float)}


def direction(v: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(v, axis=1, keepdims=True)
    return np.divide(v, size, out=np.zeros_like(v), where=size > 0)


class ConvexReLUObjective(ObjectiveReference):
    name = "convex_relu_objective"
    defaults = {"beta": 1e-3}
    settings = ({}, {"beta": 0.5}, {"beta": 0.0})

    def examples(self, rng):
        dead = problem(rng)
        dead["v"][1] = 0
        return [problem(rng), problem(rng, 1, 1, 1), dead]

    def smooth(self, **a):
        return bool(np.all(np.linalg.norm(a["v"], axis=1)) and np.all(np.linalg.norm(a["w"], axis=1)))

    def parts(self, v, w, x, y, patterns):
        masked = patterns[:, :, None] * x[None]  # D_i X
        return masked, np.einsum("inj,ij->n", masked, v - w)

    def value(self, **a):
        _, said = self.parts(**a)
        norms = np.linalg.norm(a["v"], axis=1).sum() + np.linalg.norm(a["w"], axis=1).sum()
        return float(np.sum((said - a["y"]) ** 2) / 2 + self.beta * norms)

    def gradients(self, **a):
        masked, said = self.parts(**a)
        back = np.einsum("inj,n->ij", masked, said - a["y"])
        sides = (2 * a["patterns"] - 1)[:, :, None] * a["x"][None]
        worst = max(0.0, *(-np.einsum("inj,ij->in", sides, a[k]).min() for k in "vw"))
        return {"v": back + self.beta * direction(a["v"]), "w": -back + self.beta * direction(a["w"]), "prediction": said,
                "violation": np.asarray(worst)}


class ConvexReLUToNetwork(ObjectiveReference):
    name = "convex_relu_to_network"
    defaults = {"beta": 1e-3}
    settings = ({}, {"beta": 0.5})

    def examples(self, rng):
        v, w = rng.standard_normal((2, 3, 2))
        dead = w.copy()
        dead[2] = 0
        return [{"v": v, "w": w}, {"v": v, "w": dead}, {"v": v[:1], "w": w[:1]}]

    def smooth(self, v, w):
        return bool(np.all(np.linalg.norm(v, axis=1)) and np.all(np.linalg.norm(w, axis=1)))

    def value(self, v, w):
        return float(self.beta * (np.linalg.norm(v, axis=1).sum() + np.linalg.norm(w, axis=1).sum()))

    def gradients(self, v, w):
        both = np.stack([v, w])
        root = np.sqrt(np.linalg.norm(both, axis=2))
        first = np.divide(both, root[:, :, None], out=np.zeros_like(both), where=root[:, :, None] > 0)
        return {"v": self.beta * direction(v), "w": self.beta * direction(w), "first": first,
                "second": root * np.array([[1.0], [-1.0]])}


class ConvexReLUADMM(SolverReference):
    name = "convex_relu_admm"
    defaults = {"P": 10, "beta": 1e-3, "rho": 0.1, "gamma": None, "tol": 0.0, "max_iter": 1000, "seed": 0}
    settings = ({"P": 4, "max_iter": 60}, {"P": 6, "beta": 0.3, "rho": 0.5, "gamma": 0.4, "seed": 3, "max_iter": 40}, {"max_iter": 0},
                {"P": 2, "beta": 0.05, "tol": 1e-4})
    limit = 1e-8  # a dense system of condition ten to a hundred, some tens of times
    limit32 = 1e-3

    def cases(self, rng):
        a = problem(rng)
        return [Case({"x": a["x"], "y": a["y"]}, dict), Case({"x": a["x"], "y": a["y"], "patterns0": a["patterns"]}, dict)]

    def solve(self, inputs, ask):
        X, y = inputs["x"], inputs["y"]
        n, d = X.shape
        if "patterns0" in inputs:
            D = inputs["patterns0"]
        else:
            D, seen = np.zeros((self.P, n)), set()
            for k in range(self.P):
                p = X @ tw.random_normal(self.seed, 0, k, 0, n=d) >= 0
                if p.tobytes() not in seen:
                    seen.add(p.tobytes())
                    D[k] = p
        P = len(D)
        F = np.hstack([D[i][:, None] * X for i in range(P)] + [-D[i][:, None] * X for i in range(P)])
        G = np.zeros((2 * P * n, 2 * P * d))
        for b in range(2 * P):
            G[b * n:(b + 1) * n, b * d:(b + 1) * d] = (2 * D[b % P] - 1)[:, None] * X
        gamma = self.rho if self.gamma is None else self.gamma
        A = np.eye(2 * P * d) + F.T @ F / self.rho + G.T @ G
        v, lam, s, nu = np.zeros(2 * P * d), np.zeros(2 * P * d), np.zeros(2 * P * n), np.zeros(2 * P * n)
        k, left, outcome = 0, 0.0, "max_iter"
        while True:
            if k and left <= self.tol:
                outcome = "converged"
                break
            if k >= self.max_iter:
                break
            u = np.linalg.solve(A, F.T @ y / self.rho + v - lam + G.T @ (s - nu))
            z = (u + lam).reshape(2 * P, d)
            size = np.linalg.norm(z, axis=1, keepdims=True)
            v = (z * np.maximum(1 - self.beta / self.rho / np.where(size > 0, size, 1), 0)).ravel()
            s = np.maximum(G @ u + nu, 0)
            lam, nu = lam + gamma / self.rho * (u - v), nu + gamma / self.rho * (G @ u - s)
            left, k = max(np.linalg.norm(u - v), np.linalg.norm(G @ u - s)), k + 1
        value = np.sum((F @ v - y) ** 2) / 2 + self.beta * np.linalg.norm(v.reshape(2 * P, d), axis=1).sum()
        return {"v": v[:P * d].reshape(P, d), "w": v[P * d:].reshape(P, d), "patterns": D, "value": value, "residual": left,
                "iterations": k, "outcome": outcome}


class ReLUOptimalPrune(SolverReference):
    name = "relu_optimal_prune"
    defaults = {"tol": 1e-8, "keep": None, "score": "residual"}
    settings = ({}, {"tol": 0.5}, *({"keep": 2, "score": s} for s in ("residual", "norm", "fit", "gradient")), {"keep": 9})
    limit, limit32 = 1e-9, 1e-3

    def cases(self, rng):
        # one dependence, so that its null vector is the only one; a dead neuron; and none that depends
        F, w = rng.standard_normal((4, 5)), rng.standard_normal((4, 3))
        F[2] = 0.5 * F[0] - 2.0 * F[3]
        dead = F.copy()
        dead[1] = 0
        free = rng.standard_normal((3, 6))
        more = lambda k: {"weights": w[:k], "gradient": np.cos(np.arange(3.0 * k)).reshape(k, 3)}  # noqa: E731
        return [Case({"fits": F, **more(4)}, dict), Case({"fits": dead, **more(4)}, dict), Case({"fits": free, **more(3)}, dict)]

    def solve(self, inputs, ask):
        F, w = inputs["fits"].copy(), inputs["weights"].copy()
        P = len(F)
        scale, active = np.ones(P), [i for i in range(P) if np.any(F[i])]

        def drop(j: int, b: np.ndarray) -> None:
            factor = 1 - b / b[j]
            for k, i in enumerate(active):
                scale[i] *= factor[k] if self.keep is not None else max(factor[k], 0.0)
            active.remove(active[j])

        while active:
            f = F[active] * scale[active][:, None]
            U, s, _ = np.linalg.svd(np.hstack([f, np.zeros((len(f), max(0, len(f) - f.shape[1])))]), full_matrices=False)
            if s[-1] > self.tol * s[0]:
                break
            drop(int(np.argmax(np.abs(U[:, -1]))), U[:, -1])
        while self.keep is not None and len(active) > self.keep:
            f = F[active] * scale[active][:, None]
            found: list[tuple[float, Any]] = []
            for j, i in enumerate(active):
                others = np.delete(f, j, axis=0).T
                c, _, _, _ = np.linalg.lstsq(others, f[j], rcond=1e-12)
                score = {"residual": np.linalg.norm(f[j] - others @ c), "norm": abs(scale[i]) * np.linalg.norm(w[i]),
                         "fit": np.linalg.norm(f[j]), "gradient": np.linalg.norm(scale[i] * w[i] * inputs["gradient"][i])}[self.score]
                found.append((score, np.insert(c, j, -1.0)))
            j = int(np.argmin([a for a, _ in found]))
            drop(j, found[j][1])
        left = np.isin(np.arange(P), active)
        scale = np.where(left, scale, 0.0)
        return {"pruned": scale[:, None] * w, "scales": scale, "active": left.astype(float), "remaining": len(active), "outcome": "converged"}
