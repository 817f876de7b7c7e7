"""Block coordinate descent, its proximal form, and the one with variance reduction: solvers from their cards."""

from __future__ import annotations

import numpy as np

from .solvers import Case, Functions, SolverReference, spd
from .solvers_composite import soft


class BCD(SolverReference):
    """Block coordinate descent (Nutini, Laradji, Schmidt, 2022; arXiv 1712.08859)."""

    name = "bcd"
    defaults = {"rule": "gsl", "update": "lipschitz", "block": 1, "blocks": "partition", "backtrack": False, "max_iter": 100, "tol": 1e-8,
                "seed": 0, "regularizer": None}
    settings = ({}, {"rule": "gs", "block": 3}, {"rule": "gsd", "block": 2}, {"rule": "gsq", "block": 3, "update": "matrix", "max_iter": 30},
                {"rule": "cyclic", "block": 2, "update": "matrix", "tol": 1e-5}, {"rule": "gsl", "block": 2, "max_iter": 0},
                {"rule": "random", "block": 2, "max_iter": 12}, {"rule": "gs", "block": 2, "update": "newton", "max_iter": 9},
                {"blocks": "variable", "block": 3, "rule": "gs"}, {"blocks": "variable", "block": 2, "rule": "gsl", "max_iter": 20},
                {"blocks": "variable", "block": 3, "rule": "gsd", "update": "matrix", "max_iter": 9},
                {"blocks": "variable", "block": 3, "rule": "gsq", "update": "matrix", "max_iter": 9},
                {"backtrack": True, "block": 2, "max_iter": 20}, {"backtrack": True, "rule": "cyclic", "max_iter": 20})
    limit = 1e-8

    def cases(self, rng):
        H, c = spd(rng, 7), rng.standard_normal(7)
        functions = lambda: {"gradient": lambda x: H @ np.asarray(x, np.float64) - c, "second": lambda x: H + 0.1 * np.diag(np.asarray(x, np.float64) ** 2),  # noqa: E731
                             "value": lambda x: float(np.asarray(x, np.float64) @ (H @ np.asarray(x, np.float64) / 2 - c))}
        x0, prox, L = rng.standard_normal(7), {"regularizer": "l1(0.3)", "update": "lipschitz", "rule": "gsl"}, 1.1 * np.diag(H)
        given = {"x0": x0, "uniforms": rng.uniform(size=20)}
        own = {"lipschitz": L} if self.backtrack else {}  # at the curvature itself rounding decides whether L doubles
        return [Case(given | {"hessian": H} | own, functions), Case(given | {"lipschitz": L}, functions, prox),
                Case(given | {"lipschitz": L}, functions, {**prox, "rule": "cyclic", "blocks": "partition"}),
                Case({"x0": x0}, functions, {"rule": "cyclic", "blocks": "partition", "update": "newton", "backtrack": False, "max_iter": 9}),
                Case({"x0": x0}, functions, {"rule": "gs", "update": "lipschitz", "backtrack": True, "max_iter": 20})]

    def solve(self, inputs, ask):
        x, n, size = inputs["x0"].copy(), len(inputs["x0"]), min(self.block, len(inputs["x0"]))
        H, fixed = inputs.get("hessian"), self.blocks == "partition"
        L = np.array(inputs.get("lipschitz", np.ones(n) if H is None else np.diag(H)))
        run = size if fixed else 1
        blocks = [np.arange(i, min(i + run, n)) for i in range(0, n, run)]
        R = lambda z: 0.3 * np.sum(np.abs(z)) if self.regularizer else 0.0  # noqa: E731
        k, residual = 0, 0.0
        out = lambda why: {"x": x, "iterations": k, "residual": residual, "outcome": why}  # noqa: E731
        end = min(self.max_iter, len(inputs.get("uniforms", range(self.max_iter))) if self.rule == "random" else self.max_iter)

        def step(b, g):
            l = L[b].sum()
            d = soft(x[b] - g[b] / l, 0.3 / l) - x[b] if self.regularizer else -g[b] / l
            return d, l, -(g[b] @ d + l / 2 * d @ d + R(x[b] + d) - R(x[b]))

        while k < end:
            g = ask["gradient"](x)
            residual = np.sqrt(sum(l * d @ d for d, l, _ in (step(b, g) for b in blocks))) if self.regularizer else np.linalg.norm(g)
            if residual <= self.tol:
                return out("converged")
            newton = lambda b: np.linalg.solve(H[np.ix_(b, b)], g[b])  # noqa: E731
            D = L if fixed else np.abs(H).sum(1) if self.rule == "gsd" and H is not None else L
            if self.regularizer:
                scores = [step(b, g)[2] for b in blocks]
            elif self.rule == "gsq" and not fixed:
                d = np.zeros(n)
                for _ in range(10):
                    v = d - (g + H @ d) / np.linalg.eigvalsh(H)[-1]
                    d = np.zeros(n)
                    keep = np.argsort(-np.abs(v), kind="stable")[:size]
                    d[keep] = v[keep]
                scores = list(np.abs(d))
            else:
                scores = [{"gs": lambda: g[b] @ g[b], "gsl": lambda: g[b] @ g[b] / L[b].sum(), "gsd": lambda: np.sum(g[b] ** 2 / D[b]),
                           "gsq": lambda: g[b] @ newton(b), "cyclic": lambda: 0.0, "random": lambda: 0.0}[self.rule]() for b in blocks]
            if fixed:
                i = {"cyclic": lambda: k % len(blocks), "random": lambda: int(inputs["uniforms"][k] * len(blocks))}.get(self.rule, lambda: int(np.argmax(scores)))()
                b = blocks[i]
            else:
                b = np.sort(np.argsort(-np.array(scores), kind="stable")[:size])
            if self.update == "matrix" and not self.regularizer:
                x[b] -= newton(b)
            elif self.update == "newton" and not self.regularizer:
                A = ask["second"](x) if H is None else H
                d, t, f = -np.linalg.solve(A[np.ix_(b, b)], g[b]), 1.0, ask["value"](x)
                while True:
                    y = x.copy()
                    y[b] += t * d
                    if ask["value"](y) <= f + 1e-4 * t * g[b] @ d:
                        break
                    t /= 2
                x = y
            else:
                while True:
                    y, (d, l, _) = x.copy(), step(b, g)
                    y[b] += d
                    new, old = ask["value"](y), ask["value"](x)
                    if not self.backtrack or new <= old + g[b] @ d + l / 2 * d @ d + 2**-47 * max(abs(new), abs(old)):
                        break
                    L[b] *= 2
                x = y
            k += 1
        return out("max_iter")


def rank_two(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of rank one, and the two factors to start with in one vector."""
    return np.outer(rng.standard_normal(4), rng.standard_normal(4)), rng.standard_normal(8)


class BCDProx(SolverReference):
    """Gauss-Seidel with a proximal term (Kwon, Lyu, 2023; arXiv 2306.02420)."""

    name = "bcd_prox"
    defaults = {"lam": 1.0, "radius": None, "block": 1, "max_iter": 50, "tol": 0.0}
    settings = ({"block": 4}, {"block": 4, "lam": 0.1, "tol": 1e-6, "max_iter": 400}, {"block": 4, "radius": 0.2, "max_iter": 12})

    def cases(self, rng):
        Y, x0 = rank_two(rng)

        def solve(point, lam, first, length):
            """|Y - u v'|^2/2 in one factor, the other held."""
            x = np.asarray(point, np.float64)
            u, v = x[:4], x[4:]
            out = np.zeros(8)
            if first == 0:
                out[:4] = (Y @ v + lam * u) / (v @ v + lam)
            else:
                out[4:] = (Y.T @ u + lam * v) / (u @ u + lam)
            return out

        return [Case({"x0": x0}, lambda: {"solve": solve})]

    def solve(self, inputs, ask):
        x, k = inputs["x0"].copy(), 0
        blocks = [(i, min(self.block, len(x) - i)) for i in range(0, len(x), self.block)]
        move = 0.0
        while k < self.max_iter:
            move = 0.0
            for first, length in blocks:
                at = slice(first, first + length)
                d = ask["solve"](x, self.lam, first, length)[at] - x[at]
                cap = np.inf if self.radius is None else self.radius / (k + 1)
                d = d * min(1.0, cap / np.linalg.norm(d)) if np.any(d) else d
                x[at] += d
                move = max(move, np.linalg.norm(d))
            k += 1
            if move <= self.tol:
                return {"x": x, "iterations": k, "residual": move, "outcome": "converged"}
        return {"x": x, "iterations": k, "residual": move, "outcome": "max_iter"}


class VRCyclicBCD(SolverReference):
    """Cyclic blocks with a recursive gradient estimate (Cai et al., 2023; arXiv 2212.05088)."""

    name = "vr_cyclic_bcd"
    required = ("lr", "p")
    defaults = {"block": 1, "max_iter": 100, "seed": 0, "regularizer": None}
    settings = ({"lr": 0.05, "p": 0.3, "block": 2, "max_iter": 12}, {"lr": 0.05, "p": 1.0, "block": 3}, {"lr": 0.02, "p": 0.5, "max_iter": 9})

    def cases(self, rng):
        A, c = np.stack([spd(rng, 5) for _ in range(6)]), rng.standard_normal(5)

        def functions() -> Functions:
            calls = [0]

            def difference(point, before, first, length):
                calls[0] += 1
                return A[calls[0] % 6] @ (np.asarray(point, np.float64) - np.asarray(before, np.float64))

            return {"large_gradient": lambda point, first, length: A.mean(axis=0) @ np.asarray(point, np.float64) - c, "difference": difference}

        x0 = rng.standard_normal(5)
        return [Case({"x0": x0, "uniforms": rng.uniform(size=12)}, functions), Case({"x0": x0, "uniforms": rng.uniform(size=7)}, functions, {"regularizer": "l1(0.2)"})]

    def solve(self, inputs, ask):
        x, e, n = inputs["x0"].copy(), np.zeros(len(inputs["x0"])), len(inputs["x0"])
        before, start, k, large = x.copy(), x.copy(), 0, 0
        residual, blocks = np.inf, [(i, min(self.block, n - i)) for i in range(0, n, self.block)]
        while k < min(self.max_iter, len(inputs["uniforms"])):
            heads = k == 0 or inputs["uniforms"][k] < self.p
            large += heads
            before, start = start, x.copy()
            for first, length in blocks:
                at = slice(first, first + length)
                if heads:
                    e[at] = ask["large_gradient"](x, first, length)[at]
                else:
                    old = np.concatenate([start[:first], before[first:]])
                    e[at] += ask["difference"](x, old, first, length)[at]
                x[at] = soft(x[at] - self.lr * e[at], self.lr * 0.2) if self.regularizer else x[at] - self.lr * e[at]
            k += 1
            residual = np.linalg.norm(x - start) / self.lr
        return {"x": x, "iterations": k, "large": large, "residual": residual, "outcome": "max_iter"}
