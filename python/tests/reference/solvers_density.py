"""Spectral densities by Lanczos runs from random vectors, from the card."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference, operator, spd


class SpectralDensity(SolverReference):
    name = "hessian_spectrum_slq"
    defaults = {"steps": 80, "starts": 1, "reorthogonalise": True, "seed": 0}
    settings = ({}, {"steps": 4, "starts": 3, "seed": 2}, {"steps": 3, "starts": 2, "reorthogonalise": False})
    limit = 1e-7
    limit32 = 1e-2

    def cases(self, rng):
        a = spd(rng, 8)
        return [Case({"like": np.zeros(8)}, operator(a)), Case({"start": rng.standard_normal((2, 4))}, operator(a - 3 * np.eye(8)))]

    def solve(self, inputs, ask):
        shape = inputs["start"].shape if "start" in inputs else inputs["like"].shape
        n = int(np.prod(shape))
        rows = min(self.steps, n)
        points, weights, products = np.zeros((self.starts, rows)), np.zeros((self.starts, rows)), 0
        for run in range(self.starts):
            v = np.ravel(inputs["start"]) if run == 0 and "start" in inputs else tw.random_normal(self.seed, 0, run, 0, n)
            V, alpha, beta = [v / np.linalg.norm(v)], [], []
            while True:
                w = np.ravel(ask["product"](V[-1].reshape(shape)))
                products += 1
                alpha.append(w @ V[-1])
                if self.reorthogonalise:
                    for _ in range(2):
                        w = w - np.array(V).T @ (np.array(V) @ w)
                else:
                    w = w - alpha[-1] * V[-1] - (beta[-1] * V[-2] if beta else 0)
                if len(V) == rows or np.linalg.norm(w) <= 1e-12 * max(1, abs(alpha[-1])):
                    break
                beta.append(np.linalg.norm(w))
                V.append(w / beta[-1])
            theta, Y = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
            points[run, : len(theta)], weights[run, : len(theta)] = theta, Y[0] ** 2 / self.starts
        return {"eigenvalues": points, "weights": weights, "trace": n * np.sum(points * weights), "iterations": products,
                "outcome": "converged"}
