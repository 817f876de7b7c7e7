"""Adam with Critical Momenta."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._per_tensor import norm, ratio, zeros
from .base import Arrays, OptimizerReference


class AdamCM(OptimizerReference):
    """Adam with Critical Momenta (Malviya et al., 2023; arXiv:2307.09638), the rule of the released class.

    The first call only seeds the buffer with the raw gradient (whether the paper does is UNVERIFIED).  The key of a
    snapshot is the sum of the tensors' gradient norms; `layerwise` gives each tensor a buffer and key of its own.
    """

    name = "adam_cm"
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "capacity": 5, "decay": 0.7,
                "layerwise": False}
    settings = (
        {},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2, "capacity": 2, "decay": 0.95},
        {"lr": 0.02, "capacity": 3, "decay": 0.9, "layerwise": True, "eps": 0.01},
        {"lr": 0.02, "capacity": 1, "decay": 0.99},
    )

    def start(self, params: Arrays) -> None:
        indices = list(range(len(params)))
        self.blocks = [[i] for i in indices] if self.layerwise else [indices]
        self.snapshots: list[list[dict[int, np.ndarray]]] = [[] for _ in self.blocks]
        self.keys: list[list[float]] = [[] for _ in self.blocks]
        self.m, self.v, self.t = zeros(params), zeros(params), 0

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        self.t += 1
        for block, snapshots, keys in zip(self.blocks, self.snapshots, self.keys):
            key = sum(norm([grads[i]]) for i in block)
            for i in block:
                params[i] *= 1 - self.lr * self.weight_decay
            if self.t == 1:
                snapshots.append({i: np.copy(grads[i]) for i in block})
                keys.append(key)
            else:
                self.move(block, params, grads, snapshots)
                self.insert(snapshots, keys, {i: np.copy(self.m[i]) for i in block}, key)
            keys[:] = [self.h["decay"] * k for k in keys]

    def move(self, block: list[int], params: Arrays, grads: Arrays, snapshots: list[dict[int, np.ndarray]]) -> None:
        c1, c2 = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        for i in block:
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * grads[i]
            a = self.m[i] + sum(b[i] for b in snapshots) / len(snapshots)
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * a**2
            params[i] -= self.lr / c1 * ratio(a, np.sqrt(self.v[i] / c2) + self.eps)

    def insert(self, snapshots: list[dict[int, np.ndarray]], keys: list[float], new: dict[int, np.ndarray], key: float) -> None:
        if len(snapshots) < self.capacity:
            snapshots.append(new)
            keys.append(key)
        elif key > min(keys):
            smallest = keys.index(min(keys))
            snapshots[smallest], keys[smallest] = new, key
