"""Steps of visual prompts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor


class VisualPrompt(PerTensor):
    """Pixel-prompt step with a normalised gradient (Wu et al., 2022; arXiv:2212.10556).

    The norm is that of the whole gradient, before the mask, which is 1 on the border of width `pad` of the last two
    axes."""

    name = "visual_prompt"
    shapes = "matrix"
    required = ("lr",)
    defaults = {"eps": 1e-10, "pad": 30}
    settings = ({"lr": 0.1}, {"lr": 0.3, "pad": 1}, {"lr": 0.3, "eps": 0.5, "pad": 2}, {"lr": 0.1, "pad": 0})

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in p.shape[-2:])  # distance from the edge
        mask = np.minimum.outer(rows, columns) < self.pad
        length = np.sqrt(np.sum(g * g)) + self.eps
        if length > 0:
            p -= self.lr * mask * g / length
