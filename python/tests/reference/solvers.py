"""Solvers from their cards: linear systems, line searches, proximal gradients, transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Reference

Functions = dict[str, Callable[..., Any]]


@dataclass
class Case:
    """Inputs in float64, and what makes the functions that answer the requests: anew for each run."""

    inputs: dict[str, Any]
    functions: Callable[[], Functions]
    setting: dict[str, Any] | None = None  # on top of the setting that is tested


class SolverReference(Reference):
    kind = "solver"
    limit = 1e-10  # of the results in float64, relative to max(1, |result|)
    limit32 = 2e-4  # the same where the library computes in float32

    def cases(self, rng: np.random.Generator) -> list[Case]:
        raise NotImplementedError

    def solve(self, inputs: dict[str, Any], ask: Functions) -> dict[str, Any]:
        """The results by name, and "outcome"."""
        raise NotImplementedError


def spd(rng: np.random.Generator, n: int, condition: float = 10.0) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return q @ np.diag(np.linspace(1.0, condition, n)) @ q.T


def operator(a: np.ndarray) -> Callable[[], Functions]:
    return lambda: {"product": lambda v: (a @ np.asarray(v, np.float64).ravel()).reshape(v.shape)}


class CG(SolverReference):
    name = "cg"
    defaults = {"rtol": 1e-5, "atol": 0.0, "max_iter": None, "truncate": False, "recompute_every": 0}
    settings = ({}, {"rtol": 1e-9}, {"max_iter": 3}, {"max_iter": 0}, {"truncate": True}, {"recompute_every": 2, "rtol": 1e-8},
                {"rtol": 0.0, "atol": 1e-3})

    def cases(self, rng):
        a, b = spd(rng, 12), rng.standard_normal(12)
        wide = spd(rng, 6, 3.0)
        return [
            Case({"b": b}, operator(a)),
            Case({"b": b, "x0": rng.standard_normal(12)}, operator(a)),
            Case({"b": np.zeros(4)}, operator(spd(rng, 4))),
            Case({"b": rng.standard_normal((2, 3))}, operator(wide)),
            Case({"b": b}, operator(-np.eye(12))),
            Case({"b": b}, operator(np.zeros((12, 12)))),
        ]

    def solve(self, inputs, ask):
        b, x = inputs["b"], np.array(inputs.get("x0", np.zeros_like(inputs["b"])))
        tol, limit = max(self.rtol * np.linalg.norm(b), self.atol), 10 * b.size if self.max_iter is None else self.max_iter
        out = lambda k, r, why: {"x": x, "iterations": k, "residual": np.linalg.norm(r), "outcome": why}  # noqa: E731
        if not np.any(b):
            return out(0, 0 * b, "converged") | {"x": 0 * b}
        r = b - ask["product"](x) if "x0" in inputs else b.copy()
        p, rz, k, since = r.copy(), np.sum(r * r), 0, 0
        while True:
            if np.linalg.norm(r) <= tol:
                return out(k, r, "converged")
            if k >= limit:
                return out(k, r, "max_iter")
            q = ask["product"](p)
            c = np.sum(p * q)
            if c == 0 or (self.truncate and c < 0):
                if self.truncate and k == 0 and "x0" not in inputs:
                    x = p.copy()
                return out(k, r, "negative_curvature")
            x = x + rz / c * p
            k, since = k + 1, since + 1
            if self.recompute_every and since >= self.recompute_every:
                r, since = b - ask["product"](x), 0
            else:
                r = r - rz / c * q
            new = np.sum(r * r)
            p, rz = r + new / rz * p, new


class PCG(SolverReference):
    name = "pcg"
    defaults = {"rtol": 1e-10, "atol": 0.0, "max_iter": None}
    settings = ({}, {"max_iter": 4})

    def cases(self, rng):
        a = spd(rng, 10) + np.diag(np.arange(10.0) * 5)
        functions = lambda m: lambda: {"product": lambda v: m @ v, "precondition": lambda r: r / np.diag(a)}  # noqa: E731
        b = rng.standard_normal(10)
        return [Case({"b": b}, functions(a)), Case({"b": b, "x0": b}, functions(a)), Case({"b": 0 * b}, functions(a)),
                Case({"b": b}, functions(-a))]

    def solve(self, inputs, ask):
        b, x = inputs["b"], np.array(inputs.get("x0", 0 * inputs["b"]))
        tol, limit = max(self.rtol * np.linalg.norm(b), self.atol), 10 * b.size if self.max_iter is None else self.max_iter
        if not np.any(b):
            return {"x": 0 * b, "iterations": 0, "outcome": "converged"}
        r, k, p = b - ask["product"](x), 0, None
        while True:
            if np.linalg.norm(r) <= tol or k >= limit:
                return {"x": x, "iterations": k, "outcome": "converged" if np.linalg.norm(r) <= tol else "max_iter"}
            z = ask["precondition"](r)
            new = r @ z
            p = z if p is None else z + new / rz * p  # noqa: F821
            rz = new
            q = ask["product"](p)
            if p @ q <= 0:
                return {"x": x, "iterations": k, "outcome": "negative_curvature"}
            x, r, k = x + rz / (p @ q) * p, r - rz / (p @ q) * q, k + 1


class MINRES(SolverReference):
    """min |b - (A - shift) x| over the Krylov space, by a dense least-squares problem over its orthonormal basis."""

    name = "minres"
    defaults = {"shift": 0.0, "rtol": 1e-5, "atol": 0.0, "max_iter": None}
    settings = ({"rtol": 1e-9}, {"max_iter": 5}, {"shift": 0.3, "rtol": 1e-8})
    limit = 1e-7

    def cases(self, rng):
        q, _ = np.linalg.qr(rng.standard_normal((15, 15)))
        a = q @ np.diag(np.concatenate([-np.linspace(1, 4, 6), np.linspace(1, 5, 9)])) @ q.T
        b = rng.standard_normal(15)
        return [Case({"b": b}, operator(a)), Case({"b": b, "x0": rng.standard_normal(15)}, operator(a)),
                Case({"b": np.zeros(3)}, operator(np.eye(3))), Case({"b": b}, operator(2 * np.eye(15)))]

    def solve(self, inputs, ask):
        b, x0 = inputs["b"], np.array(inputs.get("x0", 0 * inputs["b"]))
        if not np.any(b):
            return {"x": 0 * b, "iterations": 0, "outcome": "converged"}
        apply = lambda v: ask["product"](v) - self.shift * v  # noqa: E731
        r0 = b - apply(x0)
        tol, limit = max(self.rtol * np.linalg.norm(b), self.atol), 5 * b.size if self.max_iter is None else self.max_iter
        basis: list[np.ndarray] = []
        images: list[np.ndarray] = []
        w = r0
        for k in range(b.size + 1):
            if not basis:
                step = np.zeros_like(b)
            else:
                y = np.linalg.lstsq(np.stack(images, 1), r0, rcond=None)[0]
                step = np.stack(basis, 1) @ y
            residual = np.linalg.norm(r0 - sum((y[i] * images[i] for i in range(k)), 0 * b)) if basis else np.linalg.norm(r0)
            if residual <= tol or k >= limit:
                return {"x": x0 + step, "iterations": k, "outcome": "converged" if residual <= tol else "max_iter"}
            for _ in range(2):
                for v in basis:
                    w = w - (v @ w) * v
            basis.append(w / np.linalg.norm(w))
            images.append(apply(basis[-1]))
            w = images[-1]
        raise AssertionError("no solution in n steps")


class NeumannIHVP(SolverReference):
    name = "neumann_ihvp"
    defaults = {"alpha": None, "terms": 20, "fresh": False}
    required = ("alpha",)
    settings = ({"alpha": 0.1}, {"alpha": 0.05, "terms": 0}, {"alpha": 0.15, "terms": 3, "fresh": True}, {"alpha": 3.0})

    def cases(self, rng):
        return [Case({"b": rng.standard_normal(8)}, operator(spd(rng, 8))), Case({"b": np.zeros(8)}, operator(spd(rng, 8)))]

    def solve(self, inputs, ask):
        v = inputs["b"].copy()
        p, size, outcome, k = v.copy(), np.linalg.norm(v), "converged", 0
        while k < self.terms:
            v = v - self.alpha * ask["product"](v)
            p, k = p + v, k + 1
            if size and np.linalg.norm(v) > 1e3 * size:
                outcome = "diverged"
                break
        return {"x": self.alpha * p, "iterations": k, "outcome": outcome}


def curves(rng) -> list[tuple[Callable[[float], float], Callable[[float], float]]]:
    """Functions of a step with a negative slope at 0, and their derivatives."""
    out = [(lambda a: (a - 0.3) ** 2, lambda a: 2 * (a - 0.3)), (lambda a: -a / (a * a + 2), lambda a: (a * a - 2) / (a * a + 2) ** 2)]
    for _ in range(6):
        c, s, t = rng.uniform(0.05, 3.0), rng.uniform(0.1, 2.0), rng.uniform(0.5, 4.0)
        out.append((lambda a, c=c, s=s, t=t: c * a * a - s * a + 0.1 * np.sin(t * a),
                    lambda a, c=c, s=s, t=t: 2 * c * a - s + 0.1 * t * np.cos(t * a)))
    return [(f, d) for f, d in out if d(0.0) < 0]


class Armijo(SolverReference):
    name = "armijo"
    defaults = {"c1": 1e-4, "alpha0": 1.0, "shrink": 0.5, "interpolate": False, "max_iter": 50}
    settings = ({}, {"interpolate": True, "alpha0": 20.0}, {"c1": 0.4, "shrink": 0.7, "alpha0": 3.0}, {"max_iter": 1, "alpha0": 50.0})

    def cases(self, rng):
        def case(f, d):
            return Case({"phi0": f(0.0), "dphi0": d(0.0)}, lambda: {"value": f})
        wall = lambda a: np.inf if a > 0.2 else (np.nan if a > 0.1 else -a)  # noqa: E731
        return [case(f, d) for f, d in curves(rng)] + [case(wall, lambda a: -1.0), case(lambda a: a, lambda a: 1.0)]

    def solve(self, inputs, ask):
        f0, d0, a = inputs["phi0"], inputs["dphi0"], self.alpha0
        if d0 >= 0:
            return {"alpha": 0.0, "phi": f0, "iterations": 0, "outcome": "line_search_failed"}
        for k in range(self.max_iter):
            f = ask["value"](a)
            if np.isfinite(f) and f <= f0 + self.c1 * a * d0:
                return {"alpha": a, "phi": f, "iterations": k + 1, "outcome": "converged"}
            a = np.clip(-d0 * a * a / (2 * (f - f0 - a * d0)), 0.1 * a, 0.5 * a) if self.interpolate and np.isfinite(f) else a * self.shrink
        return {"alpha": 0.0, "phi": f0, "iterations": self.max_iter, "outcome": "line_search_failed"}


class StrongWolfe(SolverReference):
    name = "strong_wolfe"
    defaults = {"c1": 1e-4, "c2": 0.9, "amax": None, "max_iter": 10, "zoom_iter": 10}
    settings = ({}, {"c2": 0.1}, {"c1": 0.1, "c2": 0.2, "amax": 0.5}, {"max_iter": 1, "c2": 0.01}, {"zoom_iter": 0, "c2": 0.001})

    def cases(self, rng):
        cases = []
        for k, (f, d) in enumerate(curves(rng)):
            inputs = {"phi0": f(0.0), "dphi0": d(0.0)} | ({"phi_previous": f(0.0) + 0.2 * k} if k % 2 else {})
            cases.append(Case(inputs, lambda f=f, d=d: {"value": f, "slope": d}))
        return cases + [Case({"phi0": 0.0, "dphi0": 1.0}, lambda: {"value": lambda a: a, "slope": lambda a: 1.0}),
                        Case({"phi0": 0.0, "dphi0": -1.0}, lambda: {"value": lambda a: np.nan if a > 0.1 else -a + 5 * a * a,
                                                                    "slope": lambda a: -1 + 10 * a})]

    def solve(self, inputs, ask):
        f0, d0, top = inputs["phi0"], inputs["dphi0"], np.inf if self.amax is None else self.amax
        failed = {"alpha": 0.0, "phi": f0, "dphi": d0, "outcome": "line_search_failed"}
        done = lambda a, f, d, why="converged": {"alpha": a, "phi": f, "dphi": d, "outcome": why}  # noqa: E731
        if d0 >= 0:
            return failed
        high = lambda a, f: not f <= f0 + self.c1 * a * d0  # noqa: E731
        a0, fa0, da0, a1 = 0.0, f0, d0, 1.0
        if "phi_previous" in inputs:
            a1 = min(1.0, 2.02 * (f0 - inputs["phi_previous"]) / d0)
            a1 = 1.0 if a1 < 0 else a1
        a1 = min(a1, top)
        f1 = ask["value"](a1)
        for i in range(self.max_iter):
            if a1 == 0 or a0 > top:
                return failed
            if high(a1, f1) or (f1 >= fa0 and i > 0):
                return self.zoom(ask, high, done, failed, f0, d0, a0, fa0, da0, a1, f1)
            d1 = ask["slope"](a1)
            if abs(d1) <= -self.c2 * d0:
                return done(a1, f1, d1)
            if d1 >= 0:
                return self.zoom(ask, high, done, failed, f0, d0, a1, f1, d1, a0, fa0)
            a0, fa0, da0, a1 = a1, f1, d1, min(2 * a1, top)
            f1 = ask["value"](a1)
        return done(a0, fa0, da0, "max_iter") if high(a1, f1) else done(a1, f1, np.nan, "max_iter")

    def zoom(self, ask, high, done, failed, f0, d0, lo, flo, dlo, hi, fhi):
        f0, d0, lo, flo, dlo, hi, fhi = (np.float64(v) for v in (f0, d0, lo, flo, dlo, hi, fhi))
        rec, frec = np.float64(0), f0
        for i in range(self.zoom_iter + 1):
            left, right, w, a = min(lo, hi), max(lo, hi), abs(hi - lo), np.nan
            if i > 0:
                with np.errstate(all="ignore"):
                    # the cubic lo + dlo t + B t^2 + A t^3 through (hi, fhi) and (rec, frec)
                    db, dc = hi - lo, rec - lo
                    m = np.array([[dc**2, -(db**2)], [-(dc**3), db**3]]) / ((db * dc) ** 2 * (db - dc))
                    A, B = m @ np.array([fhi - flo - dlo * db, frec - flo - dlo * dc])
                    a = lo + (-B + np.sqrt(B * B - 3 * A * dlo)) / (3 * A)
                a = a if np.isfinite(a) and left + 0.2 * w <= a <= right - 0.2 * w else np.nan
            if np.isnan(a):
                with np.errstate(all="ignore"):
                    a = lo - dlo / (2 * (fhi - flo - dlo * (hi - lo)) / (hi - lo) ** 2)
                a = a if np.isfinite(a) and left + 0.1 * w <= a <= right - 0.1 * w else lo + 0.5 * (hi - lo)
            f = ask["value"](a)
            if high(a, f) or not f < flo:
                rec, frec, hi, fhi = hi, fhi, a, f
                continue
            d = ask["slope"](a)
            if abs(d) <= -self.c2 * d0:
                return done(a, f, d)
            if d * (hi - lo) >= 0:
                rec, frec, hi, fhi = hi, fhi, lo, flo
            else:
                rec, frec = lo, flo
            lo, flo, dlo = a, f, d
        return failed


class GoldenSection(SolverReference):
    name = "golden_section"
    defaults = {"tol": 1e-8, "max_iter": 100}
    settings = ({}, {"tol": 0.1}, {"max_iter": 7})

    def cases(self, rng):
        return [Case({"low": -1.0, "high": 4.0}, lambda: {"value": lambda a: (a - 0.7) ** 2}),
                Case({"low": 0.0, "high": 1.0}, lambda: {"value": lambda a: 0.0}),
                Case({"low": 0.0, "high": 2.0}, lambda: {"value": lambda a: np.nan if a > 1 else -a}),
                Case({"low": 2.0, "high": 2.0}, lambda: {"value": lambda a: a})]

    def solve(self, inputs, ask):
        f = lambda a: np.inf if np.isnan(ask["value"](a)) else ask["value"](a)  # noqa: E731
        a, b, r, k = inputs["low"], inputs["high"], (np.sqrt(5) - 1) / 2, 0
        c, d = b - r * (b - a), a + r * (b - a)
        fc, fd = f(c), f(d)
        while b - a > self.tol and k < self.max_iter:
            k += 1
            if fc <= fd:
                b, d, fd = d, c, fc
                c = b - r * (b - a)
                fc = f(c)
            else:
                a, c, fc = c, d, fd
                d = a + r * (b - a)
                fd = f(d)
        best = (c, fc) if fc <= fd else (d, fd)
        return {"alpha": best[0], "phi": best[1], "iterations": k, "width": b - a,
                "outcome": "converged" if b - a <= self.tol else "max_iter"}
