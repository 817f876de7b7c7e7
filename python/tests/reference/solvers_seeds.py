"""Solvers from their cards: sparse Newton for transport, cubic models, coordinates, dictionaries."""

from __future__ import annotations

import math

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference, spd
from .solvers_first_order import soft


class SinkhornNewtonSparse(SolverReference):
    name = "sinkhorn_newton_sparse"
    defaults = {"eta": 10.0, "n_sinkhorn": 20, "n_newton": 10, "keep": None, "ls_c": 1e-4, "shrink": 0.5, "tol": 1e-9}
    settings = ({}, {"n_sinkhorn": 2, "keep": 1.0, "n_newton": 30}, {"n_sinkhorn": 3, "n_newton": 2, "keep": 0.3}, {"n_newton": 0}, {"n_sinkhorn": 0, "eta": 2.0})
    limit = 1e-6  # the linear systems are solved to 1e-10
    limit32 = 2e-2

    def cases(self, rng):
        cost, a, b = rng.uniform(size=(6, 5)), rng.uniform(0.2, 1, 6), rng.uniform(0.2, 1, 5)
        a, b = a / a.sum(), b / b.sum()
        return [Case({"cost": cost, "a": a, "b": b}, dict), Case({"cost": cost, "a": a, "b": b, "x0": 0.1 * a, "y0": -0.1 * b}, dict)]

    def solve(self, inputs, ask):
        C, a, b, eta = inputs["cost"], inputs["a"], inputs["b"], self.eta
        n, m = C.shape
        z = np.concatenate([inputs.get("x0", np.zeros(n)), inputs.get("y0", np.zeros(m))])
        plan = lambda z: np.exp(eta * (z[:n, None] + z[n:] - C) - 1)  # noqa: E731
        f = lambda z: -plan(z).sum() / eta + z[:n] @ a + z[n:] @ b  # noqa: E731
        for _ in range(self.n_sinkhorn):
            z[:n] += (np.log(a) - np.log(plan(z).sum(1))) / eta
            z[n:] += (np.log(b) - np.log(plan(z).sum(0))) / eta
        k = 0
        while True:
            P = plan(z)
            g = np.concatenate([a - P.sum(1), b - P.sum(0)])
            if np.abs(g).sum() <= self.tol:
                outcome = "converged"
                break
            if k >= self.n_newton:
                outcome = "max_iter"
                break
            keep = min(1.0, 2 / n) if self.keep is None else self.keep
            border = np.sort(P.ravel())[::-1][int(np.ceil(keep * n * m)) - 1]
            S = np.where(P >= border, P, 0.0)
            M = eta * np.block([[np.diag(P.sum(1)), S], [S.T, np.diag(P.sum(0))]])
            scale = 1 / np.sqrt(np.diag(M))
            d = scale * np.linalg.lstsq(scale[:, None] * M * scale, scale * g, rcond=1e-12)[0]
            t = 1.0
            while f(z + t * d) < f(z) + self.ls_c * t * d @ g:
                t *= self.shrink
            z, k = z + t * d, k + 1
        return {"plan": plan(z), "iterations": k, "outcome": outcome}


class CubicSubproblem(SolverReference):
    name = "cubic_subproblem"
    required = ("M",)
    defaults = {"M": None, "tol": 1e-12}
    settings = ({"M": 1.0}, {"M": 20.0}, {"M": 1e-2})
    limit = 1e-7
    limit32 = 5e-3

    def cases(self, rng):
        q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
        h = q @ np.diag([-2.0, -1, 0.5, 1, 2, 3]) @ q.T
        h = (h + h.T) / 2
        g = rng.standard_normal(6)
        diagonal = np.diag([-1.0, 2, 3])
        return [Case({"g": g, "hessian": h}, dict), Case({"g": g, "hessian": spd(rng, 6)}, dict),
                Case({"g": np.array([0.0, 1e-3, 0.0]), "hessian": diagonal}, dict), Case({"g": np.zeros(3), "hessian": diagonal}, dict),
                Case({"g": np.zeros(3), "hessian": np.eye(3)}, dict)]

    def solve(self, inputs, ask):
        g, H, M = inputs["g"], inputs["hessian"], self.M
        w, V = np.linalg.eigh(H)
        c, low = V.T @ g, max(0.0, -2 * w[0] / M)

        def size(r, keep):
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.linalg.norm(np.where(keep & (c != 0), c / (w + M * r / 2), 0.0))

        rest = w > w[0] + 1e-12
        hard = w[0] < 0 and np.abs(c[~rest]).max() <= 1e-14 * np.linalg.norm(g) and size(low, rest) < low
        if hard:
            h = -V[:, rest] @ (c[rest] / (w[rest] + M * low / 2))
            v = V[:, 0] * np.sign(V[np.argmax(np.abs(V[:, 0])), 0])
            h = h + np.sqrt(low**2 - h @ h) * v
        elif not np.any(g):
            h = np.zeros_like(g)
        else:
            a, b = low, low + 1.0
            while size(b, w > -np.inf) > b:
                b *= 2
            for _ in range(200):
                mid = (a + b) / 2
                a, b = (mid, b) if size(mid, w > -np.inf) > mid else (a, mid)
            h = -V @ (c / (w + M * b / 2))
        return {"step": h, "length": np.linalg.norm(h), "value": g @ h + h @ H @ h / 2 + M / 6 * np.linalg.norm(h) ** 3,
                "hard": float(hard), "outcome": "converged"}


class RCD(SolverReference):
    name = "rcd"
    defaults = {"gamma": 0.0, "max_iter": 1000, "seed": 0}
    settings = ({"max_iter": 40}, {"gamma": 1.0, "max_iter": 25}, {"gamma": 0.5})

    def cases(self, rng):
        a, b = spd(rng, 5), rng.standard_normal(5)
        return [Case({"x0": np.zeros(5), "lipschitz": np.diag(a).copy(), "uniforms": rng.uniform(size=60)},
                     lambda: {"coordinate_gradient": lambda x, i: a[int(i)] @ x - b[int(i)]})]

    def solve(self, inputs, ask):
        x, L = inputs["x0"].copy(), inputs["lipschitz"]
        sums = np.cumsum(L**self.gamma)
        draws, seen = inputs["uniforms"][: self.max_iter], np.full(len(x), np.inf)
        for u in draws:
            i = int(np.searchsorted(sums, u * sums[-1], side="right"))
            seen[i] = ask["coordinate_gradient"](x, i)
            x[i] -= seen[i] / L[i]
        return {"x": x, "iterations": len(draws), "residual": np.abs(seen).max(), "outcome": "max_iter"}


class ACODER(SolverReference):
    name = "acoder"
    required = ("lipschitz",)
    defaults = {"lipschitz": None, "gamma": 0.0, "block": 1, "max_iter": 100, "regularizer": None}
    settings = ({"lipschitz": 12.0, "max_iter": 30}, {"lipschitz": 20.0, "block": 3, "max_iter": 12, "gamma": 0.1}, {"lipschitz": 5.0, "max_iter": 0})

    def cases(self, rng):
        a, b = spd(rng, 7), rng.standard_normal(7)
        functions = lambda: {"gradient": lambda x: a @ x - b,  # noqa: E731
                             "block_gradient": lambda x, first, length: np.where(
                                 (np.arange(7) >= first) & (np.arange(7) < first + length), a @ x - b, 7.0)}
        return [Case({"x0": rng.standard_normal(7)}, functions), Case({"x0": rng.standard_normal(7)}, functions, {"regularizer": "l1(0.3)"})]

    def solve(self, inputs, ask):
        x0 = inputs["x0"]
        n, A, a = len(x0), 0.0, 0.0
        v, y, z, p, at, residual = x0.copy(), x0.copy(), np.zeros(n), None, None, np.inf
        if self.max_iter:
            p = ask["gradient"](x0)
            at = p.copy()
        for _ in range(self.max_iter):
            r = 0.4 * (1 + A * self.gamma) / self.lipschitz
            new = (r + np.sqrt(r * r + 4 * r * A)) / 2
            B = A + new
            w = (A * y + new * v) / B
            fresh, here = np.zeros(n), ask["gradient"](w)
            there = w - here / self.lipschitz
            residual = self.lipschitz * np.linalg.norm(w - (soft(there, 0.3 / self.lipschitz) if self.regularizer else there))
            for first in reversed(range(0, n, self.block)):
                j = slice(first, min(n, first + self.block))
                fresh[j] = ask["block_gradient"](w, first, j.stop - first)[j]
                q = fresh[j] + a / new * (at[j] - p[j])
                z[j] += new * q
                v[j] = soft(x0[j] - z[j], 0.3 * B) if self.regularizer else x0[j] - z[j]
                w[j] = (A * y[j] + new * v[j]) / B
            p, at, y, A, a = fresh, here, w, B, new
        return {"x": y, "weight": A, "iterations": self.max_iter, "residual": residual, "outcome": "max_iter"}


class GPM(SolverReference):
    name = "gpm"
    defaults = {"p": 3.0, "max_iter": 100, "tol": 1e-10}
    settings = ({"max_iter": 8}, {"p": 4.0, "tol": 1e-6, "max_iter": 300})
    limit = 1e-8
    limit32 = 2e-2

    def cases(self, rng):
        d, _ = np.linalg.qr(rng.standard_normal((5, 5)))
        codes = rng.standard_normal((5, 300)) * (rng.uniform(size=(5, 300)) < 0.3)
        start, _ = np.linalg.qr(rng.standard_normal((5, 5)))
        return [Case({"data": d @ codes, "a0": start[:r].copy()}, dict) for r in (5, 2, 1)]

    def solve(self, inputs, ask):
        y, a, change, k = inputs["data"], inputs["a0"], np.inf, 0
        while k < self.max_iter and change > self.tol:
            s = a @ y
            u, _, vt = np.linalg.svd((np.abs(s) ** (self.p - 1) * np.sign(s)) @ y.T, full_matrices=False)
            change, k, a = np.linalg.norm(u @ vt - a), k + 1, u @ vt
        return {"a": a, "iterations": k, "outcome": "converged" if change <= self.tol else "max_iter"}


class ACODERVR(SolverReference):
    name = "acoder_vr"
    required = ("lipschitz", "samples")
    defaults = {"lipschitz": None, "gamma": 0.0, "samples": None, "inner": None, "block": 1, "max_iter": 100, "seed": 0, "regularizer": None}
    settings = ({"lipschitz": 12.0, "samples": 4, "max_iter": 6}, {"lipschitz": 20.0, "samples": 4, "inner": 3, "block": 3, "max_iter": 5, "gamma": 0.1, "seed": 2},
                {"lipschitz": 5.0, "samples": 4, "max_iter": 0})

    def cases(self, rng):
        a, b = np.stack([spd(rng, 7) for _ in range(4)]), rng.standard_normal((4, 7))
        functions = lambda: {"full_gradient": lambda x: (a @ x - b).mean(0),  # noqa: E731
                             "sample_block": lambda x, t, first, length: np.where(
                                 (np.arange(7) >= first) & (np.arange(7) < first + length), a[int(t)] @ x - b[int(t)], 7.0)}
        return [Case({"x0": rng.standard_normal(7)}, functions), Case({"x0": rng.standard_normal(7)}, functions, {"regularizer": "l1(0.3)"})]

    def sample(self, draw: int) -> int:
        u = 0.5 * math.erfc(-tw.random_normal(self.seed, 0, draw, 0, 1)[0] / math.sqrt(2))
        return min(int(self.samples * u), self.samples - 1)

    def solve(self, inputs, ask):
        x0, L = inputs["x0"], self.lipschitz
        if not self.max_iter:
            return {"x": x0, "weight": 0.0, "iterations": 0, "residual": np.inf, "outcome": "max_iter"}
        prox = lambda u, t: soft(u, 0.3 * t) if self.regularizer else u  # noqa: E731
        n, K, draw = len(x0), self.inner or self.samples, 0
        A = a = 1 / (4 * L)
        z = ask["full_gradient"](x0).copy()
        v = prox(x0 - z, A)
        snap, y, x = v.copy(), v.copy(), x0.copy()
        blocks = [slice(f, min(n, f + self.block)) for f in reversed(range(0, n, self.block))]
        for _ in range(self.max_iter):
            new, mu = np.sqrt(K * A * (1 + A * self.gamma) / (8 * L)), ask["full_gradient"](snap).copy()
            residual = L * np.linalg.norm(snap - prox(snap - mu / L, 1 / L))
            B, total = A + new, np.zeros(n)
            for k in range(1, K + 1):
                x_last, y_last = x, y
                x = (A * snap + new * v) / B
                w, w_last = x.copy(), x_last.copy()
                for j in blocks:
                    t = self.sample(draw)
                    draw += 1
                    at = lambda p: ask["sample_block"](p.copy(), t, j.start, j.stop - j.start)[j]  # noqa: B023, E731
                    q = at(w) - at(snap) + mu[j] + (a if k == 1 else new) / new * (at(x_last) - at(w_last))
                    z[j] += new * q
                    v[j] = prox(x0[j] - z[j] / K, A + new * k / K)
                    w[j], w_last[j] = (A * snap[j] + new * v[j]) / B, y_last[j]
                y = w
                total += y
            snap, A, a = total / K, B, new
        return {"x": snap, "weight": A, "iterations": self.max_iter, "residual": residual, "outcome": "max_iter"}
