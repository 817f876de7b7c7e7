"""Objectives of domain generalisation, self-tuning, surrogates, unnormalised models and normal posteriors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ObjectiveReference

Examples = list[dict[str, np.ndarray]]


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z - np.logaddexp.reduce(z, axis=-1, keepdims=True))


def softplus(u: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, u)


def sigmoid(u: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -u))


class IRMPenalty(ObjectiveReference):
    """Arjovsky et al., 2019 (arXiv 1907.02893)."""

    name = "irm_penalty"
    defaults = {"split": False}
    settings = ({}, {"split": True})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"z": 2 * rng.standard_normal((n, c)), "y": rng.integers(0, c, n)} for n, c in ((1, 2), (5, 3), (6, 4), (3, 1))]

    def parts(self, z: np.ndarray, y: np.ndarray) -> tuple[list[float], list[np.ndarray]]:
        """The derivative by the scale of each half, and its gradient."""
        p, n = softmax(z), len(y)
        d = np.sum(p * z, axis=1) - z[np.arange(n), y]
        slope = p * (1 + z - np.sum(p * z, axis=1, keepdims=True)) - np.eye(z.shape[1])[y]
        halves = [np.arange(n) % 2 == k for k in (0, 1)] if self.split else [np.ones(n, bool)] * 2
        values = [float(d[h].mean()) if h.any() else 0.0 for h in halves]
        return values, [slope * h[:, None] / max(1, h.sum()) for h in halves]

    def value(self, **inputs: np.ndarray) -> float:
        a, b = self.parts(**inputs)[0]
        return a * b

    def gradients(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        (a, b), (ga, gb) = self.parts(**inputs)
        return {"z": a * gb + b * ga}


class FishrPenalty(ObjectiveReference):
    """Rame, Dancette, Cord, 2021 (arXiv 2109.02934); the first pass of its average."""

    name = "fishr_penalty"
    required = ("domains",)
    defaults = {"ema": 0.95}
    settings = ({"domains": 3}, {"domains": 3, "ema": 0.0}, {"domains": 5, "ema": 0.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"gradients": rng.standard_normal((n, d)), "domain": np.arange(n) % 3} for n, d in ((9, 4), (2, 3), (12, 1))]

    def variances(self, gradients: np.ndarray, domain: np.ndarray) -> np.ndarray:
        return np.array([gradients[domain == e].var(axis=0) for e in np.unique(domain)])

    def value(self, gradients: np.ndarray, domain: np.ndarray) -> float:
        v = self.variances(gradients, domain)
        return float(np.mean((v - v.mean(axis=0)) ** 2))

    def gradients(self, gradients: np.ndarray, domain: np.ndarray) -> dict[str, np.ndarray]:
        v, out = self.variances(gradients, domain), np.empty_like(gradients)
        for e, u in zip(np.unique(domain), v - v.mean(axis=0)):
            G = gradients[domain == e]
            out[domain == e] = 2 * (G - G.mean(axis=0)) / len(G) * 2 * u / v.size
        return {"gradients": out}


class IDGM(ObjectiveReference):
    """Shi et al., 2021 (arXiv 2104.09937)."""

    name = "idgm"
    defaults = {"gamma": 1.0}
    settings = ({}, {"gamma": 0.3})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"jacobian": rng.standard_normal(s)} for s in ((1, 4), (2, 5), (5, 3))]

    def value(self, jacobian: np.ndarray) -> float:
        J, S = jacobian, len(jacobian)
        pairs = sum(float(J[i] @ J[j]) for i in range(S) for j in range(i + 1, S))
        return -self.gamma * 2 / max(1, S * (S - 1)) * pairs

    def gradients(self, jacobian: np.ndarray) -> dict[str, np.ndarray]:
        J, S = jacobian, len(jacobian)
        return {"jacobian": -self.gamma * 2 / max(1, S * (S - 1)) * np.array([np.delete(J, i, 0).sum(axis=0) for i in range(S)])}


class DSPReg(ObjectiveReference):
    """Han et al., 2026 (arXiv 2601.19394), the variant of the card; the first pass of its average."""

    name = "dsp_reg"
    defaults = {"lam": 1e-3, "ema": 0.9, "scale": "max"}
    settings = ({}, {"lam": 0.5, "scale": "mean"}, {"lam": 0.5, "scale": "none", "ema": 0.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"w": rng.standard_normal(n), "gradients": rng.standard_normal((s, n))} for s, n in ((3, 5), (1, 4), (2, 1))]

    def sensitivity(self, gradients: np.ndarray) -> np.ndarray:
        c = gradients.var(axis=0, ddof=1) if len(gradients) > 1 else np.zeros(gradients.shape[1])
        return c / {"max": c.max() + 1e-12, "mean": c.mean() + 1e-12, "none": 1.0}[self.scale]

    def value(self, w: np.ndarray, gradients: np.ndarray) -> float:
        return float(self.lam / 2 * np.sum(self.sensitivity(gradients) * w**2))

    def gradients(self, w: np.ndarray, gradients: np.ndarray) -> dict[str, np.ndarray]:
        s = self.sensitivity(gradients)
        return {"w": self.lam * s * w, "sensitivity": s}


class UDIM(ObjectiveReference):
    """Shin et al., 2024: the penalty of one tensor."""

    name = "udim"
    defaults = {"weight": 1.0}
    settings = ({}, {"weight": 0.3})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [dict(zip(("clean", "perturbed"), rng.standard_normal((2, n, d)))) for n, d in ((1, 3), (6, 4), (5, 1))]

    def value(self, clean: np.ndarray, perturbed: np.ndarray) -> float:
        mean = clean.mean(axis=0)
        gap = ((clean - mean) ** 2).mean(axis=0) - ((perturbed - mean) ** 2).mean(axis=0)
        return float(self.weight * (np.mean((gap / 2) ** 2) + np.mean(np.sum(perturbed**2, axis=1)) / clean.shape[1]))

    def gradients(self, clean: np.ndarray, perturbed: np.ndarray) -> dict[str, np.ndarray]:
        n, d = clean.shape
        mean = clean.mean(axis=0)
        gap = ((clean - mean) ** 2).mean(axis=0) - ((perturbed - mean) ** 2).mean(axis=0)
        outer = self.weight * gap / (2 * d)  # of the value by the gap
        by_mean = 2 * (perturbed - mean).mean(axis=0)  # of the gap by the mean, where the clean variance has none
        return {"clean": outer * (2 * (clean - mean) / n + by_mean / n),
                "perturbed": -outer * 2 * (perturbed - mean) / n + 2 * self.weight * perturbed / (n * d)}


class STNHyperLinear(ObjectiveReference):
    """MacKay et al., 2019 (arXiv 1903.03088)."""

    name = "stn_hyper_linear"

    def examples(self, rng: np.random.Generator) -> Examples:
        def one(n: int, i: int, o: int, h: int, **more: np.ndarray) -> dict[str, np.ndarray]:
            shapes = {"x": (n, i), "weight": (o, i), "bias": (o,), "response": (o, i), "response_bias": (o,), "projection": (2, o, h),
                      "hyper": (n, h), "scale": ()}
            return {k: np.asarray(rng.standard_normal(s)) for k, s in shapes.items()} | more

        return [one(1, 1, 1, 1), one(4, 3, 2, 2, upstream=rng.standard_normal((4, 2))), one(3, 2, 5, 4)]

    def output(self, x: Any, weight: Any, bias: Any, response: Any, response_bias: Any, projection: Any, hyper: Any, scale: Any) -> np.ndarray:
        return (scale * (x @ weight.T + bias) + (hyper @ projection[0].T) * (x @ response.T) + (hyper @ projection[1].T) * response_bias)

    def value(self, upstream: np.ndarray | None = None, **a: np.ndarray) -> float:
        return float(np.sum(self.output(**a) * (1 if upstream is None else upstream)))

    def gradients(self, upstream: np.ndarray | None = None, **a: np.ndarray) -> dict[str, np.ndarray]:
        y = self.output(**a)
        u = np.ones_like(y) if upstream is None else upstream
        x, hyper, P, V = a["x"], a["hyper"], a["projection"], a["response"]
        cw, cb = hyper @ P[0].T, hyper @ P[1].T
        moved = u * (x @ V.T)
        return {"output": y, "x": a["scale"] * u @ a["weight"] + (u * cw) @ V, "weight": a["scale"] * u.T @ x, "bias": a["scale"] * u.sum(0),
                "response": (u * cw).T @ x, "response_bias": (u * cb).sum(0),
                "projection": np.stack([moved.T @ hyper, (u * a["response_bias"]).T @ hyper]),
                "hyper": moved @ P[0] + (u * a["response_bias"]) @ P[1], "scale": np.asarray(np.sum(u * (x @ a["weight"].T + a["bias"])))}


class STNPerturb(ObjectiveReference):
    name = "stn_perturb"
    defaults = {"entropy_weight": 1e-5}
    settings = ({}, {"entropy_weight": 0.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        make = lambda b, k: {"raw": rng.standard_normal(k), "rho": rng.standard_normal(k), "noise": rng.standard_normal((b, k))}  # noqa: E731
        return [make(1, 1), make(4, 3) | {"upstream": rng.standard_normal((4, 3))}, make(2, 5)]

    def parts(self, raw: np.ndarray, rho: np.ndarray, noise: np.ndarray, upstream: np.ndarray | None = None) -> tuple[np.ndarray, float, np.ndarray]:
        scale = softplus(rho)
        return raw + scale * noise, float(np.sum(np.log(scale * np.sqrt(2 * np.pi * np.e)))), np.zeros_like(noise) if upstream is None else upstream

    def value(self, **a: np.ndarray) -> float:
        p, entropy, u = self.parts(**a)
        return float(np.sum(u * p) - self.entropy_weight * entropy)

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        p, entropy, u = self.parts(**a)
        slope = sigmoid(a["rho"])
        return {"raw": u.sum(0), "rho": slope * ((u * a["noise"]).sum(0) - self.entropy_weight / softplus(a["rho"])), "perturbed": p,
                "entropy": np.asarray(entropy)}


class STNRangeMap(ObjectiveReference):
    name = "stn_range_map"

    def examples(self, rng: np.random.Generator) -> Examples:
        low, high = np.array([0.0, -1.0, 2.0, -np.inf, -np.inf]), np.array([1.0, 3.0, np.inf, 0.5, np.inf])
        raw = 2 * rng.standard_normal(5)
        return [{"raw": raw, "low": low, "high": high}, {"raw": raw, "low": low, "high": high, "upstream": rng.standard_normal(5)},
                {"raw": 3 * raw[:2], "low": low[:2], "high": np.array([9.0, 5.0]), "discrete": np.array([1, 0])}]

    def smooth(self, **a: np.ndarray) -> bool:
        return "discrete" not in a and bool(np.all(np.isfinite(a["low"])))

    def parts(self, raw: np.ndarray, low: np.ndarray, high: np.ndarray, discrete: np.ndarray | None = None,
              upstream: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y, slope = raw.copy(), np.ones_like(raw)
        for k, (r, a, b) in enumerate(zip(raw, low, high)):
            if np.isfinite(a) and np.isfinite(b):
                y[k], slope[k] = a + (b - a) * sigmoid(r), (b - a) * sigmoid(r) * sigmoid(-r)
            elif np.isfinite(a):
                y[k], slope[k] = a + softplus(r), sigmoid(r)
            elif np.isfinite(b):
                y[k], slope[k] = b - softplus(-r), sigmoid(-r)
        return np.where(np.zeros(len(y)) if discrete is None else discrete, np.floor(y), y), slope, np.ones_like(raw) if upstream is None else upstream

    def value(self, **a: np.ndarray) -> float:
        y, _, u = self.parts(**a)
        return float(u @ y)

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        y, slope, u = self.parts(**a)
        return {"raw": u * slope, "mapped": y}


class SSOSurrogate(ObjectiveReference):
    """Lavington et al., 2023 (arXiv 2302.02607)."""

    name = "sso_surrogate"
    defaults = {"eta": 1.0, "reduction": "sum"}
    settings = ({}, {"eta": 0.1, "reduction": "mean"})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [dict(zip(("z", "z0", "grad"), rng.standard_normal((3, *s)))) for s in ((4,), (3, 2), (2, 3, 2))]

    def value(self, z: np.ndarray, z0: np.ndarray, grad: np.ndarray) -> float:
        return float((np.sum(grad * (z - z0)) + np.sum((z - z0) ** 2) / (2 * self.eta)) / (len(z) if self.reduction == "mean" else 1))

    def gradients(self, z: np.ndarray, z0: np.ndarray, grad: np.ndarray) -> dict[str, np.ndarray]:
        return {"z": (grad + (z - z0) / self.eta) / (len(z) if self.reduction == "mean" else 1)}


class MECO(ObjectiveReference):
    """Jiang et al., 2023 (arXiv 2306.07485): the first pass."""

    name = "meco"
    defaults = {"beta": 0.5, "vr": False}
    settings = ({}, {"beta": 1.0}, {"vr": True})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"data": rng.standard_normal(n), "noise": 3 * rng.standard_normal(m)} for n, m in ((1, 1), (5, 8))] + [
            {"data": rng.standard_normal(3), "noise": rng.standard_normal(4), "noise_before": rng.standard_normal(4)}]

    def value(self, data: np.ndarray, noise: np.ndarray, noise_before: np.ndarray | None = None) -> float:
        return float(-data.mean() + np.log(np.mean(np.exp(noise))))

    def gradients(self, data: np.ndarray, noise: np.ndarray, noise_before: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"data": np.full(len(data), -1 / len(data)), "noise": softmax(noise), "log_normaliser": np.asarray(np.log(np.mean(np.exp(noise))))}


class DRRhoContrastive(ObjectiveReference):
    """Wei et al., 2025 (arXiv 2505.06699): the first pass, whose normalisers are those of the batch."""

    name = "drrho_contrastive"
    required = ("samples",)
    defaults = {"tau": 0.01, "gamma": 0.9, "eps": 1e-14, "rho": 8.0}
    settings = ({"samples": 9, "tau": 0.2}, {"samples": 9, "tau": 0.5, "eps": 1e-2, "rho": 3.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"s": rng.uniform(-1, 1, (n, n)), "indices": rng.permutation(9)[:n]} for n in (1, 2, 6)] + [
            {"s": rng.uniform(-1, 1, (4, 4)), "reference": rng.uniform(-1, 1, (4, 4)), "indices": np.arange(4)}]

    def smooth(self, **a: np.ndarray) -> bool:
        return False

    def side(self, s: np.ndarray, r: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        n = len(s)
        D = ((s - np.diag(s)[:, None]) - (r - np.diag(r)[:, None])) / self.tau
        off = ~np.eye(n, dtype=bool)
        log_u = np.log(self.eps + np.sum(np.exp(D) * off, axis=1) / n)
        W = np.exp(D - log_u[:, None]) * off / max(1, n - 1)
        return self.tau * np.sum(W * D) / n, (W - np.diag(W.sum(axis=1))) / n, log_u

    def parts(self, s: np.ndarray, indices: np.ndarray, reference: np.ndarray | None = None) -> tuple[float, np.ndarray, float]:
        r = np.zeros_like(s) if reference is None else reference
        a, ga, ua = self.side(s, r)
        b, gb, ub = self.side(s.T, r.T)
        return a + b, ga + gb.T, self.rho + (ua.mean() + ub.mean()) / 2

    def value(self, **a: np.ndarray) -> float:
        return float(self.parts(**a)[0])

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        _, g, slope = self.parts(**a)
        return {"s": g, "temperature": np.asarray(self.tau * slope), "dtau": np.asarray(slope)}


class VWGFObjective(ObjectiveReference):
    """Fan, Zhang, Taghvaei, Chen, 2021 (arXiv 2112.02424)."""

    name = "vwgf_objective"
    defaults = {"kind": "kl", "mean_exp": False, "power": 2.0, "q": 1.0}
    settings = ({}, {"mean_exp": True}, {"kind": "js"}, {"kind": "gen_entropy"}, {"kind": "gen_entropy", "power": 3.0, "q": 0.5})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"moved": rng.standard_normal(n), "reference": rng.standard_normal(m)} for n, m in ((1, 1), (5, 7))]

    def parts(self, t: np.ndarray, z: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        kind, m, q = self.h["kind"], self.power, self.q
        if kind == "js":
            act = lambda x: 2 * sigmoid(-x)  # noqa: E731
            return float(np.mean(np.log(2 - act(t)))), float(-np.mean(np.log(act(z)))), sigmoid(-t) / len(t), sigmoid(z) / len(z)
        if kind == "gen_entropy":
            c = q ** (m - 1)
            return (float(c * m / (m - 1) * np.mean(np.exp((m - 1) * t))), float(c * np.mean(np.exp(m * z))),
                    c * m * np.exp((m - 1) * t) / len(t), c * m * np.exp(m * z) / len(z))
        b, gb = (np.mean(np.exp(z)), np.exp(z) / len(z)) if self.mean_exp else (np.log(np.mean(np.exp(z))), softmax(z))
        return float(t.mean()), float(b), np.full(len(t), 1 / len(t)), gb

    def value(self, moved: np.ndarray, reference: np.ndarray) -> float:
        a, b, _, _ = self.parts(moved, reference)
        return a - b

    def gradients(self, moved: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
        a, b, ga, gb = self.parts(moved, reference)
        return {"moved": ga, "reference": -gb, "a": np.asarray(a), "b": np.asarray(b)}


class ForwardGradient(ObjectiveReference):
    """Fournier et al., 2023 (arXiv 2306.06968)."""

    name = "forward_gradient"
    defaults = {"estimator": "projection", "eps": 1e-16}
    settings = ({}, {"estimator": "plain"}, {"estimator": "sign"}, {"eps": 0.5}, {"estimator": "span"})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"guesses": rng.standard_normal((b, n)), "slopes": rng.standard_normal(b)} for b, n in ((1, 4), (5, 3))] + [
            {"guesses": np.array([[0.0, 0.0], [1.0, 2.0]]), "slopes": np.array([0.0, -1.0])}]

    def factors(self, guesses: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        if self.estimator == "span":
            return np.linalg.pinv(guesses.T, rcond=1e-12) @ (np.linalg.pinv(guesses, rcond=1e-12) @ slopes)
        return {"plain": slopes, "sign": np.sign(slopes), "projection": slopes / (np.sum(guesses**2, axis=1) + self.eps)}[self.estimator]

    def value(self, guesses: np.ndarray, slopes: np.ndarray) -> float:
        return float(self.factors(guesses, slopes) @ slopes)

    def gradients(self, guesses: np.ndarray, slopes: np.ndarray) -> dict[str, np.ndarray]:
        return {"gradient": self.factors(guesses, slopes) @ guesses}


class DEELBO(ObjectiveReference):
    """Harvey, Petrov, Hughes, 2025 (arXiv 2502.01861)."""

    name = "de_elbo"
    required = ("num_data",)
    defaults = {"kappa": None}
    settings = ({"num_data": 50}, {"num_data": 10, "kappa": 1.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"w": rng.standard_normal(D), "sigma": rng.uniform(0.2, 2, k)} for D, k in ((1, 1), (5, 5), (6, 1))] + [
            {"w": rng.standard_normal(4), "sigma": rng.uniform(0.2, 2, 4), "mean": rng.standard_normal(4)}]

    def parts(self, w: np.ndarray, sigma: np.ndarray, mean: np.ndarray | float = 0.0) -> tuple[float, float, np.ndarray]:
        s = np.broadcast_to(sigma, w.shape)
        scale = 1 / ((len(w) / self.num_data if self.kappa is None else self.kappa) * self.num_data)
        return float((np.sum((w - mean) ** 2) + np.sum(s**2)) / len(w)), scale, s

    def value(self, **a: np.ndarray) -> float:
        tau, scale, s = self.parts(**a)
        return float(scale * (len(s) * np.log(tau) - np.sum(np.log(s**2))) / 2)

    def gradients(self, **a: np.ndarray) -> dict[str, np.ndarray]:
        tau, scale, s = self.parts(**a)
        gs = scale * (s / tau - 1 / s)
        return {"w": scale * (a["w"] - a.get("mean", 0)) / tau, "sigma": gs if len(a["sigma"]) == len(s) else gs.sum(keepdims=True), "tau": np.asarray(tau)}
