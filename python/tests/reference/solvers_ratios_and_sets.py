"""Ratios by coordinates, differences of submodular functions, and free discontinuities:
solvers from their cards."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import nnls

from .solvers import Case, SolverReference, spd


class FractionalCD(SolverReference):
    """Ratios by coordinates (Yuan, 2023; arXiv 2201.12691)."""

    name = "fractional_cd"
    defaults = {"mode": "fractional", "theta": 1e-6, "denominator": "norm1", "k": 1, "l1": 0.0, "lo": -np.inf, "hi": np.inf, "max_iter": 100, "tol": 1e-10}
    settings = ({"max_iter": 5}, {"mode": "parametric", "max_iter": 5}, {"denominator": "quadratic", "max_iter": 6},
                {"denominator": "quadratic", "mode": "parametric", "max_iter": 6}, {"denominator": "top_k", "k": 2, "max_iter": 5, "l1": 0.3},
                {"denominator": "top_k", "k": 4, "mode": "parametric", "max_iter": 5}, {"l1": 0.5, "lo": -0.7, "hi": 1.5, "max_iter": 3}, {"max_iter": 0})
    limit = 1e-6
    limit32 = 2e-2

    def cases(self, rng):
        H, A, Q = spd(rng, 4), rng.standard_normal((6, 4)), spd(rng, 4, 3.0)
        coordinate = lambda x, i: (float(np.asarray(x, float) @ H @ np.asarray(x, float) / 2 + 1), float(H[int(i)] @ np.asarray(x, float)))  # noqa: E731
        x0 = rng.uniform(-0.6, 1.4, 4)
        return [Case({"x0": x0, "curvature": np.diag(H).copy(), "a": A, "q": Q}, lambda: {"coordinate": coordinate})]

    def solve(self, inputs, ask):
        x, n = inputs["x0"].copy(), len(inputs["x0"])

        def g(z):
            """Of every row of z."""
            if self.denominator == "norm1":
                return np.sum(np.abs(z @ inputs["a"].T), axis=-1)
            if self.denominator == "quadratic":
                return np.sqrt(np.sum((z @ inputs["q"]) * z, axis=-1))
            return np.sum(np.sort(np.abs(z), axis=-1)[..., n - self.k:], axis=-1)

        sweeps = move = 0
        value = 0.0
        while sweeps < self.max_iter:
            move = 0.0
            for i in range(n):
                f, slope = ask["coordinate"](x, i)
                c = inputs["curvature"][i] + self.theta
                at = lambda e: x + np.multiply.outer(e, np.eye(n)[i])  # noqa: E731
                J = lambda e: f + slope * e + c / 2 * e * e + self.l1 * np.sum(np.abs(at(e)), axis=-1)  # noqa: E731
                value = J(0.0) / g(x)
                cost = lambda e: J(e) / g(at(e)) if self.mode == "fractional" else J(e) - value * g(at(e))  # noqa: E731
                corners = [-x[i]]
                if self.denominator == "norm1":
                    corners += list(-(inputs["a"] @ x) / inputs["a"][:, i])
                if self.denominator == "top_k":
                    corners += [s * t - x[i] for t in np.abs(np.delete(x, i)) for s in (-1, 1)]
                low, high = max(self.lo - x[i], -40.0), min(self.hi - x[i], 40.0)
                corners = np.unique([e for e in [*corners, low, high] if low <= e <= high])
                found = [0.0, *corners]
                for a, b in zip(corners, corners[1:]):
                    for _ in range(9):  # closer and closer around the best
                        grid = np.linspace(a, b, 801)[1:-1]
                        k = int(np.argmin(cost(grid)))
                        a, b = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
                    found.append(grid[k])
                e = found[int(np.argmin(cost(np.array(found))))]
                x = at(e)
                move = max(move, abs(e))
            sweeps += 1
            if move <= self.tol:
                break
        return {"x": x, "iterations": sweeps, "value": value, "outcome": "converged" if sweeps and move <= self.tol else "max_iter"}


def cut(weights: np.ndarray, modular: np.ndarray):
    """A symmetric cut plus a modular function: submodular, 0 for the empty set."""
    return lambda s: float(s @ weights @ (1 - s) + modular @ s)


class SubmodularDCA(SolverReference):
    """The difference of submodular functions (El Halabi, Orfanides, Hoheisel, 2023; arXiv 2305.11046).

    The inner problem by least squares over all corners of the base polytope."""

    name = "submodular_dca"
    defaults = {"rho": 0.01, "tol": 1e-6, "round_each": True, "accelerate": None, "local": True, "ties": "gain", "max_iter": 100}
    settings = ({}, {"local": False}, {"rho": 0.5, "ties": "gain_g"}, {"rho": 0.0}, {"accelerate": 2, "rho": 0.2}, {"round_each": False, "rho": 0.3, "local": False},
                {"max_iter": 1}, {"max_iter": 0})

    def cases(self, rng):
        out = []
        for _ in range(3):
            n = 5
            W, V = (np.triu(rng.uniform(0, 1, (n, n)), 1) for _ in range(2))
            F, G = cut(W + W.T, rng.standard_normal(n)), cut(V + V.T, rng.standard_normal(n))

            def chain(order, F=F, G=G, n=n):
                s, f, g = np.zeros(n), [], []
                for i in np.asarray(order, int):
                    s[i] = 1
                    f.append(F(s))
                    g.append(G(s))
                return np.array(f), np.array(g)

            def flips(members, F=F, G=G, n=n):
                sets = [np.abs(np.asarray(members, np.float64) - np.eye(n)[i]) for i in range(n)]
                return np.array([F(s) for s in sets]), np.array([G(s) for s in sets])

            start = [np.zeros(n), rng.uniform(size=n), np.eye(n)[1]][len(out)]
            out.append(Case({"x0": start}, lambda chain=chain, flips=flips: {"chain": chain, "flips": flips}))
        return out

    def solve(self, inputs, ask):
        x, n = inputs["x0"].copy(), len(inputs["x0"])
        H = lambda s: ask["flips"](np.abs(s - np.eye(n)[0]))[0][0] - ask["flips"](np.abs(s - np.eye(n)[0]))[1][0]  # noqa: E731
        G = lambda s: ask["flips"](np.abs(s - np.eye(n)[0]))[1][0]  # noqa: E731
        gains = lambda v: np.diff(v, prepend=0.0)  # noqa: E731
        order = lambda v, ties: np.lexsort((np.arange(n), ties, -v))  # noqa: E731

        def extension(v):
            o = order(v, np.zeros(n))
            f, g = ask["chain"](o)
            return float(v[o] @ gains(f - g))

        corners = []
        for p in itertools.permutations(range(n)):
            c = np.zeros(n)
            c[list(p)] = gains(ask["chain"](np.array(p))[0])
            corners.append(c)
        corners = np.array(corners)
        s = (x == 1).astype(float)
        best, best_set = H(s), s.copy()
        last, before, t, k, fall, window = best if self.round_each else extension(x), x.copy(), 1.0, 0, 0.0, [0.0] * ((self.accelerate or 0) + 1)
        out = lambda why: {"set": best_set, "value": best, "iterations": k, "outcome": why}  # noqa: E731
        while k < self.max_iter:
            sign = 1 if self.ties == "gain" else -1
            measure = H if self.ties == "gain" else G
            ties = np.array([sign * (measure(np.maximum(s, e)) - measure(np.minimum(s, 1 - e))) for e in np.eye(n)])
            at = x
            if self.accelerate is not None:
                new = (1 + np.sqrt(1 + 4 * t * t)) / 2
                z, t = x + (t - 1) / new * (x - before), new
                at = z if extension(z) <= max(window) else x
            o = order(at, ties)
            y = np.zeros(n)
            y[o] = gains(ask["chain"](o)[1])
            y += self.rho * at
            # least |sum w_c (c - y)|, sum w = 1
            B = np.vstack([(corners - y).T, 1e4 * np.ones(len(corners))])
            w, _ = nnls(B, np.append(np.zeros(n), 1e4), maxiter=10000)
            point = (corners - y).T @ (w / w.sum())
            before, x = x, np.clip(-point / self.rho, 0, 1) if self.rho > 0 else (point < -1e-9).astype(float)
            o = np.argsort(-x, kind="stable")
            for i, j in zip(o, o[1:]):  # equal but for rounding
                x[j] = x[i] if abs(x[i] - x[j]) <= 1e-9 else x[j]
            o = order(x, ties)
            f, g = ask["chain"](o)
            values = np.append(0.0, f - g)
            size = int(np.argmin(values))
            s = np.isin(np.arange(n), o[:size]).astype(float)
            k += 1
            value = values[size] if self.round_each else extension(x)
            fall, last = last - value, value
            if self.round_each:
                x = s.copy()
            window = [value, *window[:-1]]
            if values[size] < best - 1e-12:
                best, best_set = values[size], s.copy()
            if fall > self.tol:
                continue
            if not self.local:
                return out("converged")
            f, g = ask["flips"](best_set)
            i = int(np.argmin(f - g))
            if (f - g)[i] >= best - 1e-9:
                return out("converged")
            s = np.abs(best_set - np.eye(n)[i])
            best, best_set, x, before = (f - g)[i], s.copy(), s.copy(), s.copy()
            last = best
        return out("max_iter")


class FDRLifted(SolverReference):
    """Free-discontinuity regression, lifted (own discretisation of Pock, Cremers, Bischof, Chambolle, 2009)."""

    name = "fdr_lifted"
    defaults = {"lam": 10.0, "nu": 0.1, "levels": 16, "max_iter": 1000, "tol": 5e-5, "split": "threshold"}
    settings = ({"levels": 6, "max_iter": 60}, {"levels": 5, "nu": 0.02, "lam": 4.0, "max_iter": 40, "split": "two_means"}, {"levels": 8, "tol": 5e-3})
    limit = 1e-8
    limit32 = 1e-4

    def cases(self, rng):
        steps = np.concatenate([np.full(4, 1.0), np.full(4, 3.0)]) + 0.05 * rng.standard_normal(8)
        square = np.zeros((4, 5))
        square[1:3, 2:] = 1
        return [Case({"f": steps}, dict), Case({"f": square + 0.05 * rng.standard_normal((4, 5))}, dict), Case({"f": np.full(3, 2.0)}, dict)]

    def solve(self, inputs, ask):
        f0 = inputs["f"]
        low, high, D, L, h = f0.min(), f0.max(), f0.ndim, self.levels, 1 / self.levels
        if low == high:
            return {"u": f0, "jumps": np.zeros(f0.shape), "iterations": 0, "outcome": "converged"}
        f, labels = (f0 - low) / (high - low), (np.arange(L) + 0.5) * h
        pairs = [(a, b) for a in range(L) for b in range(a, L)]
        M = np.array([[a <= k <= b for k in range(L)] for a, b in pairs], float)

        def fix(v):
            v[..., 0], v[..., -1] = 1, 0
            return v

        def differences(v):
            out = np.zeros((D, *v.shape))
            for a in range(D):
                at = [slice(None)] * v.ndim
                at[a] = slice(0, -1)
                out[(a, *at)] = np.diff(v, axis=a)
            return out

        def adjoint(p):
            out = np.zeros(p.shape[1:])
            for a in range(D):
                q = np.moveaxis(p[a], a, 0)[:-1]
                o = np.moveaxis(out, a, 0)
                o[:-1] -= q
                o[1:] += q
            return out

        v = fix((labels < f[..., None]).astype(float))
        vbar, px, pt = v.copy(), np.zeros((D, *f.shape, L)), np.zeros((*f.shape, L))
        s = np.zeros((D, *f.shape, len(pairs)))
        mu, mubar = s.copy(), s.copy()
        rate = 0.99 / np.sqrt(4 * D + 4 / h**2 + np.linalg.norm(h * M, 2) ** 2 + 1)
        c, k, change = self.lam * (labels - f[..., None]) ** 2, 0, np.inf
        while k < self.max_iter and change > self.tol:
            px = px + rate * (differences(vbar) - h * mubar @ M)
            pt = pt + rate * np.diff(vbar, axis=-1, append=vbar[..., -1:]) / h
            size = np.sqrt(np.sum(px**2, axis=0))
            for i in np.argwhere(pt < size**2 / 4 - c):
                i = tuple(i)
                r = np.roots([1 / 8, 0, 1 - (c[i] + pt[i]) / 2, -size[i]])
                r = r[np.abs(r.imag) < 1e-9].real
                r = max(0.0, r[np.argmin([(x - size[i]) ** 2 + (x * x / 4 - c[i] - pt[i]) ** 2 for x in r])])
                px[(slice(None), *i)] *= r / size[i] if size[i] > 0 else 0.0
                pt[i] = r * r / 4 - c[i]
            s = s + rate * mubar
            s = s / np.maximum(1, np.sqrt(np.sum(s**2, axis=0)) / self.nu)
            down = np.zeros_like(pt)
            down[..., :-1] -= pt[..., :-1] / h
            down[..., 1:] += pt[..., :-1] / h
            new = fix(np.clip(v - rate * (adjoint(px) + down), 0, 1))
            new_mu = mu + rate * (h * px @ M.T - s)
            change, k = np.mean(np.abs(new - v)), k + 1
            vbar, v, mubar, mu = 2 * new - v, new, 2 * new_mu - mu, new_mu
        u = np.zeros(f.shape)
        for i in np.ndindex(f.shape):
            j = max(j for j in range(L - 1) if v[i][j] >= 0.5 > v[i][j + 1])
            u[i] = labels[j] + h * (v[i][j] - 0.5) / (v[i][j] - v[i][j + 1])
        slope = np.sqrt(np.sum(differences(u) ** 2, axis=0))
        border = np.sqrt(self.nu)
        if self.split == "two_means":
            a, b = slope.min(), slope.max()
            for _ in range(100):
                border = (a + b) / 2
                a, b = slope[slope <= border].mean(), slope[slope > border].mean()
            border = (a + b) / 2
        return {"u": low + (high - low) * u, "jumps": (slope > border).astype(float), "iterations": k,
                "outcome": "converged" if change <= self.tol else "max_iter"}
