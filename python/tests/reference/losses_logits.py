"""Losses of logits, from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference

Inputs = dict[str, np.ndarray]


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - np.max(z, axis=-1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def sigma(u: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -u))


def softplus(u: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, u)


def labels(rng: np.random.Generator, shape: int | tuple[int, ...], classes: int) -> np.ndarray:
    return rng.integers(0, classes, shape)


def cross_entropy(z: np.ndarray, q: np.ndarray, temperature: float, divisor: float) -> tuple[float, np.ndarray]:
    """-sum q log softmax(z/T) / divisor and its gradient; what is masked (-inf) has no target."""
    lp = log_softmax(z / temperature)
    value = -np.sum(np.where(q == 0, 0.0, q * np.where(q == 0, 0.0, lp))) / divisor
    return float(value), (np.sum(q, axis=-1, keepdims=True) * np.exp(lp) - q) / temperature / divisor


class _Labelled(ObjectiveReference):
    """Cross-entropy with a target matrix; subclasses change the logits by `adjusted`, whose derivative is `slope`."""

    options = {"label_smoothing": 0.0, "temperature": 1.0, "weight": None, "ignore_index": -100, "reduction": "mean"}

    def option(self, key: str):
        return self.h.get(key, self.options[key])

    def target(self, y: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
        w = np.ones(classes) if self.option("weight") is None else np.asarray(self.option("weight"), float)
        eps, kept = self.option("label_smoothing"), y != self.option("ignore_index")
        safe = np.where(kept, y, 0)
        q = (1 - eps) * w[safe][..., None] * np.eye(classes)[safe] + eps / classes * w
        q = q * kept[..., None]
        divisor = np.sum(w[safe] * kept) if self.option("reduction") == "mean" else 1.0
        return q, float(divisor)

    def adjusted(self, z: np.ndarray, y: np.ndarray, **rest: np.ndarray) -> np.ndarray:
        return z

    def slope(self, z: np.ndarray, y: np.ndarray, **rest: np.ndarray) -> np.ndarray:
        return np.ones_like(z)

    def both(self, z: np.ndarray, y: np.ndarray, **rest: np.ndarray) -> tuple[float, np.ndarray]:
        q, divisor = self.target(y, z.shape[-1])
        if divisor == 0:
            return 0.0, np.zeros_like(z)
        return cross_entropy(self.adjusted(z, y, **rest), q, self.option("temperature"), divisor)

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return {"z": self.both(**x)[1] * self.slope(**x)}


class SoftmaxCrossEntropy(_Labelled):
    name = "softmax_cross_entropy"
    defaults = _Labelled.options
    settings = ({}, {"label_smoothing": 0.1, "temperature": 2.5}, {"reduction": "sum", "label_smoothing": 1.0},
                {"weight": [0.5, 2.0, 0.0, 1.0], "label_smoothing": 0.2, "ignore_index": 1}, {"weight": [1.0, 3.0, 0.25, 1.0]})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        t = rng.dirichlet(np.ones(4), 6)
        return [
            {"z": rng.standard_normal((1, 4)), "y": labels(rng, 1, 4)},
            {"z": 3 * rng.standard_normal((700, 4)), "y": labels(rng, 700, 4)},
            {"z": rng.standard_normal((2, 3, 4)), "y": np.where(rng.random((2, 3)) < 0.3, self.ignore_index, labels(rng, (2, 3), 4))},
            {"z": rng.standard_normal((3, 4)), "y": np.full(3, self.ignore_index)},
            {"z": rng.standard_normal(4), "y": np.array(3)},
            {"z": 300 * rng.standard_normal((5, 4)), "y": labels(rng, 5, 4)},
            {"z": rng.standard_normal((6, 4)), "t": t},
            {"z": rng.standard_normal((1, 2, 4)), "t": t[None, :2]},
        ]

    def both(self, z: np.ndarray, y: np.ndarray | None = None, t: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        if t is None:
            return super().both(z, y)
        w = np.ones(z.shape[-1]) if self.weight is None else np.asarray(self.weight)
        q = w * ((1 - self.label_smoothing) * t + self.label_smoothing / z.shape[-1])
        return cross_entropy(z, q, self.temperature, z[..., 0].size if self.reduction == "mean" else 1.0)

    def slope(self, z: np.ndarray, **rest: np.ndarray) -> np.ndarray:
        return np.ones_like(z)


class LogitAdjustment(_Labelled):
    name = "logit_adjustment"
    defaults = {"tau": 1.0, **_Labelled.options}
    settings = ({}, {"tau": 0.0}, {"tau": 1.5, "temperature": 2.0, "weight": [1.0, 2.0, 0.5], "ignore_index": 2})
    masked = True

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        cases = [
            {"z": rng.standard_normal((1, 3)), "y": np.array([1]), "counts": np.array([3.0, 50.0, 900.0])},
            {"z": 3 * rng.standard_normal((600, 3)), "y": labels(rng, 600, 3), "counts": np.array([3.0, 50.0, 900.0])},
            {"z": rng.standard_normal((2, 4, 3)), "y": labels(rng, (2, 4), 3), "counts": np.array([0.5, 1.0, 0.25])},
        ]
        absent = {"z": rng.standard_normal((4, 3)), "y": np.array([0, 2, 2, 0]), "counts": np.array([7.0, 0.0, 2.0])}
        return [*cases, absent] if self.masked else cases

    def adjusted(self, z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            shift = np.log(counts / np.sum(counts))
        return z * self.slope(z, y, counts=counts) + np.where(counts == 0, -np.inf, self.tau * np.where(counts == 0, 0.0, shift))


class VectorScaling(LogitAdjustment):
    name = "vector_scaling"
    defaults = {"gamma": 0.3, "tau": 1.0, "weight": None, "reduction": "mean"}
    settings = ({}, {"gamma": 0.0}, {"gamma": 1.2, "tau": 0.0, "weight": [1.0, 2.0, 0.5]}, {"reduction": "sum"})

    def slope(self, z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.ones_like(z) * (counts / np.max(counts)) ** self.gamma


class VSLoss(VectorScaling):
    """The form that divides the logits: Delta_c = (n_max/n_c)^gamma."""

    name = "vs_loss"
    masked = False

    def slope(self, z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.ones_like(z) / (np.max(counts) / counts) ** self.gamma


class LDAM(_Labelled):
    name = "ldam"
    defaults = {"max_m": 0.5, "scale": 30.0, "weight": None, "reduction": "mean"}
    settings = ({}, {"max_m": 0.2, "scale": 5.0, "weight": [1.0, 2.0, 0.5]}, {"reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        counts = np.array([3.0, 50.0, 900.0])
        return [{"z": rng.uniform(-1, 1, (n, 3)), "y": labels(rng, n, 3), "counts": counts} for n in (1, 7, 300)]

    def adjusted(self, z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        m = counts**-0.25
        return self.scale * (z - (m / np.max(m) * self.max_m)[y][..., None] * np.eye(3)[y])

    def slope(self, z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.full_like(z, self.scale)


class AngularMargin(_Labelled):
    name = "angular_margin"
    defaults = {"kind": "arcface", "margin": None, "scale": 64.0, "reduction": "mean"}
    settings = ({}, {"kind": "cosface"}, {"margin": 0.2, "scale": 4.0, "reduction": "sum"}, {"margin": 0.0, "kind": "cosface"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        far = rng.uniform(-1, 1, (6, 3))
        far[np.arange(6), np.arange(6) % 3] = [0.5, -0.9, -0.99, 0.999, -0.6, 0.0]
        return [
            {"z": rng.uniform(-1, 1, (1, 3)), "y": labels(rng, 1, 3)},
            {"z": rng.uniform(-1, 1, (500, 3)), "y": labels(rng, 500, 3)},
            {"z": far, "y": np.arange(6) % 3},
        ]

    def _target(self, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = self.margin if self.margin is not None else 0.5 if self.kind_ == "arcface" else 0.35
        c = np.clip(cosine, -1 + 1e-7, 1 - 1e-7)
        if self.kind_ == "cosface":
            return c - m, np.ones_like(c)
        s = np.sqrt(1 - c * c)
        beyond = c <= np.cos(np.pi - m)
        return (np.where(beyond, c - m * np.sin(np.pi - m), c * np.cos(m) - s * np.sin(m)),
                np.where(beyond, 1.0, np.cos(m) + c * np.sin(m) / s))

    @property
    def kind_(self) -> str:  # `kind` is what every reference calls the kind of its method
        return self.h["kind"]

    def adjusted(self, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        hot = np.eye(z.shape[-1])[y]
        return self.scale * (z * (1 - hot) + self._target(np.sum(z * hot, axis=-1))[0][..., None] * hot)

    def slope(self, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        hot = np.eye(z.shape[-1])[y]
        return self.scale * (1 - hot + self._target(np.sum(z * hot, axis=-1))[1][..., None] * hot)


class FocalLoss(ObjectiveReference):
    name = "focal_loss"
    defaults = {"gamma": 2.0, "alpha": None, "mode": "softmax", "reduction": "mean"}
    settings = ({}, {"gamma": 0.0, "alpha": 0.3}, {"gamma": 0.5, "alpha": [0.2, 1.0, 0.5], "reduction": "sum"},
                {"mode": "sigmoid", "alpha": 0.25}, {"mode": "sigmoid", "gamma": 1.5, "reduction": "sum"})

    def examples(self, rng: np.random.Generator) -> list[Inputs]:
        out = []
        for scale, shape in ((1.0, (1, 3)), (3.0, (400, 3)), (1.0, (2, 4, 3)), (30.0, (9, 3))):
            z = scale * rng.standard_normal(shape)
            if self.mode == "softmax":
                out.append({"z": z, "y": labels(rng, shape[:-1], 3)})
            else:
                out.append({"z": z, "t": labels(rng, shape, 2).astype(float)})
        return out

    def both(self, z: np.ndarray, y: np.ndarray | None = None, t: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        g = self.gamma
        if self.mode == "softmax":
            hot = np.eye(z.shape[-1])[y]
            lp = log_softmax(z)
            log = np.sum(lp * hot, axis=-1, keepdims=True)
            om, divisor = -np.expm1(log), log.size
            a = 1.0 if self.alpha is None else self.alpha if np.isscalar(self.alpha) else np.asarray(self.alpha)[y][..., None]
            with np.errstate(divide="ignore", invalid="ignore"):
                d = np.where(om == 0, 0.0, a * (g * np.exp(log) * om ** (g - 1) * log - om**g)) * (hot * om - (1 - hot) * np.exp(lp))
        else:
            s = 2 * t - 1
            log, om, divisor = -softplus(-s * z), sigma(-s * z), z.size
            a = 1.0 if self.alpha is None else self.alpha * t + (1 - self.alpha) * (1 - t)
            d = a * s * om**g * (g * np.exp(log) * log - om)
        if self.reduction == "sum":
            divisor = 1
        return float(np.sum(np.where(om == 0, 0.0, -a * om**g * log)) / divisor), d / divisor

    def value(self, **x: np.ndarray) -> float:
        return self.both(**x)[0]

    def gradients(self, **x: np.ndarray) -> Inputs:
        return {"z": self.both(**x)[1]}
