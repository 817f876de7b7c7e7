"""Private gradients, from their cards: the samples' gradients in, one gradient out."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, Reference


class PrivateReference(Reference):
    kind = "transform"
    required = ("noise_multiplier", "expected_batch_size")

    def start(self) -> None:
        self.releases = 0

    def release(self, parts: list[Arrays], normal: Callable[[int, int], Any]) -> Arrays:
        """`parts`: of every micro-batch one array (samples, shape) a tensor; normal(release, tensor) gives the draws."""
        raise NotImplementedError

    @staticmethod
    def norms(part: Arrays) -> np.ndarray:
        """(tensors, samples)."""
        return np.array([np.sqrt(np.sum(g.reshape(len(g), int(np.prod(g.shape[1:], dtype=int))) ** 2, axis=1)) for g in part])

    @staticmethod
    def weighted(part: Arrays, factors: np.ndarray) -> Arrays:
        good = np.isfinite(PrivateReference.norms(part)).all(axis=0)
        return [np.tensordot(f[good], g[good], 1) if good.any() else np.zeros(g.shape[1:]) for f, g in zip(factors, part)]


class DPSGD(PrivateReference):
    """Abadi et al., 2016 (arXiv 1607.00133); auto: Bu et al., 2022 (arXiv 2206.07136)."""

    name = "dp_sgd"
    defaults = {"clip": 1.0, "mode": "flat", "eps": 1e-6, "gamma": 0.01, "micro_batches": 1}
    settings = (
        {"noise_multiplier": 0.0, "expected_batch_size": 4},
        {"noise_multiplier": 1.1, "expected_batch_size": 8, "clip": 2.5},
        {"noise_multiplier": 0.7, "expected_batch_size": 4, "mode": "auto", "clip": 0.5, "micro_batches": 3},
        {"noise_multiplier": 0.4, "expected_batch_size": 4, "mode": "per_layer", "clip": 0.8},
        {"noise_multiplier": 0.4, "expected_batch_size": 4, "mode": "per_layer", "clip": [0.5, 1.0, 2.0], "micro_batches": 2},
    )

    def release(self, parts: list[Arrays], normal: Callable[[int, int], Any]) -> Arrays:
        tensors = len(parts[0])
        clips = np.broadcast_to(np.asarray(self.clip, np.float64), (tensors,))
        total: Arrays = [np.zeros(g.shape[1:]) for g in parts[0]]
        for part in parts:
            norms = self.norms(part)
            whole = np.sqrt(np.sum(norms**2, axis=0))
            if self.mode == "per_layer":
                factors = np.minimum(1, clips[:, None] / (norms + self.eps))
            elif self.mode == "flat":
                factors = np.tile(np.minimum(1, self.clip / (whole + self.eps)), (tensors, 1))
            else:
                factors = np.tile(self.clip / (whole + self.gamma), (tensors, 1))
            total = [t + w for t, w in zip(total, self.weighted(part, factors))]
        c = np.sqrt(np.sum(clips**2)) if self.mode == "per_layer" else self.clip
        out = [(t + self.noise_multiplier * c * normal(self.releases, i)) / self.expected_batch_size for i, t in enumerate(total)]
        self.releases += 1
        return out


class DPAdaptiveClip(PrivateReference):
    """Andrew et al., 2021 (arXiv 1905.03871)."""

    name = "dp_adaptive_clip"
    defaults = {"clip0": 1.0, "target_quantile": 0.5, "lr": 0.2, "count_std": 1.0, "min": 1e-8, "max": 1e8, "eps": 1e-6,
                "micro_batches": 1}
    settings = (
        {"noise_multiplier": 0.0, "expected_batch_size": 4, "count_std": 1e-9},
        {"noise_multiplier": 0.9, "expected_batch_size": 4, "clip0": 0.1, "target_quantile": 0.8, "lr": 0.5},
        {"noise_multiplier": 0.5, "expected_batch_size": 8, "max": 1.2, "micro_batches": 2},
    )

    def start(self) -> None:
        super().start()
        self.c = self.clip0

    def release(self, parts: list[Arrays], normal: Callable[[int, int], Any]) -> Arrays:
        total: Arrays = [np.zeros(g.shape[1:]) for g in parts[0]]
        n = free = 0
        for part in parts:
            whole = np.sqrt(np.sum(self.norms(part) ** 2, axis=0))
            f = np.minimum(1, self.c / (whole + self.eps))
            n, free = n + len(whole), free + int(np.sum(f == 1))
            total = [t + w for t, w in zip(total, self.weighted(part, np.tile(f, (len(part), 1))))]
        sigma = self.noise_multiplier
        noise = 0.0 if sigma == 0 else (sigma**-2 - (2 * self.count_std) ** -2) ** -0.5
        out = [(t + noise * self.c * normal(self.releases, i)) / self.expected_batch_size for i, t in enumerate(total)]
        if n:
            z = float(normal(self.releases, 2**32 - 1))
            b = (free + self.count_std * z) / n
            self.c = float(np.clip(self.c * np.exp(-self.lr * (b - self.target_quantile)), self.min, self.max))
        self.releases += 1
        return out
