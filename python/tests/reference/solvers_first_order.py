"""Solvers from their cards: proximal gradients, sparse regression, projections on several sets."""

from __future__ import annotations

import numpy as np

from .solvers import Case, SolverReference, spd


def soft(v, k):
    return np.sign(v) * np.maximum(np.abs(v) - k, 0.0)


class FISTA(SolverReference):
    name = "fista"
    defaults = {"curvature": 1.0, "backtrack": True, "accelerate": True, "restart": "gradient", "mu": 0.0, "max_iter": 100,
                "tol": 1e-6, "regularizer": None, "ask_prox": False}
    settings = ({}, {"accelerate": False, "max_iter": 20}, {"restart": "none", "max_iter": 30}, {"mu": 0.5, "max_iter": 25},
                {"backtrack": False, "curvature": 12.0, "max_iter": 15}, {"max_iter": 0})
    limit = 1e-8

    def cases(self, rng):
        a, b = spd(rng, 8), 2 * rng.standard_normal(8)

        def smooth():
            return {"value_gradient": lambda x: (0.5 * x @ a @ x - b @ x, a @ x - b), "value": lambda x: 0.5 * x @ a @ x - b @ x,
                    "prox": lambda v, step: soft(v, 0.7 * step)}

        x0 = rng.standard_normal(8)
        return [Case({"x0": x0}, smooth), Case({"x0": 0 * x0}, smooth, {"regularizer": "l1(0.7)"}),
                Case({"x0": x0}, smooth, {"ask_prox": True})]

    def solve(self, inputs, ask):
        x, L, t = inputs["x0"].copy(), self.curvature, 1.0
        y, change = x.copy(), 0.0
        for k in range(self.max_iter):
            f, g = ask["value_gradient"](y)
            while True:
                z = y - g / L
                if self.ask_prox or self.regularizer:
                    z = soft(z, 0.7 / L)
                if not self.backtrack:
                    break
                fz = ask["value"](z)
                if fz <= f + g @ (z - y) + L / 2 * np.sum((z - y) ** 2) + 32 * 2.0**-52 * max(abs(f), abs(fz)):
                    break
                L *= 2
            if self.restart == "gradient" and (y - z) @ (z - x) > 0:
                t = 1.0
            new = (1 + np.sqrt(1 + 4 * t * t)) / 2
            root = np.sqrt(self.mu / L)
            momentum = 0.0 if not self.accelerate else (1 - root) / (1 + root) if self.mu > 0 else (t - 1) / new
            y, t = z + momentum * (z - x), new
            change = np.linalg.norm(z - x) / max(1.0, np.linalg.norm(x))
            x = z
            if change <= self.tol:
                return {"x": x, "iterations": k + 1, "curvature": L, "outcome": "converged"}
        return {"x": x, "iterations": self.max_iter, "curvature": L, "outcome": "max_iter"}


class IHT(SolverReference):
    name = "iht"
    defaults = {"k": None, "lr": None, "max_iter": 100, "tol": 1e-8}
    required = ("k", "lr")
    settings = ({"k": 3, "lr": 0.08}, {"k": 1, "lr": 0.05, "max_iter": 4}, {"k": 20, "lr": 0.08, "tol": 1e-3}, {"k": 2, "lr": 0.1, "max_iter": 0})

    def cases(self, rng):
        a, b = spd(rng, 9), rng.standard_normal(9)
        return [Case({"x0": rng.standard_normal(9)}, lambda: {"gradient": lambda x: a @ x - b}),
                Case({"x0": np.array([1.0, -1.0, 1.0, 1.0, -1.0])}, lambda: {"gradient": lambda x: 0 * x})]

    def solve(self, inputs, ask):
        x, change, k = inputs["x0"].copy(), 0.0, 0
        while k < self.max_iter:
            y = x - self.lr * ask["gradient"](x)
            order = np.argsort(-np.abs(y), kind="stable")
            y[order[self.k:]] = 0.0
            change, k, x = np.linalg.norm(y - x) / max(1.0, np.linalg.norm(y)), k + 1, y
            if change <= self.tol:
                return {"x": x, "iterations": k, "outcome": "converged"}
        return {"x": x, "iterations": k, "outcome": "max_iter"}


def elastic_net(x, y, w, alpha, l1, tol, limit):
    n = len(y)
    q, r, change, k = np.sum(x * x, 0) / n, y - x @ w, np.inf, 0
    while k < limit:
        k, change = k + 1, 0.0
        for j in range(x.shape[1]):
            if q[j] > 0:
                old = w[j]
                w[j] = soft(x[:, j] @ r / n + q[j] * old, alpha * l1) / (q[j] + alpha * (1 - l1))
                r = r - (w[j] - old) * x[:, j]
                change = max(change, abs(w[j] - old))
            elif alpha > 0:
                change, w[j] = max(change, abs(w[j])), 0.0
        if change <= tol:
            break
    return w, k, change


class LassoCD(SolverReference):
    name = "lasso_cd"
    defaults = {"alpha": None, "l1_ratio": 1.0, "tol": 1e-8, "max_iter": 1000}
    required = ("alpha",)
    settings = ({"alpha": 0.1}, {"alpha": 0.3, "l1_ratio": 0.4}, {"alpha": 0.01, "max_iter": 3}, {"alpha": 100.0})

    def cases(self, rng):
        x = rng.standard_normal((30, 6))
        x[:, 2] = 0
        y = x @ np.array([1.0, 0, 3, -2, 0, 0.2]) + 0.1 * rng.standard_normal(30)
        return [Case({"design": x, "targets": y}, dict), Case({"design": x, "targets": y, "w0": np.ones(6)}, dict)]

    def solve(self, inputs, ask):
        x, y = inputs["design"], inputs["targets"]
        w, k, change = elastic_net(x, y, np.array(inputs.get("w0", np.zeros(x.shape[1]))), self.alpha, self.l1_ratio, self.tol, self.max_iter)
        value = np.sum((y - x @ w) ** 2) / (2 * len(y)) + self.alpha * (
            self.l1_ratio * np.sum(np.abs(w)) + (1 - self.l1_ratio) / 2 * w @ w)
        return {"w": w, "value": value, "outcome": "converged" if change <= self.tol else "max_iter"}


class LassoPath(SolverReference):
    name = "lasso_path"
    defaults = {"l1_ratio": 1.0, "tol": 1e-8, "max_iter": 1000, "alphas": 100, "path_eps": 1e-3}
    settings = ({"alphas": 12}, {"alphas": 5, "path_eps": 0.1, "l1_ratio": 0.5}, {"alphas": 1})
    limit32 = 2e-3

    def cases(self, rng):
        return LassoCD(alpha=1.0).cases(rng)[:1]

    def solve(self, inputs, ask):
        x, y = inputs["design"], inputs["targets"]
        top = np.max(np.abs(x.T @ y)) / len(y) / self.l1_ratio
        penalties = top * self.path_eps ** (np.arange(self.alphas) / max(1, self.alphas - 1))
        w, rows, ok = np.zeros(x.shape[1]), [], True
        for alpha in penalties:
            w, _, change = elastic_net(x, y, w.copy(), alpha, self.l1_ratio, self.tol, self.max_iter)
            rows.append(w)
            ok &= change <= self.tol
        return {"penalties": penalties, "w": np.stack(rows), "outcome": "converged" if ok else "max_iter"}


def sets(rng, n=5):
    """A half-space, a ball, a box."""
    normal = rng.standard_normal(n)
    normal /= np.linalg.norm(normal)
    return [lambda v: v - max(0.0, normal @ v - 0.2) * normal,
            lambda v: v / max(1.0, np.linalg.norm(v)),
            lambda v: np.clip(v, -0.3, 0.5)]


class Projections(SolverReference):
    def cases(self, rng):
        p = sets(rng)
        functions = lambda: {"project": lambda v, k: p[int(k)](np.asarray(v, np.float64))}  # noqa: E731
        return [Case({"x0": 3 * rng.standard_normal(5)}, functions), Case({"x0": np.zeros(5)}, functions)]


class Dykstra(Projections):
    name = "dykstra"
    defaults = {"sets": 2, "max_iter": 50, "tol": 0.0}
    settings = ({"tol": 1e-12}, {"sets": 3, "max_iter": 7}, {"sets": 1, "tol": 1e-9})

    def solve(self, inputs, ask):
        x, p = inputs["x0"].copy(), np.zeros((self.sets, 5))
        for k in range(self.max_iter):
            last = x
            for i in range(self.sets):
                y = ask["project"](x + p[i], i)
                p[i] = x + p[i] - y
                x = y
            if np.linalg.norm(x - last) <= self.tol * max(1.0, np.linalg.norm(x)):
                return {"x": x, "iterations": k + 1, "outcome": "converged"}
        return {"x": x, "iterations": self.max_iter, "outcome": "max_iter"}


class POCS(Projections):
    name = "pocs"
    defaults = {"sets": 2, "max_iter": 50, "tol": 0.0, "relaxation": 1.0}
    settings = ({"tol": 1e-12}, {"sets": 3, "max_iter": 7, "relaxation": 1.6})

    def solve(self, inputs, ask):
        x = inputs["x0"].copy()
        for k in range(self.max_iter):
            last = x
            for i in range(self.sets):
                x = x + self.relaxation * (ask["project"](x, i) - x)
            if np.linalg.norm(x - last) <= self.tol * max(1.0, np.linalg.norm(x)):
                return {"x": x, "iterations": k + 1, "outcome": "converged"}
        return {"x": x, "iterations": self.max_iter, "outcome": "max_iter"}


class DouglasRachford(Projections):
    name = "douglas_rachford"
    defaults = {"max_iter": 50, "tol": 0.0, "relaxation": 0.5}
    settings = ({"tol": 1e-12}, {"max_iter": 6, "relaxation": 0.9}, {"max_iter": 1})

    def solve(self, inputs, ask):
        z = inputs["x0"].copy()
        for k in range(self.max_iter):
            a = ask["project"](z, 0)
            b = ask["project"](2 * a - z, 1)
            gap = np.linalg.norm(a - b)
            if gap <= self.tol:
                return {"x": a, "z": z, "residual": gap, "iterations": k + 1, "outcome": "converged"}
            z = (1 - self.relaxation) * z + self.relaxation * (2 * b - (2 * a - z))
        return {"x": ask["project"](z, 0), "z": z, "residual": gap, "iterations": self.max_iter, "outcome": "max_iter"}


class DifferenceMap(Projections):
    name = "difference_map"
    defaults = {"max_iter": 50, "tol": 0.0, "beta": 1.0}
    settings = ({"tol": 1e-12}, {"beta": 0.7, "max_iter": 6}, {"beta": -0.8, "max_iter": 3})

    def solve(self, inputs, ask):
        x, beta = inputs["x0"].copy(), self.beta
        for k in range(self.max_iter):
            pa, pb = ask["project"](x, 0), ask["project"](x, 1)
            fa, fb = pa - (pa - x) / beta, pb + (pb - x) / beta
            one, two = ask["project"](fb, 0), ask["project"](fa, 1)
            gap = np.linalg.norm(one - two)
            if gap <= self.tol:
                return {"x": one, "z": x, "residual": gap, "iterations": k + 1, "outcome": "converged"}
            x = x + beta * (one - two)
        return {"x": one, "z": x, "residual": gap, "iterations": self.max_iter, "outcome": "max_iter"}
