"""Divergences, distances of samples, and generative objectives, from their cards."""

from __future__ import annotations

import numpy as np

from .losses_logits import Inputs, labels, log_softmax, sigma, softplus
from .losses_views import _Both


def normal_kl(m, lv, pm=0.0, plv=0.0):
    """Elementwise, with its derivatives by m and lv."""
    value = (np.exp(lv - plv) + (m - pm) ** 2 * np.exp(-plv) - 1 - lv + plv) / 2
    return value, (m - pm) * np.exp(-plv), (np.exp(lv - plv) - 1) / 2


class GaussianKL(_Both):
    name = "gaussian_kl"
    defaults = {"reduction": "mean"}
    settings = ({}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"mean": rng.standard_normal(s), "log_var": rng.standard_normal(s)} for s in ((1, 1), (5, 3), (300, 4))]
        prior = {"prior_mean": rng.standard_normal((5, 3)), "prior_log_var": rng.standard_normal((5, 3))}
        return [*out, {**out[1], **prior}, {"mean": np.zeros((2, 2)), "log_var": np.zeros((2, 2))}]

    def both(self, mean, log_var, prior_mean=0.0, prior_log_var=0.0):
        v, dm, dl = normal_kl(mean, log_var, prior_mean, prior_log_var)
        n = self.divisor(len(mean))
        return np.sum(v) / n, {"mean": dm / n, "log_var": dl / n}


def spd(rng: np.random.Generator, n: int, ridge: float = 0.5) -> np.ndarray:
    a = rng.standard_normal((n, n))
    return a @ a.T / n + ridge * np.eye(n)


class GaussianKLFull(_Both):
    name = "gaussian_kl_full"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"m0": rng.standard_normal(k), "s0": spd(rng, k), "m1": rng.standard_normal(k), "s1": spd(rng, k)} for k in (1, 3, 6)]

    def both(self, m0, s0, m1, s1):
        s0, s1 = (s0 + s0.T) / 2, (s1 + s1.T) / 2
        inv, d = np.linalg.inv(s1), m0 - m1
        value = np.trace(inv @ s0) + d @ inv @ d - len(d) + np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
        return value / 2, {"m0": inv @ d, "s0": (inv - np.linalg.inv(s0)) / 2}


class VAEELBO(_Both):
    name = "vae_elbo"
    defaults = {"beta": 1.0, "likelihood": "bernoulli", "sigma": 1.0}
    settings = ({}, {"likelihood": "gaussian", "sigma": 0.7, "beta": 0.3}, {"likelihood": "multinomial", "beta": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for n, d, width in ((1, 2, 3), (6, 3, 4), (200, 2, 5)):
            x = rng.poisson(1.5, (n, width)) if self.likelihood == "multinomial" else rng.random((n, width))
            out.append({"mu": rng.standard_normal((n, d)), "logvar": rng.standard_normal((n, d)), "out": rng.standard_normal((n, width)), "x": x.astype(float)})
        return [*out, {**out[1], "eps": rng.standard_normal((6, 3)), "dz": rng.standard_normal((6, 3))}]

    def smooth(self, **x: np.ndarray) -> bool:
        return "dz" not in x  # it comes from outside the value

    def both(self, mu, logvar, out, x, eps=None, dz=None):
        n = len(mu)
        if self.likelihood == "bernoulli":
            fit, g = np.sum(softplus(out) - x * out), sigma(out) - x
        elif self.likelihood == "gaussian":
            s2 = self.h["sigma"] ** 2
            fit, g = np.sum((x - out) ** 2 / (2 * s2) + np.log(2 * np.pi * s2) / 2), (out - x) / s2
        else:
            lp = log_softmax(out)
            fit, g = -np.sum(x * lp), np.sum(x, axis=1, keepdims=True) * np.exp(lp) - x
        kl, dm, dl = normal_kl(mu, logvar)
        dm, dl = self.beta * dm / n, self.beta * dl / n
        if dz is not None:
            dm, dl = dm + dz, dl + dz * eps * np.exp(logvar / 2) / 2
        return (fit + self.beta * np.sum(kl)) / n, {"mu": dm, "logvar": dl, "out": g / n}


class MultVAE(_Both):
    name = "mult_vae"
    defaults = {"anneal_cap": 0.2, "total_anneal_steps": 200000}
    settings = ({}, {"anneal_cap": 1.0, "total_anneal_steps": 100}, {"total_anneal_steps": 0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"f": rng.standard_normal((n, 5)), "x": rng.poisson(0.7, (n, 5)).astype(float)} for n in (1, 5, 200)]
        out[1]["x"][2] = 0
        code = {**out[1], "mu": rng.standard_normal((5, 2)), "logvar": rng.standard_normal((5, 2))}
        return [*out, code, {**code, "step": np.array(7)}, {**code, "step": np.array(50_000)}]

    def both(self, f, x, mu=None, logvar=None, step=None):
        n, lp = len(f), log_softmax(f)
        value, g = -np.sum(x * lp) / n, {"f": (np.sum(x, axis=1, keepdims=True) * np.exp(lp) - x) / n}
        if mu is not None:
            total = self.total_anneal_steps
            beta = self.anneal_cap if step is None or total == 0 else min(self.anneal_cap, float(step) / total)
            kl, dm, dl = normal_kl(mu, logvar)
            value, g = value + beta * np.sum(kl) / n, {**g, "mu": beta * dm / n, "logvar": beta * dl / n}
        return value, g


class MMD(_Both):
    name = "mmd"
    defaults = {"bandwidths": [1.0], "unbiased": False}
    settings = ({}, {"unbiased": True}, {"bandwidths": [0.5, 2.0]})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"x": rng.standard_normal((n, 3)), "y": 1 + rng.standard_normal((m, 3))} for n, m in ((2, 3), (7, 4), (280, 5))]
        return [*out, {"x": out[1]["x"], "y": out[1]["x"].copy()}]

    def _kernel(self, a, b, skip):
        apart = a[:, None] - b[None]
        r = np.sum(apart**2, axis=2)
        keep = 1 - np.eye(len(a)) if skip else np.ones(r.shape)
        k = sum(keep * np.exp(-r / (2 * s * s)) for s in self.bandwidths)
        d = sum(-keep * np.exp(-r / (2 * s * s)) / (s * s) for s in self.bandwidths)
        return np.sum(k), np.sum(d[:, :, None] * apart, axis=1)  # by the rows of a, as the first argument

    def both(self, x, y):
        n, m, u = len(x), len(y), self.unbiased
        nn, mm = (n * (n - 1), m * (m - 1)) if u else (n * n, m * m)
        (a, ga), (b, gb), (c, gx), (_, gy) = self._kernel(x, x, u), self._kernel(y, y, u), self._kernel(x, y, False), self._kernel(y, x, False)
        return a / nn + b / mm - 2 * c / (n * m), {"x": 2 * ga / nn - 2 * gx / (n * m), "y": 2 * gb / mm - 2 * gy / (n * m)}


def sliced(x, y, theta, p, root):
    """Through the quantile functions on the common grid of all their steps."""
    n, m = len(x), len(y)
    total, gx, gy = 0.0, np.zeros_like(x), np.zeros_like(y)
    grid = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # in units of 1/(n m)
    mass = np.diff(grid, prepend=0) / (n * m)
    middle = grid - np.diff(grid, prepend=0) / 2
    for t in theta:
        a, b = x @ t, y @ t
        i = np.argsort(a, kind="stable")[(middle // m).astype(int)]
        j = np.argsort(b, kind="stable")[(middle // n).astype(int)]
        d = a[i] - b[j]
        total += np.sum(mass * np.abs(d) ** p) / len(theta)
        s = mass * p * np.abs(d) ** (p - 1) * np.sign(d) / len(theta)
        np.add.at(gx, i, s[:, None] * t)
        np.add.at(gy, j, -s[:, None] * t)
    if not root:
        return total, gx, gy
    outer = total ** (1 / p - 1) / p if total > 0 else 0.0
    return total ** (1 / p), outer * gx, outer * gy


def directions(rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    t = rng.standard_normal((count, d))
    return t / np.linalg.norm(t, axis=1, keepdims=True)


class SlicedWasserstein(_Both):
    name = "sliced_wasserstein"
    defaults = {"p": 2.0, "root": True}
    settings = ({}, {"root": False}, {"p": 1.0}, {"p": 3.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"x": rng.standard_normal((n, d)), "y": 1 + rng.standard_normal((m, d)), "projections": directions(rng, count, d)}
               for n, m, d, count in ((1, 1, 1, 1), (6, 6, 3, 5), (6, 4, 3, 40), (90, 35, 2, 7))]
        return [*out, {**out[1], "y": out[1]["x"].copy()}]

    def smooth(self, x, y, projections) -> bool:
        return not np.array_equal(x, y)

    def both(self, x, y, projections):
        v, gx, gy = sliced(x, y, projections, self.p, self.root)
        return v, {"x": gx, "y": gy}


class AugmentedSlicedWasserstein(_Both):
    name = "augmented_sliced_wasserstein"
    defaults = {"lam": 0.5, "p": 2.0}
    settings = ({}, {"lam": 0.1, "p": 1.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal((n, d)), "y": 1 + rng.standard_normal((k, d)), "w": rng.standard_normal((m, d)),
                 "b": rng.standard_normal(m), "projections": directions(rng, count, d + m)}
                for n, k, d, m, count in ((2, 2, 1, 1, 2), (6, 4, 3, 2, 9), (40, 40, 2, 3, 35))]

    def both(self, x, y, w, b, projections):
        lift = lambda a: np.concatenate([a, a @ w.T + b], axis=1)  # noqa: E731
        d, gx, gy = x.shape[1], lift(x), lift(y)
        value, ax, ay = sliced(gx, gy, projections, self.p, True)
        dw, db = np.zeros_like(w), np.zeros_like(b)
        for rows, g, a in ((x, gx, ax), (y, gy, ay)):
            s = a[:, d:] - self.lam * g[:, d:] / np.linalg.norm(g, axis=1, keepdims=True) / len(rows)
            dw, db = dw + s.T @ rows, db + np.sum(s, axis=0)
        return value, {"x": ax[:, :d] + ax[:, d:] @ w, "y": ay[:, :d] + ay[:, d:] @ w, "w_ascent": dw, "b_ascent": db}


class BuresWasserstein(_Both):
    name = "bures_wasserstein"
    defaults = {"tau": 0.0, "rtol": 1e-12}
    settings = ({}, {"tau": 0.3})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"a": spd(rng, d), "b": spd(rng, d)} for d in (1, 3, 6)]
        return [*out, {**out[1], "mean_a": rng.standard_normal(3), "mean_b": rng.standard_normal(3)}]

    def _root(self, a):
        lam, v = np.linalg.eigh((a + a.T) / 2)
        return v @ np.diag(np.sqrt(np.where(lam > len(a) * 2.0**-52 * lam[-1], lam, 0.0))) @ v.T

    def both(self, a, b, mean_a=None, mean_b=None):
        a = (a + a.T) / 2 + self.tau * np.eye(len(a))
        root = self._root(b)
        lam, v = np.linalg.eigh(root @ a @ root)
        inverse = [k**-0.5 if k > self.rtol * lam[-1] else 0.0 for k in lam]
        t = root @ v @ np.diag(inverse) @ v.T @ root
        value = np.trace(a) + np.trace(b) - 2 * np.linalg.norm(self._root(a) @ root, "nuc")
        g = {"a": np.eye(len(a)) - (t + t.T) / 2}
        if mean_a is not None:
            value, g["mean_a"] = value + np.sum((mean_a - mean_b) ** 2), 2 * (mean_a - mean_b)
        return value, g


class CodingRate(_Both):
    name = "coding_rate"
    defaults = {"eps": 0.5}
    settings = ({}, {"eps": 2.0})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"x": rng.standard_normal(s)} for s in ((1, 1), (3, 5), (40, 4))]

    def both(self, x):
        n, d = x.shape
        c = d / (n * self.h["eps"] ** 2)
        a = np.eye(d) + c * x.T @ x
        return np.linalg.slogdet(a)[1] / 2, {"x": c * x @ np.linalg.inv(a)}


class MCR2(_Both):
    name = "mcr2"
    defaults = {"eps": 0.5, "gamma_pi": 0.0}
    settings = ({}, {"eps": 1.5, "gamma_pi": 0.7})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"x": rng.standard_normal((n, d)), "pi": rng.dirichlet(np.ones(k), n)} for n, d, k in ((2, 1, 1), (6, 3, 2), (50, 4, 3))]
        hard = np.eye(4)[labels(rng, 6, 3)]  # the last group is empty
        return [*out, {"x": out[1]["x"], "pi": hard}]

    def smooth(self, x, pi) -> bool:
        return bool(np.all(np.sum(pi, axis=0) > 0))

    def both(self, x, pi):
        n, d = x.shape
        whole, g = CodingRate(eps=self.h["eps"]).both(x)
        value, dx, dp = -whole + self.gamma_pi / 2 * np.sum(pi**2), -g["x"], self.gamma_pi * pi
        for j in range(pi.shape[1]):
            w, t = pi[:, j], np.sum(pi[:, j])
            if t > 0:
                c = d / (t * self.h["eps"] ** 2)
                a = np.eye(d) + c * x.T @ (w[:, None] * x)
                inv, log = np.linalg.inv(a), np.linalg.slogdet(a)[1]
                value += t / (2 * n) * log
                dx = dx + t / n * c * w[:, None] * (x @ inv)
                dp[:, j] += (log + t * (c * np.sum(x @ inv * x, axis=1) - np.trace(inv @ (a - np.eye(d))) / t)) / (2 * n)
        return value, {"x": dx, "pi": dp}


class SURE(_Both):
    name = "sure"
    required = ("sigma",)
    defaults = {"eps": 1e-3}
    settings = ({"sigma": 0.5}, {"sigma": 1.5, "eps": 0.2})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for s in ((3,), (20, 30)):
            f = rng.standard_normal(s)
            out.append({"f": f, "f2": f + self.eps * rng.standard_normal(s), "y": rng.standard_normal(s), "b": rng.choice([-1.0, 1.0], s)})
        return out

    def both(self, f, f2, y, b):
        n, k = f.size, 2 * self.sigma**2 / (f.size * self.eps)
        return np.sum((f - y) ** 2) / n - self.sigma**2 + k * np.sum(b * (f2 - f)), {"f": 2 * (f - y) / n - k * b, "f2": k * b}


class ARDAE(_Both):
    name = "ar_dae"
    defaults = {"sigma_max": 0.1, "sigma_min": 0.001, "anneal_steps": 22000}
    settings = ({}, {"sigma_max": 2.0, "anneal_steps": 10})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        return [{"r": rng.standard_normal(s), "u": rng.standard_normal(s), "step": np.array(k)} for s, k in (((1, 2), 0), ((5, 3), 4), ((200, 3), 30_000))]

    def both(self, r, u, step):
        q = min((int(step) + 1) / self.anneal_steps, 1)
        s = self.sigma_max * (1 - q) + self.sigma_min * q
        return np.sum((u + s * r) ** 2) / len(r), {"r": 2 * s * (u + s * r) / len(r)}


class DiffusionNFT(_Both):
    name = "diffusion_nft"
    defaults = {"beta": 1.0, "adv_clip_max": 5.0, "adaptive": True, "kl_weight": 1e-4}
    settings = ({}, {"beta": 0.3, "adaptive": False, "kl_weight": 0.5}, {"adv_clip_max": 1.0, "adaptive": False})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for s in ((1, 2), (6, 3), (200, 4)):
            names = ("v", "v_old", "x_t", "x0")
            out.append({k: rng.standard_normal(s) for k in names} | {"t": rng.random(s[0]), "advantage": 3 * rng.standard_normal(s[0])})
        return [*out, {**out[1], "v_ref": rng.standard_normal((6, 3)), "t": np.array([0, 0.2, 1.0, 0.5, 0, 0.9])}]

    def smooth(self, **_: np.ndarray) -> bool:
        return not self.adaptive

    def both(self, v, v_old, x_t, x0, t, advantage, v_ref=None):
        c, b, time = self.adv_clip_max, self.beta, t[:, None]
        r = np.clip(np.clip(advantage, -c, c) / c / 2 + 0.5, 0, 1)[:, None]
        plus, minus = b * v + (1 - b) * v_old, (1 + b) * v_old - b * v
        value, g = 0.0, np.zeros_like(v)
        for share, velocity, sign in ((r, plus, -1), (1 - r, minus, 1)):
            e = x_t - time * velocity - x0
            w = np.maximum(np.mean(np.abs(e), axis=1, keepdims=True), 1e-5) if self.adaptive else 1.0
            value += c * np.mean(share * e**2 / w) / b
            g += c / (v.size * b) * share * 2 * e / w * (sign * time * b)
        if v_ref is not None:
            value, g = value + self.kl_weight * np.mean((v - v_ref) ** 2), g + self.kl_weight * 2 * (v - v_ref) / v.size
        return value, {"v": g}


class BuresWassersteinDeepLinear(BuresWasserstein):
    name = "bures_wasserstein_deep_linear"

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for sides in ((3, 3), (4, 3, 2), (3, 2, 4, 3), (2, 3, 2, 3, 2)):
            factors = {f"w{k + 1}": rng.standard_normal((sides[k + 1], sides[k])) for k in range(len(sides) - 1)}
            out.append({**factors, "b": spd(rng, sides[-1])})
        return out

    def smooth(self, b, **w: np.ndarray) -> bool:
        return min(v.shape[0] for v in w.values()) >= len(b) or self.tau > 0  # the root of a lower rank has a kink

    def both(self, b, **w: np.ndarray):
        factors = [w[f"w{k + 1}"] for k in range(len(w))]
        chain = lambda items, n: np.linalg.multi_dot([np.eye(n), *items[::-1], np.eye(items[0].shape[1] if items else n)])  # noqa: E731
        whole = chain(factors, len(b))
        value, g = super().both(whole @ whole.T, b)
        d, out = 2 * g["a"] @ whole, {}
        for k in range(len(factors)):
            behind, before = chain(factors[k + 1:], len(b)), chain(factors[:k], factors[k].shape[1])
            out[f"w{k + 1}"] = behind.T @ d @ before.T
        return value, out


class MultinomialNLL(_Both):
    name = "multinomial_nll"
    defaults = {"reduction": "mean"}
    settings = ({}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = [{"f": 3 * rng.standard_normal((n, i)), "x": rng.poisson(0.7, (n, i)).astype(float)} for n, i in ((1, 2), (5, 9), (60, 4))]
        return [*out, {"f": rng.standard_normal((2, 3)), "x": np.array([[0.0, 0, 0], [1, 0, 2]])}]

    def both(self, f, x):
        lp, n = log_softmax(f), self.divisor(len(f))
        return -np.sum(x * lp) / n, {"f": (x.sum(1, keepdims=True) * np.exp(lp) - x) / n}
