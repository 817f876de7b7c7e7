"""Transport whose rows fuse inside classes."""

from __future__ import annotations

import numpy as np

from .penalties_groups import SumOfNorms
from .solvers import Case, SolverReference


class ClassOT(SolverReference):
    """ADMM between the couplings and a sum of norms of rows (the problem's family; the scheme is the card's)."""

    name = "class_ot"
    defaults = {"lam": 0.1, "rho": 1.0, "max_iter": 300, "tol": 1e-6, "inner_iter": 1000}
    settings = ({"max_iter": 15, "tol": 1e-9}, {"lam": 0.4, "rho": 5.0, "max_iter": 12, "tol": 1e-9}, {"lam": 0.0, "max_iter": 10, "tol": 1e-9})
    limit = 1e-6  # projections and proxes end at changes of some 1e-8, a dozen of them one after the other
    limit32 = 2e-3

    def cases(self, rng):
        a, b = rng.uniform(0.2, 1, 5), rng.uniform(0.2, 1, 4)
        inputs = {"cost": rng.uniform(size=(5, 4)), "a": a / a.sum(), "b": b / b.sum()}
        return [Case(inputs, lambda: {}), Case({**inputs, "row_labels": np.array([0, 1, 0, 1, 1])}, lambda: {})]

    @staticmethod
    def coupling(v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The nearest coupling, by Dykstra until the least entry is above -1e-13."""
        q, p = v.copy(), np.zeros_like(v)
        for _ in range(100_000):
            r, c = q.sum(axis=1) - a, q.sum(axis=0) - b
            q = q - r[:, None] / q.shape[1] - c / q.shape[0] + r.sum() / q.size
            if q.min() >= -1e-13:
                break
            y = q + p
            q = np.maximum(y, 0)
            p = y - q
        return q

    def solve(self, inputs, ask):
        C, a, b = inputs["cost"], inputs["a"], inputs["b"]
        labels = np.asarray(inputs.get("row_labels", np.zeros(len(a))))
        coef = (labels[:, None] == labels) & ~np.eye(len(a), dtype=bool)
        norms = SumOfNorms(weight=max(self.lam, 1e-300), coef=coef.astype(float))
        z, u = np.outer(a, b) / a.sum(), np.zeros_like(C)
        for k in range(1, self.max_iter + 1):
            q = self.coupling(z - u - C / self.rho, a, b)
            last, z = z, norms.prox(q + u, 1 / self.rho) if self.lam > 0 else q + u
            u = u + q - z
            apart, moved = np.linalg.norm(q - z), np.linalg.norm(z - last)
            if apart <= self.tol and self.rho * moved <= self.tol:
                break
        value = np.sum(C * q) + self.lam * sum(np.linalg.norm(q[i] - q[j]) for i in range(len(a)) for j in range(i) if coef[i, j])
        end = "converged" if apart <= self.tol and self.rho * moved <= self.tol else "max_iter"
        return {"plan": q, "fused": z, "iterations": k, "residual": apart, "value": value, "outcome": end}
