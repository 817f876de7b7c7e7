"""Training by parts: robust local steps, boosted units, losses alone in a subspace."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .solvers import Case, SolverReference


def draws(seed, k, n):
    return tw.random_normal(seed, 0, k, 0, n=n)


class WAFLLocal(SolverReference):
    """Nguyen et al., 2022 (arXiv 2206.01432)."""

    name = "wafl_local"
    required = ("adv_lr", "lr")
    defaults = {"gamma": 0.5, "adv_steps": 10, "adv_lr": None, "lr": None, "max_iter": 1}
    settings = ({"adv_lr": 0.1, "lr": 0.2}, {"adv_lr": 0.05, "lr": 0.1, "gamma": 2.0, "adv_steps": 3, "max_iter": 4},
                {"adv_lr": 0.1, "lr": 0.1, "adv_steps": 0}, {"adv_lr": 1.0, "lr": 1.0, "max_iter": 0})

    def cases(self, rng):
        y = rng.standard_normal(4)
        functions = lambda: {"input_gradient": lambda w, z: (z @ w - y)[:, None] * w / 4,  # noqa: E731
                             "weight_gradient": lambda w, z: z.T @ (z @ w - y) / 4}
        return [Case({"x0": rng.standard_normal(3), "z": rng.standard_normal((4, 3))}, functions)]

    def solve(self, inputs, ask):
        w, z = inputs["x0"].copy(), inputs["z"]
        zeta = z.copy()
        for _ in range(self.max_iter):
            zeta = z.copy()
            for _ in range(self.adv_steps):
                zeta = zeta + self.adv_lr * (ask["input_gradient"](w, zeta) - 2 * self.gamma * (zeta - z))
            w = w - self.lr * ask["weight_gradient"](w, zeta)
        return {"x": w, "zeta": zeta, "iterations": self.max_iter, "outcome": "max_iter"}


class GBNNStage(SolverReference):
    """Emami, Martinez-Munoz, 2019 (arXiv 1909.12098)."""

    name = "gbnn_stage"
    defaults = {"units": 1, "total": 100, "lr": 1.0, "subsample": 0.5, "loss": "squared", "seed": 0}
    settings = ({"total": 5}, {"total": 6, "units": 2, "lr": 0.3, "subsample": 1.0, "seed": 2})

    def cases(self, rng):
        X = rng.standard_normal((9, 3))

        def fit(r, subset, stage):
            H = np.tanh(X @ np.cos(np.arange(6.0) + stage).reshape(3, 2))
            A = np.hstack([H, np.ones((9, 1))])
            rows = np.asarray(subset) != 0
            return A @ np.linalg.lstsq(A[rows], np.asarray(r, np.float64)[rows], rcond=1e-10)[0]

        targets = {"squared": rng.standard_normal((9, 1)), "binary": np.where(np.arange(9)[:, None] % 3 == 0, 1.0, -1.0),
                   "softmax": np.eye(3)[np.arange(9) % 3]}
        nothing = lambda r, subset, stage: np.zeros_like(r)  # noqa: E731
        return [Case({"y": y}, lambda f=f: {"fit_block": f}, {"loss": loss}) for loss, y in targets.items() for f in (fit, nothing)]

    def solve(self, inputs, ask):
        y = inputs["y"]
        n, C = y.shape
        m = y.mean(axis=0)
        start = {"squared": m, "softmax": np.zeros(C)}[self.loss] if self.loss != "binary" else np.log((1 + m) / (1 - m)) / 2
        F, rhos, outcome, k = np.tile(start, (n, 1)), np.zeros(self.total), "max_iter", 0
        while k < self.total // self.units:
            e = np.exp(F - F.max(axis=1, keepdims=True))
            p = e / e.sum(axis=1, keepdims=True)
            r = {"squared": y - F, "binary": 2 * y / (1 + np.exp(2 * y * F)), "softmax": y - p}[self.loss]
            subset = np.zeros(n)
            subset[np.argsort(draws(self.seed, k, n), kind="stable")[:int(np.ceil(self.subsample * n))]] = 1
            h = ask["fit_block"](r, subset, k)
            if self.loss == "squared":
                rho, stop = self.lr, False
            else:
                below = np.sum(r * h**2 * (2 * y - r)) if self.loss == "binary" else np.sum(h**2 * p * (1 - p))
                rho, stop = (self.lr * np.sum(r * h) / below, False) if below > 0 else (0.0, True)
            F, rhos[k], k = F + rho * h, rho, k + 1
            if stop:
                outcome = "converged"
                break
        return {"f": F, "intercept": start, "rho": rhos, "iterations": k, "outcome": outcome}


class SubspaceZOAdam(SolverReference):
    """Seo et al., 2025 (arXiv 2503.14868)."""

    name = "subspace_zo_adam"
    defaults = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-3, "tau": 128, "nu": 1e-3, "n": 2, "mu": 1e-3, "max_iter": 100, "seed": 0}
    settings = ({"max_iter": 5}, {"tau": 4, "nu": 0.1, "max_iter": 11, "lr": 0.1, "seed": 3}, {"tau": 3, "n": 4, "nu": 0.3, "max_iter": 7, "mu": 1e-2},
                {"max_iter": 0})
    limit, limit32 = 1e-5, 1e-1  # differences of losses over mu, then a choice of singular vectors

    def cases(self, rng):
        scale = np.linspace(0.5, 2, 5)
        return [Case({"x0": rng.standard_normal(5)}, lambda: {"point_loss": lambda x: float(np.sum(scale * np.asarray(x, np.float64) ** 2))})]

    def solve(self, inputs, ask):
        x, d = inputs["x0"].copy(), len(inputs["x0"])
        m, v, E, history, value = np.zeros(d), np.zeros(d), np.zeros((0, d)), [], 0.0
        for k in range(self.max_iter):
            value = ask["point_loss"](x)
            g = np.zeros(d)
            for i in range(self.n):
                z = draws(self.seed, k * self.n + i, d)
                g += (ask["point_loss"](x + self.mu * z) - value) / self.mu * z
            free = d - len(E)
            g /= self.n * np.sqrt((free + self.n - 1) / self.n)
            g -= E.T @ (E @ g)
            m, v = self.beta1 * m + (1 - self.beta1) * g, self.beta2 * v + (1 - self.beta2) * g * g
            x = x - self.lr * m / (1 - self.beta1 ** (k + 1)) / (np.sqrt(v / (1 - self.beta2 ** (k + 1))) + self.eps)
            history = (history + [x])[-self.tau:]
            if (k + 1) % self.tau == 0:
                H = np.array(history)
                deviation = H.std(axis=0)
                _, s, Vt = np.linalg.svd((H - H.mean(axis=0)) / np.where(deviation > 0, deviation, 1), full_matrices=False)
                share = np.cumsum(s**2) / np.sum(s**2)
                E = Vt[int(np.argmax(share > 1 - self.nu)) + 1:np.sum(s > 1e-10 * s[0])]
        return {"x": x, "removed": len(E), "value": value, "iterations": self.max_iter, "outcome": "max_iter"}
