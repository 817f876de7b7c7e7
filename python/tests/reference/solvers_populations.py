"""Solvers that look at losses alone: CMA-ES, consensus methods, the simplex."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference


def draws(seed, k, shape):
    """The library's draws of (seed, 0, k, 0), which its own tests hold."""
    return tw.random_normal(seed, 0, k, 0, n=int(np.prod(shape))).reshape(shape)


def ellipsoid(n, condition=1e3):
    scale = condition ** (np.arange(n) / max(1, n - 1))
    return lambda x: float(np.sum(scale * (x - 0.3) ** 2))


def population(f):
    return lambda: {"losses": lambda points: np.array([f(x) for x in np.asarray(points, np.float64)])}


def spoilt(f):
    """Not finite where the first entry is large."""
    return lambda x: np.nan if x[0] > 0.6 else np.inf if x[0] < -0.9 else f(x)


class CMAES(SolverReference):
    name = "cma_es"
    defaults = {"sigma0": 0.5, "popsize": None, "active": True, "diagonal": False, "lazy": False, "target": None, "max_iter": 1000,
                "seed": 0}
    settings = ({"max_iter": 6}, {"max_iter": 5, "active": False, "seed": 3}, {"max_iter": 6, "diagonal": True, "popsize": 12},
                {"max_iter": 7, "lazy": True, "popsize": 5}, {"max_iter": 40, "target": 0.3}, {"max_iter": 0})
    # every generation divides by roots of eigenvalues, and sums in another order
    limit, limit32 = 1e-8, 5e-2

    def cases(self, rng):
        return [Case({"x0": rng.uniform(-0.5, 0.5, 6)}, population(ellipsoid(6, 10.0))),
                Case({"x0": rng.uniform(-0.5, 0.5, 3)}, population(spoilt(ellipsoid(3, 5.0)))),
                Case({"x0": np.array([0.8])}, population(ellipsoid(1)))]

    def solve(self, inputs, ask):
        m, n = inputs["x0"].copy(), len(inputs["x0"])
        lam = self.popsize or 4 + int(3 * np.log(n))
        mu = lam // 2
        raw = np.log((lam + 1) / 2) - np.log(np.arange(1, lam + 1))
        eff = lambda w: w.sum() ** 2 / np.sum(w**2)  # noqa: E731
        mueff, minus = eff(raw[:mu]), eff(raw[mu:])
        cc, cs = (4 + mueff / n) / (n + 4 + 2 * mueff / n), (mueff + 2) / (n + mueff + 5)
        c1 = 2 / ((n + 1.3) ** 2 + mueff)
        cmu = min(1 - c1, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))
        if self.diagonal:
            c1 = min(1, c1 * (n + 2) / 3)
            cmu = min(1 - c1, cmu * (n + 2) / 3)
        ds = 1 + 2 * max(0, np.sqrt((mueff - 1) / (n + 1)) - 1) + cs
        chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        w = np.where(np.arange(lam) < mu, raw / raw[:mu].sum(), 0.0)
        if self.active:
            negative = np.minimum(raw, 0) * (np.arange(lam) >= mu)
            w += negative / np.abs(negative.sum()) * min(1 + c1 / cmu, 1 + 2 * minus / (mueff + 2), (1 - c1 - cmu) / (n * cmu))
        C, ps, pc, sigma, g, best, value, fresh = np.eye(n), np.zeros(n), np.zeros(n), self.sigma0, 0, m.copy(), np.inf, None
        wait = max(1, np.floor(1 / (10 * n * (c1 + cmu)))) if self.lazy else 1
        while True:
            why = None
            if g >= self.max_iter:
                why = "max_iter"
            else:
                if fresh is None or g - fresh >= wait:
                    values, B = np.linalg.eigh(C)
                    values, fresh = np.maximum(values, 1e-300), g
                    root, inverse = B @ np.diag(values**0.5) @ B.T, B @ np.diag(values**-0.5) @ B.T
                if sigma * np.sqrt(values[-1]) < 1e-11 or values[-1] / values[0] > 1e14:
                    why = "converged"
            if why is None and g and self.target is not None and value <= self.target:
                why = "converged"
            if why:
                return {"x": m, "best": best, "value": value, "sigma": sigma, "covariance": np.diag(C)[None] if self.diagonal else C,
                        "iterations": g, "outcome": why}
            Y = draws(self.seed, g, (lam, n)) @ root
            losses = ask["losses"](m + sigma * Y)
            order = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")
            if losses[order[0]] < value:
                value, best = losses[order[0]], m + sigma * Y[order[0]]
            yw = w[:mu] @ Y[order[:mu]]
            m = m + sigma * yw
            ps = (1 - cs) * ps + np.sqrt(cs * (2 - cs) * mueff) * inverse @ yw
            h = float(np.linalg.norm(ps) / np.sqrt(1 - (1 - cs) ** (2 * (g + 1))) < (1.4 + 2 / (n + 1)) * chi)
            pc = (1 - cc) * pc + h * np.sqrt(cc * (2 - cc) * mueff) * yw
            new = (1 + c1 * (1 - h) * cc * (2 - cc) - c1 - cmu * w.sum()) * C + c1 * np.outer(pc, pc)
            for weight, i in zip(w, order):
                scale = n / np.sum((inverse @ Y[i]) ** 2) if weight < 0 else 1.0
                new = new + cmu * weight * scale * np.outer(Y[i], Y[i])
            C = np.diag(np.diag(new)) if self.diagonal else new
            sigma *= np.exp(min(1, cs / ds * (np.linalg.norm(ps) / chi - 1)))
            g += 1
            if self.target is not None and value <= self.target and g >= self.max_iter:
                return {"x": m, "best": best, "value": value, "iterations": g, "outcome": "converged"}


def consensus(points, losses, alpha):
    fine = np.isfinite(losses)
    w = np.where(fine, np.exp(-alpha * (np.where(fine, losses, 0) - losses[fine].min())), 0)
    return w @ points / w.sum()


class CBO(SolverReference):
    name = "cbo"
    defaults = {"dt": 0.1, "lam": 1.0, "sigma": 1.0, "alpha": 100.0, "noise": "anisotropic", "tol": 0.0, "max_iter": 100, "seed": 0}
    settings = ({"max_iter": 10, "alpha": 5.0}, {"max_iter": 8, "noise": "isotropic", "sigma": 0.3, "alpha": 1.0, "seed": 4},
                {"max_iter": 0}, {"tol": 0.5, "sigma": 0.1, "lam": 2.0, "alpha": 3.0})
    limit32 = 2e-3

    def cases(self, rng):
        f = ellipsoid(3, 4.0)
        return [Case({"points0": rng.uniform(-1, 1, (8, 3))}, population(f)),
                Case({"points0": rng.uniform(-1, 1, (12, 2))}, population(spoilt(ellipsoid(2, 2.0)))),
                Case({"points0": rng.uniform(-1, 1, (1, 2))}, population(ellipsoid(2)))]

    def solve(self, inputs, ask):
        points, k = inputs["points0"].copy(), 0
        while True:
            losses = ask["losses"](points)
            if not np.any(np.isfinite(losses)):
                return {"points": points, "iterations": k, "outcome": "nonfinite"}
            c = consensus(points, losses, self.alpha)
            D = points - c
            spread = np.linalg.norm(D, axis=1).max()
            if spread <= self.tol or k >= self.max_iter:
                return {"x": c, "points": points, "spread": spread, "value": losses[np.isfinite(losses)].min(), "iterations": k,
                        "outcome": "converged" if spread <= self.tol else "max_iter"}
            z = draws(self.seed, k, points.shape)
            size = np.linalg.norm(D, axis=1, keepdims=True) if self.noise == "isotropic" else D
            points = points - self.lam * self.dt * D + self.sigma * np.sqrt(self.dt) * size * z
            k += 1


class ConsensusHopping(SolverReference):
    name = "consensus_hopping"
    defaults = {"particles": 100, "sigma": 0.4, "decay": 1.0, "alpha": 100.0, "max_iter": 100, "seed": 0}
    settings = ({"max_iter": 5, "alpha": 2.0}, {"max_iter": 6, "particles": 7, "decay": 0.8, "alpha": 1.0, "seed": 2}, {"max_iter": 0})
    limit32 = 2e-3

    def cases(self, rng):
        return [Case({"x0": rng.uniform(-1, 1, 3)}, population(ellipsoid(3, 4.0))),
                Case({"x0": rng.uniform(-0.5, 0.5, 2)}, population(spoilt(ellipsoid(2, 2.0))))]

    def solve(self, inputs, ask):
        x = inputs["x0"].copy()
        for k in range(self.max_iter):
            points = x + self.sigma * self.decay**k * draws(self.seed, k, (self.particles, len(x)))
            x = consensus(points, ask["losses"](points), self.alpha)
        return {"x": x, "iterations": self.max_iter, "outcome": "max_iter"}


class NelderMead(SolverReference):
    name = "nelder_mead"
    defaults = {"xatol": 1e-4, "fatol": 1e-4, "max_iter": None, "nonzdelt": 0.05, "zdelt": 0.00025, "adaptive": False}
    settings = ({}, {"max_iter": 15}, {"adaptive": True, "max_iter": 60}, {"xatol": 1e-2, "fatol": 1e-2, "nonzdelt": 0.3}, {"max_iter": 0})
    limit32 = 1e-2

    def cases(self, rng):
        def rosenbrock(x):
            return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

        values = lambda f: lambda: {"point_value": lambda x: f(np.asarray(x, np.float64))}  # noqa: E731
        return [Case({"x0": np.array([-1.2, 1.0])}, values(rosenbrock)), Case({"x0": np.array([0.0, 0.5, -0.3])}, values(ellipsoid(3, 9.0))),
                Case({"x0": np.array([0.4])}, values(lambda x: np.nan if x[0] > 1 else abs(x[0] + 0.2)))]

    def solve(self, inputs, ask):
        x0, n = inputs["x0"], len(inputs["x0"])
        rho, chi, psi, sigma = (1, 1 + 2 / n, 0.75 - 1 / (2 * n), 1 - 1 / n) if self.adaptive else (1, 2, 0.5, 0.5)
        sim, count, k = [x0.copy() for _ in range(n + 1)], 0, 1  # the first simplex is step 1
        for j in range(n):
            sim[j + 1][j] = (1 + self.nonzdelt) * x0[j] if x0[j] != 0 else self.zdelt

        def f(x):
            nonlocal count
            count += 1
            v = ask["point_value"](x)
            return np.inf if np.isnan(v) else v

        values = [f(x) for x in sim]
        while True:
            order = np.argsort(values, kind="stable")
            sim, values = [sim[i] for i in order], [values[i] for i in order]
            done = {"x": sim[0], "value": values[0], "iterations": k, "evaluations": count}
            if k >= (200 * n if self.max_iter is None else self.max_iter):
                return done | {"outcome": "max_iter"}
            if max(np.abs(x - sim[0]).max() for x in sim[1:]) <= self.xatol and max(abs(v - values[0]) for v in values[1:]) <= self.fatol:
                return done | {"outcome": "converged"}
            mean, worst = np.mean(sim[:-1], axis=0), sim[-1]
            at = lambda a: (1 + a) * mean - a * worst  # noqa: E731
            r, shrink = at(rho), False
            fr = f(r)
            if fr < values[0]:
                e = at(rho * chi)
                fe = f(e)
                sim[-1], values[-1] = (e, fe) if fe < fr else (r, fr)
            elif fr < values[-2]:
                sim[-1], values[-1] = r, fr
            else:
                c = at(psi * rho) if fr < values[-1] else at(-psi)
                fc = f(c)
                if fc <= fr if fr < values[-1] else fc < values[-1]:
                    sim[-1], values[-1] = c, fc
                else:
                    shrink = True
            if shrink:
                sim = [sim[0]] + [sim[0] + sigma * (x - sim[0]) for x in sim[1:]]
                values = [values[0]] + [f(x) for x in sim[1:]]
            k += 1
