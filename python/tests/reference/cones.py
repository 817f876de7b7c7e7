"""Cones by one name (Tanneau, Van Hentenryck, 2024)."""

from __future__ import annotations

import numpy as np

from .base import ConstraintReference
from .regularizers import rows


class ConicProjection(ConstraintReference):
    name = "conic_projection"
    defaults = {"cone": "nonneg", "kind": "euclidean"}
    settings = tuple({"cone": c, "kind": k} for c in ("nonneg", "soc", "psd") for k in ("euclidean", "radial"))
    bounded = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return self.cone != "psd" or (len(shape) >= 2 and shape[0] ** 2 == np.prod(shape))

    def project(self, w: np.ndarray) -> np.ndarray:
        if w.size == 0:
            return w
        radial = self.kind_ == "radial"
        if self.cone == "nonneg":
            return w + max(0.0, -w.min()) if radial else np.maximum(w, 0)
        if self.cone == "psd":
            x = rows(w)
            e, V = np.linalg.eigh((x + x.T) / 2)
            moved = (V * e) @ V.T + max(0.0, -e.min()) * np.eye(len(x)) if radial else (V * np.maximum(e, 0)) @ V.T
            return moved.reshape(w.shape)
        t, x = w.ravel()[0], w.ravel()[1:]
        size = np.linalg.norm(x)
        if size <= t:
            return w
        if radial:
            return np.concatenate([[size], x]).reshape(w.shape)
        if size <= -t:
            return np.zeros_like(w)
        return ((t + size) / 2 * np.concatenate([[1.0], x / size])).reshape(w.shape)

    @property
    def kind_(self) -> str:
        return self.h["kind"]
