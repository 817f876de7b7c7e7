"""Sequential gradient coding against bursts of late workers (Krishnan, Ebrahimi, Khisti, 2022)."""

from __future__ import annotations

import math

import numpy as np

from .solvers import Case, SolverReference


def workers(seed, n, rate):
    """Who answers in a round, whatever is asked."""
    def make():
        rng = np.random.default_rng(seed)
        return {"round": lambda time, tasks, parts: (rng.random(n) > rate).astype(float), "wait": lambda time: None}
    return make


class _Sequential(SolverReference):
    required = ("n", "jobs")
    defaults = {"n": None, "jobs": None, "B": 1, "W": 2, "lambda": 1}

    def cases(self, rng):
        return [Case({}, workers(seed, self.n, rate)) for seed, rate in ((1, 0.0), (2, 0.1), (3, 0.4))]

    def answers(self, t, tasks, parts, ask):
        """The answers of a round, all of them where they leave the model."""
        got = ask["round"](t, tasks, parts) != 0
        B, W = self.h["B"], self.h["W"]
        past = {k: self.late[k] for k in range(max(0, t - W + 1), t)}
        distinct = np.any(list(past.values()) + [~got], axis=0).sum()
        again = any(np.any(~got & late) for k, late in past.items() if t - k >= B)
        if distinct > self.h["lambda"] or again:
            ask["wait"](t)
            self.waits += 1
            got = np.ones(self.n, bool)
        self.late.append(~got)
        return got

    def solve(self, inputs, ask):
        self.late, self.waits, self.decoded = [], 0, np.full(self.jobs, -1.0)
        load, rounds = self.run(ask)
        ok = np.all(self.decoded >= 0)
        return {"decoded": self.decoded, "waits": self.waits, "iterations": rounds, "load": load, "outcome": "converged" if ok else "infeasible"}


class SRSGC(_Sequential):
    name = "sr_sgc"
    settings = ({"n": 6, "jobs": 8, "B": 1, "W": 2, "lambda": 2}, {"n": 5, "jobs": 10, "B": 2, "W": 5, "lambda": 3},
                {"n": 4, "jobs": 3, "B": 2, "W": 3, "lambda": 4}, {"n": 3, "jobs": 4, "lambda": 0})

    def run(self, ask):
        n, J, B, lam = self.n, self.jobs, self.h["B"], self.h["lambda"]
        s = math.ceil(B * lam / (self.h["W"] - 1 + B))
        done = np.zeros((J, n), bool)
        for t in range(J + B):
            tasks = np.full(n, t if t < J else -1)
            if t >= B:
                missing = np.flatnonzero(~done[t - B])
                if len(missing) > s:
                    tasks[missing[:len(missing) - s]] = t - B
            got = self.answers(t, tasks.astype(float), np.zeros(n), ask)
            for i in np.flatnonzero(got & (tasks >= 0)):
                done[tasks[i], i] = True
            for j in range(J):
                if self.decoded[j] < 0 and j <= t and (~done[j]).sum() <= s:
                    self.decoded[j] = t
        return min(1, (s + 1) / n), J + B


class MSGC(_Sequential):
    name = "m_sgc"
    settings = ({"n": 6, "jobs": 8, "B": 1, "W": 2, "lambda": 2}, {"n": 5, "jobs": 9, "B": 2, "W": 4, "lambda": 3},
                {"n": 4, "jobs": 3, "B": 1, "W": 3, "lambda": 4})

    def run(self, ask):
        n, J, B, lam, whole = self.n, self.jobs, self.h["B"], self.h["lambda"], self.h["W"] - 1
        plain, coded = np.zeros((J, n), int), np.zeros((J, B, n), bool)
        slots = whole + B
        for t in range(J + slots - 1):
            tasks, parts = np.full((slots, n), -1), np.full((slots, n), -1)
            for m in range(slots):
                if 0 <= t - m < J:
                    tasks[m] = t - m
                    parts[m] = np.where((m >= whole) & (plain[t - m] >= whole), m, plain[t - m])
            got = self.answers(t, tasks.astype(float), parts.astype(float), ask)
            for m in range(slots):
                j = t - m
                if not 0 <= j < J:
                    continue
                if m >= whole:
                    coded[j, m - whole] |= got & (parts[m] >= whole)
                plain[j] += got & (parts[m] < whole)
                if self.decoded[j] < 0 and np.all(plain[j] >= whole) and np.all(coded[j].sum(axis=1) >= n - lam):
                    self.decoded[j] = t
        load = slots / (n * whole) if lam == n else (lam + 1) * slots / (n * (B + whole * (lam + 1)))
        return load, J + slots - 1
