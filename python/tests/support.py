"""What the tests share: a problem that answers every request, sentences with every required hyper-parameter, snapshots."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

import numpy as np
import pytest

import thalweg as tw
from thalweg import _sentence
from thalweg.command.examples import sample

Arrays = list[np.ndarray]


def need_calls_of_xla() -> None:
    """Skips the module where the extension was built without JAX."""
    from thalweg.jax._call import registered

    try:
        registered()
    except tw.UnsupportedError:
        pytest.skip("built without jaxlib's headers", allow_module_level=True)


MATRIX_SHAPES = [(5, 3), (4, 6), (2, 3, 2, 2)]
SHAPES = [(), (7,), (33,), (5, 3), (2, 3, 2, 2)]


class Problem:
    """0.5 sum a (x - b)^2 + <noise, x>, with fresh noise at every step; curvatures lie in [0.3, 1.5].

    It answers in float64 at the float64 values of whatever it is given.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], seed: int = 0, noise: float = 0.3, steps: int = 64) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes = list(shapes)
        self.origin = self._draw(1.0)
        self.a = [np.asarray(self.rng.uniform(0.3, 1.5, size=s)) for s in self.shapes]
        self.b = self._draw(0.5)
        self.noise = [self._draw(noise) for _ in range(steps)]

    def _draw(self, scale: float) -> Arrays:
        return [np.asarray(scale * self.rng.standard_normal(s)) for s in self.shapes]

    def start(self, dtype: Any = np.float64) -> Arrays:
        return [np.array(x, dtype=dtype) for x in self.origin]

    def gradient(self, at: Iterable[np.ndarray], step: int, task: int = 0) -> Arrays:
        shift = 0.7 * task
        return [
            a * (np.asarray(x, np.float64) - b - shift) + n
            for x, a, b, n in zip(at, self.a, self.b, self.noise[step % len(self.noise)])
        ]

    def loss(self, at: Iterable[np.ndarray], step: int) -> float:
        total = 0.0
        for x, a, b, n in zip(at, self.a, self.b, self.noise[step % len(self.noise)]):
            x = np.asarray(x, np.float64)
            total += float(np.sum(0.5 * a * (x - b) ** 2 + n * x))
        return total

    def product(self, vector: Iterable[np.ndarray]) -> Arrays:
        """The Hessian times a vector."""
        return [a * np.asarray(v, np.float64) for a, v in zip(self.a, vector)]

    def layer(self, w: np.ndarray, step: int, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (rows, in) and gradients at the pre-activations (rows, out) of a layer with this weight."""
        out, inputs = w.shape[0], int(np.prod(w.shape[1:]))
        rng = np.random.default_rng([out, inputs, step])
        return rng.standard_normal((rows, inputs)), rng.standard_normal((rows, out)) / rows

    def samples(self, at: Iterable[np.ndarray], step: int, part: int = 0, count: int = 4) -> Arrays:
        """Gradients of samples, (count, shape) for each parameter: some larger, some smaller than their mean."""
        factors = np.linspace(0.2, 2.0, count) + 0.3 * part
        return [factors.reshape((count,) + (1,) * g.ndim) * g for g in self.gradient(at, step)]

    def answer(self, request: tw.Request, params: Arrays, grads: Arrays, step: int) -> None:
        """Fills the bound gradients and the loss, whatever is asked for."""
        if request.kind == "sample_gradients":
            request.answer_samples(self.samples(params, step, request.index))
            return
        if request.kind == "logit_derivatives":
            request.answer_matrix(np.stack([np.linspace(-1, 1, 4) * (i + 1) for i in range(3)]))
            return
        if request.kind == "activations":
            request.answer_matrix(*self.layer(params[request.index], step))
            return
        if request.wants_loss or request.kind == "gradient":
            request.loss = self.loss(params, step)
        if request.kind == "loss":
            return
        if request.kind == "hessian_vector":
            values = self.product(request.probe)
        else:
            values = self.gradient(params, step, request.index if request.kind == "task_gradient" else 0)
        for g, v in zip(grads, values):
            g[...] = v


def take_step(opt: tw.Optimizer, problem: Problem, step: int, params: Arrays, grads: Arrays) -> None:
    """One step of any method on arrays that are bound."""
    for what in ("loss", "metric"):
        if wants(opt, what):
            opt.observe(what, problem.loss(params, step))
    for request in opt.requests():
        problem.answer(request, params, grads, step)


def wants(opt: tw.Optimizer, what: str) -> bool:
    """True when some stage watches `what`; asking costs an exception, so the answer is kept."""
    known = opt.__dict__.setdefault("_watched", {})
    if what not in known:
        try:
            opt.observe(what, 1.0)
            known[what] = True
        except tw.Error:
            known[what] = False
    return known[what]


def run(sentence: str, problem: Problem, steps: int, dtype: Any = np.float64, **options: Any) -> tuple[Arrays, tw.Optimizer]:
    """`steps` steps from the origin; returns the parameters and the optimizer."""
    params = problem.start(dtype)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    for k in range(steps):
        take_step(opt, problem, k, params, grads)
    return params, opt


# ---- sentences


def write(value: Any) -> str:
    """A hyper-parameter of a reference as a sentence writes it; references stand for themselves."""
    if hasattr(value, "h") and hasattr(value, "name"):
        return stage(value.name, value.h)
    if isinstance(value, (list, tuple, np.ndarray)):
        return "[" + ", ".join(write(item) for item in value) + "]"
    return _sentence.write_value(value)


def stage(name: str, values: dict[str, Any]) -> str:
    """name(key=value, ...)."""
    inside = ", ".join(f"{key}={write(value)}" for key, value in values.items())
    return f"{name}({inside})" if inside else name


def required(method: tw.Method) -> dict[str, str]:
    return {p.name: sample(p) for p in method.parameters if p.required}


# Where the defaults suit small problems only: what keeps a step on some ten thousand elements finite.
# mfac keeps 1024 gradients and a matrix of that side for each tensor: as many as its window is wrapped around by.
CALM = {"rolling_ball": {"projection_lr": "1e-5"}, "mfac": {"ngrads": "3"}}

# Methods that never look at a gradient.
LOSSES_ALONE = {"spsa", "mezo", "zo_gradient", "openai_es"}


def sentence_of(method: tw.Method, **values: Any) -> str:
    """A stage of the method with everything that it requires."""
    return stage(method.name, {**required(method), **CALM.get(method.name, {}), **values})


def optimizers() -> list[tw.Method]:
    return tw.methods("optimizer")


def is_matrix_method(method: tw.Method) -> bool:
    """True when the method refuses tensors of rank 0 and 1."""
    if method.name not in _MATRIX:
        try:
            w = [np.ones(3)]
            opt = tw.Optimizer(w, sentence_of(method))
            opt.bind_gradients([np.ones(3)])
            take_step(opt, Problem([(3,)]), 0, w, opt.grads)
            _MATRIX[method.name] = False
        except tw.ShapeError:
            _MATRIX[method.name] = True
    return _MATRIX[method.name]


_MATRIX: dict[str, bool] = {}


def shapes_for(method: tw.Method) -> list[tuple[int, ...]]:
    return MATRIX_SHAPES if is_matrix_method(method) else SHAPES


# ---- named inputs


def cast(inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The same inputs, real ones in another dtype."""
    return {k: v if np.asarray(v).dtype.kind == "i" else np.asarray(v).astype(dtype) for k, v in inputs.items()}


def widened(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same values in float64."""
    return cast(inputs, np.float64)


# ---- comparing


def snapshot(opt: tw.Optimizer) -> tuple[list[bytes], bytes]:
    """Parameters and state, as bytes."""
    return [np.ascontiguousarray(p).tobytes() for p in opt.params], opt.state_dict()["state"]


def assert_same_bits(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> None:
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        if np.ascontiguousarray(a).tobytes() != np.ascontiguousarray(b).tobytes():
            worst = np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
            raise AssertionError(f"tensor {i} differs, by at most {worst}")
