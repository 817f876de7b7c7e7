"""Solvers with a scheme of their own: Frank-Wolfe from losses, sliding, sketches, continuation, a stopping rule."""

from __future__ import annotations

import math

import numpy as np

from .solvers import Case, SolverReference
from .solvers_populations import draws


def wide(x):
    return np.asarray(x, np.float64)


class ZOFrankWolfe(SolverReference):
    name = "zo_frank_wolfe"
    defaults = {"kind": "irdsa", "m": 6, "floor": 1e-8, "max_iter": 100, "seed": 0}
    settings = ({"max_iter": 8}, {"kind": "rdsa", "max_iter": 8, "seed": 3}, {"kind": "kwsa", "max_iter": 8}, {"m": 2, "floor": 0.3, "max_iter": 5},
                {"max_iter": 0})
    limit32 = 2e-2  # quotients of differences

    def cases(self, rng):
        b = rng.dirichlet(np.ones(4))
        return [Case({"x0": np.full(4, 0.25)}, lambda: {"point_value": lambda x: float(np.sum((wide(x) - b) ** 2)),
                                                         "minimise_linear": lambda d: np.eye(4)[int(np.argmin(wide(d)))]})]

    def solve(self, inputs, ask):
        x, n = inputs["x0"].copy(), len(inputs["x0"])
        d = np.zeros(n)
        for t in range(self.max_iter):
            T = t + 8
            kind = self.h["kind"]
            m = self.m if kind == "irdsa" else 1
            if kind == "kwsa":
                rho, c, U = 4 / T ** (2 / 3), 2 / (np.sqrt(n) * T ** (1 / 3)), np.eye(n)
            else:
                rho = 4 / ((1 + n / m) ** (1 / 3) if kind == "irdsa" else n ** (1 / 3)) / T ** (2 / 3)
                c = 2 * np.sqrt(m) / (n**1.5 * T ** (1 / 3))
                U = np.array([draws(self.seed, t * m + j, n) for j in range(m)])
            rho, c = min(rho, 1), max(c, self.floor)
            f = ask["point_value"](x)
            g = sum((ask["point_value"](x + c * u) - f) / c * u for u in U) / (1 if kind == "kwsa" else m)
            d = (1 - rho) * d + rho * g
            x = x + 2 / T * (ask["minimise_linear"](d) - x)
        return {"x": x, "direction": d, "iterations": self.max_iter, "outcome": "max_iter"}


class GradientSliding(SolverReference):
    name = "gradient_sliding"
    required = ("L", "M")
    defaults = {"D": 1.0, "schedule": "any", "mu": 0.0, "most": 100_000, "max_iter": 30}
    settings = ({"L": 2.0, "M": 0.5, "max_iter": 5}, {"L": 2.0, "M": 1.0, "schedule": "fixed", "max_iter": 4},
                {"L": 2.0, "M": 1.0, "D": 0.5, "schedule": "strong", "mu": 0.2, "max_iter": 5}, {"L": 1.5, "M": 3.0, "most": 4, "max_iter": 4})

    def cases(self, rng):
        a, b = rng.uniform(0.3, 1.5, 4), rng.standard_normal(4)
        ridge = 0.2
        return [Case({"x0": rng.standard_normal(4)}, lambda: {
            "full_gradient": lambda x: a * (wide(x) - b), "subgradient": lambda x: 0.4 * np.sign(wide(x)),
            "prox": lambda v, s: float(s) * wide(v) / (float(s) + ridge)})]

    def plan(self, k):
        L, r = self.L, self.M**2 / (self.D * self.L**2)
        if self.schedule == "fixed":
            T = math.ceil(r * self.max_iter * k * k)
            return 2 / (k + 1), 2 * L / k, min(max(1, T), self.most)
        if self.schedule == "strong":
            g = min(1, math.sqrt(self.mu / L))
            return g, L * g, min(max(1, math.ceil(r * self.max_iter * (1 - g) ** (1 - k))), self.most)
        T = min(max(1, math.ceil(r * (k + 1) ** 3)), self.most)
        return 3 / (k + 2), 9 * L * (1 - 2 / ((T + 1) * (T + 2))) / (2 * (k + 1)), T

    def solve(self, inputs, ask):
        x = bar = inputs["x0"].copy()
        steps = 0
        for k in range(1, self.max_iter + 1):
            g, b, T = self.plan(k)
            G = ask["full_gradient"]((1 - g) * bar + g * x)
            u = mean = x
            for t in range(1, T + 1):
                p, th = t / 2, 2 * (t + 1) / (t * (t + 3))
                h, s = ask["subgradient"](u), b * (1 + t / 2)
                u = ask["prox"]((b * x + b * p * u - G - h) / s, s)
                mean = (1 - th) * mean + th * u
            x, bar, steps = u, (1 - g) * bar + g * mean, steps + T
        return {"x": bar, "iterations": self.max_iter, "steps": steps, "outcome": "max_iter"}


class RandomizedSketchSolver(SolverReference):
    name = "randomized_sketch_solver"
    defaults = {"sketch": "kaczmarz", "tol": 1e-8, "max_iter": 100_000, "seed": 0}
    settings = ({"max_iter": 30}, {"sketch": "gaussian", "max_iter": 30, "seed": 2}, {"tol": 0.1, "max_iter": 3000})
    limit32 = 5e-3

    def cases(self, rng):
        A = np.vstack([rng.standard_normal((5, 3)), np.zeros((1, 3))])
        functions = lambda: {"matrix_product": lambda x: A @ wide(x), "combination": lambda s: A.T @ wide(s)}  # noqa: E731
        return [Case({"b": A @ rng.standard_normal(3), "x0": np.zeros(3)}, functions)]

    def solve(self, inputs, ask):
        x, b, k = inputs["x0"].copy(), inputs["b"], 0
        while True:
            r = ask["matrix_product"](x) - b
            if np.linalg.norm(r) <= self.tol or k >= self.max_iter:
                return {"x": x, "iterations": k, "residual": np.linalg.norm(r), "outcome": "converged" if np.linalg.norm(r) <= self.tol else "max_iter"}
            z = draws(self.seed, k, len(b))
            s = z if self.sketch == "gaussian" else np.eye(len(b))[min(len(b) - 1, int(0.5 * math.erfc(-z[0] / math.sqrt(2)) * len(b)))]
            a = ask["combination"](s)
            if a @ a > 0:
                x = x - (s @ r) / (a @ a) * a
            k += 1


class Continuation(SolverReference):
    name = "continuation"
    required = ("weight", "lr")
    defaults = {"stages": 10, "steps": 20}
    settings = ({"weight": 3.0, "lr": 0.1}, {"weight": 1.0, "lr": 0.2, "stages": 1, "steps": 4}, {"weight": 0.0, "lr": 0.1, "stages": 2})

    def cases(self, rng):
        a, b = rng.uniform(0.3, 1.0, 3), rng.standard_normal(3)
        return [Case({"x0": np.zeros(3)}, lambda: {"base_gradient": wide, "data_gradient": lambda x: a * (wide(x) - b)})]

    def solve(self, inputs, ask):
        x = inputs["x0"].copy()
        for i in range(1, self.stages + 1):
            for _ in range(self.steps):
                x = x - self.lr * (ask["base_gradient"](x) + i * self.weight / self.stages * ask["data_gradient"](x))
        return {"x": x, "iterations": self.stages, "outcome": "max_iter"}


class DARTSES(SolverReference):
    name = "darts_es"
    defaults = {"window": 5, "freq": 2, "delta": 4, "factor": 1.3, "start": 10, "checks": 25}
    settings = ({}, {"window": 3, "delta": 2, "start": 0, "freq": 1}, {"factor": 9.0}, {"window": 4, "freq": 3, "delta": 1, "start": 4})

    def cases(self, rng):
        noise = rng.uniform(0.9, 1.1, 200)
        return [Case({}, lambda: {"eigenvalue": lambda epoch: float(noise[int(epoch)] * 1.05 ** int(epoch))}),
                Case({}, lambda: {"eigenvalue": lambda epoch: 2.0}),
                Case({}, lambda: {"eigenvalue": lambda epoch: 1.2 ** (int(epoch) / self.freq)})]

    def solve(self, inputs, ask):
        values, means, found = [], np.zeros(self.checks), []
        for k in range(self.checks):
            epoch = k * self.freq
            values.append(ask["eigenvalue"](epoch))
            if len(values) < math.ceil(self.window / 2):
                continue
            found.append(np.mean(values if len(values) < self.window else values[-self.window:]))
            means[len(found) - 1] = found[-1]
            back = epoch - self.freq * (self.window // 2) - self.freq * self.delta
            if len(found) > self.delta and back >= self.start and found[-1] / found[-1 - self.delta] > self.factor:
                return {"back": back, "iterations": k + 1, "averages": means, "outcome": "converged"}
        return {"back": -1, "iterations": self.checks, "averages": means, "outcome": "max_iter"}
