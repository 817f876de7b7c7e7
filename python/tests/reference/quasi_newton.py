"""Methods on the whole model as one vector: L-BFGS, nonlinear conjugate gradients, truncated Newton, FOSI."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, OptimizerReference

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Flat(OptimizerReference):
    """The rule sees one vector x, the function (value, gradient) of it, and products with its Hessian."""

    def start(self, params: Arrays) -> None:
        self.shapes, self.sizes = [p.shape for p in params], [p.size for p in params]
        self.begin(sum(self.sizes))

    def begin(self, n: int) -> None: ...

    def split(self, x: np.ndarray) -> Arrays:
        return [part.reshape(s) for part, s in zip(np.split(x, np.cumsum(self.sizes)[:-1]), self.shapes)]

    @staticmethod
    def flat(xs: Arrays) -> np.ndarray:
        return np.concatenate([np.ravel(x) for x in xs])

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Any = None, loss_at: Any = None, hvp: Any = None, normal: Any = None,
             **oracles: Any) -> None:
        self.product = lambda x, v: self.flat(hvp(self.split(x), self.split(v)))
        self.loss = lambda x: loss_at(self.split(x))
        self.normal = lambda step: self.flat(normal(step))
        x = self.flat(params)
        f = loss_at(params) if loss_at else 0.0
        new = self.move(x, f, self.flat(grads), lambda y: (loss_at(self.split(y)), self.flat(gradient_at(self.split(y)))))
        for p, y in zip(params, self.split(new)):
            p[...] = y

    def move(self, x: np.ndarray, f: float, g: np.ndarray, function: Function) -> np.ndarray:
        raise NotImplementedError


def cubic(p: tuple[float, ...], q: tuple[float, ...], low: float, high: float) -> float:
    """The minimiser of the cubic through two points (t, f, slope), inside bounds."""
    (x1, f1, g1), (x2, f2, g2) = sorted([p[:3], q[:3]])
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    disc = d1**2 - g1 * g2
    if not np.isfinite(disc) or disc < 0:
        return (low + high) / 2
    d2 = np.sqrt(disc)
    return min(max(x2 - (x2 - x1) * (g2 + d2 - d1) / (g2 - g1 + 2 * d2), low), high)


def wolfe(along: Callable[[float], tuple[float, float, np.ndarray]], t: float, f0: float, slope0: float, g0: np.ndarray, reach: float,
          c1: float = 1e-4, c2: float = 0.9, tolerance: float = 1e-9) -> tuple[float, float, np.ndarray, int]:
    """The strong Wolfe search of the card: (t, f, gradient, evaluations). Points are (t, f, slope, gradient)."""
    before, now, count = (0.0, f0, slope0, g0), (t, *along(t)), 1

    def bad(p: tuple[Any, ...]) -> bool:
        return not p[1] <= f0 + c1 * p[0] * slope0

    for i in range(26):
        if i == 25:
            best = before0 if (before0 := (0.0, f0, slope0, g0))[1] <= now[1] else now
            return best[0], best[1], best[3], count
        if bad(now) or (i > 1 and now[1] >= before[1]) or (abs(now[2]) > -c2 * slope0 and now[2] >= 0):
            break
        if abs(now[2]) <= -c2 * slope0:
            return now[0], now[1], now[3], count
        t = cubic(before, now, now[0] + 0.01 * (now[0] - before[0]), 10 * now[0])
        before, now, count = now, (t, *along(t)), count + 1
    ends = [before, now]
    low = 0 if ends[0][1] <= ends[1][1] else 1
    insufficient = False
    while count <= 25:
        a, b = min(e[0] for e in ends), max(e[0] for e in ends)
        if (b - a) * reach < tolerance:
            break
        t, margin = cubic(ends[0], ends[1], a, b), 0.1 * (b - a)
        close = min(b - t, t - a) < margin
        if close and (insufficient or t >= b or t <= a):
            t, close = (b - margin if abs(t - b) < abs(t - a) else a + margin), False
        insufficient = close
        now, count = (t, *along(t)), count + 1
        if bad(now) or now[1] >= ends[low][1]:
            ends[1 - low] = now
            low = 0 if ends[0][1] <= ends[1][1] else 1
        else:
            if abs(now[2]) <= -c2 * slope0:
                return now[0], now[1], now[3], count
            if now[2] * (ends[1 - low][0] - ends[low][0]) >= 0:
                ends[1 - low] = ends[low]
            ends[low] = now
    return ends[low][0], ends[low][1], ends[low][3], count


class LBFGS(Flat):
    name = "lbfgs"
    needs = ("loss", "loss_at", "gradient_at")
    defaults = {"lr": 1.0, "max_iter": 20, "max_eval": None, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "history_size": 100, "line_search": "none"}
    settings = (
        {"max_iter": 1, "lr": 0.3, "history_size": 5},
        {"max_iter": 3, "lr": 0.2, "history_size": 2},
        {"max_iter": 2, "lr": 0.5, "history_size": 7, "line_search": "strong_wolfe"},
        {"max_iter": 4, "history_size": 3, "line_search": "strong_wolfe", "max_eval": 3},
    )

    def begin(self, n: int) -> None:
        self.n, self.pairs, self.gamma, self.t, self.d, self.old = 0, [], 1.0, 0.0, np.zeros(n), np.zeros(n)

    def move(self, x, f, g, function):
        evaluations, most = 1, self.max_eval if self.max_eval is not None else max(1, int(1.25 * self.max_iter))
        if np.abs(g).max() <= self.tolerance_grad:
            return x
        for k in range(1, self.max_iter + 1):
            self.n += 1
            if self.n == 1:
                self.d = -g
            else:
                y, s = g - self.old, self.d * self.t
                if y @ s > 1e-10:
                    self.pairs = (self.pairs + [(s, y)])[-self.history_size :]
                    self.gamma = y @ s / (y @ y)
                q, shares = -g, []
                for s, y in reversed(self.pairs):
                    shares.append(s @ q / (y @ s))
                    q = q - shares[-1] * y
                q = q * self.gamma
                for (s, y), share in zip(self.pairs, reversed(shares)):
                    q = q + s * (share - y @ q / (y @ s))
                self.d = q
            self.old, before = g, f
            self.t = min(1.0, 1 / np.abs(g).sum()) * self.lr if self.n == 1 else self.lr
            slope = g @ self.d
            if slope > -self.tolerance_change:
                break
            if self.line_search == "strong_wolfe":
                def along(t: float) -> tuple[float, float, np.ndarray]:
                    ft, gt = function(x + t * self.d)
                    return (ft, gt @ self.d, gt) if np.isfinite(ft) else (np.inf, np.nan, gt)

                self.t, f, g, n = wolfe(along, self.t, f, slope, g, np.abs(self.d).max(), tolerance=self.tolerance_change)
                x = x + self.t * self.d
                evaluations += n
            else:
                x = x + self.t * self.d
                if k != self.max_iter:
                    f, g = function(x)
                    evaluations += 1
            if (evaluations >= most or np.abs(g).max() <= self.tolerance_grad or np.abs(self.t * self.d).max() <= self.tolerance_change
                    or abs(f - before) < self.tolerance_change):
                break
        return x


class NonlinearCG(Flat):
    name = "nonlinear_cg"
    needs = ("loss", "loss_at", "gradient_at")
    defaults = {"beta": "pr_plus", "c1": 1e-4, "c2": 0.4, "restart": None, "gtol": 1e-8}
    settings = ({}, {"beta": "fr", "c2": 0.3}, {"beta": "hs_plus", "restart": 3}, {"beta": "dy", "c1": 0.01})

    def begin(self, n: int) -> None:
        self.since, self.d = 0, None

    def move(self, x, f, g, function):
        if np.abs(g).max() <= self.gtol:
            return x
        d = None
        if 0 < self.since < (self.restart or len(x)):
            y = g - self.old
            dy = self.d @ y
            beta = {"fr": g @ g / (self.old @ self.old), "pr_plus": max(0.0, g @ y / (self.old @ self.old)),
                    "hs_plus": max(0.0, g @ y / dy) if dy else 0.0, "dy": g @ g / dy if dy else 0.0}[self.beta]
            d = -g + beta * self.d
        if d is None or g @ d >= 0:
            d, self.since = -g, 0
        slope = g @ d
        t = min(1.0, 1 / np.abs(g).sum()) if self.d is None else self.t * self.slope / slope

        def along(t: float) -> tuple[float, float, np.ndarray]:
            ft, gt = function(x + t * d)
            return ft, gt @ d, gt

        self.t, _, _, _ = wolfe(along, t, f, slope, g, np.abs(d).max(), self.c1, self.c2)
        self.d, self.old, self.slope, self.since = d, g, slope, self.since + 1
        return x + self.t * d


class NewtonCG(Flat):
    name = "newton_cg"
    needs = ("loss", "loss_at", "gradient_at", "hvp")
    defaults = {"mode": "trust", "radius": 1.0, "max_radius": 1000.0, "eta": 0.15, "c1": 1e-4, "damping": 0.0, "cg_max": None}
    settings = ({}, {"radius": 0.3, "max_radius": 0.5, "eta": 0.0}, {"mode": "linesearch", "damping": 0.2}, {"cg_max": 2}, {"mode": "linesearch", "cg_max": 1, "c1": 0.6})

    def begin(self, n: int) -> None:
        self.r = self.radius

    def move(self, x, f, g, function):
        size = np.linalg.norm(g)
        if size == 0:
            return x
        trust = self.mode == "trust"
        H = lambda v: self.product(x, v) + (0 if trust else self.damping) * v  # noqa: E731
        p, res, d, border = 0 * g, g, -g, False

        def outwards(p: np.ndarray, d: np.ndarray) -> np.ndarray:
            a, b, c = d @ d, 2 * p @ d, p @ p - self.r**2
            return p + (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a) * d

        for k in range(self.cg_max or 2 * len(x)):
            Hd = H(d)
            if d @ Hd <= 0:
                p, border = (outwards(p, d), True) if trust else (p if k else -g, False)
                break
            alpha = res @ res / (d @ Hd)
            if trust and np.linalg.norm(p + alpha * d) >= self.r:
                p, border = outwards(p, d), True
                break
            p, new = p + alpha * d, res + alpha * Hd
            if np.linalg.norm(new) <= min(0.5, np.sqrt(size)) * size:
                break
            res, d = new, -new + new @ new / (res @ res) * d
        if trust:
            rho = (f - self.loss(x + p)) / -(g @ p + p @ H(p) / 2)
            if rho < 0.25:
                self.r /= 4
            elif rho > 0.75 and (border or abs(np.linalg.norm(p) - self.r) <= 1e-8 * self.r):
                self.r = min(2 * self.r, self.max_radius)
            return x + p if rho > self.eta else x
        t = 1.0
        for _ in range(61):
            if self.loss(x + t * p) <= f + self.c1 * t * g @ p:
                return x + t * p
            t /= 2
        return x


class FOSI(Flat):
    name = "fosi"
    needs = ("hvp",)
    defaults = {"base": "adam", "lr": 1e-3, "momentum": 0.9, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "k": 5, "l": 0, "interval": 100, "warmup": None,
                "alpha": 0.1, "lr_clip": None, "order": None, "floor": 1e-12}
    settings = (
        {"base": "adam", "lr": 0.01, "k": 2, "interval": 7, "warmup": 3, "order": 12},
        {"base": "heavyball", "lr": 0.05, "k": 1, "l": 1, "interval": 10, "alpha": 0.5, "order": 10},
        {"base": "sgd", "lr": 0.1, "k": 2, "interval": 11, "alpha": 1.0, "lr_clip": 1.2, "order": 9, "momentum": 0.3},
        {"base": "heavyball", "lr": 0.05, "k": 1, "interval": 6, "warmup": 1},
    )

    def begin(self, n: int) -> None:
        self.t, self.V, self.m, self.v, self.vel = 0, np.zeros((0, n)), np.zeros(n), np.zeros(n), np.zeros(n)
        self.il, self.scaling = np.zeros(0), 1.0

    def spectrum(self, x: np.ndarray) -> None:
        v, n = self.normal(self.t), len(x)
        V, alpha, beta = [v / np.linalg.norm(v)], [], []
        limit = min(self.order or max(4 * (self.k + self.l), int(2 * np.log(n))), n)
        while True:
            w = self.product(x, V[-1])
            alpha.append(w @ V[-1])
            for _ in range(2):
                w = w - np.array(V).T @ (np.array(V) @ w)
            if len(V) == limit or np.linalg.norm(w) <= 1e-12 * max(1.0, abs(alpha[-1])):
                break
            beta.append(np.linalg.norm(w))
            V.append(w / beta[-1])
        values, Y = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
        top = min(self.k, len(values))
        low = min(self.l, len(values) - top)
        pick = list(range(low)) + list(range(len(values) - top, len(values)))
        self.V, self.il = Y[:, pick].T @ np.array(V), 1 / np.maximum(np.abs(values[pick]), self.floor)
        most = self.lr_clip if self.lr_clip is not None else {"adam": 1.0}.get(self.base, 3.0)
        self.scaling = float(np.clip(self.il[low] / self.il[-1], 1, most))

    def move(self, x, f, g, function):
        t, start = self.t + 1, self.warmup or self.interval
        if t >= start and (t - start) % self.interval == 0:
            self.spectrum(x)
        V = self.V
        g1 = V.T @ (V @ g)
        g2 = g - g1
        if len(V):
            self.vel = {"sgd": g1, "heavyball": g1 + self.momentum * self.vel, "adam": (1 - self.momentum) * g1 + self.momentum * self.vel}[self.base]
        d1 = V.T @ (self.il * (V @ self.vel))
        if self.base == "adam":
            self.m, self.v = self.beta1 * self.m + (1 - self.beta1) * g2, self.beta2 * self.v + (1 - self.beta2) * g2**2
            d2 = -self.lr * (self.m / (1 - self.beta1**t)) / (np.sqrt(self.v / (1 - self.beta2**t)) + self.eps)
        else:
            self.m = self.momentum * self.m + g2 if self.base == "heavyball" else g2
            d2 = -self.lr * self.m
        d2 = d2 - V.T @ (V @ d2)
        self.t = t
        return x + (self.scaling * d2 - self.alpha * d1 if len(V) else d2)
