"""Matrix and second-order methods under gradients that are hard to bear: thin matrices, kernels, no rank, the ends of the range, NaN.

A step gives finite weights, or an error of which nothing is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import narrow
from support import Arrays, snapshot

# One row, one column, one element, square, tall, kernels: one optimizer has them all, longer than the blocks of those that cut.
SHAPES = [(1, 7), (7, 1), (1, 1), (4, 4), (5, 3), (2, 3, 4), (2, 3, 2, 2)]

SENTENCES = [
    "muon", "muon(ns_coefficients=aol)", "normuon", "adamuon", "polargrad", "scion(unconstrained=true)", "norm_descent", "norm_trust_region",
    "shampoo", "shampoo(block_size=3)", "shampoo(grafting=adam, eps_at=root)", "soap", "soap(precondition_frequency=1, block_size=3)",
    "kl_shampoo", "kl_shampoo(precondition_frequency=1)", "kl_soap", "kl_soap(precondition_frequency=1, block_size=3)", "dion", "dion2",
    "trion(rank=1)", "psgd_kron", "psgd_kron(fit=newton)", "psgd_lra", "psgd_lra(fit=whiten)", "psgd_xmat", "psgd_xmat(fit=whiten)",
    "psgd_dense", "psgd_dense(fit=whiten)", "kfac", "kfac(method=eigen)", "singd", "galore(rank=1)", "coap", "dct_adamw(rank=1)",
    "online_subspace_descent(rank=1)", "apollo(rank=1)", "came", "adam_mini", "adafactor", "adalomo", "adahessian", "sophia", "mfac(ngrads=3)",
    "fosi", "lbfgs(max_iter=3)", "lbfgs(max_iter=3, line_search=strong_wolfe)", "nonlinear_cg", "newton_cg", "newton_cg(mode=linesearch)",
    "saddle_free_newton(order=4)", "scaled_gd", "robust_subgm", "robust_subgm(rule=constant)", "sgd(lr=0.1) | orthogonalize",
    "newton_schulz | sgd(lr=0.1)", "sgd(lr=0.1) | spectral_clip", "sgd(lr=0.1) | spectral_clip(method=ns)",
    "sgd(lr=0.1) | spectral_hardcap", "sgd(lr=0.1) | spectral_hardcap(method=ns)",
]
STORED = [("f64", None), ("f32", None), ("bf16", None), ("f32", "bf16"), ("f32", "q8"), ("bf16", "q8")]


def gradient(kind: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    """Numbers that all dtypes have."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    drawn = np.random.default_rng([step, *shape]).standard_normal((rows, columns))
    x = {
        "zero": np.zeros((rows, columns)),
        "rank one": [1, 1.5, 1.25, -1][step % 4] * np.outer(np.resize([1.0, 2.0], rows), np.resize([-1.0, 1.0, 0.5], columns)),
        "repeated": [1, 1.5, 1.25, -1][step % 4] * np.eye(rows, columns),
        "tiny": 1e-30 * drawn, "huge": 1e30 * drawn,
    }.get(kind, drawn)
    return np.asarray(x).reshape(shape).astype(np.float32).astype(narrow("bf16")).astype(np.float64)


class Host:
    """A quadratic with the gradient of its kind at the start, whose curvature is as large; `kind` also says what products answer."""

    def __init__(self, sentence: str, kind: str, dtype: str = "f64", state: str | None = None, shapes: Any = SHAPES) -> None:
        self.kind, self.shapes = kind, [s for s in shapes if not sentence.startswith("scaled_gd") or len(s) == 2]
        self.type = narrow(dtype)
        self.params = [np.linspace(-1, 1, int(np.prod(s))).reshape(s).astype(self.type) for s in self.shapes]
        self.start = [p.copy() for p in self.params]
        self.opt = tw.Optimizer(self.params, sentence, seed=3, **({"state_dtype": state} if state else {}))
        self.grads = [np.zeros_like(p) for p in self.params]
        self.opt.bind_gradients(self.grads)

    def curved(self, vectors: Arrays, step: int) -> Arrays:
        if self.kind == "inconsistent":  # no matrix answers so
            rng = np.random.default_rng([int(1e6 * abs(float(np.sum(vectors[0])))), step])
            return [rng.standard_normal(v.shape) for v in vectors]
        sizes = {"tiny": 1e-30, "huge": 1e30, "negative": -1.0}
        return [sizes.get(self.kind, 1.0) * np.linspace(0.5, 1.5, v.size).reshape(v.shape) * np.asarray(v, np.float64) for v in vectors]

    def answer(self, request: tw.Request, step: int) -> None:
        slopes = [gradient(self.kind, s, step) for s in self.shapes]
        if request.kind == "activations":
            shape, size = self.shapes[request.index], {"zero": 0.0, "tiny": 1e-30, "huge": 1e30}.get(self.kind, 1.0)
            rng = np.random.default_rng(step)
            answer = rng.standard_normal((6, int(np.prod(shape[1:])))), size * rng.standard_normal((6, shape[0]))
            return request.answer_matrix(*(a.astype(np.float64) for a in answer))
        moved = [np.asarray(p, np.float64) - np.asarray(s, np.float64) for p, s in zip(self.params, self.start)]
        bent = self.curved(moved, step)
        if request.wants_loss or request.kind == "gradient":
            with np.errstate(all="ignore"):
                request.loss = float(sum(np.sum((g + b / 2) * d) for g, b, d in zip(slopes, bent, moved)))
        if request.kind == "loss":
            return None
        values = self.curved(list(request.probe), step) if request.kind == "hessian_vector" else slopes
        if request.kind == "loss_and_gradient":
            values = [g + b for g, b in zip(slopes, bent)]
        with np.errstate(over="ignore"):  # what a product has no float for is infinite
            for g, v in zip(self.grads, values):
                g[...] = v.astype(self.type)
        return None

    def step(self, step: int) -> None:
        if "robust_subgm" in self.opt.sentence:
            self.opt.observe("loss", 1.0)
        for request in self.opt.requests():
            self.answer(request, step)


def still(sentence: str) -> str:
    """Without decay."""
    name, _, rest = sentence.partition("(")
    method = next((m for m in tw.methods("optimizer") if m.name == name), None)
    if method is None or not any(p.name == "weight_decay" for p in method.parameters):
        return sentence
    return f"{name}(weight_decay=0{', ' if rest else ''}{rest or ')'}"


@pytest.mark.parametrize("dtype, state", STORED)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_weights_stay_finite(sentence: str, dtype: str, state: str | None) -> None:
    for kind in ("drawn", "zero", "rank one", "repeated", "tiny", "huge", "negative", "inconsistent"):
        host = Host(still(sentence), kind, dtype, state)
        for step in range(3):
            before = snapshot(host.opt)
            try:
                host.step(step)
            except (tw.NumericError, tw.NonfiniteError):
                assert kind in ("huge", "inconsistent"), (kind, step)
                assert snapshot(host.opt) == before, (kind, step)
            for w, shape in zip(host.params, host.shapes):
                assert np.isfinite(w.astype(np.float64)).all(), (kind, shape, step)
        if kind == "zero":
            for w, start in zip(host.params, host.start):
                np.testing.assert_array_equal(w, start)


# Sums of squares of 1e-30 are 1e-60: the same numbers in float64 say what is right.  Bases of directions that hardly any
# gradient had are left to rounding: methods that make a new one at each step go by it.
@pytest.mark.parametrize("sentence", [s for s in SENTENCES if "precondition_frequency=1" not in s])
@pytest.mark.parametrize("kind", ["drawn", "repeated", "tiny"])
def test_floats_move_as_doubles_do(sentence: str, kind: str) -> None:
    ends = []
    for dtype in ("f64", "f32"):
        host = Host(still(sentence), kind, dtype)
        for step in range(3):
            host.step(step)
        ends.append([w.astype(np.float64) - s.astype(np.float64) for w, s in zip(host.params, host.start)])
    for wide, short in zip(*ends):
        # weights of up to 1 are rounded to 6e-8 in each step; products and roots of floats to a percent of the move
        np.testing.assert_allclose(short, wide, rtol=0, atol=1e-2 * np.abs(wide).max() + 3e-7)


# The rules of elements among them leave NaN to the option `nonfinite`, as `sgd` and `adamw` do.
OF_ELEMENTS = ("sgd", "sophia", "adafactor")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sentence", [s for s in SENTENCES if not s.startswith(OF_ELEMENTS)])
def test_what_is_not_finite_changes_nothing(sentence: str, bad: float) -> None:
    """In the gradient, a product, a matrix: each kind of answer at a time."""
    kinds = ["gradient"] if "newton_schulz" in sentence else list(dict.fromkeys(r for r in seen(sentence) if r != "loss"))
    for kind in kinds:
        host = Host(sentence, "drawn", "f32")
        host.step(0)
        before = snapshot(host.opt)
        with pytest.raises((tw.NonfiniteError, tw.NumericError)):
            if "robust_subgm" in sentence:
                host.opt.observe("loss", 1.0)
            for request in host.opt.requests():
                if request.kind == kind == "activations":
                    shape = host.shapes[request.index]
                    request.answer_matrix(np.full((3, int(np.prod(shape[1:]))), bad), np.ones((3, shape[0])))
                    continue
                host.answer(request, 1)
                if request.kind == kind:
                    host.grads[3][1, 2] = bad
        assert snapshot(host.opt) == before, kind


def seen(sentence: str) -> list[str]:
    """The kinds of what the second step asks for."""
    host = Host(sentence, "drawn", "f32")
    host.step(0)
    kinds = []
    if "robust_subgm" in sentence:
        host.opt.observe("loss", 1.0)
    for request in host.opt.requests():
        kinds.append(request.kind)
        host.answer(request, 1)
    return kinds


# What keeps a side of thousands from being one of a matrix; the others are asked for a side of hundreds.
LONG = {"shampoo": "max_preconditioner_dim=64", "soap": "max_precond_dim=64", "psgd_kron": "max_size_triangular=64"}
QUADRATIC = ("kfac", "singd", "kl_shampoo", "kl_soap", "psgd_lra", "scaled_gd")


@pytest.mark.parametrize("sentence", [s for s in SENTENCES if not s.startswith("psgd_dense") and "block" not in s])
@pytest.mark.parametrize("tall", [False, True])
def test_long_and_thin(sentence: str, tall: bool) -> None:
    name, _, rest = sentence.partition("(")
    long = 160 if name in QUADRATIC else 4096
    if name in LONG:
        sentence = f"{name}({LONG[name]}{', ' if rest else ''}{rest or ')'}"
    host = Host(sentence, "drawn", "f32", shapes=[(long, 8) if tall else (8, long)])
    for step in range(2):
        host.step(step)
    assert np.isfinite(host.params[0]).all()
    assert not np.array_equal(host.params[0], host.start[0])


def test_tensors_that_are_too_large_say_where_to_go() -> None:
    with pytest.raises(tw.ShapeError, match="route"):
        tw.Optimizer([np.ones((8, 4096), np.float32)], "psgd_dense")


@pytest.mark.parametrize("solver", ["exact", "sketched"])
@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-9), (np.float32, 1e-4)])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_completion_of_matrices_that_are_thin_or_without_rank(solver: str, dtype: Any, limit: float, size: float) -> None:
    for shape, rank in [((1, 7), 1), ((7, 1), 1), ((1, 1), 1), ((5, 3), 1), ((5, 3), 2), ((4, 4), 4)]:
        full = (size * np.outer(np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1))).astype(dtype)
        run = tw.solver(f"altmin_completion(rank={rank}, solver={solver})").run(values=full, mask=np.ones(shape, dtype))
        np.testing.assert_allclose(run.completed, full, rtol=limit, atol=limit * size, err_msg=f"{shape} {rank}")
    with pytest.raises(tw.NonfiniteError):
        tw.solver("altmin_completion(rank=1)").run(values=np.full((3, 2), np.nan), mask=np.ones((3, 2)))
