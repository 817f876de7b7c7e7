"""Attributions from gradients at points on the way, from their cards."""

from __future__ import annotations

import numpy as np

from .solvers import Case, SolverReference
from .solvers_spectra import draws

MASK = (1 << 64) - 1


def mix(key: int, counter: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014), keyed: the library's random numbers."""
    z = (key + counter * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, step: int, element: int = 0) -> float:
    """The uniform draw of (seed, 0, step, 0)."""
    key = mix(mix(mix(seed ^ 0x7468616C77656721, 1), step + 1), 1)
    return ((mix(key, element) >> 11) + 0.5) * 2.0**-53


def cubic(rng, shape):
    a, b = rng.standard_normal(shape), rng.standard_normal(shape)
    return lambda: {"gradient": lambda p: 3 * a * np.asarray(p, np.float64) ** 2 + b * np.sum(b * p)}


class SmoothGrad(SolverReference):
    """Smilkov et al., 2017; arXiv 1706.03825."""

    name = "smoothgrad"
    defaults = {"noise": 0.15, "samples": 50, "reduce": "mean", "seed": 0}
    settings = ({"samples": 6}, {"samples": 4, "reduce": "squared", "noise": 0.4}, {"samples": 5, "reduce": "variance", "seed": 3}, {"samples": 1})

    def cases(self, rng):
        x = rng.standard_normal((3, 4))
        return [Case({"x": x}, cubic(rng, (3, 4))), Case({"x": x[0], "vectors0": rng.standard_normal((3, 4))}, cubic(rng, 4)),
                Case({"x": np.full(2, 0.7)}, cubic(rng, 2))]

    def solve(self, inputs, ask):
        x = inputs["x"]
        es = inputs.get("vectors0")
        if es is None:
            es = [draws(self.seed, k, x.size, False).reshape(x.shape) for k in range(self.samples)]
        g = np.stack([ask["gradient"](x + self.noise * np.ptp(x) * e) for e in es])
        how = {"mean": lambda: g.mean(0), "squared": lambda: np.mean(g**2, 0), "variance": lambda: g.var(0)}
        return {"saliency": how[self.reduce](), "iterations": len(g), "outcome": "converged"}


class ExpectedGradients(SolverReference):
    """Erion et al., 2021; arXiv 1906.10670."""

    name = "expected_gradients"
    defaults = {"samples": 200, "seed": 0}
    settings = ({"samples": 7}, {"samples": 2, "seed": 5})

    def cases(self, rng):
        x = rng.standard_normal((3, 2))
        return [Case({"x": x, "references": rng.standard_normal((3, 3, 2))}, cubic(rng, (3, 2))),
                Case({"x": x[0], "references": x[:1]}, cubic(rng, 2)),
                Case({"x": x[:, 0], "references": rng.standard_normal((2, 3)), "alphas": rng.random(5)}, cubic(rng, 3))]

    def solve(self, inputs, ask):
        x, refs = inputs["x"], inputs["references"]
        alphas = inputs.get("alphas", [uniform(self.seed, k) for k in range(self.samples)])
        phi = [(x - refs[k % len(refs)]) * ask["gradient"](refs[k % len(refs)] + a * (x - refs[k % len(refs)])) for k, a in enumerate(alphas)]
        return {"attribution": np.mean(phi, 0), "iterations": len(phi), "outcome": "converged"}


class IntegratedGradients(SolverReference):
    """Sundararajan, Taly, Yan, 2017; arXiv 1703.01365."""

    name = "integrated_gradients"
    defaults = {"steps": 50}
    settings = ({}, {"steps": 1}, {"steps": 3})

    def cases(self, rng):
        x = rng.standard_normal((3, 2))
        return [Case({"x": x}, cubic(rng, (3, 2))), Case({"x": x, "reference": rng.standard_normal((3, 2))}, cubic(rng, (3, 2)))]

    def solve(self, inputs, ask):
        x = inputs["x"]
        r = inputs.get("reference", np.zeros_like(x))
        g = [ask["gradient"](r + (k + 0.5) / self.steps * (x - r)) for k in range(self.steps)]
        return {"attribution": (x - r) * np.mean(g, 0), "iterations": self.steps, "outcome": "converged"}
