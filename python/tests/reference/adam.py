"""Adam and its nearest relatives."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ._per_tensor import PerTensor, ratio


def adam_moments(self, g: np.ndarray, s: SimpleNamespace) -> tuple[float, float]:
    """m and v of Adam; returns the corrections c1 and c2."""
    s.m = self.beta1 * s.m + (1 - self.beta1) * g
    s.v = self.beta2 * s.v + (1 - self.beta2) * g**2
    return 1 - self.beta1**s.t, 1 - self.beta2**s.t


class Adam(PerTensor):
    """Adam (Kingma, Ba, 2014; arXiv:1412.6980), coupled decay.

    `eps_in_sqrt` puts eps under the root after the bias correction, sqrt(v/c2 + eps); with
    `bias_correction=False` that is the form of arXiv:2404.01436 (placement UNVERIFIED).
    """

    name = "adam"
    buffers = ("m", "v", "vmax")
    amsgrad = False
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0,
                "bias_correction": True, "eps_in_sqrt": False}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1},
        {"lr": 0.05, "eps": 0.1, "bias_correction": False},
        {"lr": 0.05, "eps": 0.1, "eps_in_sqrt": True},
        {"lr": 0.05, "beta2": 0.9, "eps": 0.01, "bias_correction": False, "eps_in_sqrt": True, "weight_decay": 0.05},
        {"lr": 0.05, "beta1": 0.0, "beta2": 0.0, "eps": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        c1, c2 = adam_moments(self, g, s)
        if not self.bias_correction:
            c1 = c2 = 1.0
        s.vmax = np.maximum(s.vmax, s.v)  # before the bias correction
        v = (s.vmax if self.amsgrad else s.v) / c2
        q = np.sqrt(v + self.eps) if self.eps_in_sqrt else np.sqrt(v) + self.eps
        p -= self.lr * ratio(s.m / c1, q)


class AMSGrad(Adam):
    """AMSGrad (Reddi, Kale, Kumar, 2018): Adam with the running maximum of v, taken before the bias correction."""

    name = "amsgrad"
    amsgrad = True
    settings = (
        {},
        {"lr": 0.05, "beta2": 0.7, "weight_decay": 0.1},
        {"lr": 0.05, "beta2": 0.9, "eps": 0.1, "bias_correction": False, "eps_in_sqrt": True},
    )


class AdamW(PerTensor):
    """AdamW (Loshchilov, Hutter, 2017; arXiv:1711.05101), with the optional AMSGrad maximum."""

    name = "adamw"
    buffers = ("m", "v", "vmax")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3},
        {"lr": 0.05, "beta2": 0.7, "eps": 0.01, "amsgrad": True},
        {"lr": 0.05, "eps": 0.0, "weight_decay": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        self.decay(p, g, decoupled=True)
        p -= self.lr * self.direction(g, s)

    def direction(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        c1, c2 = adam_moments(self, g, s)
        s.vmax = np.maximum(s.vmax, s.v)
        v = s.vmax if self.amsgrad else s.v
        return ratio(s.m / c1, np.sqrt(v / c2) + self.eps)


class CautiousAdamW(AdamW):
    """C-AdamW (Liang et al., 2024; arXiv:2411.16085): AdamW's direction kept only where its sign is the gradient's.

    `scale`: `mean` divides by max(kept share, 1e-3), the authors' present code; `count` multiplies by n/(kept + 1), the
    paper's form and their first code; `none` leaves the kept entries as they are.
    """

    name = "cautious_adamw"
    defaults = {**AdamW.defaults, "scale": "mean"}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.95, "weight_decay": 0.3, "scale": "mean"},
        {"lr": 0.05, "beta1": 0.95, "beta2": 0.9, "scale": "count"},
        {"lr": 0.05, "beta1": 0.95, "beta2": 0.7, "amsgrad": True, "scale": "none"},
    )

    def direction(self, g: np.ndarray, s: SimpleNamespace) -> np.ndarray:
        u = super().direction(g, s)
        mask = (u * g > 0).astype(np.float64)
        n, kept = mask.size, mask.sum()
        factor = {"mean": 1 / max(kept / max(n, 1), 1e-3), "count": n / (kept + 1), "none": 1.0}[self.scale]
        return u * mask * factor


class AdaMax(PerTensor):
    """AdaMax (Kingma, Ba, 2014; arXiv:1412.6980): the infinity-norm Adam; eps inside the maximum, as the common packages."""

    name = "adamax"
    buffers = ("m", "u")
    defaults = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.05, "beta2": 0.7, "eps": 0.0},
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=False)
        s.m = self.beta1 * s.m + (1 - self.beta1) * g
        s.u = np.maximum(self.beta2 * s.u, np.abs(g) + self.eps)
        p -= self.lr / (1 - self.beta1**s.t) * ratio(s.m, s.u)


class NAdam(PerTensor):
    """NAdam (Dozat, 2016): Adam with Nesterov momentum and the schedule of mu."""

    name = "nadam"
    buffers = ("m", "v")
    defaults = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "momentum_decay": 4e-3, "weight_decay": 0.0,
                "decoupled": False}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2},
        {"lr": 0.05, "momentum_decay": 0.5, "eps": 0.01, "weight_decay": 0.2, "decoupled": True},
        {"lr": 0.05, "momentum_decay": 0.0},
    )

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        s = super().fresh(p)
        s.product = 1.0
        return s

    def mu(self, t: int) -> float:
        return self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        mu, mu_next = self.mu(s.t), self.mu(s.t + 1)
        s.product *= mu
        g = self.decay(p, g, decoupled=self.decoupled)
        _, c2 = adam_moments(self, g, s)
        q = np.sqrt(s.v / c2) + self.eps
        p -= self.lr * (1 - mu) / (1 - s.product) * ratio(g, q) + self.lr * mu_next / (1 - s.product * mu_next) * ratio(s.m, q)


class RAdam(PerTensor):
    """RAdam (Liu et al., 2019; arXiv:1908.03265): the variance of Adam's step rectified; plain momentum while rho <= 5."""

    name = "radam"
    buffers = ("m", "v")
    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False}
    settings = (
        {},
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2},
        {"lr": 0.05, "beta2": 0.95, "eps": 0.1, "weight_decay": 0.2, "decoupled": True},
        {"lr": 0.05, "beta2": 0.6},  # rho_inf = 4: never adapted
    )

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        g = self.decay(p, g, decoupled=self.decoupled)
        c1, c2 = adam_moments(self, g, s)
        rho_inf = 2 / (1 - self.beta2) - 1
        rho = rho_inf - 2 * s.t * self.beta2**s.t / c2
        if rho > 5:
            r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            p -= self.lr * r * np.sqrt(c2) * ratio(s.m / c1, np.sqrt(s.v) + self.eps)
        else:
            p -= self.lr * s.m / c1
