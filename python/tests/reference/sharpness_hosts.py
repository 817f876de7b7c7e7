"""What stands around sharpness-aware perturbations: an edge of stability, a divergence, a split, perturbed inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import DiagnosticReference

Examples = list[dict[str, np.ndarray]]


class SAMEosEigenvalue(DiagnosticReference):
    """Agarwala and Dauphin, 2023 (arXiv 2302.08692): the positive root of lr x (1 + rho x) = 2."""

    name = "sam_eos_eigenvalue"

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"lr": np.array(a), "rho": np.array(b)} for a, b in ((0.1, 0.05), (0.5, 0.0), (2.0, 3.0), (1e-3, 1e-6))]

    def results(self, lr: np.ndarray, rho: np.ndarray) -> dict[str, Any]:
        if rho == 0:
            return {"value": 2 / lr}
        return {"value": max(np.roots(np.array([lr * rho, lr, -2.0], np.float64)).real)}


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


class TRAMDivergence(DiagnosticReference):
    """Sherborne et al., 2023 (arXiv 2310.03646)."""

    name = "tram_divergence"
    defaults = {"kind": "forward", "reduction": "batchmean"}
    settings = ({}, {"kind": "reverse"}, {"kind": "symmetric"}, {"kind": "symmetric", "reduction": "authors"})

    def examples(self, rng: np.random.Generator) -> Examples:
        made = [{"reference": rng.standard_normal(s), "z": 3 * rng.standard_normal(s)} for s in ((1, 2), (5, 4))]
        return made + [{"reference": made[1]["z"], "z": made[1]["z"].copy()}]

    def results(self, reference: np.ndarray, z: np.ndarray) -> dict[str, Any]:
        p, q = log_softmax(reference), log_softmax(z)
        ways = {"forward": np.exp(p) * (p - q), "reverse": np.exp(q) * (q - p)}
        total = sum(np.sum(x) for k, x in ways.items() if self.h["kind"] in (k, "symmetric"))
        rows = len(z)
        return {"value": total / rows if self.reduction == "batchmean" else total / z.size / rows}


class ImbSAMSplit(DiagnosticReference):
    """Zhou et al., 2023 (arXiv 2308.07815)."""

    name = "imbsam_split"
    defaults = {"eta": 20.0}
    settings = ({}, {"eta": 3.0}, {"eta": 0.0})

    def examples(self, rng: np.random.Generator) -> Examples:
        return [{"y": rng.integers(0, 4, n), "counts": np.array([100.0, 20.0, 19.0, 2.0])} for n in (1, 9)]

    def results(self, y: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        tail = (counts[y] < self.eta).astype(float)
        return {"tail": tail, "head": 1 - tail}


class UDIMPerturbInputs(DiagnosticReference):
    """Shin et al., 2024: a normalised step along the input gradient."""

    name = "udim_perturb_inputs"
    defaults = {"step": 10.0, "axis": "sample"}
    settings = ({}, {"step": 0.5, "axis": "batch"}, {"axis": "batch"})

    def examples(self, rng: np.random.Generator) -> Examples:
        found = [dict(zip(("x", "gradient"), rng.standard_normal((2, *s)))) for s in ((1, 3), (4, 2, 3), (5, 1))]
        found[1]["gradient"][0] = 0
        return found

    def results(self, x: np.ndarray, gradient: np.ndarray) -> dict[str, Any]:
        axes = 0 if self.axis == "batch" else tuple(range(1, x.ndim))
        size = np.sqrt(np.sum(gradient**2, axis=axes, keepdims=True))
        return {"perturbed": x + self.step * gradient / np.maximum(size, 1e-12)}
