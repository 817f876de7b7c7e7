"""Diagnostics that are plain functions."""

from __future__ import annotations

import numpy as np


def ghost_step(a: np.ndarray, tau: float, logits: np.ndarray | None = None, *, mode: str = "cap", safety: float = 1.0,
               exact_binary: bool = True, quantile: float = 0.0) -> tuple[float, float]:
    """The step that stays inside the convergence radius of softmax cross-entropy, and r = tau/radius (Sao, 2026;
    arXiv 2603.13552).

    `a` (n, C) holds the derivatives of the logits along the update.  The nearest zero of sum_k exp(z_k + a_k tau) is
    at least pi/(max a - min a) away from 0, and with two logits exactly |(z_0 - z_1) + i pi|/|a_0 - a_1|.  One column
    is a sigmoid logit, whose second logit is 0.  The card leaves the kind of quantile open: the order statistic below
    here, so that no infinite radius is ever interpolated.
    """
    a = np.asarray(a, dtype=np.float64)
    if np.isnan(a).any():
        raise ValueError("ghost_step: the derivatives hold a NaN")
    if a.size and a.shape[1] == 1:
        a = np.hstack([a, np.zeros_like(a)])
        logits = None if logits is None else np.hstack([logits, np.zeros_like(logits)])
    if a.size == 0:
        return tau, 0.0
    delta = a.max(axis=1) - a.min(axis=1)
    reach = np.full(len(a), np.pi)
    if exact_binary and a.shape[1] == 2 and logits is not None:
        reach = np.hypot(logits[:, 0] - logits[:, 1], np.pi)
    with np.errstate(divide="ignore"):
        radius = float(np.quantile(np.where(delta > 0, reach / delta, np.inf), quantile, method="lower"))
    if np.isinf(radius):
        return tau, 0.0
    return (min(tau, safety * radius) if mode == "cap" else safety * radius), tau / radius
