"""Solvers from their cards: bilevel problems and multipliers.

The bilevel problem is quadratic: g(x, y) = y'Hy/2 + y'Bx - c'y, F(x, y) = |y - t|^2/2 + 0.05 |x|^2 + x'Ey."""

from __future__ import annotations

import math

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference, spd


class Quadratic:
    def __init__(self, rng, p=3, n=5):
        self.H, self.B, self.E = spd(rng, n, 4.0), 0.5 * rng.standard_normal((n, p)), 0.1 * rng.standard_normal((p, n))
        self.c, self.t = rng.standard_normal(n), rng.standard_normal(n)

    def upper(self, x, y):
        return 0.5 * np.sum((y - self.t) ** 2) + 0.05 * x @ x + x @ self.E @ y, 0.1 * x + self.E @ y, y - self.t + self.E.T @ x

    def lower(self, x, y):
        return self.B.T @ y, self.H @ y + self.B @ x - self.c

    def best(self, x):
        return np.linalg.solve(self.H, self.c - self.B @ x)

    def hypergradient(self, x):
        _, fx, fy = self.upper(x, self.best(x))
        return fx - self.B.T @ np.linalg.solve(self.H, fy)

    def functions(self):
        return {
            "upper": self.upper, "upper_gradient": lambda x, y: self.upper(x, y)[1:], "lower_gradient": self.lower,
            "lower_value": lambda x, y: 0.5 * y @ self.H @ y + y @ (self.B @ x - self.c), "lower_hvp": lambda x, y, v: self.H @ v, "lower_mixed": lambda x, y, v: self.B.T @ v,
            "upper_hvp": lambda x, y, v: v, "upper_mixed": lambda x, y, v: self.E @ v,
            # not quite the minimiser, within the tolerance
            "solve_lower": lambda x, y, tol: self.best(x) + 0.2 * tol * np.cos(np.arange(5.0)),
        }


class Bilevel(SolverReference):
    def cases(self, rng):
        q = Quadratic(rng)
        return [Case({"x0": rng.standard_normal(3), "y0": rng.standard_normal(5)}, q.functions)]


def conjugate(product, b, x, tol, limit):
    """cg from x to |r| <= tol: the solution, products, |r|; None as solution where the curvature is not positive."""
    r, k, p = b - product(x), 0, None
    while np.linalg.norm(r) > tol and k < limit:
        new = r @ r
        p = r if p is None else r + new / rz * p  # noqa: F821
        rz, q = new, product(p)
        if p @ q <= 0:
            return None, k, np.linalg.norm(r)
        x, r, k = x + rz / (p @ q) * p, r - rz / (p @ q) * q, k + 1
    return x, k, np.linalg.norm(r)


class IFTHypergradient(SolverReference):
    name = "ift_hypergradient"
    defaults = {"solver": "neumann", "alpha": 0.1, "terms": 20, "rtol": 1e-8, "max_iter": None, "damping": 0.0}
    settings = ({}, {"alpha": 0.3, "terms": 4, "damping": 0.2}, {"solver": "identity", "alpha": 0.7}, {"terms": 0},
                {"solver": "cg", "damping": 0.1}, {"solver": "cg", "max_iter": 2}, {"alpha": 5.0})

    def cases(self, rng):
        q = Quadratic(rng)
        x = rng.standard_normal(3)
        return [Case({"x": x, "y": q.best(x)}, q.functions), Case({"x": x, "y": q.best(x), "q0": rng.standard_normal(5)}, q.functions)]

    def solve(self, inputs, ask):
        x, y = inputs["x"], inputs["y"]
        fx, fy = ask["upper_gradient"](x, y)
        apply = lambda v: ask["lower_hvp"](x, y, v) + self.damping * v  # noqa: E731
        outcome, k = "converged", 0
        if self.solver == "cg":
            limit = len(fy) if self.max_iter is None else self.max_iter
            tol = self.rtol * np.linalg.norm(fy)
            q, k, left = conjugate(apply, fy, inputs.get("q0", 0 * fy), tol, limit)
            outcome = "converged" if left <= tol else "max_iter"
        else:
            v, q = fy.copy(), self.alpha * fy
            for _ in range(0 if self.solver == "identity" else self.terms):
                v = v - self.alpha * apply(v)
                q, k = q + self.alpha * v, k + 1
                if np.linalg.norm(v) > 1e3 * np.linalg.norm(fy):
                    return {"q": q, "iterations": k, "outcome": "diverged"}
        return {"q": q, "hypergradient": fx - ask["lower_mixed"](x, y, q), "iterations": k, "outcome": outcome}


class HOAG(Bilevel):
    name = "hoag"
    defaults = {"max_iter": 100, "tol_init": 1e-3, "decrease": "exponential", "factor": 0.9, "tol_min": 1e-12, "C": 0.25, "M": 1.0,
                "lipschitz": None, "shrink": 0.95, "inflate": 1.0, "lower": None, "upper": None, "gtol": 0.0}
    settings = ({"max_iter": 12}, {"decrease": "quadratic", "max_iter": 9, "lipschitz": 0.05}, {"decrease": "cubic", "max_iter": 6, "inflate": 1.2},
                {"decrease": "exact", "max_iter": 60, "gtol": 1e-5}, {"max_iter": 6, "lower": -0.2, "upper": 0.3})
    limit = 1e-8
    limit32 = 2e-2

    def solve(self, inputs, ask):
        x, y, q = inputs["x0"].copy(), inputs["y0"].copy(), np.zeros_like(inputs["y0"])
        eps, L, past = self.tol_min if self.decrease == "exact" else self.tol_init, None, None
        for k in range(1, self.max_iter + 1):
            y = ask["solve_lower"](x, y, eps)
            F, fx, fy = ask["upper"](x, y)
            if past is not None:
                px, py, pF, peps = past
                D = np.linalg.norm(x - px)
                if F <= pF + self.C * eps + peps * (self.C + self.M) * D - self.M * L * D * D:
                    L *= self.shrink
                elif F - pF >= 0.2 * abs(pF):
                    x, y, L, eps = px, py, 2 * L, max(eps / 2, self.tol_min)
                    F, fx, fy = ask["upper"](x, y)
                else:
                    L *= self.inflate
            q, _, _ = conjugate(lambda v: ask["lower_hvp"](x, y, v), fy, q, eps * np.linalg.norm(fy), 10 * len(fy))
            g = fx - ask["lower_mixed"](x, y, q)
            size = np.linalg.norm(g)
            if L is None:
                L = self.lipschitz or (size / np.sqrt(len(x)) if size > 1e-3 else 1.0)
            if 0 < self.gtol and size <= self.gtol:
                return {"x": x, "y": y, "value": F, "residual": size, "curvature": L, "iterations": k - 1, "outcome": "converged"}
            past = (x, y, F, eps)
            x = np.clip(x - g / L, -np.inf if self.lower is None else self.lower, np.inf if self.upper is None else self.upper)
            new = {"exponential": eps * self.factor, "quadratic": self.tol_init / (k + 1) ** 2, "cubic": self.tol_init / (k + 1) ** 3,
                   "exact": self.tol_min}[self.decrease]
            eps = max(min(new, eps), self.tol_min)
        return {"x": x, "y": y, "q": q, "value": F, "residual": size, "curvature": L, "tolerance": eps, "iterations": self.max_iter,
                "outcome": "max_iter"}


class F2SA(Bilevel):
    name = "f2sa"
    defaults = {"max_iter": 100, "inner": 10, "c_alpha": 0.1, "c_gamma": 0.1, "k0": 1.0, "a": 5 / 7, "c": 4 / 7, "xi": 1.0,
                "lambda0": None, "delta": 0.0}
    settings = ({"max_iter": 20}, {"inner": 2, "lambda0": 2.0, "delta": 0.1, "xi": 0.5, "a": 1 / 3, "c": 0.0, "max_iter": 5}, {"max_iter": 0})

    def solve(self, inputs, ask):
        x, y, z = inputs["x0"].copy(), inputs["y0"].copy(), inputs["y0"].copy()
        for k in range(self.max_iter):
            alpha, gamma = self.c_alpha * (k + self.k0) ** -self.a, self.c_gamma * (k + self.k0) ** -self.c
            lam = gamma / (2 * alpha) if self.lambda0 is None else self.lambda0 + k * self.delta
            for _ in range(self.inner):
                gz, fy, gy = ask["lower_gradient"](x, z)[1], ask["upper_gradient"](x, y)[1], ask["lower_gradient"](x, y)[1]
                z, y = z - gamma * gz, y - alpha * (fy + lam * gy)
            step = ask["upper_gradient"](x, y)[0] + lam * (ask["lower_gradient"](x, y)[0] - ask["lower_gradient"](x, z)[0])
            x = x - self.xi * alpha * step
        return {"x": x, "y": y, "z": z, "iterations": self.max_iter, "outcome": "max_iter"}


class MEHA(Bilevel):
    name = "meha"
    defaults = {"max_iter": 100, "alpha": 0.05, "beta": 0.05, "eta": 0.05, "gamma": 10.0, "c0": 2.0, "p": 0.25, "domain": None, "regularizer": None}
    settings = ({"max_iter": 30}, {"max_iter": 6, "gamma": 0.5, "p": 0.0, "c0": 1.0}, {"max_iter": 4, "gamma": float("inf")},
                {"max_iter": 8, "domain": "l2_ball(0.3)", "regularizer": "l1(0.5)"})

    def project(self, x):
        return x if self.domain is None else x * min(1.0, 0.3 / np.linalg.norm(x))

    def prox(self, y, step):
        return y if self.regularizer is None else np.sign(y) * np.maximum(np.abs(y) - 0.5 * step, 0.0)

    def solve(self, inputs, ask):
        x, y, theta = inputs["x0"].copy(), inputs["y0"].copy(), inputs["y0"].copy()
        for k in range(self.max_iter):
            c = self.c0 * (k + 1) ** self.p
            theta = self.prox(theta - self.eta * (ask["lower_gradient"](x, theta)[1] + (theta - y) / self.gamma), self.eta)
            fx, gx, hx = ask["upper_gradient"](x, y)[0], ask["lower_gradient"](x, y)[0], ask["lower_gradient"](x, theta)[0]
            x = self.project(x - self.alpha * (fx / c + gx - hx))
            fy, gy = ask["upper_gradient"](x, y)[1], ask["lower_gradient"](x, y)[1]
            y = self.prox(y - self.beta * (fy / c + gy - (y - theta) / self.gamma), self.beta)
        return {"x": x, "y": y, "theta": theta, "iterations": self.max_iter, "outcome": "max_iter"}


class SOBA(Bilevel):
    name = "soba"
    defaults = {"max_iter": 100, "lr_in": 0.1, "lr_out": 0.05}
    settings = ({"max_iter": 40}, {"max_iter": 3, "lr_in": 0.2, "lr_out": 0.3})

    def solve(self, inputs, ask):
        x, y, v = inputs["x0"].copy(), inputs["y0"].copy(), np.zeros_like(inputs["y0"])
        for _ in range(self.max_iter):
            (fx, fy), gy = ask["upper_gradient"](x, y), ask["lower_gradient"](x, y)[1]
            hv, m = ask["lower_hvp"](x, y, v), ask["lower_mixed"](x, y, v)
            x, y, v = x - self.lr_out * (fx + m), y - self.lr_in * gy, v - self.lr_in * (hv + fy)
        return {"x": x, "y": y, "v": v, "iterations": self.max_iter, "outcome": "max_iter"}


class BOME(Bilevel):
    name = "bome"
    defaults = {"max_iter": 100, "inner": 10, "lr_y": 0.1, "lr": 0.05, "eta": 0.5, "control": "grad"}
    settings = ({"max_iter": 30}, {"max_iter": 4, "inner": 1, "eta": 2.0}, {"max_iter": 8, "control": "value", "lr_y": 0.15})
    limit = 1e-8

    def solve(self, inputs, ask):
        x, y, lam = inputs["x0"].copy(), inputs["y0"].copy(), 0.0
        for _ in range(self.max_iter):
            yT = y.copy()
            for _ in range(self.inner):
                yT = yT - self.lr_y * ask["lower_gradient"](x, yT)[1]
            (gx, gy), (fx, fy) = ask["lower_gradient"](x, y), ask["upper_gradient"](x, y)
            qx, qy = gx - ask["lower_gradient"](x, yT)[0], gy
            n = qx @ qx + qy @ qy
            gap = n if self.control == "grad" else ask["lower_value"](x, y) - ask["lower_value"](x, yT)
            lam = 0.0 if n < 1e-24 else max((self.eta * gap - fx @ qx - fy @ qy) / (n + 1e-12), 0.0)
            x, y = x - self.lr * (fx + lam * qx), y - self.lr * (fy + lam * qy)
        return {"x": x, "y": y, "lambda": lam, "iterations": self.max_iter, "outcome": "max_iter"}


class Host:
    """min |x - a|^2/2 with x_0 + x_1 <= 1 and x_2 = 0.5: variables that gradient descent moves."""

    def __init__(self, a, rate=0.1, hides=False):
        self.a, self.x, self.rate, self.hides, self.calls = a, np.zeros(3), rate, hides, 0

    def constraints(self):
        self.calls += 1
        c = np.array([self.x[0] + self.x[1] - 1, self.x[2] - 0.5])
        if self.hides and self.calls % 3 == 0:
            c[0] = np.nan
        return c

    def both(self):
        c = self.constraints()
        return c, np.where(np.abs(c) < 0.01, 0.0, c)

    def descend(self, w):
        w = np.asarray(w, np.float64)
        self.x = self.x - self.rate * (self.x - self.a + np.array([w[0], w[0], w[1]]))

    def minimise(self, w):
        self.x = self.a - np.array([w[0], w[0], w[1]])
        return self.constraints()


class Multipliers(SolverReference):
    required = ("inequalities",)
    both = False

    def cases(self, rng):
        def functions(**options):
            def make():
                host = Host(np.array([1.0, 1.5, -0.3]), **options)
                return {"constraints": host.both if self.both else host.constraints, "descend": host.descend, "minimise": host.minimise}
            return make

        cases = [Case({}, functions()), Case({"multipliers0": np.array([0.4, -0.2])}, functions())]
        return cases if self.name == "dual_ascent" else cases + [Case({}, functions(hides=True))]

    def start(self, inputs):
        init = np.where(np.arange(2) < self.inequalities, self.init, 0.0)
        return np.array(inputs.get("multipliers0", init), np.float64)


class PrimalDual(Multipliers):
    name = "primal_dual"
    both = True
    defaults = {"inequalities": None, "equalities": 0, "lr_dual": 1e-2, "init": 0.0, "restart": False, "weight_decay": 0.0,
                "max_multiplier": float("inf"), "order": "dual_first", "max_iter": 1000}
    settings = ({"inequalities": 1, "equalities": 1, "max_iter": 60, "lr_dual": 0.1},
                {"inequalities": 1, "equalities": 1, "max_iter": 40, "order": "primal_first", "restart": True, "init": 2.0, "lr_dual": 0.05},
                {"inequalities": 2, "max_iter": 30, "order": "simultaneous", "weight_decay": 0.1, "max_multiplier": 0.3, "lr_dual": 0.2},
                {"inequalities": 0, "equalities": 2, "max_iter": 0})

    def solve(self, inputs, ask):
        l = self.start(inputs)

        def dual():
            nonlocal l
            values, c = ask["constraints"]()
            new = l + self.lr_dual * (c - self.weight_decay * l)
            first = np.arange(2) < self.inequalities
            new = np.where(first & self.restart & (c < 0), 0.0, new)
            new = np.clip(new, np.where(first, 0.0, -self.max_multiplier), self.max_multiplier)
            l = np.where(np.isnan(c), l, new)
            return ~np.isnan(values)

        for _ in range(self.max_iter):
            if self.order == "primal_first":
                ask["descend"](l)
                dual()
            elif self.order == "simultaneous":
                old = l
                ask["descend"](np.where(dual(), old, 0.0))
            else:
                seen = dual()
                ask["descend"](np.where(seen, l, 0.0))
        return {"multipliers": l, "iterations": self.max_iter, "outcome": "max_iter"}


class AugmentedLagrangian(Multipliers):
    name = "augmented_lagrangian"
    defaults = {"inequalities": None, "equalities": 0, "penalty": 1.0, "growth": 10.0, "shrink": 0.25, "max_penalty": 1e8,
                "max_multiplier": 1e8, "inner_steps": 100, "max_iter": 50, "tol": 0.0, "init": 0.0}
    settings = ({"inequalities": 1, "equalities": 1, "max_iter": 4, "inner_steps": 10},
                {"inequalities": 1, "equalities": 1, "max_iter": 60, "inner_steps": 20, "growth": 1.0, "tol": 1e-4},
                {"inequalities": 2, "max_iter": 3, "inner_steps": 5, "shrink": 0.9, "max_penalty": 3.0, "max_multiplier": 0.2, "init": 0.1},
                {"inequalities": 0, "equalities": 2, "max_iter": 0})

    def solve(self, inputs, ask):
        l, rho, before = self.start(inputs), np.full(2, self.penalty), np.full(2, np.inf)
        first = np.arange(2) < self.inequalities

        def weights(c):
            w = l + rho * c
            return np.where(np.isnan(c), 0.0, np.where(first, np.maximum(w, 0.0), w))

        c = ask["constraints"]() if self.max_iter else None
        for k in range(self.max_iter):
            for _ in range(self.inner_steps):
                ask["descend"](weights(c))
                c = ask["constraints"]()
            v = np.abs(np.where(first, np.maximum(c, -l / rho), c))
            new = np.where(np.isnan(c), l, np.clip(weights(c), -self.max_multiplier, self.max_multiplier))
            moved, l = np.max(np.abs(new - l)), new
            rho = np.where(v > self.shrink * before, np.minimum(self.growth * rho, self.max_penalty), rho)
            before = np.where(np.isnan(c), before, v)
            worst = np.max(np.where(np.isnan(c), 0.0, v))
            if worst <= self.tol and moved <= self.tol:
                return {"multipliers": l, "penalties": rho, "iterations": k + 1, "residual": worst, "outcome": "converged"}
        return {"multipliers": l, "penalties": rho, "iterations": self.max_iter, "outcome": "max_iter"}


class DualAscent(Multipliers):
    name = "dual_ascent"
    defaults = {"inequalities": None, "equalities": 0, "lr": 0.1, "max_iter": 100, "tol": 0.0, "init": 0.0, "output": "last", "seed": 0}
    settings = ({"inequalities": 1, "equalities": 1}, {"inequalities": 2, "max_iter": 5, "lr": 0.3, "tol": 0.5, "init": 1.0},
                {"inequalities": 2, "max_iter": 7, "lr": 0.3, "tol": 0.1, "output": "best_feasible"},
                {"inequalities": 2, "max_iter": 20, "output": "random", "seed": 3})

    def solve(self, inputs, ask):
        l, first, feasible, worst, chosen = self.start(inputs), np.arange(2) < self.inequalities, 0, 0.0, 0
        for k in range(self.max_iter):
            c = ask["minimise"](l)
            worst = max(0.0, np.max(np.where(first, c, np.abs(c))))
            feasible = k + 1 if worst <= self.tol else feasible
            u = 0.5 * math.erfc(-tw.random_normal(self.seed, 0, k, 0, n=1)[0] / math.sqrt(2))
            kept = {"last": True, "best_feasible": not feasible or worst <= self.tol, "random": u < 1 / (k + 1)}[self.output]
            chosen = k + 1 if kept else chosen
            l = np.where(first, np.maximum(0.0, l + self.lr * c), l + self.lr * c)
        return {"multipliers": l, "iterations": self.max_iter, "residual": worst, "feasible": feasible, "chosen": chosen, "outcome": "max_iter"}
