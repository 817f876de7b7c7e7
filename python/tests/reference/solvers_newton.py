"""Newton-like solvers from their cards: lazy Hessians, gradient-regularised steps, Gauss-Newton, filters, polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np

from .solvers import Case, Functions, SolverReference, spd
from .solvers_seeds import CubicSubproblem


class Smooth:
    """mean log(1 + exp(-y a.x)) + mu/2 |x|^2, or any function given by its three derivatives."""

    def __init__(self, rng: np.random.Generator, n: int = 5, m: int = 30, mu: float = 0.05) -> None:
        self.a, self.mu = rng.standard_normal((m, n)) * np.sign(rng.standard_normal(m))[:, None], mu

    def value(self, x: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, -self.a @ x)) + self.mu / 2 * x @ x)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(self.a @ x))
        return -self.a.T @ p / len(self.a) + self.mu * x

    def hessian(self, x: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(self.a @ x))
        return self.a.T @ (self.a * (p * (1 - p))[:, None]) / len(self.a) + self.mu * np.eye(len(x))


class Saddle(Smooth):
    """x^2 - y^2 + y^4."""

    def __init__(self) -> None: ...
    def value(self, x):
        return float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4)

    def gradient(self, x):
        return np.array([2 * x[0], -2 * x[1] + 4 * x[1] ** 3])

    def hessian(self, x):
        return np.diag([2.0, -2 + 12 * x[1] ** 2])


class Scaled(Smooth):
    """A Hessian that is too small: the search has something to do."""

    def hessian(self, x):
        return 0.1 * super().hessian(x)


def functions(f: Smooth) -> Functions:
    wide = lambda g: lambda x: g(np.asarray(x, np.float64))  # noqa: E731
    return {"gradient": wide(f.gradient), "hessian": wide(f.hessian), "value": wide(f.value),
            "value_gradient": wide(lambda x: (f.value(x), f.gradient(x)))}


class Lazy(SolverReference):
    limit32 = 5e-3

    def cases(self, rng):
        f = Smooth(rng)
        return [Case({"x0": x0}, lambda: functions(f)) for x0 in (np.zeros(5), rng.standard_normal(5))]

    def solve(self, inputs, ask):
        x, k, H = np.array(inputs["x0"]), 0, None
        while True:
            g = ask["gradient"](x)
            if k % self.m == 0:
                H = ask["hessian"](x)
            why = self.end(g, H)
            if why or k >= self.max_iter:
                return {"x": x, "iterations": k, "gradient_norm": np.linalg.norm(g), "outcome": why or "max_iter"}
            x, k = x + self.move(g, H), k + 1


class LazyRegularizedNewton(Lazy):
    name = "lazy_regularized_newton"
    defaults = {"M": 1.0, "m": 1, "gtol": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 4}, {"m": 3, "max_iter": 7, "M": 0.3}, {"m": 5, "gtol": 1e-5})

    def cases(self, rng):
        f = Saddle()
        return super().cases(rng) + [Case({"x0": np.array([0.1, 0.05])}, lambda: functions(f))]

    def end(self, g, H):
        if np.linalg.norm(g) <= self.gtol:
            return "converged"
        return "" if np.linalg.eigvalsh(H)[0] + np.sqrt(self.M * np.linalg.norm(g)) > 0 else "negative_curvature"

    def move(self, g, H):
        return -np.linalg.solve(H + np.sqrt(self.M * np.linalg.norm(g)) * np.eye(len(g)), g)

    def solve(self, inputs, ask):
        out = super().solve(inputs, ask)
        # at the limit the curvature is not looked at any more
        return out | {"outcome": "max_iter"} if out["iterations"] >= self.max_iter and out["outcome"] == "negative_curvature" else out


class LazyCubicNewton(Lazy):
    name = "lazy_cubic_newton"
    defaults = {"M": 1.0, "m": 1, "tol": 1e-12, "gtol": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 4}, {"m": 3, "max_iter": 7, "M": 0.3}, {"M": 5.0, "max_iter": 9})
    limit = 1e-8  # a root is found to 1e-12 of its length, again in every step

    def cases(self, rng):
        f = Saddle()
        return super().cases(rng) + [Case({"x0": np.array([0.1, 0.05])}, lambda: functions(f)), Case({"x0": np.zeros(2)}, lambda: functions(f))]

    def end(self, g, H):
        return "converged" if np.linalg.norm(g) <= self.gtol and np.linalg.eigvalsh(H)[0] >= -self.gtol else ""

    def move(self, g, H):
        return CubicSubproblem(M=self.M).solve({"g": g, "hessian": H}, {})["step"]


class GradNormSmooth(SolverReference):
    name = "grad_norm_smooth"
    defaults = {"gamma": 1.0, "gamma_min": 1e-9, "eps": 1e-8, "max_search": 40, "adaptive": True, "gtol": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 5}, {"gamma": 50.0, "max_iter": 6}, {"adaptive": False, "max_iter": 4}, {"max_search": 2, "gamma": 1e4, "max_iter": 3},
                {"gtol": 1e-4})
    limit32 = 5e-3

    def cases(self, rng):
        out = []
        for f in (Smooth(rng), Scaled(rng)):
            out.append(Case({"x0": rng.standard_normal(5)}, lambda f=f: functions(f)))
        g = Saddle()
        return out + [Case({"x0": np.array([0.3, 0.2])}, lambda: functions(g)), Case({"x0": np.zeros(2)}, lambda: functions(g))]

    def solve(self, inputs, ask):
        x, gamma, k, trials = np.array(inputs["x0"]), self.gamma, 0, 0
        f, g = ask["value_gradient"](x)

        def out(why):
            return {"x": x, "iterations": k, "value": f, "gamma": gamma, "trials": trials, "gradient_norm": np.linalg.norm(g), "outcome": why}

        while True:
            if np.linalg.norm(g) <= self.gtol:
                return out("converged")
            if k >= self.max_iter:
                return out("max_iter")
            H = ask["hessian"](x)
            for n in range(1, self.max_search + 1):
                lam = np.linalg.norm(g) / (gamma + self.eps)
                trials += 1
                if np.linalg.eigvalsh(H)[0] + lam <= 0:  # no Cholesky factor
                    if not self.adaptive or n == self.max_search:
                        return out("line_search_failed")
                    gamma /= 2
                    continue
                y = x - np.linalg.solve(H + lam * np.eye(len(x)), g)
                fy, gy = ask["value_gradient"](y)
                if f - fy >= gy @ gy / (8 * lam):
                    gamma = max(2 * gamma, self.gamma_min) if self.adaptive else gamma
                    break
                if not self.adaptive:
                    break
                gamma /= 2
            x, f, g, k = y, fy, gy, k + 1


class EGN(SolverReference):
    name = "egn"
    defaults = {"lr": 1.0, "lam": 1.0, "momentum": 0.0, "curvature": "identity", "line_search": False, "c1": 1e-4, "shrink": 0.5, "max_ls": 20,
                "adaptive": False, "lam_up": 1.5, "lam_down": 0.5, "rho_low": 0.25, "rho_high": 0.75, "lam_min": 1e-12, "lam_max": 1e6,
                "gtol": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 4, "lam": 0.1}, {"momentum": 0.9, "max_iter": 6, "lr": 0.5}, {"curvature": "asked", "max_iter": 5, "lam": 0.1},
                {"line_search": True, "lr": 8.0, "max_iter": 4, "c1": 0.1}, {"adaptive": True, "max_iter": 6, "lam": 2.0},
                {"adaptive": True, "line_search": True, "curvature": "asked", "max_iter": 5, "lr": 3.0}, {"max_iter": 0})
    limit32 = 5e-3

    def cases(self, rng):
        out = []
        for b, c, n in ((4, 2, 11), (9, 1, 3), (5, 3, 4)):
            a, t = rng.standard_normal((b, c, n)), rng.standard_normal((b, c))

            def model(x, a=a, t=t):
                z = np.tanh(a @ np.asarray(x, np.float64))
                p = np.exp(z - z.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                return z, p, t, a

            def made(model=model, c=c):
                asked = self.curvature == "asked"  # cross entropy; else half of the squares

                def jacobian(x):
                    z, p, t, a = model(x)
                    return (p - np.eye(c)[np.argmax(t, 1)] if asked else z - t), (1 - z**2)[:, :, None] * a

                def value(x):
                    z, p, t, _ = model(x)
                    return float(np.mean(-np.log(p[np.arange(len(t)), np.argmax(t, 1)])) if asked else np.mean(np.sum((z - t) ** 2, 1)) / 2)

                return {"jacobian": jacobian, "value": value,
                        "output_hessian": lambda x: np.einsum("bi,ij->bij", model(x)[1], np.eye(c)) - model(x)[1][:, :, None] * model(x)[1][:, None]}

            out.append(Case({"x0": 0.5 * rng.standard_normal(n), "like": np.zeros((b, c))}, made))
        return out

    def solve(self, inputs, ask):
        x, (b, c) = np.array(inputs["x0"]), inputs["like"].shape
        v, d, lam, k, size = 0 * x, 0 * x, self.lam, 0, 0.0
        while True:
            if k >= self.max_iter:
                return {"x": x, "iterations": k, "damping": lam, "direction": d, "gradient_norm": size, "outcome": "max_iter"}
            r, J = ask["jacobian"](x)
            Q = ask["output_hessian"](x) if self.curvature == "asked" else np.broadcast_to(np.eye(c), (b, c, c))
            g = np.einsum("bcn,bc->n", J, r) / b
            size = np.linalg.norm(g)
            if size <= self.gtol:
                return {"x": x, "iterations": k, "damping": lam, "direction": d, "gradient_norm": size, "outcome": "converged"}
            own = -np.linalg.solve(np.einsum("bin,bij,bjm->nm", J, Q, J) / b + lam * np.eye(len(x)), g)
            k += 1
            v = self.momentum * v + (1 - self.momentum) * own
            d, alpha = v / (1 - self.momentum**k), self.lr
            if self.line_search or self.adaptive:
                f, tried = ask["value"](x), 1
                new = ask["value"](x + alpha * d)
                while self.line_search and not new <= f + self.c1 * alpha * g @ d and tried < self.max_ls:
                    alpha, tried = alpha * self.shrink, tried + 1
                    new = ask["value"](x + alpha * d)
                if self.adaptive:
                    Jd = J @ d
                    pred = -(alpha * g @ d + alpha**2 / 2 * np.einsum("bi,bij,bj->", Jd, Q, Jd) / b)
                    if abs(pred) > 1e-14 * abs(f):
                        rho = (f - new) / pred if pred > 0 else -1.0
                        lam *= self.lam_up if rho < self.rho_low else self.lam_down if rho > self.rho_high else 1.0
                        lam = min(max(lam, self.lam_min), self.lam_max)
            x = x + alpha * d


class PolyPrecond(SolverReference):
    name = "poly_precond"
    defaults = {"tau": 2, "mode": "krylov", "L": 1.0, "adaptive": True, "M": None, "gtol": 1e-8, "max_iter": 100}
    settings = ({"max_iter": 3}, {"max_iter": 4, "tau": 1, "adaptive": False, "L": 1.5}, {"mode": "sympoly", "max_iter": 4},
                {"mode": "sympoly", "tau": 0, "max_iter": 3}, {"mode": "sympoly", "tau": 40, "M": 2e5, "max_iter": 3, "L": 0.5},
                {"tau": 0, "L": 0.01, "max_iter": 3})
    limit = 1e-8  # Krylov bases of degree 4 are conditioned like 1e6
    limit32 = 1e-2

    def cases(self, rng):
        B = spd(rng, 5, 30.0)
        shift = rng.standard_normal(5)
        f = {"value_gradient": lambda x: (0.5 * (x - shift) @ (0.7 * B) @ (x - shift) + np.sum(np.cosh(0.3 * np.asarray(x, np.float64))),
                                          0.7 * B @ (x - shift) + 0.3 * np.sinh(0.3 * np.asarray(x, np.float64)))}
        return [Case({"x0": rng.standard_normal(5), "b": B}, lambda: f | {"value": lambda x: f["value_gradient"](x)[0]})]

    def solve(self, inputs, ask):
        from itertools import combinations

        x, B, L, k, trials = np.array(inputs["x0"]), inputs["b"], self.L, 0, 0
        n = len(x)
        tau = min(self.tau, n - 1)
        while True:
            f, g = ask["value_gradient"](x)
            if np.linalg.norm(g) <= self.gtol or k >= self.max_iter:
                return {"x": x, "iterations": k, "trials": trials, "L": L, "gradient_norm": np.linalg.norm(g),
                        "outcome": "converged" if np.linalg.norm(g) <= self.gtol else "max_iter"}
            k += 1
            if self.mode == "sympoly":
                w, V = np.linalg.eigh(B)
                p = np.array([sum(np.prod(c) for c in combinations(np.delete(w, i), tau)) for i in range(n)])
                divisor = self.M or L * np.max(w * p)
                x = x - V @ (p * (V.T @ g)) / divisor
                continue
            K = [g / np.linalg.norm(g)]
            for _ in range(tau):
                K.append(B @ K[-1] / np.linalg.norm(B @ K[-1]))
            K = np.array(K).T
            d = -K @ np.linalg.pinv(K.T @ B @ K, rcond=1e-12) @ (K.T @ g)
            while self.adaptive:
                trials += 1
                bound = f + g @ d / L + d @ B @ d / (2 * L)
                if ask["value"](x + d / L) <= bound + 32 * 2.2e-16 * max(abs(f), abs(bound)):
                    break
                L *= 2
            x = x + d / L
            if self.adaptive:
                L /= 2


class FilteredNewton(SolverReference):
    name = "filtered_newton"
    defaults = {"alpha": 0.9, "beta": 0.2, "c": 0.95, "max_halvings": 5, "jitter": 1e-12, "guard": 1e-6, "gtol": 0.0, "max_iter": 100}
    settings = ({"max_iter": 6}, {"max_iter": 5, "alpha": 0.3, "beta": 2.0, "c": 0.1}, {"max_iter": 4, "max_halvings": 1, "guard": 0.5})
    limit32 = 2e-2

    def cases(self, rng):
        batches = [Smooth(rng, 3, 12, 0.3) for _ in range(8)]

        def made() -> Functions:
            at = {"k": -1}

            def value_gradient(x: Any) -> Any:
                at["k"] += 1
                return functions(batches[at["k"] % 8])["value_gradient"](x)

            return {"value_gradient": value_gradient} | {
                name: lambda x, name=name: functions(batches[at["k"] % 8])[name](x) for name in ("hessian", "value")}

        return [Case({"x0": rng.standard_normal(3)}, made)]

    def solve(self, inputs, ask):
        x, inv, I = np.array(inputs["x0"]), np.linalg.inv, np.eye(len(inputs["x0"]))
        S = self.beta / (1 - self.alpha**2) * I
        mu = sigma = None
        size = 0.0
        for k in range(self.max_iter):
            before, f = ask["value_gradient"](x)
            size, Q = np.linalg.norm(f), ask["hessian"](x)
            if mu is None:
                mu, sigma = f, Q
            else:
                mu, sigma = self.alpha * mu, self.alpha**2 * sigma + self.beta * I
                if np.linalg.eigvalsh(inv(Q) - inv(S))[0] <= self.guard:
                    Q = inv(inv(Q) + inv(S))
                N = inv(sigma) + inv(Q) - inv(S)
                mu, sigma = inv(N) @ (inv(sigma) @ mu + inv(Q) @ f), inv(N)
            d, t = -np.linalg.solve(sigma + self.jitter * I, mu), 1.0
            for _ in range(self.max_halvings - 1):
                if ask["value"](x + t * d) - before <= self.c * t * d @ f:
                    break
                t /= 2
            x = x + t * d
        return {"x": x, "iterations": self.max_iter, "mu": mu, "sigma": sigma, "gradient_norm": size, "outcome": "max_iter"}
