"""Draws and greedy maxima of determinantal point processes, from their card."""

from __future__ import annotations

import itertools

import numpy as np

from .solvers import Case, SolverReference, spd
from .solvers_sharpness import ProjectionDPP


class KDPP(SolverReference):
    """Elementary symmetric polynomials by enumeration; then the projection process of the reference."""

    name = "k_dpp"
    required = ("k",)
    settings = ({"k": 2}, {"k": 1})
    limit32 = 0.0  # a draw falls as in float64, or the test says so

    def cases(self, rng):
        return [Case({"kernel": k, "draws": rng.random(len(k) + self.k)}, dict) for k in (spd(rng, 5), spd(rng, 6, 300.0), np.diag([3.0, 1.0]))]

    def solve(self, inputs, ask):
        n, draws = len(inputs["kernel"]), inputs["draws"]
        values, vectors = np.linalg.eigh(inputs["kernel"])
        values, vectors = values[::-1], vectors[:, ::-1]
        rank = int(np.sum(values > 1e-12 * values[0]))
        e = lambda j, r: sum(np.prod(c) for c in itertools.combinations(values[:j], r))  # noqa: E731
        chosen = []
        for step, j in enumerate(range(rank, 0, -1)):
            r = self.k - len(chosen)
            if r and draws[step] < (1.0 if r == j else values[j - 1] * e(j - 1, r - 1) / e(j, r)):
                chosen.append(j - 1)
        return {"indices": ProjectionDPP().solve({"u": vectors[:, chosen], "draws": draws[n:]}, ask)["indices"], "outcome": "converged"}


class DPPMap(SolverReference):
    """Determinants of every larger set."""

    name = "dpp_map"
    required = ("k",)
    defaults = {"tol": 1e-12}
    settings = ({"k": 3}, {"k": 9}, {"k": 4, "tol": 2.0})
    limit = 1e-8
    limit32 = 1e-3

    def cases(self, rng):
        return [Case({"kernel": spd(rng, 6)}, dict), Case({"kernel": np.diag([1.0, 3.0, 3.0])}, dict), Case({"kernel": np.zeros((2, 2))}, dict)]

    def solve(self, inputs, ask):
        kernel, chosen, gains = inputs["kernel"], [], []
        det = lambda s: np.linalg.det(kernel[np.ix_(s, s)]) if s else 1.0  # noqa: E731
        while len(chosen) < min(self.k, len(kernel)):
            rest = [i for i in range(len(kernel)) if i not in chosen]
            g = np.array([det(chosen + [i]) / det(chosen) for i in rest])
            at = int(np.argmax(np.round(g, 10)))
            if g[at] <= self.tol:
                break
            chosen.append(rest[at])
            gains.append(g[at])
        pad = self.k - len(chosen)
        return {"indices": chosen + [-1] * pad, "gains": gains + [0.0] * pad, "chosen": len(chosen), "outcome": "converged"}
