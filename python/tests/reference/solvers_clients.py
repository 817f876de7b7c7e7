"""Solvers of several clients: control variates, proximal corrections, gossip, meta steps."""

from __future__ import annotations

import math

import numpy as np

from .solvers import Case, SolverReference
from .solvers_populations import draws


def quadratics(rng, clients, n):
    """Clients whose minima differ: a_i (x - b_i)."""
    a, b = rng.uniform(0.5, 1.5, (clients, n)), rng.standard_normal((clients, n))
    return lambda: {"client_gradient": lambda client, point: a[int(client)] * (np.asarray(point, np.float64) - b[int(client)])}


class _Clients(SolverReference):
    required = ("clients",)

    def cases(self, rng):
        N = self.clients
        return [Case({"x0": rng.standard_normal(4)}, quadratics(rng, N, 4)), Case({"x0": np.zeros(1)}, quadratics(rng, N, 1))]


class _Sampled(_Clients):
    def cases(self, rng):
        N = self.clients
        return [*super().cases(rng), Case({"x0": rng.standard_normal(3), "participants": rng.integers(0, N, (2, max(1, N - 1)))},
                                          quadratics(rng, N, 3))]

    def present(self, inputs, k):
        table = inputs.get("participants")
        return list(range(self.clients)) if table is None else [int(i) for i in table[k % len(table)]]


class SCAFFOLD(_Sampled):
    name = "scaffold"
    defaults = {"steps": 10, "lr_local": 0.1, "lr_global": 1.0, "option": "II", "max_iter": 100}
    settings = ({"clients": 3, "max_iter": 6}, {"clients": 2, "steps": 1, "lr_global": 0.5, "max_iter": 5},
                {"clients": 3, "option": "I", "steps": 4, "max_iter": 5}, {"clients": 1, "max_iter": 0})

    def solve(self, inputs, ask):
        x, n, K = inputs["x0"].copy(), len(inputs["x0"]), self.steps
        c, own = np.zeros(n), np.zeros((self.clients, n))
        for k in range(self.max_iter):
            moves, changes = np.zeros(n), np.zeros(n)
            there = self.present(inputs, k)
            for i in there:
                w, first = x.copy(), None
                for _ in range(K):
                    g = ask["client_gradient"](i, w)
                    first = g if first is None else first
                    w = w - self.lr_local * (g - own[i] + c)
                new = first if self.option == "I" else own[i] - c + (x - w) / (K * self.lr_local)
                moves, changes = moves + w - x, changes + new - own[i]
                own[i] = new
            x, c = x + self.lr_global * moves / len(there), c + changes / self.clients
        return {"x": x, "control": c, "controls": own, "iterations": self.max_iter, "outcome": "max_iter"}


class FedSpeed(_Sampled):
    name = "fedspeed"
    defaults = {"steps": 10, "lr": 0.1, "lam": 10.0, "rho": 0.1, "alpha": 1.0, "normalize": True, "max_iter": 100}
    settings = ({"clients": 3, "max_iter": 5}, {"clients": 2, "alpha": 0.4, "normalize": False, "lam": 2.0, "steps": 3, "max_iter": 4},
                {"clients": 2, "rho": 0.0, "max_iter": 4})

    def solve(self, inputs, ask):
        x, c = inputs["x0"].copy(), np.zeros((self.clients, len(inputs["x0"])))
        for k in range(self.max_iter):
            found = []
            for i in self.present(inputs, k):
                w = x.copy()
                for _ in range(self.steps):
                    g = ask["client_gradient"](i, w)
                    up = ask["client_gradient"](i, w + self.rho * g / (np.linalg.norm(g) + 1e-7 if self.normalize else 1.0))
                    w = w - self.lr * ((1 - self.alpha) * g + self.alpha * up - c[i] + (w - x) / self.lam)
                c[i] -= (w - x) / self.lam
                found.append(w)
            x = np.mean(found, axis=0) - self.lam * c.mean(axis=0)
        return {"x": x, "corrections": c, "iterations": self.max_iter, "outcome": "max_iter"}


class ProxSkipVIP(_Clients):
    name = "proxskip_vip"
    defaults = {"lr": 0.1, "p": 0.1, "max_iter": 1000, "seed": 0}
    settings = ({"clients": 3, "p": 0.4, "max_iter": 20}, {"clients": 2, "p": 1.0, "max_iter": 5}, {"clients": 2, "max_iter": 0},
                {"clients": 1, "p": 0.5, "max_iter": 8, "seed": 3})

    def solve(self, inputs, ask):
        N, met = self.clients, 0
        x, h = np.tile(inputs["x0"], (N, 1)), np.zeros((N, len(inputs["x0"])))
        for k in range(self.max_iter):
            y = np.array([x[i] - self.lr * (ask["client_gradient"](i, x[i]) - h[i]) for i in range(N)])
            if self.p == 1 or 0.5 * math.erfc(-draws(self.seed, k, 1)[0] / math.sqrt(2)) < self.p:
                mean = np.mean(y - self.lr / self.p * h, axis=0)
                h, x, met = h + self.p / self.lr * (mean - y), np.tile(mean, (N, 1)), met + 1
            else:
                x = y
        return {"x": x.mean(axis=0), "points": x, "controls": h, "communications": met, "iterations": self.max_iter, "outcome": "max_iter"}


class DSGD(_Clients):
    name = "dsgd"
    defaults = {"lr": 0.1, "topology": "ring", "shuffle": False, "max_iter": 100, "seed": 0}
    settings = ({"clients": 5, "max_iter": 8}, {"clients": 2, "max_iter": 5}, {"clients": 4, "topology": "all", "max_iter": 5},
                {"clients": 6, "topology": "grid", "max_iter": 6}, {"clients": 6, "topology": "exponential", "max_iter": 6, "shuffle": True},
                {"clients": 3, "topology": "single", "max_iter": 4}, {"clients": 1, "max_iter": 3}, {"clients": 7, "topology": "grid", "max_iter": 4})

    def cases(self, rng):
        return [Case({"points0": rng.standard_normal((self.clients, 3))}, quadratics(rng, self.clients, 3))]

    def mixing(self):
        n = self.clients
        if self.topology == "all":
            return np.full((n, n), 1 / n)
        P = np.zeros((n, n))
        if self.topology == "grid":
            columns = max(c for c in range(1, int(math.isqrt(n)) + 1) if n % c == 0)
            at = [divmod(i, columns) for i in range(n)]
            near = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in at] for a, b in at])
            degree = near.sum(1) + 1
            P = np.where(near, 1 / np.maximum.outer(degree, degree), 0)
            return P + np.diag(1 - P.sum(1))
        offsets = {"single": [0], "ring": [-1, 0, 1], "exponential": [0] + [2**k for k in range(20) if 2**k < n]}[self.topology]
        for i in range(n):
            for d in offsets:
                P[i, (i + d) % n] += 1 / len(offsets)
        return P

    def solve(self, inputs, ask):
        W, P, n = inputs["points0"].copy(), self.mixing(), self.clients
        for k in range(self.max_iter):
            g = np.array([ask["client_gradient"](i, W[i]) for i in range(n)])
            label = np.argsort(draws(self.seed, k, n), kind="stable") if self.shuffle else np.arange(n)
            mixed = np.empty_like(W)
            mixed[label] = P @ W[label]
            W = mixed - self.lr * g
        return {"x": W.mean(axis=0), "points": W, "mixing": P, "iterations": self.max_iter, "outcome": "max_iter"}


class Reptile(_Clients):
    name = "reptile"
    defaults = {"inner_steps": 2, "meta_lr": 0.01, "inner_lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "reset_inner": True,
                "max_iter": 100}
    settings = ({"clients": 3, "max_iter": 3}, {"clients": 2, "inner_steps": 4, "inner_lr": 0.1, "meta_lr": 0.5, "max_iter": 4},
                {"clients": 2, "inner_steps": 3, "inner_lr": 0.1, "meta_lr": 1.0, "reset_inner": False, "max_iter": 3})

    def solve(self, inputs, ask):
        x = inputs["x0"].copy()
        for _ in range(self.max_iter):
            moves, w = np.zeros_like(x), x.copy()
            for i in range(self.clients):
                if self.reset_inner:
                    w = x.copy()
                m, v = np.zeros_like(x), np.zeros_like(x)
                for t in range(1, self.inner_steps + 1):
                    g = ask["client_gradient"](i, w)
                    m, v = self.beta1 * m + (1 - self.beta1) * g, self.beta2 * v + (1 - self.beta2) * g * g
                    w = w - self.inner_lr * (m / (1 - self.beta1**t)) / (np.sqrt(v / (1 - self.beta2**t)) + self.eps)
                moves += w - x
            x = x + self.meta_lr * moves / self.clients
        return {"x": x, "iterations": self.max_iter, "outcome": "max_iter"}
