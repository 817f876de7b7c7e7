"""Solvers built on objectives, from their cards: one neuron, transductive clusters, inversion, charts, selection."""

from __future__ import annotations

import numpy as np

from .losses_other import knn_kl
from .solvers import Case, SolverReference
from .solvers_attribution import uniform

ACTIVATIONS = {"relu": lambda u, s: np.maximum(u, 0), "leaky": lambda u, s: np.where(u >= 0, u, s * u), "identity": lambda u, s: u,
               "sigmoid": lambda u, s: 1 / (1 + np.exp(-u))}


class RobustNeuron(SolverReference):
    """Wang et al., 2023; arXiv 2306.07892."""

    name = "robust_neuron"
    defaults = {"act": "relu", "radius": 10.0, "lr": None, "iters": 200, "slope": 0.01, "tol": 1e-10}
    settings = ({}, {"act": "leaky", "radius": 0.7, "iters": 30}, {"act": "sigmoid", "lr": 0.5, "iters": 20}, {"act": "identity", "iters": 400},
                {"act": "leaky", "slope": 0.3, "tol": 0.05}, {"iters": 1})

    def cases(self, rng):
        x = rng.standard_normal((40, 3))
        y = np.maximum(x @ np.array([1.0, -0.5, 0.3]), 0)
        y[:2] += 3
        return [Case({"x": x, "y": y}, dict), Case({"x": x, "y": y, "w0": rng.standard_normal(3)}, dict),
                Case({"x": np.zeros((2, 2)), "y": np.ones(2)}, dict), Case({"x": x[:1], "y": y[:1]}, dict)]

    def solve(self, inputs, ask):
        x, y = inputs["x"], inputs["y"]
        w, k = np.array(inputs.get("w0", np.zeros(x.shape[1]))), 0
        top = np.linalg.eigvalsh(x.T @ x / len(x))[-1]
        lr = self.lr if self.lr is not None else 1 / top if top > 0 else 1.0
        while True:
            g = np.mean((ACTIVATIONS[self.act](x @ w, self.slope) - y)[:, None] * x, 0)
            size, why = np.linalg.norm(g), "converged"
            if size <= self.tol:
                break
            w, k, why = w - lr * g, k + 1, "max_iter"
            w = w * min(1.0, self.radius / max(np.linalg.norm(w), 1e-300))
            if k == self.iters:
                break
        return {"w": w, "iterations": k, "residual": size, "outcome": why}


class TransductiveClustering(SolverReference):
    """Ziko et al., 2021; arXiv 2106.09516."""

    name = "transductive_clustering"
    required = ("classes",)
    defaults = {"lam": 0.7, "knn": 3, "steps": 20, "inner": 10, "temperature": 1.0}
    settings = ({"classes": 3}, {"classes": 3, "lam": 0.0, "steps": 3}, {"classes": 4, "knn": 1, "temperature": 0.5, "steps": 2, "inner": 1},
                {"classes": 3, "knn": 50, "lam": 0.05, "steps": 5})

    def cases(self, rng):
        k = self.classes
        support, y = rng.standard_normal((2 * k, 3)), np.arange(2 * k) % k
        return [Case({"queries": rng.standard_normal((n, 3)), "support": support, "y": y}, dict) for n in (1, 15)]

    def solve(self, inputs, ask):
        f, s, y = inputs["queries"], inputs["support"], inputs["y"].astype(int)
        n, one = len(f), np.eye(self.classes)[y]
        d = np.sum((f[:, None] - f[None]) ** 2, -1)
        w = np.zeros((n, n))
        for i in range(n):
            near = [j for j in np.argsort(d[i], kind="stable") if j != i][: self.knn]
            w[i, near] = 1
        w, z, objective = np.maximum(w, w.T), np.zeros((n, self.classes)), []
        for _ in range(self.steps):
            theta = (one.T @ s + z.T @ f) / (one.sum(0) + z.sum(0))[:, None]
            a = np.sum((f[:, None] - theta[None]) ** 2, -1) / self.temperature
            for _ in range(self.inner):
                u = -a + self.lam * w @ z
                z = np.exp(u - u.max(1, keepdims=True))
                z = z / z.sum(1, keepdims=True)
            own = np.sum((s - theta[y]) ** 2) / self.temperature
            entropy = np.sum(z * np.log(np.where(z > 0, z, 1.0)))
            objective.append(np.sum(z * a) + own + entropy - self.lam / 2 * np.sum(z * (w @ z)))
        return {"z": z, "prototypes": theta, "labels": z.argmax(1), "objective": objective, "outcome": "converged"}


def onto_l1(x: np.ndarray, radius: float) -> np.ndarray:
    """Duchi et al., 2008, by sorting."""
    if np.sum(np.abs(x)) <= radius:
        return x
    u = np.sort(np.abs(x))[::-1]
    theta = (np.cumsum(u) - radius) / np.arange(1, len(u) + 1)
    return np.sign(x) * np.maximum(np.abs(x) - theta[np.nonzero(u > theta)[0][-1]], 0)


class GradientInversion(SolverReference):
    """Fang et al., 2023; arXiv 2308.04699."""

    name = "gradient_inversion"
    defaults = {"lr": 0.1, "steps": 1000, "radius": None, "stage": 1, "rampdown": 0.75, "rampup": 0.05, "beta1": 0.9, "beta2": 0.999,
                "eps": 1e-8, "sphere": False}
    settings = ({"steps": 40}, {"steps": 30, "radius": 0.5, "lr": 0.3}, {"steps": 25, "radius": 0.0, "rampdown": 1.0, "rampup": 0.5},
                {"steps": 20, "sphere": True, "stage": 2, "beta1": 0.5}, {"steps": 1})
    limit = 1e-8

    def cases(self, rng):
        out = []
        for shape in ((2, 3), (1, 2, 2)):
            goal = rng.standard_normal(shape)
            fun = lambda goal=goal: {"value_gradient": lambda x: (float(np.sum((np.asarray(x, float) - goal) ** 2)), 2 * (x - goal))}  # noqa: E731
            out.append(Case({"x0": rng.standard_normal(shape)}, fun))
        return out

    def solve(self, inputs, ask):
        home = inputs["x0"]
        x, m, v, best, cost = home.copy(), 0 * home, 0 * home, home, np.inf
        radius = 1000.0 * self.stage if self.radius is None else self.radius
        for k in range(self.steps):
            value, g = ask["value_gradient"](x)
            if value < cost:
                best, cost = x.copy(), value
            t = k / self.steps
            lr = self.lr * (0.5 - 0.5 * np.cos(np.pi * min(1, (1 - t) / self.rampdown))) * min(1, t / self.rampup)
            m, v = self.beta1 * m + (1 - self.beta1) * g, self.beta2 * v + (1 - self.beta2) * g * g
            x = x - lr * (m / (1 - self.beta1 ** (k + 1))) / (np.sqrt(v / (1 - self.beta2 ** (k + 1))) + self.eps)
            for i in range(len(x)):
                if radius > 0:
                    x[i] = home[i] + onto_l1((x[i] - home[i]).ravel(), radius).reshape(x[i].shape)
                if self.sphere:
                    x[i] *= np.linalg.norm(home[i]) / np.linalg.norm(x[i])
        return {"x": x, "best": best, "cost": cost, "iterations": self.steps, "outcome": "converged"}


def charts(rng, k, high, d):
    """Linear charts D(u) = B u + c with their encoders, and a quadratic objective."""
    b, c, goal = rng.standard_normal((k, high, d)), rng.standard_normal((k, high)), rng.standard_normal(high)
    pinv = np.linalg.pinv(b)
    x = b[0] @ rng.standard_normal(d) + c[0]
    u = np.stack([pinv[i] @ (x - c[i]) for i in range(k)])
    decode = lambda i, u: b[int(i)] @ np.asarray(u, float) + c[int(i)]  # noqa: E731
    g = np.stack([b[i].T @ (decode(i, u[i]) - goal) for i in range(k)])
    functions = lambda: {"decode": decode, "project": lambda i, p: decode(i, pinv[int(i)] @ (np.asarray(p, float) - c[int(i)])),  # noqa: E731
                         "value": lambda p: float(0.5 * np.sum((np.asarray(p, float) - goal) ** 2))}
    return {"x0": x, "coordinates": u, "jacobians": b, "gradients": g}, functions


class ChartStep(SolverReference):
    """Alberti et al., 2023; arXiv 2303.15244."""

    name = "chart_step"
    required = ("lr",)
    defaults = {"retraction": "project", "skip": 1e-6, "adaptive": False}
    settings = ({"lr": 0.3}, {"lr": 1.0, "retraction": "chart"}, {"lr": 0.2, "skip": 0.25}, {"lr": 30.0, "adaptive": True},
                {"lr": 0.01, "adaptive": True, "retraction": "chart"}, {"lr": 1e12, "adaptive": True})
    limit = 1e-8

    def cases(self, rng):
        out = []
        for k, high, d in ((1, 4, 2), (3, 5, 2)):
            inputs, functions = charts(rng, k, high, d)
            out.append(Case({**inputs, "weights": np.array([0.7, 0.2, 1e-9])[:k]}, functions))
        return out

    def solve(self, inputs, ask):
        x, j, g, w, u = (inputs[name] for name in ("x0", "jacobians", "gradients", "weights", "coordinates"))
        kept = [k for k in range(len(w)) if w[k] >= self.skip]

        def step(lr):
            total = 0
            for k in kept:
                r = np.linalg.solve(j[k].T @ j[k], g[k])
                p = ask["decode"](k, u[k] - lr * r) if self.retraction == "chart" else ask["project"](k, x - lr * j[k] @ r)
                total = total + w[k] * p
            return total / w[kept].sum()

        if not self.adaptive:
            return {"x": step(self.lr), "lr": self.lr, "iterations": 1, "outcome": "converged"}
        lr, before = self.lr, ask["value"](x)
        for tries in range(1, 21):
            p = step(lr)
            if ask["value"](p) <= 1.001 * before:
                return {"x": p, "lr": 1.5 * lr, "iterations": tries, "outcome": "converged"}
            lr /= 2
        return {"x": x, "lr": lr, "iterations": 20, "outcome": "line_search_failed"}


class GIOSelect(SolverReference):
    """Everaert, Potts, 2023; arXiv 2306.11670."""

    name = "gio_select"
    defaults = {"k": 5, "k_xy": None, "lr": 0.01, "inner": 50, "warm": 3, "start": 20, "size": None, "min_kl": None, "increases": 0, "seed": 0}
    # few steps: a long descent meets poles at the target rows, which magnify the last bit
    settings = ({"inner": 3}, {"k_xy": 2, "inner": 5}, {"k": 2, "size": 3, "increases": 2, "warm": 1, "inner": 2},
                {"start": 4, "seed": 3, "min_kl": 1.5, "inner": 2, "warm": 1}, {"k_xy": 1, "increases": 100, "inner": 2})
    limit, limit32 = 1e-8, 0.05

    def cases(self, rng):
        x, pool = rng.standard_normal((12, 2)) + 1, np.concatenate([rng.standard_normal((6, 2)) + 1, rng.standard_normal((5, 2)) - 4])
        return [Case({"x": x, "pool": pool}, dict), Case({"x": x, "pool": pool, "w0": rng.standard_normal((3, 2)) - 2}, dict)]

    def solve(self, inputs, ask):
        x, pool = inputs["x"], inputs["pool"]
        w = inputs.get("w0")
        if w is None:
            w = np.array([[2 * uniform(self.seed, r, c) - 1 for c in range(x.shape[1])] for r in range(self.start)])
            w = w / np.linalg.norm(w, axis=1, keepdims=True)
        kl = lambda y: knn_kl(x, y, self.k, self.k_xy)[0]  # noqa: E731
        slope = lambda v: knn_kl(x, np.vstack([w, v]), self.k, self.k_xy)[1][-1]  # noqa: E731
        v = x.mean(0)
        scale = np.linalg.norm(v) / max(np.linalg.norm(slope(v)), 1e-12)
        first = last = kl(w)
        rises, chosen, values, steps, bound = 0, [], [], self.inner * self.warm, len(pool) if self.size is None else self.size
        seen, why = np.zeros(x.shape[1]), "converged" if self.size is not None and bound <= len(pool) else "max_iter"
        while len(chosen) < min(bound, len(pool)):
            for _ in range(steps):
                v = v - self.lr * scale * slope(v)
            steps, seen = self.inner, v
            far = np.sum((pool - v) ** 2, 1)
            far[chosen] = np.inf
            row = int(np.argmin(far))
            value = kl(np.vstack([w, pool[row]]))
            if value > last:
                if rises >= self.increases:
                    why = "converged"
                    break
                rises += 1
            chosen.append(row)
            values.append(value)
            w, last = np.vstack([w, pool[row]]), value
            if self.min_kl is not None and value <= self.min_kl:
                why = "converged"
                break
        pad = lambda a: np.concatenate([np.asarray(a, float), np.zeros(len(pool) - len(a))])  # noqa: E731
        return {"indices": pad(chosen), "kl": pad(values), "first": first, "chosen": len(chosen), "v": seen, "outcome": why}
