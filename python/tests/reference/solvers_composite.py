"""Blocks, differences of convex functions, manifolds, and fits of layers: solvers from their cards."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .constraints import Stiefel
from .manifolds import SPD, Sphere
from .solvers import Case, SolverReference, spd


def soft(x: np.ndarray, k: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - k, 0.0)


class OTSinkhorn(SolverReference):
    """f, then g, relative to the product of the weights (Cuturi, 2013; arXiv 1306.0895)."""

    name = "ot_sinkhorn"
    defaults = {"reg": 0.1, "max_iter": 100, "tol": 1e-6}
    settings = ({}, {"reg": 0.5, "tol": 1e-12, "max_iter": 4}, {"max_iter": 0})

    def cases(self, rng):
        out = []
        for n, m in ((4, 6), (1, 3), (5, 5)):
            a, b = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, m)
            out.append(Case({"cost": rng.uniform(0, 1, (n, m)), "a": a / a.sum(), "b": b / b.sum()}, lambda: {}))
        a = np.array([0.5, 0.0, 0.5])
        return [*out, Case({"cost": rng.uniform(0, 1, (3, 2)), "a": a, "b": np.array([0.3, 0.7])}, lambda: {})]

    def solve(self, inputs, ask):
        C, a, b, r = inputs["cost"], inputs["a"], inputs["b"], self.reg
        f, g, k = np.zeros(len(a)), np.zeros(len(b)), 0
        with np.errstate(divide="ignore"):
            la, lb = np.log(a), np.log(b)
        lse = lambda z, axis: np.log(np.sum(np.exp(z - z.max(axis=axis, keepdims=True)), axis=axis)) + z.max(axis=axis)  # noqa: E731
        plan = lambda: a[:, None] * b * np.exp((f[:, None] + g - C) / r)  # noqa: E731
        while True:
            error = np.linalg.norm(plan().sum(axis=1) - a)
            end = "converged" if error <= self.tol and k > 0 else "max_iter"
            if end == "converged" or k >= self.max_iter:
                out = {"plan": plan(), "iterations": k, "residual": error, "value": np.sum(plan() * C), "outcome": end}
                return out | {"f": np.where(a > 0, f, 0), "g": np.where(b > 0, g, 0)}
            f = np.where(a > 0, -r * lse((g - C) / r + lb, 1), 0)
            g = np.where(b > 0, -r * lse((f[:, None] - C) / r + la[:, None], 0), 0)
            k += 1


class DCA(SolverReference):
    """Tangents of the concave part (Tao, An, 1997)."""

    name = "dca"
    defaults = {"max_iter": 100, "tol": 1e-6}
    settings = ({}, {"max_iter": 2}, {"tol": 0.0, "max_iter": 30})

    def cases(self, rng):
        b = 2 * rng.standard_normal(6)

        def value_subgradient(x):
            """Capped-l1 denoising: |x - b|^2/2 + sum min(|x|, 1) = (|x - b|^2/2 + |x|_1) - sum max(|x| - 1, 0)."""
            x = np.asarray(x, np.float64)
            return np.sum((x - b) ** 2) / 2 + np.sum(np.minimum(np.abs(x), 1.0)), np.sign(x) * (np.abs(x) > 1)

        return [Case({"x0": b.copy()}, lambda: {"value_subgradient": value_subgradient, "argmin": lambda y: soft(b + np.asarray(y, np.float64), 1.0)}),
                Case({"x0": np.zeros((2, 3))}, lambda: {"value_subgradient": lambda x: (float(np.sum(np.asarray(x, float) ** 2)), 0 * np.asarray(x, float)),
                                                        "argmin": lambda y: 0 * np.asarray(y, float)})]

    def solve(self, inputs, ask):
        x, last, k = inputs["x0"].copy(), np.inf, 0
        if self.max_iter == 0:
            return {"x": x, "iterations": 0, "outcome": "max_iter"}
        while True:
            value, y = ask["value_subgradient"](x)
            fall = last - value
            if fall <= self.tol or k >= self.max_iter:
                return {"x": x, "iterations": k, "residual": fall, "outcome": "converged" if fall <= self.tol else "max_iter"}
            x, last, k = ask["argmin"](y), value, k + 1


class MoreauGrad(SolverReference):
    """The gradient of a Moreau envelope (Zhang, Farnia, 2023; arXiv 2302.05294)."""

    name = "moreau_grad"
    defaults = {"rho": 1.0, "lr": 0.1, "max_iter": 300, "tail": 100, "l1": 0.0, "group": None, "sigma": 0.0, "samples": 1, "seed": 0}
    settings = ({"max_iter": 40, "tail": 10}, {"max_iter": 60, "tail": 1, "l1": 0.4}, {"max_iter": 30, "tail": 5, "l1": 0.6, "group": 2, "rho": 0.5},
                {"max_iter": 20, "tail": 3, "sigma": 0.1, "samples": 4, "seed": 3}, {"max_iter": 7, "tail": 7, "sigma": 0.5, "l1": 0.2}, {"max_iter": 5, "tail": 2, "samples": 3})

    def cases(self, rng):
        H = spd(rng, 30, 4.0)
        gradient = lambda x: (H @ np.asarray(x, np.float64).ravel()).reshape(x.shape)  # noqa: E731
        return [Case({"x": rng.standard_normal((2, 3, 5))}, lambda: {"gradient": gradient})]

    def prox(self, d: np.ndarray) -> np.ndarray:
        k = self.lr * self.l1
        if self.group is None:
            return soft(d, k)
        out = d.copy()
        for i in range(0, d.shape[-2], self.group):
            for j in range(0, d.shape[-1], self.group):
                tile = out[..., i:i + self.group, j:j + self.group]
                tile *= max(0.0, 1 - k / np.linalg.norm(tile)) if np.any(tile) else 1.0
        return out

    def solve(self, inputs, ask):
        x, d, moves = inputs["x"], np.zeros_like(inputs["x"]), []
        for k in range(self.max_iter):
            noise = [tw.random_normal(self.seed, 0, k * self.samples + j, 0, x.size).reshape(x.shape) for j in range(self.samples)]
            g = np.mean([ask["gradient"](x + d + self.sigma * np.ptp(x) * z) for z in noise], axis=0)
            d = self.prox(d - self.lr * (g + d / self.rho))
            moves.append(d)
        return {"envelope_gradient": -np.mean(moves[-self.tail:], axis=0) / self.rho, "move": d, "iterations": self.max_iter, "outcome": "max_iter"}


class Euclid:
    """A set in the plain inner product; transport is the tangent part at the new point."""

    def __init__(self, M):
        self.M = M

    def gradient(self, x, g):
        return self.M.proj(x, g)

    def retract(self, x, u):
        return self.M.retract(x, u)

    def transport(self, x, y, u):
        return self.M.proj(y, u)

    def inner(self, x, a, b):
        return np.sum(a * b)


class GreatCircles(Euclid):
    """The sphere of radius 1, along great circles."""

    def transport(self, x, y, u):
        return u - np.sum(y * u) / (1 + np.sum(x * y)) * (x + y)


class Definite(Euclid):
    """Positive definite matrices: X sym(G) X, tr(X^-1 A X^-1 B), E U E' with E = (Y X^-1)^(1/2)."""

    def gradient(self, x, g):
        return x @ (g + g.T) @ x / 2

    def inner(self, x, a, b):
        return np.trace(np.linalg.solve(x, a) @ np.linalg.solve(x, b))

    def transport(self, x, y, u):
        w, v = np.linalg.eig(y @ np.linalg.inv(x))  # real and positive: similar to a positive definite matrix
        e = np.real(v @ np.diag(np.sqrt(w)) @ np.linalg.inv(v))
        return e @ u @ e.T


class RiemannianCG(SolverReference):
    """Conjugate gradients on frames, spheres and positive definite matrices (Absil, Mahony, Sepulchre, 2008)."""

    name = "riemannian_cg"
    required = ("set",)
    defaults = {"max_iter": 100, "tol": 1e-8, "c1": 1e-4, "shrink": 0.5, "step0": 1.0}
    settings = ({"set": "stiefel", "max_iter": 25}, {"set": "stiefel", "max_iter": 8, "shrink": 0.3, "step0": 0.1}, {"set": "stiefel", "tol": 1e3},
                {"set": "sphere", "max_iter": 8}, {"set": "sphere", "max_iter": 6, "c1": 0.9, "step0": 3.0}, {"set": "spd", "max_iter": 6, "step0": 0.1})
    limit = 1e-8  # some twenty retractions of steps that depend on each other
    limit32 = 2e-3

    def cases(self, rng):
        A, N = spd(rng, 6, 5.0), np.diag([2.0, 1.0])
        if self.set == "spd":
            # log det X + tr X^-1 A, least at A
            def divergence(x):
                i = np.linalg.inv(np.asarray(x, float))
                return float(np.log(np.linalg.det(x)) + np.trace(i @ A)), i - i @ A @ i

            return [Case({"x0": spd(rng, 6, 3.0)}, lambda: {"value_gradient": divergence})]
        brockett = lambda x: (float(np.sum(np.asarray(x, float) * (A @ x @ N))), 2 * A @ np.asarray(x, float) @ N)  # noqa: E731
        start = np.linalg.qr(rng.standard_normal((6, 2)))[0]
        return [Case({"x0": start / (np.linalg.norm(start) if self.set == "sphere" else 1)}, lambda: {"value_gradient": brockett})]

    def solve(self, inputs, ask):
        M = {"stiefel": lambda: Euclid(Stiefel()), "sphere": lambda: GreatCircles(Sphere()), "spd": lambda: Definite(SPD())}[self.set]()
        x, k, step = inputs["x0"].copy(), 0, self.step0 / 2
        f, g = ask["value_gradient"](x)
        r = M.gradient(x, g)
        d = -r
        while True:
            norm = np.sqrt(M.inner(x, r, r))
            if norm <= self.tol or k >= self.max_iter:
                return {"x": x, "iterations": k, "residual": norm, "outcome": "converged" if norm <= self.tol else "max_iter"}
            slope, step = M.inner(x, r, d), min(2 * step, 1e6)
            for _ in range(61):
                y = M.retract(x, step * d)
                fy, gy = ask["value_gradient"](y)
                if fy <= f + self.c1 * step * slope:
                    break
                ry = M.gradient(y, gy)
                if abs(fy - f) <= 2**-50 * abs(f) and M.inner(y, ry, M.transport(x, y, d)) <= (2 * self.c1 - 1) * slope:
                    break
                step *= self.shrink
            else:
                return {"x": x, "iterations": k, "residual": norm, "outcome": "line_search_failed"}
            ry = M.gradient(y, gy)
            beta = max(0.0, M.inner(y, ry, ry - M.transport(x, y, r)) / M.inner(x, r, r))
            d = -ry + beta * M.transport(x, y, d)
            x, f, r, k = y, fy, ry, k + 1
            if M.inner(x, r, d) >= 0:
                d = -r


class NetTrim(SolverReference):
    """Convex pruning of a unit (Aghasi, Abdi, Romberg, 2020; arXiv 1806.06457)."""

    name = "net_trim"
    defaults = {"eps_ratio": 0.02, "v": 0.0, "rho": 1.0, "max_iter": 1000, "relax": 1.0, "tol": 1e-6, "linear": False}
    settings = ({"max_iter": 60}, {"max_iter": 40, "linear": True, "rho": 5.0}, {"max_iter": 30, "relax": 1.8, "v": 0.1}, {"tol": 10.0})

    def cases(self, rng):
        X, w = rng.standard_normal((8, 40)), np.zeros(8)
        w[[1, 4, 6]] = [1.0, -2.0, 0.5]
        y = X.T @ w
        return [Case({"x": X, "y": y if self.linear else np.maximum(y, 0)}, lambda: {}), Case({"x": X, "y": np.zeros(40)}, lambda: {})]

    def solve(self, inputs, ask):
        X, y = inputs["x"], inputs["y"]
        p, n = X.shape
        if not np.any(y):
            return {"w": np.zeros(p), "iterations": 0, "residual": 0.0, "outcome": "converged"}
        on, radius = (np.ones(n, bool) if self.linear else y > 0), self.eps_ratio * np.linalg.norm(y)
        w1, w3, u1, w2, u2 = np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(n), np.zeros(n)
        for k in range(1, self.max_iter + 1):
            w1 = soft(w3 - u1, 1 / self.rho)
            w2 = X.T @ w3 - u2
            d = w2[on] - y[on]
            w2[on] = y[on] + d * min(1.0, radius / max(np.linalg.norm(d), 1e-300))
            w2[~on] = np.minimum(w2[~on], self.v)
            h1, h2 = self.relax * w1 + (1 - self.relax) * w3, self.relax * w2 + (1 - self.relax) * X.T @ w3
            w3 = np.linalg.solve(np.eye(p) + X @ X.T, h1 + u1 + X @ (h2 + u2))
            u1, u2 = u1 + h1 - w3, u2 + h2 - X.T @ w3
            first, second = np.linalg.norm(w1 - w3), np.linalg.norm(w2 - X.T @ w3)
            if first <= self.tol * max(1, np.linalg.norm(w1)) and second <= self.tol * max(1, np.linalg.norm(w2)):
                return {"w": w1, "iterations": k, "residual": np.hypot(first, second), "outcome": "converged"}
        return {"w": w1, "iterations": self.max_iter, "residual": np.hypot(first, second), "outcome": "max_iter"}


class SparseCodingPSD(SolverReference):
    """Codes and the encoder that foresees them (Kavukcuoglu, Ranzato, LeCun, 2010; arXiv 1010.3467)."""

    name = "sparse_coding_psd"
    defaults = {"lam": 0.5, "alpha": 1.0, "max_iter": 100, "lr": 0.01}
    settings = ({}, {"lam": 0.05, "alpha": 0.2, "lr": 0.3, "max_iter": 15}, {"max_iter": 0})

    def cases(self, rng):
        B = rng.standard_normal((5, 7))
        return [Case({"y": rng.standard_normal((3, 5)), "dictionary": B / np.linalg.norm(B, axis=0), "encoder": rng.standard_normal((7, 5)),
                      "bias": rng.standard_normal(7), "gain": rng.uniform(0.5, 2, 7)}, lambda: {})]

    def solve(self, inputs, ask):
        Y, B, D, bias, gain = (inputs[k] for k in ("y", "dictionary", "encoder", "bias", "gain"))
        T = np.tanh(Y @ D.T + bias)
        F, L = gain * T, np.linalg.norm(B, 2) ** 2 + self.alpha
        z, v, t = F.copy(), F.copy(), 1.0
        for _ in range(self.max_iter):
            new = soft(v - ((v @ B.T - Y) @ B + self.alpha * (v - F)) / L, self.lam / L)
            s = (1 + np.sqrt(1 + 4 * t * t)) / 2
            z, v, t = new, new + (t - 1) / s * (new - z), s
        step = soft(z - ((z @ B.T - Y) @ B + self.alpha * (z - F)) / L, self.lam / L)
        residual = L * np.linalg.norm(z - step, axis=1).max()
        rest, n = Y - z @ B.T, len(Y)
        value = np.mean(np.sum(rest**2, 1) / 2 + self.lam * np.sum(np.abs(z), 1) + self.alpha / 2 * np.sum((z - F) ** 2, 1))
        dF = -self.alpha * (z - F)
        dU = dF * gain * (1 - T**2)
        B2 = B + self.lr / n * rest.T @ z
        return {"z": z, "new_dictionary": B2 / np.linalg.norm(B2, axis=0), "new_encoder": D - self.lr / n * dU.T @ Y,
                "new_bias": bias - self.lr / n * dU.sum(0), "new_gain": gain - self.lr / n * (dF * T).sum(0), "value": value,
                "iterations": self.max_iter, "residual": residual, "outcome": "max_iter"}


class NMFRobust(SolverReference):
    """Robust nonnegative factorisation (Zhu et al., 2014; arXiv 1409.0685)."""

    name = "nmf_robust"
    defaults = {"lam": 0.1, "p": 0.5, "max_iter": 100, "eps": 1e-12}
    settings = ({"max_iter": 20}, {"max_iter": 10, "lam": 0.0, "p": 1.0}, {"max_iter": 15, "lam": 0.02, "p": 0.8})
    limit32 = 5e-3  # entries that go to 0 divide small numbers by small numbers

    def cases(self, rng):
        X = rng.uniform(0, 1, (6, 3)) @ rng.uniform(0, 1, (3, 8)) + 0.01 * rng.uniform(size=(6, 8))
        start = {"x": X, "m0": rng.uniform(0.1, 1, (6, 3)), "a0": rng.uniform(0.1, 1, (3, 8))}
        return [Case(start, lambda: {}), Case({**start, "exponents": rng.uniform(0.5, 1, 8)}, lambda: {})]

    def solve(self, inputs, ask):
        X, M, A = inputs["x"], inputs["m0"].copy(), inputs["a0"].copy()
        p = inputs.get("exponents", np.full(X.shape[1], self.p))
        for _ in range(self.max_iter):
            d = 1 / (2 * np.maximum(np.linalg.norm(X - M @ A, axis=1), self.eps))
            W = M * d[:, None]
            A = A * (W.T @ X) / (W.T @ M @ A + self.lam / 2 * p * np.maximum(A, self.eps) ** (p - 1))
            M = M * (X @ A.T) / (M @ A @ A.T)
        value = np.linalg.norm(X - M @ A, axis=1).sum() + self.lam * np.sum(A**p)
        return {"factor": M, "coefficients": A, "iterations": self.max_iter, "value": value, "outcome": "max_iter"}
