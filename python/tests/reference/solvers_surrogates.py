"""Predicted gradients, a client's round of queries, sketched Newton steps, and a Pareto set that is learnt."""

from __future__ import annotations

import math

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference
from .solvers_processes import kernel


def draws(seed, k, n):
    return tw.random_normal(seed, 0, k, 0, n=n)


def slope(Z, X, name, length):
    """dk(z, x)/dz, (points, points, axes), as the card writes it."""
    gap = Z[:, None] - X[None]
    r = np.linalg.norm(gap, axis=2, keepdims=True) / length
    if name == "rbf":
        return -gap / length**2 * np.exp(-(r**2) / 2)
    return -5 / (3 * length**2) * (1 + np.sqrt(5) * r) * np.exp(-np.sqrt(5) * r) * gap


class OptEx(SolverReference):
    """Shu et al., 2024 (arXiv 2402.11427)."""

    name = "optex"
    defaults = {"parallel": 4, "history": 50, "kernel": "matern52", "lengthscale": 1.0, "noise": 1e-3, "select": "last", "base": "sgd",
                "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 8, "lr": 0.1}, {"max_iter": 7, "lr": 0.05, "parallel": 3, "history": 5, "base": "momentum", "select": "min_loss"},
                {"max_iter": 9, "lr": 0.1, "base": "adam", "select": "min_grad", "kernel": "rbf", "noise": 1e-2}, {"max_iter": 0},
                {"max_iter": 5, "lr": 0.1, "parallel": 1, "base": "adam"}, {"max_iter": 3, "lr": 0.1, "parallel": 6, "history": 4})
    limit, limit32 = 1e-8, 2e-2  # a system of condition 1/noise; in float32 the choice of a point may turn

    def cases(self, rng):
        scale, x = np.linspace(0.5, 2, 5), rng.standard_normal(5)

        def both(points):
            points = np.asarray(points, np.float64)
            return (np.sum(scale * points**2, axis=1) / 2, scale * points)

        return [Case({"x0": x}, lambda: {"parallel_gradients": both})]

    def base_step(self, x, state, g):
        m, v, t = state
        t += 1
        if self.base == "sgd":
            return x - self.lr * g, (m, v, t)
        if self.base == "momentum":
            m = self.beta1 * m + g
            return x - self.lr * m, (m, v, t)
        m, v = self.beta1 * m + (1 - self.beta1) * g, self.beta2 * v + (1 - self.beta2) * g * g
        return x - self.lr * (m / (1 - self.beta1**t)) / (np.sqrt(v / (1 - self.beta2**t)) + self.eps), (m, v, t)

    def solve(self, inputs, ask):
        x = inputs["x0"].copy()
        state, pairs = (np.zeros_like(x), np.zeros_like(x), 0), []
        value = selected = 0.0
        for _ in range(self.max_iter):
            points, states = [x], [state]
            for _ in range(self.parallel - 1):
                guess = np.zeros_like(x)
                if len(pairs) >= 2:
                    X, G = (np.array(a) for a in zip(*pairs, strict=True))
                    k = kernel(points[-1][None], X, self.kernel, self.lengthscale)[0]
                    guess = k @ np.linalg.solve(kernel(X, X, self.kernel, self.lengthscale) + self.noise * np.eye(len(X)), G)
                moved, after = self.base_step(points[-1], states[-1], guess)
                points.append(moved)
                states.append(after)
            losses, gradients = ask["parallel_gradients"](np.array(points))
            selected = {"last": self.parallel - 1, "min_loss": int(np.argmin(losses)),
                        "min_grad": int(np.argmin(np.linalg.norm(gradients, axis=1)))}[self.select]
            value = losses[selected]
            x, state = self.base_step(points[selected], states[selected], gradients[selected])
            pairs = (pairs + list(zip(points, gradients, strict=True)))[-self.history:]
        return {"x": x, "value": value, "selected": selected, "iterations": self.max_iter, "outcome": "max_iter"}


class FZooSClient(SolverReference):
    """Shu, Lin, Dai, Low, 2023 (arXiv 2308.04077)."""

    name = "fzoos_client"
    required = ("lr",)
    defaults = {"lr": None, "steps": 10, "kernel": "matern52", "lengthscale": 1.0, "noise": 1e-6, "max_queries": 150, "gamma": 1.0,
                "active": 5, "candidates": 50, "radius": 1e-2, "features": 10000, "seed": 0}
    settings = ({"lr": 0.05, "noise": 1e-3, "features": 40, "steps": 4}, {"lr": 0.1, "noise": 1e-2, "kernel": "rbf", "lengthscale": 2.0, "features": 30, "max_queries": 4, "active": 2,
                 "candidates": 6, "radius": 0.3, "gamma": 0.5, "seed": 4}, {"lr": 0.1, "steps": 2, "noise": 1e-2, "features": 20, "active": 0})
    limit, limit32 = 1e-6, 5e-2  # systems of condition up to n/noise; the values are scaled by their own range

    def cases(self, rng):
        X = rng.standard_normal((7, 3))
        loss = lambda x: float(np.sum(np.linspace(0.5, 2, 3) * (np.asarray(x, np.float64) - 0.3) ** 2))  # noqa: E731
        plain = {"x0": X[0] + 0.1, "points": X, "values": np.array([loss(x) for x in X])}
        flat = plain | {"values": np.full(7, 2.0)}
        M = 12
        shared = {"frequencies": rng.standard_normal((M, 3)), "phases": rng.uniform(0, 6, M), "global_weights": rng.standard_normal(M),
                  "local_weights": rng.standard_normal(M)}
        return [Case(one, lambda: {"point_loss": loss}) for one in (plain, flat, plain | shared)]

    def shared(self, inputs, d):
        if "frequencies" in inputs:
            return inputs["frequencies"], inputs["phases"]
        M = self.features
        W = draws(self.seed, 0, M * d).reshape(M, d)
        if self.kernel == "matern52":
            W = W * np.sqrt(5 / np.sum(draws(self.seed, 1, 5 * M).reshape(M, 5) ** 2, axis=1, keepdims=True))
        b = np.array([math.pi * math.erfc(-z / math.sqrt(2)) for z in draws(self.seed, 2, M)])
        return W, b

    def near(self, x, X, y):
        distances = np.linalg.norm(X - x, axis=1)
        rows = np.sort(np.argsort(distances, kind="stable")[:self.max_queries])
        low, high = y[rows].min(), y[rows].max()
        return X[rows], (y[rows] - low) / (high - low) if high > low else np.zeros(len(rows)), high - low

    def matrix(self, X):
        return kernel(X, X, self.kernel, self.lengthscale) + self.noise * np.eye(len(X))

    def solve(self, inputs, ask):
        x, X, y = inputs["x0"].copy(), inputs["points"].copy(), inputs["values"].copy()
        W, b = self.shared(inputs, len(x))
        M, value = len(b), 0.0

        def query(point):
            nonlocal X, y, value
            value = ask["point_loss"](point)
            X, y = np.vstack([X, point]), np.append(y, value)

        for _ in range(self.steps):
            near, scaled, width = self.near(x, X, y)
            alpha = np.linalg.solve(self.matrix(near), scaled)
            g = width * np.einsum("i,ij->j", alpha, slope(x[None], near, self.kernel, self.lengthscale)[0])
            if "global_weights" in inputs:
                of = lambda w: -np.sqrt(2 / M) * (w * np.sin(W @ x / self.lengthscale + b)) @ W / self.lengthscale  # noqa: B023, E731
                g = g + self.gamma * (of(inputs["global_weights"]) - of(inputs["local_weights"]))
            x = x - self.lr * g
            query(x)
        if self.active:
            near, _, _ = self.near(x, X, y)
            Z = x + self.radius * draws(self.seed, 3, self.candidates * len(x)).reshape(-1, len(x))
            certain = [np.sum(s * np.linalg.solve(self.matrix(near), s)) for s in slope(Z, near, self.kernel, self.lengthscale)]
            for k in np.argsort(certain, kind="stable")[:self.active]:
                query(Z[k])
        near, scaled, width = self.near(x, X, y)
        phi = np.sqrt(2 / M) * np.cos(near @ W.T / self.lengthscale + b)
        weights = width * phi.T @ np.linalg.solve(phi @ phi.T + self.noise * np.eye(len(near)), scaled)
        return {"x": x, "weights": weights, "queries": X, "losses": y, "iterations": self.steps, "value": value, "outcome": "max_iter"}


class ExactALSQP(SolverReference):
    """Hong, Na, Mahoney, Kolar, 2023 (arXiv 2305.18379)."""

    name = "exact_al_sqp"
    defaults = {"eta1": 1.0, "eta2": 0.1, "delta": 0.1, "xi_b": 0.1, "beta": 0.1, "rho": 0.5, "nu": 1.4, "sketch": "kaczmarz", "tol": 1e-8,
                "max_iter": 100, "sketch_steps": 100_000, "seed": 0}
    settings = ({"max_iter": 2, "tol": 0.0, "xi_b": 1.0}, {"max_iter": 2, "tol": 0.0, "sketch": "gaussian", "seed": 5}, {"max_iter": 0},
                {"max_iter": 1, "xi_b": 1.0, "eta2": 1.0, "nu": 2.0, "tol": 0.0}, {"tol": 0.1, "xi_b": 1.0, "rho": 0.7})
    limit, limit32 = 1e-6, 5e-2  # directions are solved to 1e-13 of the residual at best, over the square of a condition

    def cases(self, rng):
        a = rng.standard_normal(3)

        def problem(x):  # a linear function and a quartic on the unit sphere
            x = np.asarray(x, np.float64)
            return (float(a @ x + np.sum(x**4) / 4), a + x**3, np.array([x @ x - 1]), 2 * x[None])

        hessian = lambda x, l: np.diag(3 * np.asarray(x, np.float64) ** 2 + 2 * float(l[0]))  # noqa: E731
        Q, A, c = np.diag([1.0, 2.0, 3.0, -0.5]), rng.standard_normal((2, 4)), rng.standard_normal(2)
        linear = lambda x: (float(x @ Q @ x / 2), Q @ x, A @ x - c, A)  # noqa: E731
        sphere = Case({"x0": np.array([0.6, -0.5, 0.7]), "multipliers0": np.zeros(1)},
                      lambda: {"problem": problem, "lagrangian_hessian": hessian})
        saddle = Case({"x0": rng.standard_normal(4), "multipliers0": np.zeros(2)},
                      lambda: {"problem": lambda x: linear(np.asarray(x, np.float64)), "lagrangian_hessian": lambda x, l: Q})
        return [sphere, saddle]

    def direction(self, K, b, tolerances, key):
        """A generator: the direction at one tolerance after the other."""
        N, d, used = len(b), np.zeros(len(b)), 0
        sketches: list = []

        def sketch(k):  # a row's number, or a combination
            while k >= len(sketches):
                n = 2 * len(sketches) or 1000
                if self.sketch == "kaczmarz":
                    sketches[:] = [min(N - 1, int(0.5 * math.erfc(-z / math.sqrt(2)) * N)) for z in draws(self.seed, key, n)]
                else:
                    sketches[:] = draws(self.seed, key, n * N).reshape(-1, N)
            return sketches[k]

        for tolerance in tolerances:
            while (residual := K @ d - b) @ residual > tolerance**2:
                s = sketch(used)
                a, r = (K[s], residual[s]) if self.sketch == "kaczmarz" else (K @ s, s @ residual)
                d, used = d - r / (a @ a) * a, used + 1
            yield d

    def solve(self, inputs, ask):
        x, lam = inputs["x0"].copy(), inputs["multipliers0"].copy()
        eta1, eta2, delta, n, m = self.eta1, self.eta2, self.delta, len(x), len(lam)
        f, grad, c, J = ask["problem"](x)
        outcome, k = "max_iter", 0
        size = np.linalg.norm

        def augmented(f, grad, c, J, lam):
            g = grad + J.T @ lam
            return f + lam @ c + eta1 / 2 * c @ c + eta2 / 2 * g @ g

        while True:
            g = grad + J.T @ lam
            b = -np.concatenate([g, c])
            if size(b) <= self.tol:
                outcome = "converged"
                break
            if k >= self.max_iter:
                break
            H = np.asarray(ask["lagrangian_hessian"](x, lam))
            Z = np.linalg.svd(J)[2][m:].T
            t = self.xi_b + size(H) if m < n and np.linalg.eigvalsh(Z.T @ H @ Z).min() < 1e-6 else 0.0
            B = H + t * np.eye(n)
            K = np.block([[B, J.T], [J, np.zeros((m, m))]])
            psi = 7 * max(size(B) ** 2, 1) / (min(np.linalg.eigvalsh(J @ J.T).min(), 1) * self.xi_b)
            U = max(size(B), size(H), size(J))
            bound = lambda: (0.5 - self.beta) * eta2 / (2 * psi**2 * (3 * U + 4 * eta2 * U**2 + eta1 * U**2))  # noqa: B023, E731
            delta = min(delta, bound())

            def tolerances():
                while True:
                    yield max(delta * size(b) / (size(K) * psi), 1e-13 * size(b))  # noqa: B023

            for d in self.direction(K, b, tolerances(), k):
                slope = np.concatenate([g + eta2 * H @ g + eta1 * J.T @ c, c + eta2 * J @ g]) @ d
                if eta1 > 1e8 or eta2 < 1e-8 or slope <= -eta2 * (b @ b) / 2:
                    break
                eta1, eta2 = eta1 * self.nu**2, eta2 / self.nu
                delta = min(delta / self.nu**4, bound())
            before, step = augmented(f, grad, c, J, lam), 1.0
            while True:
                trial, moved = x + step * d[:n], lam + step * d[n:]
                there = ask["problem"](trial)
                if augmented(*there, moved) <= before + self.beta * step * slope:
                    break
                step *= self.rho
                if step < 2.0**-52:
                    return {"x": x, "iterations": k, "outcome": "line_search_failed"}
            (f, grad, c, J), x, lam, k = there, trial, moved, k + 1
        return {"x": x, "multipliers": lam, "iterations": k, "residual": size(b), "eta1": eta1, "eta2": eta2, "delta": delta, "outcome": outcome}


class SVHPSL(SolverReference):
    """Nguyen et al., 2024 (arXiv 2412.17312)."""

    name = "svh_psl"
    defaults = {"kernel": "local", "c": 1.0, "alpha": 1e-3, "lcb": 0.1}
    settings = ({}, {"kernel": "global", "alpha": 0.5}, {"alpha": 2.0, "c": 3.0, "lcb": 1.0})
    limit, limit32 = 1e-5, 2e-2  # the reference differentiates the kernel's sums by differences

    def cases(self, rng):
        out = []
        for n, m, p in ((1, 2, 3), (5, 2, 4), (6, 3, 2)):
            A, phi = rng.standard_normal((n, m, p)), rng.standard_normal(p)
            values = lambda q, A=A: np.tanh(A @ q) + A @ q  # noqa: E731
            jacobian = A * (2 - np.tanh(A @ phi) ** 2)[..., None]
            inputs = {"mean": values(phi), "preferences": rng.dirichlet(np.ones(m), n), "reference": values(phi).min(axis=0) - 0.1, "parameters": phi}
            functions = lambda D=jacobian: {  # noqa: E731
                "scalar_gradients": lambda w: np.einsum("io,iop->ip", np.asarray(w, np.float64), D),  # noqa: B023
                "kernel_gradients": lambda w: np.einsum("ijo,jop->ip", np.asarray(w, np.float64), D)}  # noqa: B023
            out += [Case(inputs, functions)]
            if n == 5:
                out += [Case(inputs | {"deviation": rng.uniform(0, 1, (n, m))}, functions), Case(inputs | {"mean": np.ones((n, m))}, functions)]
        return out

    def similarity(self, v, active, widths):
        gap = (v[:, None] - v[None]) ** 2
        if self.kernel == "global":
            return np.exp(-gap.sum(axis=2) / widths)
        return np.sum(np.eye(v.shape[1])[active][None] * np.exp(-gap / widths), axis=2)

    def solve(self, inputs, ask):
        v = inputs["mean"] - self.lcb * inputs.get("deviation", 0.0)
        r, n, m = inputs["preferences"], *v.shape
        scalars = (v - inputs["reference"]) * r
        active = np.argmax(scalars, axis=1)
        weights = r * np.eye(m)[active]
        gap = (v[:, None] - v[None]) ** 2
        medians = np.atleast_1d(np.median(gap.sum(axis=2)) if self.kernel == "global" else np.median(gap, axis=(0, 1)))
        none = self.c * 1e-6 if self.kernel == "global" else 5e-6
        widths = np.ones(len(medians)) if n == 1 else np.where(medians == 0, none, self.c * medians**2 / np.log(n))
        K = self.similarity(v, active, widths)
        pull, step = np.zeros((n, n, m)), 1e-6 * min(1.0, np.sqrt(widths.min()))
        for j in range(n):
            for o in range(m):
                e = np.zeros((n, m))
                e[j, o] = step
                pull[:, j, o] = (self.similarity(v + e, active, widths) - self.similarity(v - e, active, widths)).sum(axis=1) / (2 * step)
        J, R = ask["scalar_gradients"](weights), ask["kernel_gradients"](pull)
        J = J / np.maximum(np.linalg.norm(J, axis=0), 1e-300)
        return {"direction": np.sum(K @ J + self.alpha * R, axis=0) / n, "scalars": scalars.max(axis=1), "similarity": K, "outcome": "converged"}
