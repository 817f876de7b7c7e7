"""The problems that sentences are raced on: a start, minibatches, losses with gradients, answers to every request."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import thalweg

from .console import need

Arrays = list[np.ndarray]


class Problem:
    """A function of some arrays, known through minibatches.

    summary  one line
    steps    how many steps a race takes where nobody says
    score    what `error` is ("test error"), "" where the loss is all there is
    names    of the parameters
    """

    summary = ""
    steps = 300
    score = ""
    names: tuple[str, ...] = ("x",)

    def start(self, rng: np.random.Generator) -> Arrays:
        """The parameters where a run with this generator begins."""
        raise NotImplementedError

    def batch(self, rng: np.random.Generator) -> Any:
        """The next minibatch: data, or what the noise of this step is."""
        return None

    def part(self, batch: Any, index: int, count: int) -> Any:
        """Share `index` of `count` of a minibatch: what the tasks are here."""
        return batch

    def gradient(self, params: Arrays, batch: Any) -> tuple[float, Arrays]:
        """The loss of a minibatch and its gradient."""
        raise NotImplementedError

    def samples(self, params: Arrays, batch: Any) -> Arrays:
        """The gradient of every sample of the minibatch: (samples, shape) for each parameter."""
        return [g[None] for g in self.gradient(params, batch)[1]]

    def loss(self, params: Arrays) -> float:
        """The loss that counts: that of all data, without noise."""
        raise NotImplementedError

    def error(self, params: Arrays) -> float:
        """What `score` says, in 0 ... 1."""
        return float("nan")

    def product(self, params: Arrays, batch: Any, vector: Arrays) -> Arrays:
        """The Hessian at a minibatch times a vector, by a central difference of gradients in float64."""
        at, along = _wide(params), _wide(vector)
        norm = _norm(along)
        h = 1e-4 / norm if norm > 0 else 1.0
        ahead, behind = (self.gradient([p + s * h * v for p, v in zip(at, along)], batch)[1] for s in (1, -1))
        return [(a - b) / (2 * h) for a, b in zip(ahead, behind)]

    def layer(self, params: Arrays, batch: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs of the layer with weight `index`, and gradients behind it; NeedsError where there is no layer."""
        raise thalweg.NeedsError(f"{type(self).__name__}: parameter {index} is no layer of a network; "
                                 "try --problem digits")

    def logits(self, params: Arrays, batch: Any) -> np.ndarray:
        """(samples, classes); NeedsError where there are none."""
        raise thalweg.NeedsError(f"{type(self).__name__} has no logits; try --problem digits or logreg")

    def answer(self, request: thalweg.Request, params: Arrays, batch: Any) -> None:
        """Answers whatever a method asks for, at the parameters as they stand."""
        kind = request.kind
        if kind == "task_gradient":
            loss, grads = self.gradient(params, self.part(batch, request.index, request.count))
            request.answer(_like(params, grads), loss)
        elif kind == "hessian_vector":
            request.answer(_like(params, self.product(params, batch, request.probe)))
        elif kind == "sample_gradients":
            request.answer_samples(_like(params, self.samples(params, self.part(batch, request.index, request.count))))
        elif kind == "activations":
            request.answer_matrix(*self.layer(params, batch, request.index))
        elif kind == "logit_derivatives":
            along = _wide(request.probe)
            h = 1e-4 / max(_norm(along), 1e-30)
            ahead, behind = (self.logits([p + s * h * v for p, v in zip(params, along)], batch) for s in (1, -1))
            request.answer_matrix((ahead - behind) / (2 * h), self.logits(params, batch))
        elif kind == "participant":  # ten steps of gradient descent on a share of the data
            local, share = _wide(params), self.part(batch, request.index, request.count)
            for _ in range(10):
                local = [p - 0.01 * g for p, g in zip(local, self.gradient(local, share)[1])]
            request.answer(_like(params, local))
        else:
            loss, grads = self.gradient(params, batch)
            request.answer(_like(params, grads) if request.wants_gradient else None, loss)


def _wide(values: Arrays) -> Arrays:
    """The values in float64, which may share their memory."""
    return [np.asarray(v, np.float64) for v in values]


def _norm(values: Arrays) -> float:
    return float(np.sqrt(sum(float((v * v).sum()) for v in values)))


def _like(params: Arrays, values: Arrays) -> Arrays:
    """The values as the parameters are stored."""
    return [np.ascontiguousarray(v, p.dtype) for p, v in zip(params, values)]


class Data(NamedTuple):
    x: np.ndarray  # (rows, features)
    y: np.ndarray  # (rows,), 0 ... classes - 1


class Learning(Problem):
    """A classifier on rows of data; minibatches are drawn from the training rows."""

    score = "test error"
    batch_size = 64
    training: Data
    test: Data

    def batch(self, rng: np.random.Generator) -> Data:
        rows = rng.integers(0, len(self.training.y), self.batch_size)
        return Data(self.training.x[rows], self.training.y[rows])

    def part(self, batch: Data, index: int, count: int) -> Data:
        return Data(batch.x[index::count], batch.y[index::count])

    def forward(self, params: Arrays, x: np.ndarray) -> list[np.ndarray]:
        """The input of every layer, and the logits at the end; layers are params[0::2] (out, in) with biases [1::2]."""
        values = [x]
        for i in range(0, len(params), 2):
            z = values[-1] @ params[i].T + params[i + 1]
            values.append(z if i + 2 == len(params) else np.maximum(z, 0))
        return values

    def _slopes(self, params: Arrays, batch: Data) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
        """The mean cross-entropy in nats; and for each layer its inputs and the gradients behind it, a row a sample."""
        values = self.forward(params, batch.x)
        z, rows = values[-1] - values[-1].max(1, keepdims=True), np.arange(len(batch.y))
        p = np.exp(z)
        total = p.sum(1, keepdims=True)
        loss = float((np.log(total[:, 0]) - z[rows, batch.y]).mean())
        p /= total
        p[rows, batch.y] -= 1
        d, found = p / len(rows), []
        for i in reversed(range(0, len(params), 2)):
            found.append((values[i // 2], d))
            if i:
                d = (d @ params[i]) * (values[i // 2] > 0)
        return loss, found[::-1]

    def gradient(self, params: Arrays, batch: Data) -> tuple[float, Arrays]:
        loss, layers = self._slopes(params, batch)
        return loss, [g for x, d in layers for g in (d.T @ x, d.sum(0))]

    def samples(self, params: Arrays, batch: Data) -> Arrays:
        n = len(batch.y)
        return [n * g for x, d in self._slopes(params, batch)[1] for g in (d[:, :, None] * x[:, None, :], d)]

    def layer(self, params: Arrays, batch: Data, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index % 2:
            return super().layer(params, batch, index)
        return self._slopes(params, batch)[1][index // 2]

    def logits(self, params: Arrays, batch: Data) -> np.ndarray:
        return self.forward(params, batch.x)[-1]

    def loss(self, params: Arrays) -> float:
        return self._slopes(params, self.training)[0]

    def error(self, params: Arrays) -> float:
        return float((self.logits(params, self.test).argmax(1) != self.test.y).mean())


class Digits(Learning):
    """scikit-learn's 1,797 handwritten digits, a 64-48-10 perceptron, minibatches of 64."""

    summary = "handwritten digits, a 64-48-10 perceptron, minibatches of 64"
    layers = (64, 48, 10)
    names = ("hidden.weight", "hidden.bias", "head.weight", "head.bias")

    @cached_property
    def _data(self) -> tuple[Data, Data]:
        x, y = need("sklearn.datasets", "the digits come", "scikit-learn").load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(y))
        x, y, cut = x[order].astype(np.float32), y[order], int(0.8 * len(y))
        mean, std = x[:cut].mean(0), x[:cut].std(0)
        x = (x - mean) / np.where(std > 0, std, 1)
        return Data(x[:cut], y[:cut]), Data(x[cut:], y[cut:])

    training = property(lambda self: self._data[0])  # type: ignore[assignment]
    test = property(lambda self: self._data[1])  # type: ignore[assignment]

    def start(self, rng: np.random.Generator) -> Arrays:
        pairs = zip(self.layers, self.layers[1:])
        return [a for i, o in pairs for a in (rng.standard_normal((o, i)) * np.sqrt(2 / i), np.zeros(o))]


class LogisticRegression(Learning):
    """Two classes, 20 features of very different scales, minibatches of 32; convex."""

    summary = "logistic regression, 20 features of very different scales, minibatches of 32"
    batch_size = 32
    names = ("weight", "bias")

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        x = rng.standard_normal((1024, 20)) * np.geomspace(3, 0.05, 20)
        slope = rng.standard_normal(20) / np.geomspace(3, 0.05, 20)
        y = (rng.random(1024) < 1 / (1 + np.exp(-x @ slope))).astype(np.int64)
        self.training, self.test = Data(x[:512], y[:512]), Data(x[512:], y[512:])

    def start(self, rng: np.random.Generator) -> Arrays:
        return [0.01 * rng.standard_normal((2, 20)), np.zeros(2)]


class NoisyQuadratic(Problem):
    """0.5 sum h_i x_i^2 in 100 dimensions, h_i = 1/i, with gradient noise of variance h_i: the minibatch of a network
    near its minimum, as in Zhang et al., 2019, arXiv:1907.04164."""

    summary = "0.5 sum h_i x_i^2, h_i = 1/i, 100 dimensions, gradient noise of variance h_i"
    h = 1 / np.arange(1.0, 101.0)

    def start(self, rng: np.random.Generator) -> Arrays:
        return [rng.standard_normal(100)]

    def batch(self, rng: np.random.Generator) -> np.ndarray:
        return np.sqrt(self.h) * rng.standard_normal(100)

    def gradient(self, params: Arrays, batch: np.ndarray) -> tuple[float, Arrays]:
        x = params[0].astype(np.float64)
        return self.loss(params) + float(batch @ x), [self.h * x + batch]

    def loss(self, params: Arrays) -> float:
        return 0.5 * float(self.h @ params[0].astype(np.float64) ** 2)


class MatrixFactors(Problem):
    """|U V' - A|^2 / 2 for a 48 x 32 matrix of rank 8 with singular values from 1 to 100, by factors; no noise."""

    summary = "two factors of a 48 x 32 matrix of rank 8, singular values from 1 to 100"
    names = ("left", "right")

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        u, v = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (48, 32))
        self.a = (u * np.geomspace(100, 1, 8)) @ v.T / 10

    def start(self, rng: np.random.Generator) -> Arrays:
        return [0.3 * rng.standard_normal((48, 8)), 0.3 * rng.standard_normal((32, 8))]

    def gradient(self, params: Arrays, batch: Any) -> tuple[float, Arrays]:
        u, v = (p.astype(np.float64) for p in params)
        rest = u @ v.T - self.a
        return 0.5 * float((rest * rest).sum()), [rest @ v, rest.T @ u]

    def loss(self, params: Arrays) -> float:
        return self.gradient(params, None)[0]


class Plane(Problem):
    """A test function of two variables.

    f       value, of arrays x and y
    slope   its two derivatives
    window  (left, right, bottom, top) of its picture
    first   where a trajectory starts
    minima  where it is least, and how much it is there
    """

    def __init__(
        self, summary: str, f: Callable[..., Any], slope: Callable[..., tuple[Any, Any]],
        window: tuple[float, float, float, float], first: tuple[float, float], minima: list[tuple[float, float]],
        least: float = 0.0,
    ) -> None:
        self.summary, self.f, self.slope, self.window = summary, f, slope, window
        self.first, self.minima, self.least = first, minima, least

    def start(self, rng: np.random.Generator) -> Arrays:
        left, right, bottom, top = self.window
        return [np.array(self.first) + 0.04 * rng.standard_normal(2) * (right - left, top - bottom)]

    def gradient(self, params: Arrays, batch: Any) -> tuple[float, Arrays]:
        x, y = params[0].astype(np.float64)
        return float(self.f(x, y)), [np.array(self.slope(x, y))]

    def loss(self, params: Arrays) -> float:
        return self.gradient(params, None)[0] - self.least


PLANES = {
    "rosenbrock": Plane(
        "(1 - x)^2 + 100 (y - x^2)^2: a curved, flat valley",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        (-2, 2, -1, 3), (-1.5, 2.0), [(1, 1)]),
    "beale": Plane(
        "Beale's function: plateaus, steep walls, one minimum",
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        lambda x, y: (
            2 * (1.5 - x + x * y) * (y - 1) + 2 * (2.25 - x + x * y**2) * (y**2 - 1)
            + 2 * (2.625 - x + x * y**3) * (y**3 - 1),
            2 * (1.5 - x + x * y) * x + 4 * (2.25 - x + x * y**2) * x * y + 6 * (2.625 - x + x * y**3) * x * y**2),
        (-1.5, 4.5, -2, 2.2), (0.6, 1.6), [(3, 0.5)]),
    "himmelblau": Plane(
        "(x^2 + y - 11)^2 + (x + y^2 - 7)^2: four minima",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        lambda x, y: (4 * x * (x**2 + y - 11) + 2 * (x + y**2 - 7), 2 * (x**2 + y - 11) + 4 * y * (x + y**2 - 7)),
        (-5, 5, -5, 5), (-0.3, -0.9),
        [(3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)]),
    "ravine": Plane(
        "0.5 (x^2 + 50 y^2): an ill-conditioned quadratic",
        lambda x, y: 0.5 * (x**2 + 50 * y**2),
        lambda x, y: (x, 50 * y),
        (-5, 2, -1.5, 1.5), (-4.2, 1.1), [(0, 0)]),
    "rastrigin": Plane(
        "20 + x^2 - 10 cos 2 pi x + y^2 - 10 cos 2 pi y: a minimum in every unit square",
        lambda x, y: 20 + x**2 - 10 * np.cos(2 * np.pi * x) + y**2 - 10 * np.cos(2 * np.pi * y),
        lambda x, y: (2 * x + 20 * np.pi * np.sin(2 * np.pi * x), 2 * y + 20 * np.pi * np.sin(2 * np.pi * y)),
        (-4, 4, -4, 4), (-3.3, 2.6), [(0, 0)]),
}
MAKERS: dict[str, Callable[[], Problem]] = {
    "digits": Digits, "logreg": LogisticRegression, "noisy-quadratic": NoisyQuadratic, "matrix": MatrixFactors,
    **{name: (lambda plane=plane: plane) for name, plane in PLANES.items()},
}


def problem(name: str) -> Problem:
    """The problem of that name."""
    return MAKERS[name]()
