"""Sharpness, barriers, leading eigenvalues and determinantal draws, from their cards."""

from __future__ import annotations

import numpy as np

from .solvers import Case, SolverReference, operator, spd
from .solvers_spectra import draws, indefinite, ritz, tridiagonal


def quartic(rng, shape):
    a, b = rng.standard_normal(shape), rng.standard_normal(shape)

    def both(p):
        p = np.asarray(p, np.float64)
        return np.sum(a * p**4 + b * p), 4 * a * p**3 + b
    return lambda: {"value_gradient": both, "value": lambda p: both(p)[0]}


class SharpnessAtRadius(SolverReference):
    name = "sharpness_at_radius"
    defaults = {"rho": 0.05, "steps": 1, "step_size": None, "norm": "l2", "relative": False}
    settings = ({}, {"rho": 0.5, "steps": 5, "step_size": 0.2}, {"norm": "linf", "steps": 3, "rho": 0.3, "step_size": 0.2, "relative": True})
    limit32 = 2e-3

    def cases(self, rng):
        w = rng.standard_normal((3, 2))
        flat = lambda: {"value_gradient": lambda p: (2.0, 0 * p), "value": lambda p: 2.0}  # noqa: E731
        return [Case({"w": w}, quartic(rng, (3, 2))), Case({"w": w[0], "start": rng.standard_normal(2)}, quartic(rng, 2)), Case({"w": w[:, 0]}, flat)]

    def solve(self, inputs, ask):
        w, length = inputs["w"], self.step_size or self.rho

        def back(e):
            if self.norm == "linf":
                return np.clip(e, -self.rho, self.rho)
            return e * min(1, self.rho / max(np.linalg.norm(e), 1e-300))

        e = back(inputs["start"]) if "start" in inputs else 0 * w
        met = [(ask["value_gradient"](w)[0], 0 * w)]
        for k in range(self.steps):
            value, g = ask["value_gradient"](w + e)
            met.append((value, e))
            size = np.linalg.norm(g)
            e = back(e + length * (np.sign(g) if self.norm == "linf" else g / size if size else 0))
        met.append((ask["value"](w + e), e))
        k = int(np.argmax([v for v, _ in met]))
        rise = met[k][0] - met[0][0]
        return {"sharpness": 100 * rise / (1 + met[0][0]) if self.relative else rise, "loss": met[0][0], "worst": met[k][0],
                "perturbation": met[k][1], "iterations": self.steps, "outcome": "converged"}


class SAMSharpness(SolverReference):
    name = "sam_sharpness"
    defaults = {"rho": 0.05, "eps": 1e-12}
    settings = ({}, {"rho": 0.7, "eps": 0.1})
    limit32 = 2e-3

    def cases(self, rng):
        flat = lambda: {"value_gradient": lambda p: (2.0, 0 * p), "value": lambda p: 2.0}  # noqa: E731
        return [Case({"w": rng.standard_normal((3, 2))}, quartic(rng, (3, 2))), Case({"w": np.ones(2)}, flat)]

    def solve(self, inputs, ask):
        value, g = ask["value_gradient"](inputs["w"])
        size = np.linalg.norm(g)
        rise = ask["value"](inputs["w"] + self.rho * g / (size + self.eps)) - value if size else 0.0
        return {"sharpness": rise, "loss": value, "gradient_norm": size, "outcome": "converged"}


class LossBarrier(SolverReference):
    name = "loss_barrier"
    defaults = {"points": 11}
    settings = ({}, {"points": 2}, {"points": 4})
    limit32 = 2e-3

    def cases(self, rng):
        well = lambda: {"value": lambda p: float(np.sum((np.asarray(p) ** 2 - 1) ** 2))}  # noqa: E731
        gap = lambda: {"value": lambda p: np.nan if abs(p[0]) < 0.5 else 1.0}  # noqa: E731
        return [Case({"w1": rng.standard_normal((3, 2)), "w2": rng.standard_normal((3, 2))}, quartic(rng, (3, 2))),
                Case({"w1": -np.ones(3), "w2": 1.5 * np.ones(3)}, well), Case({"w1": -np.ones(1), "w2": np.ones(1)}, gap)]

    def solve(self, inputs, ask):
        t = np.arange(self.points) / (self.points - 1)
        losses = np.array([ask["value"]((1 - s) * inputs["w1"] + s * inputs["w2"]) for s in t])
        rise = losses - ((1 - t) * losses[0] + t * losses[-1])
        rise[[0, -1]] = 0
        k = int(np.argmax(rise))  # the first NaN, if any; the last one counts
        if np.isnan(rise).any():
            k = int(np.nonzero(np.isnan(rise))[0][-1])
        return {"barrier": rise[k], "position": t[k] if rise[k] != 0 else 0.0, "losses": losses, "outcome": "converged"}


class HessianMaxEig(SolverReference):
    name = "hessian_max_eig"
    defaults = {"iters": 100, "tol": 1e-6, "seed": 0}
    settings = ({"tol": 1e-10, "iters": 300}, {"iters": 3, "seed": 4})
    limit = 1e-8
    limit32 = 5e-3

    def cases(self, rng):
        a = indefinite(rng)
        return [Case({"like": np.zeros(10)}, operator(a)), Case({"start": rng.standard_normal((2, 5))}, operator(a)),
                Case({"start": np.ones(4)}, operator(np.zeros((4, 4))))]

    def solve(self, inputs, ask):
        v = inputs["start"] if "start" in inputs else draws(self.seed, 0, inputs["like"].size, False).reshape(inputs["like"].shape)
        v, last = v / np.linalg.norm(v), np.nan
        for k in range(1, self.iters + 1):
            y = ask["product"](v)
            value, size = np.sum(v * y), np.linalg.norm(y)
            settled = abs(value - last) <= self.tol * max(1, abs(value)) or size == 0
            if settled or k == self.iters:
                return {"eigenvalue": value, "vector": v, "residual": np.linalg.norm(y - value * v), "iterations": k,
                        "outcome": "converged" if settled else "max_iter"}
            last, v = value, y / size


class LanczosLRMomentum(SolverReference):
    name = "lanczos_lr_momentum"
    defaults = {"steps": 10, "floor": 0.0, "tol": 1e-12}
    settings = ({}, {"steps": 4, "floor": 0.5})
    limit = 1e-9
    limit32 = 5e-3

    def cases(self, rng):
        a = spd(rng, 10) - 3.3 * np.eye(10)
        before = {"lr0": 0.1, "momentum0": 0.8}
        return [Case({"start": rng.standard_normal(10), **before}, operator(a)), Case({"start": rng.standard_normal((2, 5))}, operator(a @ a)),
                Case({"start": np.arange(1.0, 4), **before}, operator(-np.eye(3)))]

    def solve(self, inputs, ask):
        alpha, beta, _ = tridiagonal(ask, inputs["start"], min(self.steps, inputs["start"].size), self.tol)
        values = ritz(alpha, beta)[0]
        values = np.sqrt(values[values > self.floor])
        out = {"lr": inputs.get("lr0", np.nan), "momentum": inputs.get("momentum0", np.nan), "rank": len(alpha), "outcome": "converged"}
        if len(values):
            top, low = values[-1], values[0]
            out |= {"lr": 4 / (top + low) ** 2, "momentum": ((top - low) / (top + low)) ** 2, "highest": top**2, "lowest": low**2}
        return out


class ProjectionDPP(SolverReference):
    """The chain rule with conditional probabilities from Schur complements of the kernel, never from a basis."""

    name = "projection_dpp"

    def cases(self, rng):
        out = []
        for n, m in ((1, 1), (8, 3), (40, 5), (4, 4)):
            out.append(Case({"u": np.linalg.qr(rng.standard_normal((n, m)))[0], "draws": rng.random(m)}, dict))
        return out

    def solve(self, inputs, ask):
        u, k = inputs["u"], inputs["u"] @ inputs["u"].T
        m, chosen = u.shape[1], []
        for draw in inputs["draws"]:
            rest = np.diag(k).copy()
            if chosen:
                rest = rest - np.sum(k[:, chosen] * np.linalg.solve(k[np.ix_(chosen, chosen)], k[chosen]).T, 1)
                rest[chosen] = 0
            chosen.append(int(np.searchsorted(np.cumsum(np.maximum(rest, 0)), draw * (m - len(chosen)), side="right")))
        return {"indices": chosen, "weights": m / np.sum(u[chosen] ** 2, 1), "outcome": "converged"}


class MPAD(SolverReference):
    """All pairs at once (Fu, Zhao, 2025; arXiv 2504.16335)."""

    name = "mpad"
    defaults = {"b": 20.0, "alpha": 1.0, "lr": 0.1, "iters": 200}
    settings = ({"iters": 12}, {"b": 60.0, "alpha": 3.0, "iters": 5, "lr": 0.3}, {"iters": 1})
    limit32 = 0.05  # which pairs count falls otherwise in float32

    def cases(self, rng):
        return [Case({"x": rng.standard_normal((n, d)), "start": rng.standard_normal((m, d))}, dict) for n, d, m in ((2, 1, 1), (9, 4, 2), (20, 3, 3))]

    def solve(self, inputs, ask):
        x = inputs["x"]
        i, j = np.triu_indices(len(x), 1)
        pairs, count = x[i] - x[j], max(1, int(self.b / 100 * len(i)))
        found, values = [], []
        for w in inputs["start"]:
            w, best = w / np.linalg.norm(w), (-np.inf, None)
            for step in range(self.iters + 1):
                p = pairs @ w
                near = np.argsort(np.abs(p), kind="stable")[:count]
                value = np.mean(np.abs(p[near])) - self.alpha * sum((f @ w) ** 2 for f in found)
                if value > best[0]:
                    best = (value, w)
                g = np.sign(p[near]) @ pairs[near] / count - 2 * self.alpha * sum(((f @ w) * f for f in found), 0 * w)
                w = w + self.lr * (g - (g @ w) * w)
                w = w / np.linalg.norm(w)
            found.append(best[1])
            values.append(best[0])
        return {"directions": np.stack(found), "utilities": values, "outcome": "converged"}
