"""Solvers from their cards: further bilevel methods, splitting, least squares, cuts, segments, pseudo-labels."""

from __future__ import annotations

import itertools

import numpy as np

from .solvers import Case, SolverReference, operator, spd
from .solvers_bilevel import Bilevel, Quadratic, conjugate
from .solvers_first_order import soft
from .solvers_spectra import draws, indefinite


class MAID(Bilevel):
    name = "maid"
    required = ("mu", "l_g")
    defaults = {"mu": None, "l_g": None, "l_inv": 0.0, "l_b": 0.0, "eps0": 0.1, "delta0": 0.1, "alpha0": 0.01, "rho": 0.5, "rho_bar": 1.25,
                "nu": 0.5, "nu_bar": 1.25, "eta": 0.5, "lam": 0.1, "max_bt": 10, "convex": False, "tol": 0.0, "max_iter": 100,
                "max_solves": 10000}
    settings = ({"mu": 1.0, "l_g": 1.0, "max_iter": 15}, {"mu": 1.0, "l_g": 1.0, "alpha0": 5.0, "max_bt": 2, "convex": True, "max_iter": 10},
                {"mu": 1.0, "l_g": 1.0, "tol": 1e-2, "max_iter": 300}, {"mu": 0.5, "l_g": 2.0, "l_inv": 0.1, "l_b": 0.1, "max_solves": 12})
    limit = 1e-8
    limit32 = 2e-2

    def cases(self, rng):
        q = Quadratic(rng)
        functions = lambda: {**q.functions(), "mixed_norm": lambda x, y: np.linalg.norm(q.B, 2),  # noqa: E731
                             "solve_lower": lambda x, y, eps: q.best(x) + 0.99 * eps * np.eye(5)[2]}
        return [Case({"x0": rng.standard_normal(3), "y0": np.zeros(5)}, functions)]

    def solve(self, inputs, ask):
        x, y, q = inputs["x0"].copy(), inputs["y0"].copy(), np.zeros(5)
        eps, delta, alpha, budget, solves, k = self.eps0, self.delta0, self.alpha0, self.max_bt, 0, 0
        out = lambda why: {"x": x, "y": y, "iterations": k, "solves": solves, "alpha": alpha, "accuracy": eps, "outcome": why}  # noqa: E731
        while True:
            if k >= self.max_iter or solves >= self.max_solves:
                return out("max_iter")
            y = ask["solve_lower"](x, y, eps)
            solves += 1
            F, fx, fy = ask["upper"](x, y)
            q, _, _ = conjugate(lambda v: ask["lower_hvp"](x, y, v), fy, q, delta, 50)
            z, B, n = fx - ask["lower_mixed"](x, y, q), ask["mixed_norm"](x, y), np.linalg.norm(fy)
            c = self.l_g * B / self.mu + self.l_inv * n * B + self.l_b * n / self.mu
            omega = c * eps + B / self.mu * delta + self.l_g * self.l_b / self.mu * eps**2
            if np.linalg.norm(z) <= self.tol and omega <= self.tol:
                return out("converged")
            taken = False
            if omega <= (1 - self.eta) * np.linalg.norm(z):
                low = F - n * eps - (0 if self.convex else self.l_g * eps**2 / 2)
                a, far = alpha, self.nu_bar * eps
                for _ in range(budget):
                    if solves >= self.max_solves:
                        return out("max_iter")
                    xn = x - a * z
                    yn = ask["solve_lower"](xn, y, eps)
                    solves += 1
                    Fn, _, gy = ask["upper"](xn, yn)
                    if Fn + np.linalg.norm(gy) * far + self.l_g * far**2 / 2 - low + self.lam * a * z @ z <= 0:
                        x, y, alpha, eps, delta, budget, k, taken = xn, yn, self.rho_bar * a, far, self.nu_bar * delta, self.max_bt, k + 1, True
                        break
                    a *= self.rho
                else:
                    budget += 1
            if not taken:
                eps, delta = self.nu * eps, self.nu * delta


class SLBAMM(Bilevel):
    name = "sl_bamm"
    defaults = {"max_iter": 100, "mu0": 0.5, "p": 10.0, "beta": 0.1, "eta0": 0.1, "alpha0": 0.1, "tau": 0.025, "strategy": "s3"}
    settings = ({"max_iter": 30}, {"strategy": "s1", "max_iter": 5, "tau": 0.1}, {"strategy": "s2", "max_iter": 5})

    def solve(self, inputs, ask):
        x, y, v = inputs["x0"].copy(), inputs["y0"].copy(), np.zeros(5)
        for k in range(1, self.max_iter + 1):
            mu = self.mu0 * k ** (-1 / self.p)
            low, high = {"s1": (2, 7), "s2": (1, 5), "s3": (0, 3)}[self.strategy]
            eta, alpha = k ** (-self.tau / 2) * mu**low, k ** (-3 * self.tau / 2) * mu**high
            (fx, fy), gy = ask["upper_gradient"](x, y), ask["lower_gradient"](x, y)[1]
            hess = mu * ask["upper_hvp"](x, y, v) + (1 - mu) * ask["lower_hvp"](x, y, v)
            mixed = mu * ask["upper_mixed"](x, y, v) + (1 - mu) * ask["lower_mixed"](x, y, v)
            x, y, v = (x - self.alpha0 * alpha * (fx - mixed), y - self.beta * (mu * fy + (1 - mu) * gy), v - self.eta0 * eta * (hess - fy))
        return {"x": x, "y": y, "v": v, "iterations": self.max_iter, "outcome": "max_iter"}


class BOREP(Bilevel):
    name = "bo_rep"
    defaults = {"max_iter": 100, "warm": 50, "period": 2, "inner": 5, "radius": None, "lr_y": 0.1, "lr_z": 0.1, "lr_x": 0.01, "beta": 0.9,
                "eps": 1e-10, "z_first": False}
    settings = ({"max_iter": 30}, {"max_iter": 7, "warm": 0, "period": 3, "inner": 2, "radius": 0.01, "beta": 0.5}, {"max_iter": 0, "warm": 3},
                {"max_iter": 9, "z_first": True, "lr_z": 0.2})

    def solve(self, inputs, ask):
        x, y, z, m = inputs["x0"].copy(), inputs["y0"].copy(), np.zeros(5), np.zeros(3)
        for _ in range(self.warm):
            y = y - self.lr_y * ask["lower_gradient"](x, y)[1]
        for t in range(self.max_iter):
            if t and t % self.period == 0:
                c = y
                for _ in range(self.inner):
                    y = y - self.lr_y * ask["lower_gradient"](x, y)[1]
                    away = np.linalg.norm(y - c)
                    if self.radius is not None and away > self.radius:
                        y = c + self.radius * (y - c) / away
            fx, fy = ask["upper_gradient"](x, y)
            new = z - self.lr_z * (ask["lower_hvp"](x, y, z) - fy)
            e = fx - ask["lower_mixed"](x, y, new if self.z_first else z)
            m = e if t == 0 else self.beta * m + (1 - self.beta) * e
            z = new
            x = x - self.lr_x * m / (np.linalg.norm(m) + self.eps)
        return {"x": x, "y": y, "z": z, "momentum": m, "iterations": self.max_iter, "outcome": "max_iter"}


class DARTSUnrolled(SolverReference):
    name = "darts_unrolled"
    required = ("xi",)
    defaults = {"xi": None, "r": 1e-2, "order": 2, "momentum": 0.0, "weight_decay": 0.0}
    settings = ({"xi": 0.1}, {"xi": 0.2, "momentum": 0.9, "weight_decay": 0.01}, {"xi": 0.1, "order": 1})
    limit = 1e-9
    limit32 = 2e-2

    def cases(self, rng):
        q = Quadratic(rng)
        x, y = rng.standard_normal(3), rng.standard_normal(5)
        return [Case({"x": x, "y": y}, q.functions), Case({"x": x, "y": y, "buffer": rng.standard_normal(5)}, q.functions)]

    def solve(self, inputs, ask):
        x, y = inputs["x"], inputs["y"]
        if self.order == 1:
            return {"hypergradient": ask["upper_gradient"](x, y)[0], "outcome": "converged"}
        step = ask["lower_gradient"](x, y)[1] + self.momentum * inputs.get("buffer", 0 * y) + self.weight_decay * y
        dx, dy = ask["upper_gradient"](x, y - self.xi * step)
        R = self.r / np.linalg.norm(dy)
        plus, minus = (ask["lower_gradient"](x, y + s * R * dy)[0] for s in (1, -1))
        return {"hypergradient": dx - self.xi * (plus - minus) / (2 * R), "outcome": "converged"}


class HutchPP(SolverReference):
    name = "hutchpp_trace"
    defaults = {"probes": 10, "sketch": None, "distribution": "rademacher", "seed": 0}
    settings = ({"probes": 3}, {"probes": 2, "sketch": 5, "distribution": "normal", "seed": 4}, {"sketch": 200})
    limit = 1e-8
    limit32 = 2e-2

    def cases(self, rng):
        return [Case({"like": np.zeros((2, 5))}, operator(indefinite(rng))), Case({"like": np.zeros(4)}, operator(np.diag([1.0, 0, 0, 0])))]

    def solve(self, inputs, ask):
        n, shape = inputs["like"].size, inputs["like"].shape
        k, signs = min(self.sketch or self.probes, n), self.distribution == "rademacher"
        product = lambda v: ask["product"](v.reshape(shape)).ravel()  # noqa: E731
        basis: list[np.ndarray] = []
        for i in range(k):
            w = product(draws(self.seed, i, n, signs))
            size = np.linalg.norm(w)
            for _ in range(2):
                for b in basis:
                    w = w - (b @ w) * b
            if np.linalg.norm(w) > 1e-12 * size:
                basis.append(w / np.linalg.norm(w))
        exact, rest = sum(b @ product(b) for b in basis), []
        for i in range(self.probes):
            u = draws(self.seed, k + i, n, signs)
            for _ in range(2):
                for b in basis:
                    u = u - (b @ u) * b
            rest.append(u @ product(u))
        error = np.std(rest, ddof=1) / np.sqrt(len(rest)) if len(rest) > 1 else 0.0
        return {"trace": exact + np.mean(rest), "exact": exact, "standard_error": error, "outcome": "converged"}


class ADMM(SolverReference):
    name = "admm"
    defaults = {"rho": 1.0, "relax": 1.5, "adapt": True, "max_iter": 100, "tol": 1e-6}
    settings = ({"tol": 1e-4, "max_iter": 300}, {"adapt": False, "max_iter": 12, "relax": 1.0}, {"rho": 100.0, "max_iter": 9}, {"max_iter": 0})

    def cases(self, rng):
        a, b = spd(rng, 6), rng.standard_normal(6)
        functions = lambda: {"prox_f": lambda v, t: np.linalg.solve(np.eye(6) + t * a, v + t * b),  # noqa: E731
                             "prox_g": lambda v, t: soft(v, 0.3 * t)}
        return [Case({"z0": rng.standard_normal(6)}, functions), Case({"z0": np.zeros(6), "u0": rng.standard_normal(6)}, functions)]

    def solve(self, inputs, ask):
        z, u, rho = inputs["z0"].copy(), np.array(inputs.get("u0", np.zeros(6))), self.rho
        x = z
        for k in range(self.max_iter):
            x = ask["prox_f"](z - u, 1 / rho)
            h = self.relax * x + (1 - self.relax) * z
            new = ask["prox_g"](h + u, 1 / rho)
            u = u + h - new
            r, s, z = np.linalg.norm(x - new), rho * np.linalg.norm(new - z), new
            if r <= self.tol * max(1, np.linalg.norm(x), np.linalg.norm(z)) and s <= self.tol * max(1, rho * np.linalg.norm(u)):
                return {"x": x, "z": z, "u": u, "penalty": rho, "iterations": k + 1, "outcome": "converged"}
            if self.adapt and r > 10 * s:
                rho, u = 2 * rho, u / 2
            elif self.adapt and s > 10 * r:
                rho, u = rho / 2, 2 * u
        return {"x": x, "z": z, "u": u, "penalty": rho, "iterations": self.max_iter, "outcome": "max_iter"}


class MirrorProx(SolverReference):
    name = "mirror_prox"
    defaults = {"lr": 0.1, "geometry": "simplex", "p": 1.5, "radius": 1.0, "axis": -1, "ask_project": False, "max_iter": 100}
    settings = ({}, {"axis": 0, "max_iter": 9}, {"geometry": "pnorm", "p": 1.3, "max_iter": 12}, {"geometry": "orthant", "max_iter": 20}, {"geometry": "l2", "lr": 0.2}, {"geometry": "l2", "ask_project": True, "max_iter": 15},
                {"radius": 3.0, "max_iter": 8})

    def cases(self, rng):
        m = rng.standard_normal((4, 4))
        functions = lambda: {"operator": lambda x: (m - m.T) @ x + 0.1 * x, "project": lambda v: np.clip(v, 0.1, 0.4)}  # noqa: E731
        payoff = rng.standard_normal((3, 3))

        def game():
            """The players are the two lines."""
            operator = lambda x: np.stack([payoff @ x[1], -payoff.T @ x[0]])  # noqa: E731
            return {"operator": operator, "project": lambda v: np.clip(v, 0.1, 0.4)}

        return [Case({"x0": np.array([0.1, 0.4, 0.0, 0.5])}, functions), Case({"x0": rng.uniform(0.1, 1, (2, 3))}, game)]

    def solve(self, inputs, ask):
        def link(z, p):
            norm = np.sum(np.abs(z) ** p) ** (1 / p)
            return np.sign(z) * np.abs(z) ** (p - 1) / norm ** (p - 2)

        def P(x, g):
            if self.geometry == "l2":
                v = x - self.lr * g
                return ask["project"](v) if self.ask_project else v
            if self.geometry == "pnorm":
                return link(link(x, self.p) - self.lr * g, self.p / (self.p - 1))
            w = x * np.exp(-self.lr * g)
            return self.radius * w / w.sum(axis=self.axis, keepdims=True) if self.geometry == "simplex" else w

        x = inputs["x0"].copy()
        if self.geometry == "simplex":
            x = self.radius * x / x.sum(axis=self.axis, keepdims=True)
        ys = []
        for _ in range(self.max_iter):
            y = P(x, ask["operator"](x))
            residual = np.linalg.norm(x - y) / self.lr
            x = P(x, ask["operator"](y))
            ys.append(y)
        return {"x": x, "average": np.mean(ys, 0), "iterations": self.max_iter, "residual": residual, "outcome": "max_iter"}


class LevenbergMarquardt(SolverReference):
    name = "levenberg_marquardt"
    defaults = {"tau": 1e-3, "scaling": "marquardt", "gtol": 1e-10, "xtol": 1e-12, "max_iter": 100}
    settings = ({"gtol": 1e-8}, {"scaling": "identity", "gtol": 1e-8}, {"max_iter": 3}, {"tau": 10.0, "max_iter": 8}, {"xtol": 1e-2})
    limit = 1e-6
    limit32 = 5e-2

    def cases(self, rng):
        rosenbrock = lambda x: np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # noqa: E731
        derivative = lambda x: np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])  # noqa: E731
        t = np.linspace(0, 2, 15)
        data = 2 * np.exp(-1.3 * t) + 0.05 * rng.standard_normal(15)
        fit = lambda x: x[0] * np.exp(-x[1] * t) - data if abs(x[1]) < 50 else np.full(15, np.nan)  # noqa: E731
        slope = lambda x: np.stack([np.exp(-x[1] * t), -x[0] * t * np.exp(-x[1] * t), 0 * t], 1)  # noqa: E731
        return [Case({"x0": np.array([-1.2, 1.0]), "r0": rosenbrock([-1.2, 1.0])}, lambda: {"residual": rosenbrock, "jacobian": derivative}),
                Case({"x0": np.array([1.0, 0.2, 7.0]), "r0": fit([1.0, 0.2])}, lambda: {"residual": fit, "jacobian": slope})]

    def solve(self, inputs, ask):
        x, r, nu, D, mu, k, refused = inputs["x0"].copy(), inputs["r0"].copy(), 2.0, 0.0, None, 0, 0
        out = lambda why: {"x": x, "value": r @ r / 2, "iterations": k, "refused": refused, "outcome": why}  # noqa: E731
        J = ask["jacobian"](x)
        while True:
            A, g = J.T @ J, J.T @ r
            D = np.maximum(D, np.diag(A)) if self.scaling == "marquardt" else np.ones(len(x))
            if mu is None:
                mu = self.tau * (1 if self.scaling == "marquardt" else np.max(np.diag(A)))
            if np.max(np.abs(g)) <= self.gtol:
                return out("converged")
            S = np.where(D == 0, 1.0, D)
            while True:
                if k >= self.max_iter:
                    return out("max_iter")
                d = -np.linalg.solve(A + mu * np.diag(S), g)
                if np.linalg.norm(d) <= self.xtol * (np.linalg.norm(x) + self.xtol):
                    return out("converged")
                k += 1
                new = ask["residual"](x + d)
                gain = (r @ r - new @ new) / (d @ (mu * S * d - g)) if np.all(np.isfinite(new)) else -1
                if gain > 0:
                    break
                mu, nu, refused = mu * nu, 2 * nu, refused + 1
            x, r, mu, nu = x + d, new, mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
            J = ask["jacobian"](x)


class Ellipsoid(SolverReference):
    name = "ellipsoid"
    required = ("radius",)
    defaults = {"radius": None, "max_iter": 100, "tol": 0.0}
    settings = ({"radius": 4.0}, {"radius": 4.0, "max_iter": 1000, "tol": 1e-3}, {"radius": 2.0, "max_iter": 0})
    limit = 1e-8
    limit32 = 5e-2

    def cases(self, rng):
        t = rng.standard_normal(3)
        line = lambda x: (abs(x[0] - 0.3), np.array([np.sign(x[0] - 0.3)]))  # noqa: E731
        return [Case({"center": np.zeros(3)}, lambda: {"subgradient": lambda x: (np.sum(np.abs(x - t)), np.sign(x - t))}),
                Case({"center": np.zeros(1)}, lambda: {"subgradient": line})]

    def solve(self, inputs, ask):
        c, n = inputs["center"].copy(), len(inputs["center"])
        H, best, value, k = self.radius**2 * np.eye(n), c, np.inf, 0
        while True:
            f, g = ask["subgradient"](c)
            if f < value:
                best, value = c, f
            v = H @ g
            s = np.sqrt(max(0.0, g @ v))
            if s <= self.tol or k >= self.max_iter:
                return {"x": best, "value": value, "residual": s, "iterations": k, "outcome": "converged" if s <= self.tol else "max_iter"}
            k += 1
            c = c - v / ((n + 1) * s)
            H = H / 4 if n == 1 else n**2 / (n**2 - 1) * (H - 2 / (n + 1) * np.outer(v, v) / s**2)


class SequentialMaxMargin(SolverReference):
    name = "sequential_max_margin"
    defaults = {"margin": 1.0, "max_iter": 1000, "tol": 1e-8}
    settings = ({}, {"margin": 0.3, "max_iter": 3}, {"tol": 1e-3})

    def cases(self, rng):
        x = rng.standard_normal((12, 4))
        x[5] = 0
        y = np.where(x @ [1.0, -1, 2, 0.5] > 0, 1, -1)
        x = x + 0.3 * y[:, None] * np.array([1.0, -1, 2, 0.5]) * (np.arange(12) != 5)[:, None]
        return [Case({"features": x, "labels": y}, dict), Case({"features": x, "labels": y, "w0": rng.standard_normal(4)}, dict)]

    def solve(self, inputs, ask):
        x, y = inputs["features"], inputs["labels"]
        w, lam, k = np.array(inputs.get("w0", np.zeros(4))), np.zeros(len(y)), 0
        while True:
            k, change = k + 1, 0.0
            for i in range(len(y)):
                q = x[i] @ x[i]
                if q > 0:
                    d = max((self.margin - y[i] * (x[i] @ w)) / q, -lam[i])
                    lam[i] += d
                    w = w + d * y[i] * x[i]
                    change = max(change, abs(d))
            if change <= self.tol or k >= self.max_iter:
                return {"w": w, "multipliers": lam, "iterations": k, "worst": np.min(y * (x @ w)),
                        "outcome": "converged" if change <= self.tol else "max_iter"}


class Segments(SolverReference):
    """By trying all sets of cuts."""

    def cases(self, rng):
        steps = np.concatenate([np.zeros(4), np.ones(3), np.full(2, 0.2)]) + 0.1 * rng.standard_normal(9)
        return [Case({"y": steps}, dict), Case({"y": rng.standard_normal(8)}, dict), Case({"y": np.full(5, 2.0)}, dict), Case({"y": np.ones(1)}, dict)]

    def fit(self, y):
        raise NotImplementedError

    def solve(self, inputs, ask):
        y, best = inputs["y"], None
        for count in range(len(y)):
            for cuts in itertools.combinations(range(1, len(y)), count):
                parts = [self.fit(p) for p in np.split(y, cuts)]
                cost = sum(c for _, c in parts) + self.nu * count
                if best is None or cost < best[0]:
                    best = (cost, np.concatenate([u for u, _ in parts]), count)
        return {"u": best[1], "value": best[0], "jumps": best[2], "outcome": "converged"}


class Potts1D(Segments):
    name = "potts_1d"
    defaults = {"nu": 0.1}
    settings = ({}, {"nu": 0.5}, {"nu": 1e-3})

    def fit(self, y):
        return np.full(len(y), y.mean()), np.sum((y - y.mean()) ** 2)


class MumfordShah1D(Segments):
    name = "mumford_shah_1d"
    defaults = {"alpha": 1.0, "nu": 0.1}
    settings = ({}, {"alpha": 0.2, "nu": 0.3}, {"alpha": 50.0, "nu": 0.05})

    def fit(self, y):
        d = np.diff(np.eye(len(y)), axis=0)
        u = np.linalg.solve(np.eye(len(y)) + self.alpha * d.T @ d, y)
        return u, np.sum((u - y) ** 2) + self.alpha * np.sum((d @ u) ** 2)
