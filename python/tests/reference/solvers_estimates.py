"""Solvers that carry gradient estimates, private differences, proxies; PowerSGD and gradient codes."""

from __future__ import annotations

import math

import numpy as np

from .risk_weights import spectral_weights
from .solvers import Case, SolverReference
from .solvers_populations import draws


def logistic(rng, n=12, d=3):
    """Samples of a regularised logistic regression; `fresh` samples come in turn."""
    A, y = rng.standard_normal((n, d)), np.where(rng.standard_normal(n) > 0, 1.0, -1.0)

    def parts(i, x):
        x = np.asarray(x, np.float64)
        s = 1 / (1 + np.exp(y[i] * (A[i] @ x)))
        return A[i], y[i], s, x

    def gradient(i, x):
        a, b, s, x = parts(i, x)
        return -b * s * a + 0.1 * x

    def functions():
        turn = {"i": -1, "point": None}

        def sample(x):  # the first of a pair is at a fresh point
            if turn["point"] is None:
                turn["i"], turn["point"] = (turn["i"] + 1) % n, "open"
            else:
                turn["point"] = None
            return gradient(turn["i"], x)

        def product(x, v):
            a, _, s, _ = parts(turn["i"], x)
            v = np.asarray(v, np.float64)
            return s * (1 - s) * (a @ v) * a + 0.1 * v

        def third(x, v):
            a, b, s, _ = parts(turn["i"], x)
            return -b * s * (1 - s) * (1 - 2 * s) * (a @ np.asarray(v, np.float64)) ** 2 * a

        return {"full_gradient": lambda x: np.mean([gradient(i, x) for i in range(n)], axis=0), "sample_gradient": sample,
                "sample_hvp": product, "sample_third": third}

    return functions


class AISARAH(SolverReference):
    name = "ai_sarah"
    defaults = {"gamma": 1 / 32, "beta": 0.999, "third": True, "tol": 0.0, "inner": 10_000, "max_iter": 20}
    settings = ({"max_iter": 2, "inner": 9}, {"max_iter": 2, "inner": 6, "third": False, "beta": 0.5, "gamma": 0.2},
                {"tol": 1.0}, {"max_iter": 0})
    limit32 = 2e-3

    def cases(self, rng):
        return [Case({"x0": rng.standard_normal(3)}, logistic(rng)), Case({"x0": np.ones(1)}, logistic(rng, 5, 1))]

    def solve(self, inputs, ask):
        x, most, delta, alpha, k, steps = inputs["x0"].copy(), np.inf, 0.0, 0.0, 0, 0
        while True:
            v = ask["full_gradient"](x)
            residual = np.linalg.norm(v)
            done = {"x": x, "iterations": k, "steps": steps, "residual": residual, "alpha": alpha, "alpha_max": most}
            if residual <= self.tol:
                return done | {"outcome": "converged"}
            if k >= self.max_iter:
                return done | {"outcome": "max_iter"}
            k, size, tries = k + 1, v @ v, 0
            while v @ v >= self.gamma * size and tries < self.inner:
                g, hv = ask["sample_gradient"](x), ask["sample_hvp"](x, v)
                curve = 2 * hv @ hv + (2 * v @ ask["sample_third"](x, v) if self.third else 0)
                a = max(2 * v @ hv / abs(curve), 0) if curve else 0.0
                alpha = min(a, most)
                if a > 0:
                    delta = 1 / a if np.isinf(most) else self.beta * delta + (1 - self.beta) / a
                    most = 1 / delta
                x = x - alpha * v
                v = ask["sample_gradient"](x) - g + v
                tries, steps = tries + 1, steps + 1


class Prospect(SolverReference):
    name = "prospect"
    required = ("samples",)
    defaults = {"lr": 0.01, "mu": 0.0, "reg": "grad", "max_iter": 1000, "seed": 0}
    settings = ({"samples": 6, "lr": 0.02, "max_iter": 25}, {"samples": 6, "lr": 0.02, "mu": 0.5, "max_iter": 15, "seed": 2},
                {"samples": 4, "lr": 0.03, "mu": 0.5, "reg": "prox", "max_iter": 15}, {"samples": 1, "lr": 0.1, "max_iter": 3})
    limit32 = 2e-3

    def cases(self, rng):
        n, d = self.samples, 2
        A, b = rng.standard_normal((n, d)), rng.standard_normal(n)
        risk = {"kind": "cvar", "param": 0.5, "sigma": None, "shift_cost": 0.5, "penalty": "l2"}

        def functions():
            wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
            return {
                "all": lambda x: ((A @ wide(x) - b) ** 2 / 2, (A @ wide(x) - b)[:, None] * A),
                "risk_weights": lambda losses: spectral_weights(wide(losses), risk),
                "sample": lambda i, x: (float((A[int(i)] @ wide(x) - b[int(i)]) ** 2 / 2), (A[int(i)] @ wide(x) - b[int(i)]) * A[int(i)]),
            }

        return [Case({"x0": rng.standard_normal(d)}, functions)]

    def solve(self, inputs, ask):
        x, n = inputs["x0"].copy(), self.samples
        mu = self.mu if self.reg == "grad" else 0.0
        losses, G = ask["all"](x)
        losses, G = losses.copy(), G + mu * x
        lam = ask["risk_weights"](losses)
        rho, s = lam.copy(), lam @ G
        for k in range(self.max_iter):
            u = 0.5 * math.erfc(-draws(self.seed, k, 1)[0] / math.sqrt(2))
            i = min(n - 1, int(u * n))
            loss, g = ask["sample"](i, x)
            g = g + mu * x
            x = x - self.lr * (n * lam[i] * g - n * rho[i] * G[i] + s)
            if self.reg == "prox":
                x = x / (1 + self.lr * self.mu)
            losses[i], old = loss, lam[i]
            s = s + old * g - rho[i] * G[i]
            rho[i], G[i] = old, g
            lam = ask["risk_weights"](losses)
        return {"x": x, "losses": losses, "weights": lam, "iterations": self.max_iter, "outcome": "max_iter"}


class DIFF2(SolverReference):
    name = "diff2"
    required = ("samples", "sigma1", "sigma2")
    defaults = {"lr": 0.1, "clip1": 1.0, "clip2": 1.0, "restart": 10, "max_iter": 100, "seed": 0}
    settings = ({"samples": 5, "sigma1": 0.0, "sigma2": 0.0, "max_iter": 12}, {"samples": 4, "sigma1": 0.5, "sigma2": 0.3, "restart": 4, "max_iter": 9},
                {"samples": 3, "sigma1": 1.0, "sigma2": 0.0, "restart": 1, "max_iter": 4, "seed": 7})

    def cases(self, rng):
        b, a = rng.standard_normal((self.samples, 3)), rng.uniform(0.5, 3, (self.samples, 3))
        return [Case({"x0": 3 * rng.standard_normal(3)}, lambda: {"sample_gradients": lambda x: a * (np.asarray(x, np.float64) - b)})]

    def solve(self, inputs, ask):
        x, n, before, v = inputs["x0"].copy(), self.samples, None, None
        clip = lambda G, c: np.array([g * (1 if np.linalg.norm(g) <= c else c / np.linalg.norm(g)) for g in G])  # noqa: E731
        for r in range(self.max_iter):
            G, z = ask["sample_gradients"](x), draws(self.seed, r, len(x))
            if r % self.restart == 0:
                v = clip(G, self.clip1).mean(axis=0) + self.sigma1 * self.clip1 / n * z
            else:
                c = self.clip2 * np.linalg.norm(x - before)
                v = v + clip(G - ask["sample_gradients"](before), c).mean(axis=0) + self.sigma2 * c / n * z
            before, x = x, x - self.lr * v
        return {"x": x, "estimate": v, "iterations": self.max_iter, "outcome": "max_iter"}


class ProxyProx(SolverReference):
    name = "proxy_prox"
    defaults = {"eta": 1.0, "inner": 50, "lr": 0.1, "tol": 0.0, "max_iter": 100}
    settings = ({"max_iter": 4}, {"max_iter": 5, "tol": 0.05, "eta": 0.5}, {"eta": 0.0, "inner": 3, "max_iter": 3}, {"max_iter": 0})

    def cases(self, rng):
        a, b, c = rng.uniform(0.5, 2, 4), rng.standard_normal(4), rng.standard_normal(4)
        wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
        return [Case({"x0": rng.standard_normal(4)}, lambda: {"full_gradient": lambda x: a * (wide(x) - b),
                                                              "proxy_gradient": lambda x: 1.2 * a * (wide(x) - c)})]

    def solve(self, inputs, ask):
        x, steps, residual = inputs["x0"].copy(), 0, None
        for _ in range(self.max_iter):
            g = ask["full_gradient"](x)
            residual = np.linalg.norm(g)
            h, z = g - ask["proxy_gradient"](x), x.copy()
            for _ in range(self.inner):
                d = ask["proxy_gradient"](z) + h + self.eta * (z - x)
                if np.linalg.norm(d) <= self.tol:
                    break
                z, steps = z - self.lr * d, steps + 1
            x = z
        return {"x": x, "iterations": self.max_iter, "steps": steps, "outcome": "max_iter"} | ({} if residual is None else {"residual": residual})


class PowerSGD(SolverReference):
    name = "powersgd"
    defaults = {"rank": 2, "warm_start": True, "eps": 1e-8, "start": 0, "seed": 0}
    settings = ({}, {"rank": 1, "seed": 3}, {"rank": 9}, {"rank": 3}, {"warm_start": False, "start": 4})

    def cases(self, rng):
        functions = lambda: {k: lambda a: np.asarray(a, np.float64) for k in ("mean_left", "mean_right", "mean_whole")}  # noqa: E731
        other = rng.standard_normal((12, 8))
        with_peer = lambda: functions() | {"mean_left": lambda p: 0.5 * np.asarray(p, np.float64) + 0.1,  # noqa: E731
                                           "mean_right": lambda q: 0.5 * np.asarray(q, np.float64) - 0.2}
        return [Case({"gradient": rng.standard_normal((12, 8))}, functions),
                Case({"gradient": other, "error0": rng.standard_normal((12, 8)), "q0": rng.standard_normal((8, 2))}, with_peer, {"rank": 2}),
                Case({"gradient": rng.standard_normal((3, 2))}, functions), Case({"gradient": rng.standard_normal((1, 6))}, functions),
                # n m = (n + m) r, which is compressed, and steps behind the first
                Case({"gradient": rng.standard_normal((4, 4))}, functions),
                *(Case({"gradient": other, "q0": rng.standard_normal((8, 2)), "step": k}, functions, {"rank": 2}) for k in (3, 4))]

    def solve(self, inputs, ask):
        M = inputs["gradient"] + inputs.get("error0", 0)
        n, m = M.shape
        r = min(self.rank, n, m)
        step = int(inputs.get("step", 0))
        Q = inputs["q0"] if self.warm_start and "q0" in inputs else draws(self.seed, step, (m, r))
        if step < self.start or n * m < (n + m) * r:
            return {"output": ask["mean_whole"](M), "error": np.zeros((n, m)), "outcome": "converged"}
        P = ask["mean_left"](M @ Q).copy()
        for k in range(r):
            P[:, k] /= np.linalg.norm(P[:, k]) + self.eps
            for j in range(k + 1, r):
                P[:, j] -= (P[:, k] @ P[:, j]) * P[:, k]
        Q = ask["mean_right"](M.T @ P)
        return {"output": P @ Q.T, "error": M - P @ Q.T, "q": Q, "outcome": "converged"}


class GradientCode(SolverReference):
    name = "gradient_code"
    required = ("stragglers",)
    defaults = {"kind": "cyclic", "seed": 0}
    settings = ({"stragglers": 2}, {"stragglers": 2, "kind": "fractional"}, {"stragglers": 0}, {"stragglers": 1, "seed": 5})
    limit = 1e-8

    def cases(self, rng):
        flags = [[1] * 6, [1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0] * 6]
        return [Case({"alive": np.array(f, float)}, dict) for f in flags]

    def solve(self, inputs, ask):
        alive, s = np.flatnonzero(np.asarray(inputs["alive"])), self.stragglers
        n = len(inputs["alive"])
        B = np.zeros((n, n))
        if self.h["kind"] == "fractional":
            for i in range(n):
                B[i, i // (s + 1) * (s + 1):][: s + 1] = 1
        else:
            H = np.array([draws(self.seed, i, n) for i in range(s)]).reshape(s, n)
            H = H - H.mean(axis=1, keepdims=True)
            for i in range(n):
                rest = [(i + k) % n for k in range(1, s + 1)]
                B[i, i] = 1
                if s:
                    B[i, rest] = np.linalg.solve(H[:, rest], -H[:, i])
        a = np.linalg.pinv(B[alive].T, rcond=1e-12) @ np.ones(n) if len(alive) else np.zeros(0)
        residual = np.linalg.norm(a @ B[alive] - 1)
        if residual > 1e-6:
            return {"encoding": B, "residual": residual, "outcome": "infeasible"}
        weights = np.zeros(n)
        weights[alive] = a
        return {"encoding": B, "weights": weights, "outcome": "converged"}
