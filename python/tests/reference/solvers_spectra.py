"""Solvers from their cards: traces, eigenpairs, spectral densities; transport."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference, operator, spd


def indefinite(rng, n=10):
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return q @ np.diag(np.concatenate([[9.0, -6.0, 3.5], np.linspace(-1, 2, n - 3)])) @ q.T


def draws(seed, k, n, signs):
    """Vector k of a probe: the library's draws of (seed, 0, k, 0), which its own tests hold."""
    z = tw.random_normal(seed, 0, k, 0, n=n)
    return np.where(z < 0, -1.0, 1.0) if signs else z


class Probe(SolverReference):
    def cases(self, rng):
        a = indefinite(rng)
        return [Case({"like": np.zeros(10)}, operator(a)),
                Case({"vectors0": rng.standard_normal((self.h.get("probes", self.h.get("num", 1)), 10))}, operator(a)),
                Case({"like": np.zeros((2, 5))}, operator(a))]

    def vectors(self, inputs, signs, count):
        if "vectors0" in inputs:
            return list(inputs["vectors0"])
        like = inputs["like"]
        return [draws(self.seed, k, like.size, signs).reshape(like.shape) for k in range(count)]


class HutchinsonTrace(Probe):
    name = "hutchinson_trace"
    defaults = {"probes": 10, "distribution": "rademacher", "seed": 0}
    settings = ({}, {"probes": 1}, {"distribution": "normal", "seed": 5, "probes": 4})

    def solve(self, inputs, ask):
        vs = self.vectors(inputs, self.distribution == "rademacher", self.probes)
        products = [ask["product"](v) for v in vs]
        x = np.array([np.sum(v * q) for v, q in zip(vs, products)])
        return {"trace": x.mean(), "standard_error": x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else 0.0,
                "frobenius": np.sqrt(np.mean([np.sum(q * q) for q in products])), "iterations": len(x), "outcome": "converged"}


class HutchinsonDiagonal(Probe):
    name = "hutchinson_diagonal"
    defaults = {"probes": 10, "seed": 0}
    settings = ({}, {"probes": 3, "seed": 2})

    def solve(self, inputs, ask):
        vs = self.vectors(inputs, True, self.probes)
        above, below = sum(v * ask["product"](v) for v in vs), sum(v * v for v in vs)
        return {"diagonal": above / below, "iterations": len(vs), "outcome": "converged"}


class PowerIteration(Probe):
    name = "power_iteration"
    defaults = {"num": 1, "iters": 100, "tol": 1e-3, "seed": 0}
    settings = ({"tol": 1e-8, "iters": 300}, {"num": 3, "tol": 1e-9, "iters": 400}, {"iters": 4, "num": 2}, {"iters": 1, "num": 5})
    limit = 1e-8
    limit32 = 2e-3

    def solve(self, inputs, ask):
        found, values, products, unfinished = [], [], 0, False
        for v in self.vectors(inputs, False, self.num):
            clear = lambda u: u - sum((np.sum(f * u) * f for f in found), 0 * u)  # noqa: E731
            v = clear(v)
            v, last = v / np.linalg.norm(v), np.nan
            for k in range(self.iters):
                w = clear(ask["product"](v))
                value, products = np.sum(v * w), products + 1
                settled = abs(value - last) <= self.tol * (abs(value) + 1e-6) or not np.any(w)
                last = value
                if settled or k + 1 == self.iters:
                    break
                v = clear(w)
                v = v / np.linalg.norm(v)
            unfinished |= not settled
            found.append(v)
            values.append(value)
        order = np.argsort(-np.abs(values), kind="stable")  # in order of magnitude, whether they converged or not
        return {"eigenvalues": np.array(values)[order], "vectors": np.stack(found)[order], "iterations": products,
                "outcome": "max_iter" if unfinished else "converged"}


def tridiagonal(ask, start, steps, tol, reorth=True):
    """Lanczos, with full reorthogonalisation or the recurrence alone: alpha, beta, basis."""
    basis, alpha, beta = [start / np.linalg.norm(start)], [], []
    while True:
        w = ask["product"](basis[-1])
        alpha.append(np.sum(w * basis[-1]))
        if not reorth:
            w = w - alpha[-1] * basis[-1] - (beta[-1] * basis[-2] if beta else 0)
        for _ in range(2 if reorth else 0):
            for b in basis:
                w = w - np.sum(b * w) * b
        beta.append(np.linalg.norm(w))
        if len(alpha) == steps or beta[-1] <= tol * max(1.0, abs(alpha[-1])):
            return np.array(alpha), np.array(beta), np.stack(basis)
        basis.append(w / beta[-1])


def ritz(alpha, beta):
    t = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    values, vectors = np.linalg.eigh(t)
    return values, vectors


class Lanczos(SolverReference):
    name = "lanczos"
    defaults = {"steps": None, "largest": 1, "smallest": 0, "reorth": True, "tol": 1e-12}
    settings = ({}, {"steps": 3}, {"steps": 100, "largest": 2, "smallest": 2}, {"largest": 0, "steps": 6}, {"steps": 5, "reorth": False})
    limit = 1e-9
    limit32 = 5e-3

    def cases(self, rng):
        a = indefinite(rng)
        return [Case({"start": rng.standard_normal(10)}, operator(a)), Case({"start": rng.standard_normal((5, 2))}, operator(a)),
                Case({"start": np.arange(1.0, 6.0)}, operator(2 * np.eye(5)))]

    def solve(self, inputs, ask):
        n, pairs = inputs["start"].size, min(self.largest + self.smallest, inputs["start"].size)
        steps = min(n, self.steps or max(4 * pairs, int(2 * np.log(n)), 1))
        alpha, beta, basis = tridiagonal(ask, inputs["start"], steps, self.tol, self.reorth)
        values, vectors = ritz(alpha, beta)
        rank = len(alpha)
        pad = lambda v: np.concatenate([v, np.zeros(steps - rank)])  # noqa: E731
        out = np.zeros((pairs, *inputs["start"].shape))
        top = min(self.largest, pairs)
        for i in range(pairs):
            k = rank - 1 - i if i < top else i - top
            if 0 <= k < rank:
                v = np.tensordot(vectors[:, k], basis, 1)
                out[i] = v * np.sign(v.flat[np.argmax(np.abs(v))])
        return {"eigenvalues": pad(values), "weights": pad(vectors[0] ** 2), "vectors": out, "alpha": pad(alpha),
                "rank": rank, "outcome": "converged"}


class SLQDensity(SolverReference):
    name = "slq_density"
    defaults = {"probes": 10, "steps": 80, "sigma2": 1e-5, "distribution": "rademacher", "tol": 1e-12, "seed": 0}
    settings = ({"probes": 2}, {"probes": 3, "steps": 4, "sigma2": 1e-2, "distribution": "normal", "seed": 3})
    limit = 1e-8
    limit32 = 2e-2

    def cases(self, rng):
        a = indefinite(rng)
        return [Case({"like": np.zeros(10), "points": np.linspace(-8, 11, 7)}, operator(a)), Case({"like": np.zeros((5, 2))}, operator(a)),
                Case({"like": np.zeros(3)}, operator(np.eye(3)))]

    def solve(self, inputs, ask):
        like = inputs["like"]
        steps = min(self.steps, like.size)
        nodes, weights, products = np.zeros((self.probes, steps)), np.zeros((self.probes, steps)), 0
        low, high = np.inf, -np.inf
        for k in range(self.probes):
            start = draws(self.seed, k, like.size, self.distribution == "rademacher").reshape(like.shape)
            alpha, beta, _ = tridiagonal(ask, start, steps, self.tol)
            values, vectors = ritz(alpha, beta)
            nodes[k, : len(values)], weights[k, : len(values)] = values, vectors[0] ** 2
            low, high, products = min(low, values[0]), max(high, values[-1]), products + len(values)
        out = {"nodes": nodes, "weights": weights, "trace": like.size * np.sum(nodes * weights) / self.probes,
               "lowest": low, "highest": high, "iterations": products, "outcome": "converged"}
        if "points" in inputs:
            s2 = self.sigma2 * max(1.0, high - low) ** 2
            d = inputs["points"][:, None] - nodes.ravel()
            out["density"] = np.exp(-d * d / (2 * s2)) @ weights.ravel() / (self.probes * np.sqrt(2 * np.pi * s2))
        return out


class Sinkhorn(SolverReference):
    name = "sinkhorn"
    defaults = {"epsilon": 0.1, "max_iter": 1000, "tol": 1e-9, "check_every": 10}
    settings = ({}, {"max_iter": 7, "check_every": 3}, {"epsilon": 1.0, "check_every": 1, "tol": 1e-3}, {"max_iter": 0})

    def cases(self, rng):
        cost, a, b = rng.uniform(size=(5, 7)), rng.uniform(0.1, 1, 5), rng.uniform(0.1, 1, 7)
        a, b = a / a.sum(), b / b.sum()
        empty = a.copy()
        empty[1] += empty[2]
        empty[2] = 0
        barred = cost.copy()
        barred[0, 0] = np.inf
        return [Case({"cost": cost, "a": a, "b": b}, dict), Case({"cost": cost, "a": empty, "b": b}, dict),
                Case({"cost": 1e3 * cost, "a": a, "b": b}, dict, {"max_iter": 20}), Case({"cost": barred, "a": a, "b": b}, dict),
                Case({"cost": cost, "a": a, "b": b, "f0": rng.standard_normal(5), "g0": rng.standard_normal(7)}, dict),
                Case({"cost": np.ones((1, 3)), "a": np.ones(1), "b": np.full(3, 1 / 3)}, dict)]

    def solve(self, inputs, ask):
        c, a, b, eps = inputs["cost"], inputs["a"], inputs["b"], self.epsilon
        f, g = inputs.get("f0", np.zeros(len(a))), inputs.get("g0", np.zeros(len(b)))

        def lse(v, axis):
            top = np.max(v, axis, keepdims=True)
            top = np.where(np.isfinite(top), top, 0.0)
            return np.log(np.sum(np.exp(v - top), axis)) + np.squeeze(top, axis)

        def plan():
            return np.exp((f[:, None] + g - c) / eps)

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            k, outcome = 0, "max_iter"
            while k < self.max_iter:
                k += 1
                g = eps * (np.log(b) - lse((f[:, None] - c) / eps, 0))
                f = eps * (np.log(a) - lse((g - c) / eps, 1))
                if k % self.check_every == 0 or k == self.max_iter:
                    if np.linalg.norm(plan().sum(0) - b) <= self.tol:
                        outcome = "converged"
                        break
            p = plan()
            dual = np.sum(f[a > 0] * a[a > 0]) + np.sum(g[b > 0] * b[b > 0])
            return {"plan": p, "f": f, "g": g, "iterations": k, "residual": np.linalg.norm(p.sum(0) - b),
                    "value": np.sum((p * c)[p > 0]), "dual": dual, "outcome": outcome}


def rounded(p, a, b):
    p = p * np.minimum(a / np.maximum(p.sum(1), 1e-300), 1)[:, None]
    p = p * np.minimum(b / np.maximum(p.sum(0), 1e-300), 1)
    row, column = a - p.sum(1), b - p.sum(0)
    return p + np.outer(row, column) / np.sum(row) if np.sum(row) > 0 else p


class RoundTransport(SolverReference):
    name = "round_transport"

    def cases(self, rng):
        a, b = np.full(4, 0.25), np.array([0.5, 0.3, 0.2])
        return [Case({"plan0": rng.uniform(0, 0.2, (4, 3)), "a": a, "b": b}, dict), Case({"plan0": np.zeros((4, 3)), "a": a, "b": b}, dict)]

    def solve(self, inputs, ask):
        return {"plan": rounded(inputs["plan0"], inputs["a"], inputs["b"]), "outcome": "converged"}


class MirrorSinkhorn(SolverReference):
    name = "mirror_sinkhorn"
    defaults = {"bound": 1.0, "max_iter": 1000, "round": True}
    settings = ({"max_iter": 60}, {"max_iter": 7, "round": False, "bound": 2.0}, {"max_iter": 0})

    def cases(self, rng):
        cost, a, b = rng.uniform(size=(4, 3)), np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.5, 0.0])
        target = np.outer(a, [0.3, 0.3, 0.4])
        return [Case({"a": a, "b": b}, lambda: {"gradient": lambda p: cost}),
                Case({"a": a, "b": np.full(3, 1 / 3)}, lambda: {"gradient": lambda p: p - target})]

    def solve(self, inputs, ask):
        a, b = inputs["a"], inputs["b"]
        p = np.outer(a, b)
        mean = p.copy()
        delta = np.max(np.abs(np.log(a[a > 0]))) + np.max(np.abs(np.log(b[b > 0])))
        for t in range(1, self.max_iter + 1):
            p = p * np.exp(-np.sqrt(delta / t) / self.bound * ask["gradient"](p))
            if t % 2 == 0:
                s = p.sum(1)
                p = p * np.where(s > 0, a / np.where(s > 0, s, 1), 0)[:, None]
            else:
                s = p.sum(0)
                p = p * np.where(s > 0, b / np.where(s > 0, s, 1), 0)
            mean = (t * mean + p) / (t + 1)
        return {"plan": rounded(mean, a, b) if self.round else mean, "last": p, "iterations": self.max_iter, "outcome": "max_iter"}


class SelfLabel(SolverReference):
    name = "self_label"
    defaults = {"lam": 25.0, "tol": 0.1, "max_iter": 1000}
    settings = ({"lam": 5.0}, {"lam": 2.0, "tol": 1e-6}, {"max_iter": 1})
    limit32 = 5e-3

    def cases(self, rng):
        p = rng.uniform(0.05, 1, (30, 4)) * [3.0, 1, 1, 1]
        p /= p.sum(1, keepdims=True)
        gap = p.copy()
        gap[7] = 0
        return [Case({"probabilities": p}, dict), Case({"probabilities": p, "target": np.array([0.4, 0.3, 0.2, 0.1])}, dict),
                Case({"probabilities": gap}, dict)]

    def solve(self, inputs, ask):
        p = inputs["probabilities"]
        n, k = p.shape
        target = inputs.get("target", np.full(k, 1 / k))
        with np.errstate(divide="ignore", invalid="ignore"):
            s = p**self.lam
            c, passes = np.full(n, 1 / n), 0
            while True:
                r = target / (s.T @ c if np.all(np.isfinite(c)) else s[np.isfinite(c)].T @ c[np.isfinite(c)])
                new = (1 / n) / (s @ r)
                if passes % 10 == 0:
                    error = np.nansum(np.abs(c[np.isfinite(new)] / new[np.isfinite(new)] - 1))
                passes, c = passes + 1, new
                if ((passes - 1) % 10 == 0 and error <= self.tol) or passes >= self.max_iter:
                    break
            log_c = np.where(np.isfinite(c), np.log(np.where(np.isfinite(c), c, 1)), -np.inf)
            return {"labels": np.argmax(s * r, 1), "log_r": np.log(r), "log_c": log_c, "iterations": passes,
                    "outcome": "converged" if error <= self.tol else "max_iter"}
