"""Gaussian processes: the posterior, and the next point of a constrained search."""

from __future__ import annotations

import numpy as np

from .solvers import Case, SolverReference


def kernel(Z, X, name, length):
    r = np.linalg.norm(Z[:, None] - X[None], axis=2) / length
    if name == "rbf":
        return np.exp(-(r**2) / 2)
    return (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)


class _Process(SolverReference):
    limit, limit32 = 1e-8, 2e-3

    def k(self, Z, X):
        return kernel(Z, X, self.kernel, self.lengthscale)

    def posterior(self, Z, X, y):
        K, k = self.k(X, X) + self.noise * np.eye(len(X)), self.k(Z, X)
        return k @ np.linalg.solve(K, y), np.sqrt(np.maximum(0, 1 - np.sum(k * np.linalg.solve(K, k.T).T, axis=1)))


class GPPosterior(_Process):
    name = "gp_posterior"
    defaults = {"kernel": "matern52", "lengthscale": 1.0, "noise": 1e-6}
    settings = ({"noise": 1e-2}, {"kernel": "rbf", "noise": 0.1}, {"lengthscale": 0.5, "noise": 0.01})

    def cases(self, rng):
        return [Case({"points": rng.standard_normal((n, d)), "values": rng.standard_normal(n), "queries": rng.standard_normal((4, d))}, dict)
                for n, d in ((1, 1), (6, 2))]

    def solve(self, inputs, ask):
        X, y, Z = inputs["points"], inputs["values"], inputs["queries"]
        mean, deviation = self.posterior(Z, X, y)
        h, g = 1e-5, np.zeros(Z.shape)
        a = np.linalg.solve(self.k(X, X) + self.noise * np.eye(len(X)), y)
        for j, e in enumerate(np.eye(Z.shape[1])):  # the derivative by differences of high order
            f = lambda t: self.k(Z + t * e, X) @ a  # noqa: B023, E731
            g[:, j] = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
        return {"mean": mean, "deviation": deviation, "gradient": g, "outcome": "converged"}


class ConfigBO(_Process):
    name = "config_bo"
    defaults = {"beta": 3.0, "kernel": "matern52", "lengthscale": 1.0, "noise": 1e-6}
    settings = ({"noise": 1e-3}, {"beta": 0.5, "noise": 1e-2, "kernel": "rbf"})

    def cases(self, rng):
        Z, X = rng.uniform(-2, 2, (15, 1)), rng.uniform(-2, 2, (5, 1))
        one = {"candidates": Z, "points": X, "values": np.sin(X[:, 0]), "constraints": np.stack([X[:, 0] - 0.5, -1 - X[:, 0]])}
        return [Case(one, dict), Case(one | {"candidates": X.copy(), "constraints": np.full((1, 5), 9.0)}, dict)]

    def solve(self, inputs, ask):
        Z, X = inputs["candidates"], inputs["points"]
        mean, sd = self.posterior(Z, X, inputs["values"])
        fine = np.all([self.posterior(Z, X, g)[0] - self.beta * sd <= 0 for g in inputs["constraints"]], axis=0)
        bounds = mean - self.beta * sd
        if not fine.any():
            return {"index": -1, "bounds": bounds, "outcome": "infeasible"}
        return {"index": int(np.argmin(np.where(fine, bounds, np.inf))), "bounds": bounds, "outcome": "converged"}
