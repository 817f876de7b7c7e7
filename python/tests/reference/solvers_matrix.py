"""Solvers about matrices from their cards: roots, Fisher inverses, directions, completion, low-rank training, networks."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference, operator, spd
from .solvers_spectra import Probe


class InverseRoot(SolverReference):
    name = "inverse_root"
    required = ("p",)
    defaults = {"p": None, "eps": 0.0, "method": "eigh", "rel_floor": 0.0, "tol": 1e-12, "max_iter": 100}
    settings = ({"p": 4}, {"p": 1, "eps": 0.1}, {"p": 3, "rel_floor": 0.5}, {"p": 2, "method": "coupled_newton"},
                {"p": 4, "method": "coupled_newton", "eps": 0.5}, {"p": 5, "method": "coupled_newton", "max_iter": 2})
    limit32 = 2e-3

    def cases(self, rng):
        a = rng.standard_normal((6, 3))
        out = [Case({"a": spd(rng, 5)}, dict), Case({"a": np.array([[2.0]])}, dict)]
        # singular matrices, and rounding below 0, need the damping
        return out + ([Case({"a": a @ a.T}, dict), Case({"a": np.zeros((3, 3))}, dict)] if self.eps > 0 else [])

    def solve(self, inputs, ask):
        A, p, n = inputs["a"], self.p, len(inputs["a"])
        k, outcome = 0, "converged"
        if self.method == "eigh":
            w, V = np.linalg.eigh(A)
            w = w - min(w[0], 0) + self.eps
            w = np.maximum(w, self.rel_floor * w[-1])
            return {"root": V @ np.diag(w ** (-1 / p)) @ V.T, "iterations": 0, "outcome": outcome}
        A = A + self.eps * np.eye(n)
        z = (p + 1) / (2 * np.linalg.norm(A))
        X, M = z ** (1 / p) * np.eye(n), z * A
        while np.abs(M - np.eye(n)).max() > self.tol:
            if k >= self.max_iter:
                outcome = "max_iter"
                break
            T = ((p + 1) * np.eye(n) - M) / p
            X, M, k = X @ T, np.linalg.matrix_power(T, p) @ M, k + 1
        return {"root": X, "iterations": k, "outcome": outcome}


class MFACStatic(SolverReference):
    name = "mfac_static"
    defaults = {"damp": 1e-5, "block_size": None}
    settings = ({}, {"damp": 0.1}, {"damp": 0.1, "block_size": 3}, {"damp": 0.01, "block_size": 100})
    limit = 1e-8  # relative to the largest entries, which are 1/damp
    limit32 = 2e-2

    def cases(self, rng):
        g = rng.standard_normal((4, 8))
        g[2] = 0
        return [Case({"grads": g, "x": rng.standard_normal((2, 8))}, dict), Case({"grads": g[:1]}, dict)]

    def solve(self, inputs, ask):
        g = inputs["grads"]
        m, n = g.shape
        F = self.damp * np.eye(n) + g.T @ g / m
        size = self.block_size or n
        block = np.arange(n) // size
        inverse = np.linalg.inv(np.where(block[:, None] == block, F, 0))
        out: dict[str, Any] = {"diagonal": np.diag(inverse), "outcome": "converged"}
        if "x" in inputs:
            out["products"] = inputs["x"] @ inverse
        if size >= n:  # q_i: m times the growth of the determinant with each sample
            sizes = [np.linalg.slogdet(np.eye(i) + g[:i] @ g[:i].T / (m * self.damp))[1] for i in range(m + 1)]
            out["q"] = m * np.exp(np.diff(sizes))[None]
        return out


class DCDM(SolverReference):
    name = "dcdm"
    defaults = {"memory": 2, "rtol": 1e-10, "atol": 0.0, "max_iter": 100, "normalize": True}
    settings = ({}, {"memory": 0, "max_iter": 6}, {"memory": 5, "normalize": False, "max_iter": 4}, {"atol": 1.0})

    def cases(self, rng):
        A, b = spd(rng, 8), rng.standard_normal(8)
        rough = np.linalg.inv(A + 0.5 * np.diag(rng.uniform(size=8)))
        made = lambda a, p: lambda: operator(a)() | {"predict": lambda r: p @ r}  # noqa: E731
        return [Case({"b": b}, made(A, rough)), Case({"b": b, "x0": rng.standard_normal(8)}, made(A, np.eye(8))), Case({"b": 0 * b}, made(A, rough)),
                Case({"b": b}, made(-A, rough))]

    def solve(self, inputs, ask):
        b, A = inputs["b"], ask["product"]
        x, kept, k, first = np.array(inputs.get("x0", 0 * b)), [], 0, None
        while True:
            r = b - (A(x) if k or "x0" in inputs else 0)
            size = np.linalg.norm(r)
            first = size if first is None else first
            why = "converged" if size <= max(self.rtol * first, self.atol) or size == 0 else "max_iter" if k >= self.max_iter else ""
            q = ask["predict"](r / size if self.normalize else r) if not why else r
            if not why:
                q = q - sum((p * (q @ Ap) / (p @ Ap) for p, Ap in kept), 0 * q)
                Aq = A(q)
                why = "negative_curvature" if q @ Aq <= 0 else ""
            if why:
                return {"x": x, "iterations": k, "residual": size, "outcome": why}
            x, k = x + q * (q @ r) / (q @ Aq), k + 1
            kept = (kept + [(q, Aq)])[-self.memory:] if self.memory else []


class HutchinsonDiag(Probe):
    name = "hutchinson_diag"
    defaults = {"n_probes": 1, "kind": "rademacher", "seed": 0}
    settings = ({}, {"n_probes": 5, "seed": 2}, {"n_probes": 4, "kind": "gaussian"})

    def solve(self, inputs, ask):
        vs = self.vectors(inputs, self.h["kind"] == "rademacher", self.n_probes)
        return {"diagonal": np.mean([v * ask["product"](v) for v in vs], 0), "iterations": len(vs), "outcome": "converged"}


class SLQRates(SolverReference):
    name = "slq_lr_momentum"
    defaults = {"steps": 10, "floor": 1e-3, "seed": 0}
    settings = ({}, {"steps": 3, "seed": 4}, {"steps": 40, "floor": 0.3})
    limit = 1e-8
    limit32 = 1e-2

    def cases(self, rng):
        a = spd(rng, 9)
        return [Case({"like": np.zeros(9)}, operator(a)), Case({"start": rng.standard_normal((3, 3))}, operator(a)), Case({"start": np.ones(9)}, operator(-a))]

    def solve(self, inputs, ask):
        v = inputs["start"] if "start" in inputs else tw.random_normal(self.seed, 0, 0, 0, inputs["like"].size).reshape(inputs["like"].shape)
        shape, V, alpha, beta = v.shape, [np.ravel(v) / np.linalg.norm(v)], [], []
        rows = min(self.steps, v.size)
        while True:
            w = np.ravel(ask["product"](V[-1].reshape(shape)))
            alpha.append(w @ V[-1])
            for _ in range(2):
                w = w - np.array(V).T @ (np.array(V) @ w)
            if len(V) == rows or np.linalg.norm(w) <= 1e-12 * max(1, abs(alpha[-1])):
                break
            beta.append(np.linalg.norm(w))
            V.append(w / beta[-1])
        w, Y = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
        pad = lambda x: np.concatenate([x, np.zeros(rows - len(x))])  # noqa: E731
        out = {"eigenvalues": pad(w), "weights": pad(Y[0] ** 2), "largest": w[-1], "rank": len(w)}
        if w[-1] <= 0:
            return out | {"lr": np.nan, "momentum": np.nan, "outcome": "negative_curvature"}
        a, b = np.sqrt(w[-1]), np.sqrt(w[w >= self.floor * w[-1]][0])
        return out | {"smallest": b**2, "lr": (2 / (a + b)) ** 2, "momentum": ((a - b) / (a + b)) ** 2, "outcome": "converged"}


class AltMinCompletion(SolverReference):
    name = "altmin_completion"
    required = ("rank",)
    defaults = {"rank": None, "iters": 30, "ridge": 0.0, "solver": "exact", "sketch_rows": None, "inner": 200, "clip_mu": None, "seed": 0}
    settings = ({"rank": 2}, {"rank": 2, "iters": 3, "ridge": 0.1}, {"rank": 2, "solver": "sketched", "iters": 40}, {"rank": 1, "clip_mu": 1.0, "iters": 5})
    limit = 1e-7  # the sketched regressions are solved to 1e-12 of their right sides, sixty times
    limit32 = 2e-2

    def cases(self, rng):
        M = rng.standard_normal((14, self.rank)) @ rng.standard_normal((self.rank, 12))
        mask = (rng.uniform(size=M.shape) < 0.75).astype(float)
        holes = mask.copy()
        holes[3], holes[:, 5] = 0, 0
        return [Case({"values": M, "mask": mask}, dict), Case({"values": M, "mask": holes}, dict)]

    def solve(self, inputs, ask):
        mask = inputs["mask"] != 0
        M, k = np.where(mask, inputs["values"], 0.0), self.rank

        def regress(F, b):
            if self.ridge:
                return np.linalg.solve(F.T @ F + self.ridge * np.eye(k), F.T @ b)
            return np.linalg.pinv(F, rcond=max(F.shape) * 2.2e-16) @ b if len(b) else np.zeros(k)

        orth = lambda a: np.linalg.qr(a)[0] * np.sign(np.diag(np.linalg.qr(a)[1]))  # noqa: E731
        U = np.linalg.svd(M, full_matrices=False)[0][:, :k]
        if self.clip_mu:
            U = orth(np.where(np.linalg.norm(U, axis=1, keepdims=True) > 2 * self.clip_mu * np.sqrt(k / len(M)), 0, U))
        columns = lambda U: np.array([regress(U[mask[:, j]], M[mask[:, j], j]) for j in range(M.shape[1])])  # noqa: E731
        V = columns(U)
        for _ in range(self.iters):
            V = orth(V)
            U = orth(np.array([regress(V[mask[i]], M[i, mask[i]]) for i in range(len(M))]))
            V = columns(U)
        X = U @ V.T
        return {"completed": X, "error": np.sqrt(np.mean((X - M)[mask] ** 2)), "iterations": self.iters, "outcome": "converged"}


def quadratic(rng: np.random.Generator, target: np.ndarray) -> Any:
    weight = rng.uniform(0.5, 1.5, target.shape)
    return lambda: {"gradient": lambda w: weight * (np.asarray(w, np.float64) - target)}


class DLRT(SolverReference):
    name = "dlrt"
    defaults = {"lr": 0.1, "tol": 0.1, "adaptive": True, "r_min": 2, "r_max": None, "rank": None, "max_iter": 100}
    settings = ({"max_iter": 6}, {"max_iter": 5, "adaptive": False, "rank": 2}, {"max_iter": 4, "adaptive": False, "rank": 4}, {"max_iter": 5, "tol": 1e-3, "r_max": 5, "rank": 2}, {"max_iter": 4, "r_min": 1, "r_max": 4, "tol": 0.6}, {"max_iter": 3, "r_max": 5, "tol": 0.0})
    limit32 = 5e-3

    def cases(self, rng):
        return [Case({"w0": rng.standard_normal(s)}, quadratic(rng, rng.standard_normal(s))) for s in ((7, 6), (5, 9))]

    def solve(self, inputs, ask):
        w = inputs["w0"]
        fixed = None if self.adaptive else self.rank
        top = min(self.r_max or fixed or min(w.shape) // 2, *w.shape)
        r = min(self.rank or top, top)
        U, s, Vt = np.linalg.svd(w, full_matrices=False)
        U, S, V = U[:, :r], np.diag(s[:r]), Vt[:r].T
        for _ in range(self.max_iter):
            G = ask["gradient"](U @ S @ V.T)
            K, L = U @ S - self.lr * G @ V, V @ S.T - self.lr * G.T @ U
            if self.adaptive:
                U1, V1 = np.linalg.qr(np.hstack([K, U]))[0], np.linalg.qr(np.hstack([L, V]))[0]
            else:
                U1, V1 = np.linalg.qr(K)[0], np.linalg.qr(L)[0]
            S = (U1.T @ U) @ S @ (V1.T @ V).T
            S = S - self.lr * U1.T @ ask["gradient"](U1 @ S @ V1.T) @ V1
            U, V = U1, V1
            if self.adaptive:
                P, s, Qt = np.linalg.svd(S)
                fits = [k for k in range(len(s) + 1) if np.linalg.norm(s[k:]) <= self.tol * np.linalg.norm(s)]
                r = min(max(fits[0], min(self.r_min, top)), top, len(s))
                U, S, V = U1 @ P[:, :r], np.diag(s[:r]), V1 @ Qt[:r].T
        return {"w": U @ S @ V.T, "rank": U.shape[1], "iterations": self.max_iter, "outcome": "max_iter"}


def unfold(t: np.ndarray, k: int) -> np.ndarray:
    return np.moveaxis(t, k, 0).reshape(t.shape[k], -1)


def mode(t: np.ndarray, m: np.ndarray, k: int) -> np.ndarray:
    return np.moveaxis(np.tensordot(m, t, (1, k)), 0, k)


class TDLRT(SolverReference):
    name = "tdlrt"
    defaults = {"lr": 0.1, "tol": 0.1, "r_min": 1, "r_max": None, "freeze": 0, "max_iter": 100}
    settings = ({"max_iter": 4, "r_max": 2}, {"max_iter": 4, "tol": 0.3}, {"max_iter": 3, "freeze": 3, "r_max": 2, "r_min": 2, "tol": 0.5})
    limit32 = 1e-2

    def cases(self, rng):
        return [Case({"w0": rng.standard_normal(s)}, quadratic(rng, rng.standard_normal(s))) for s in ((5, 4, 3, 1), (4, 3, 2, 2))]

    def solve(self, inputs, ask):
        w = np.array(inputs["w0"])
        n, d = w.shape, range(4)
        most = [m if m <= self.freeze else min(m, self.r_max or m) for m in n]
        least = [m if m <= self.freeze else min(self.r_min, most[i]) for i, m in enumerate(n)]
        frozen = [m <= self.freeze for m in n]  # these modes have the identity as their factor
        r = feasible(most, n, frozen)
        U = [np.eye(n[k]) if frozen[k] else np.linalg.svd(unfold(w, k))[0][:, : r[k]] for k in d]
        C = w
        for k in d:
            C = mode(C, U[k].T, k)
        for _ in range(self.max_iter):
            w = C
            for k in d:
                w = mode(w, U[k], k)
            G, new = ask["gradient"](w), []
            for k in d:
                if frozen[k]:
                    new.append(np.eye(n[k]))
                    continue
                Q, R = np.linalg.qr(unfold(C, k).T)
                g = G
                for j in d:
                    g = mode(g, U[j].T, j) if j != k else g
                K = U[k] @ R.T - self.lr * unfold(g, k) @ Q
                new.append(np.linalg.qr(np.hstack([K, U[k]]))[0][:, : min(2 * U[k].shape[1], n[k])])
            for k in d:
                C = mode(C, new[k].T @ U[k], k)
            w = C
            for k in d:
                w = mode(w, new[k], k)
            g = ask["gradient"](w)
            for k in d:
                g = mode(g, new[k].T, k)
            C = C - self.lr * g
            turns = []
            for k in d:
                if frozen[k]:
                    turns.append(np.eye(n[k]))
                    continue
                P, s, _ = np.linalg.svd(unfold(C, k), full_matrices=False)
                fits = [i for i in range(len(s) + 1) if np.linalg.norm(s[i:]) <= self.tol * np.linalg.norm(C)]
                turns.append(P[:, : min(max(fits[0], least[k], 1), most[k], len(s))])
            for k in d:
                C = mode(C, turns[k].T, k)
            U = [u @ p for u, p in zip(new, turns)]
            # the ranks of what is left; a mode has no more than the others together
            r = feasible([u.shape[1] for u in U], n, frozen)
            for k in d:
                if frozen[k]:
                    continue
                P = np.linalg.svd(unfold(C, k), full_matrices=False)[0][:, : r[k]]
                U[k], C = U[k] @ P, mode(C, P.T, k)
        w = C
        for k in d:
            w = mode(w, U[k], k)
        return {"w": w, "ranks": [u.shape[1] for u in U], "iterations": self.max_iter, "outcome": "max_iter"}


def feasible(ranks: list[int], n: tuple[int, ...], frozen: list[bool]) -> list[int]:
    r = list(ranks)
    for _ in range(4):
        for k in range(4):
            r[k] = n[k] if frozen[k] else max(1, min(r[k], n[k], int(np.prod(r[:k] + r[k + 1 :]))))
    return r


class GreedyTN(SolverReference):
    name = "greedy_tn"
    defaults = {"max_steps": 5, "target": 1e-6, "sweeps": 10, "probe_sweeps": 1, "slice_scale": 1e-2, "seed": 0}
    settings = ({"max_steps": 2}, {"max_steps": 1, "sweeps": 3, "probe_sweeps": 2, "seed": 3}, {"max_steps": 0})
    limit = 1e-6  # alternating least squares, conditioned like the cores
    limit32 = 5e-2

    def cases(self, rng):
        a, b, c = rng.standard_normal((4, 2)), rng.standard_normal((3, 2)), rng.standard_normal(3)
        t = np.einsum("ir,jr,k->ijk", a, b, c) + 0.05 * rng.standard_normal((4, 3, 3))
        return [Case({"tensor": t}, dict), Case({"tensor": t, "mask": (rng.uniform(size=t.shape) < 0.8).astype(float)}, dict), Case({"tensor": t[0]}, dict)]

    def solve(self, inputs, ask):
        t, weight = inputs["tensor"], inputs.get("mask", np.ones_like(inputs["tensor"]))
        d = t.ndim
        draws = lambda step, i, n: tw.random_normal(self.seed, 0, step, i, n)  # noqa: E731
        letters = "abcdefgh"
        bond = {frozenset(e): "ijklmnopqrstuvwxyz"[q] for q, e in enumerate(combinations(range(d), 2))}
        names = ["".join(bond[frozenset((i, j))] for j in range(d) if j != i) + letters[i] for i in range(d)]
        cores = [draws(0, i, t.shape[i]).reshape([1] * (d - 1) + [t.shape[i]]) for i in range(d)]
        whole = lambda c: np.einsum(",".join(names) + "->" + letters[:d], *c)  # noqa: E731

        def fit(c, sweeps):
            c = list(c)
            for _ in range(sweeps):
                for i in range(d):
                    rest = [j for j in range(d) if j != i]
                    E = np.einsum(",".join(names[j] for j in rest) + "->" + "".join(letters[j] for j in rest) + names[i][:-1], *(c[j] for j in rest))
                    E = E.reshape(-1, c[i].size // t.shape[i])
                    T, W = unfold(t, i), np.sqrt(unfold(weight, i))
                    x = np.array([np.linalg.pinv(E * w[:, None], rcond=1e-12) @ (w * b) for b, w in zip(T, W)])
                    c[i] = np.moveaxis(x, 0, -1).reshape(c[i].shape)
            return c, np.sum(weight * (t - whole(c)) ** 2) / np.sum(weight * t**2)

        cores, loss = fit(cores, self.sweeps)
        steps = 0
        while loss > self.target and steps < self.max_steps:
            best = None
            for i, j in combinations(range(d), 2):
                grown = list(cores)
                for k, other in ((i, j), (j, i)):
                    axis = [x for x in range(d) if x != k].index(other)
                    shape = list(cores[k].shape)
                    shape[axis] = 1
                    # the slice is drawn with the bond in front
                    front = [1] + shape[:axis] + shape[axis + 1 :]
                    extra = self.slice_scale * draws(1 + steps * d * d + i * d + j, k, int(np.prod(shape))).reshape(front)
                    grown[k] = np.concatenate([cores[k], np.moveaxis(extra, 0, axis)], axis)
                grown, probed = fit(grown, self.probe_sweeps)
                if best is None or probed < best[1]:
                    best = grown, probed
            cores, loss = fit(best[0], self.sweeps)
            steps += 1
        ranks = np.zeros((8, 8))
        for i in range(d):
            for j in range(d):
                if i != j:
                    ranks[i, j] = cores[i].shape[[x for x in range(d) if x != i].index(j)]
        return {"network": whole(cores), "loss": loss, "steps": steps, "ranks": ranks, "outcome": "converged" if loss <= self.target else "max_iter"}
