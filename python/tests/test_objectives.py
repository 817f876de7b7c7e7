"""Objectives, and regularizers that look at more than the weights: beside their references, by their cards, and badly used."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference import base
from reference.objectives import CheckeredRegression
from support import cast, stage, widened

REFERENCES = base.every(base.ObjectiveReference)
CASES = [pytest.param(c, s, id=f"{c.name}-{i}") for c in REFERENCES for i, s in enumerate(c.settings)]
# float64: some hundred roundings of 1.1e-16.  float32: a row of z is 6e-8 off to begin with, and the largest |z| is 800.
LIMIT = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 2e-2}


def evaluate(cls: type, setting: dict[str, Any], inputs: dict[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    """Value and gradients by the library."""
    text = stage(cls.name, setting)
    if cls.kind == "objective":
        return tw.objective(text).value_and_grad(**inputs)
    names = list(inputs)
    rest = {k: inputs[k] for k in names[1:]}
    mine = tw.regularizer(text)
    return mine.value(inputs[names[0]], **rest), {names[0]: mine.gradient(inputs[names[0]], **rest)}


def close(a: Any, b: Any, limit: float) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= limit * np.maximum(1.0, np.abs(b))))


# ---- beside the references


def test_every_method_with_inputs_has_a_reference() -> None:
    kinds = ("weighting", "diagnostic", "solver", "aggregator")  # test_weightings.py, test_solvers.py, test_aggregate.py
    assert {m.name for m in tw.methods() if m.inputs and m.kind not in kinds} == {c.name for c in REFERENCES}
    assert all(m.inputs for m in tw.methods("objective"))


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("cls, setting", CASES)
def test_value_and_gradients(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    ref, limit = cls(**setting), LIMIT[dtype]
    for example in ref.examples(np.random.default_rng(5)):
        inputs = cast(example, dtype)
        value, gradients = evaluate(cls, setting, inputs)
        wide = widened(inputs)
        assert close(value, ref.value(**wide), limit)
        want = ref.gradients(**wide)
        assert set(gradients) == set(want)
        for name in want:
            assert close(gradients[name], want[name], limit), name
            assert gradients[name].dtype == dtype


@pytest.mark.parametrize("cls, setting", CASES)
def test_bfloat16_is_read_like_float32(cls: type, setting: dict[str, Any]) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for example in cls(**setting).examples(np.random.default_rng(6)):
        narrow = cast(example, bfloat16)
        value, gradients = evaluate(cls, setting, narrow)
        same, full = evaluate(cls, setting, cast(widened(narrow), np.float32))
        assert value == same
        for name in full:
            assert gradients[name].tobytes() == full[name].astype(bfloat16).tobytes()


@pytest.mark.parametrize("cls, setting", CASES)
def test_finite_differences(cls: type, setting: dict[str, Any]) -> None:
    """A central difference of step 1e-6 is off by some 1e-10 / 1e-6 of rounding and 1e-12 of curvature."""
    rng = np.random.default_rng(8)
    for example in cls(**setting).examples(rng):
        if any(v.dtype.kind == "f" and (not np.all(np.isfinite(v)) or np.abs(v).max() > 500) for v in example.values()):
            continue  # the step is lost in the rounding of the argument
        if not cls(**setting).smooth(**example):
            continue
        value, gradients = evaluate(cls, setting, example)
        for name in gradients.keys() & example.keys():
            d, h = rng.standard_normal(example[name].shape), 1e-6
            up = evaluate(cls, setting, {**example, name: example[name] + h * d})[0]
            down = evaluate(cls, setting, {**example, name: example[name] - h * d})[0]
            assert (up - down) / (2 * h) == pytest.approx(np.sum(gradients[name] * d), rel=1e-6, abs=1e-8)


# ---- the cards


def test_sum_log_concave_is_logsumexp() -> None:
    special = pytest.importorskip("scipy.special")
    for scale in (1.0, 50.0, 700.0):
        f = scale * np.random.default_rng(1).standard_normal(40)
        assert tw.objective("sum_log_concave")(f=f) == pytest.approx(-special.logsumexp(-f), rel=1e-14)


def test_sum_log_concave_generalised_convexity() -> None:
    """F(y) - F(x) >= <sum_s w_s(y) grad f_s(x), y - x> for convex quadratics f_s."""
    rng, mine = np.random.default_rng(2), tw.objective("sum_log_concave")
    for _ in range(200):
        a, b = rng.uniform(0.1, 2.0, (4, 3)), rng.standard_normal((4, 3))
        x, y = 2 * rng.standard_normal((2, 3))
        f = lambda p: np.sum(a * (p - b) ** 2, axis=1)  # noqa: E731
        slopes_at_x = 2 * a * (x - b)
        value, at_y = mine.value_and_grad(f=f(y), grads=slopes_at_x)
        assert value - mine(f=f(x)) >= at_y["x"] @ (y - x) - 1e-12
        np.testing.assert_allclose(at_y["x"], at_y["f"] @ slopes_at_x, rtol=1e-13, atol=1e-14)


def test_sum_log_concave_edges() -> None:
    mine = tw.objective("sum_log_concave")
    assert mine(f=np.array([3.25])) == 3.25
    assert mine.value_and_grad(f=np.array([3.25]))[1]["f"].tolist() == [1.0]
    for f in ([np.inf, np.inf], [np.inf], [1.0, -np.inf], [np.nan, 1.0], [1.0, np.nan]):
        value, cache = mine.forward(f=np.array(f))
        np.testing.assert_equal(value, np.inf if f[0] == np.inf else -np.inf if f[1] == -np.inf else np.nan)
        out = np.ones(len(f))
        with pytest.raises(tw.NonfiniteError, match="no gradient"):
            mine.pullback(cache, f=out)
        assert np.all(out == 1)
    # a part that is infinitely unlikely adds nothing, whatever its gradient
    _, g = mine.value_and_grad(f=np.array([1.0, np.inf]), grads=np.array([[2.0], [np.nan]]))
    assert g["x"].tolist() == [2.0]


def test_checkered_regression_closed_form() -> None:
    rng = np.random.default_rng(3)
    z, y = rng.standard_normal((50, 3)), rng.choice([-1, 1], 50)
    p = 0.5 * (1 + y * np.prod(np.tanh(z / 2), axis=1))
    assert tw.objective("checkered_regression")(z=z, y=y) == pytest.approx(-np.mean(np.log(p)), rel=1e-12)


def test_checkered_regression_of_one_plane_is_logistic() -> None:
    rng = np.random.default_rng(4)
    z, y = 5 * rng.standard_normal((30, 1)), rng.choice([-1, 1], 30)
    value, g = tw.objective("checkered_regression").value_and_grad(z=z, y=y)
    assert value == pytest.approx(np.mean(np.logaddexp(0, -y * z[:, 0])), rel=1e-14)
    np.testing.assert_allclose(g["z"][:, 0], -y / (1 + np.exp(y * z[:, 0])) / 30, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_checkered_regression_far_from_the_planes(dtype: Any) -> None:
    mine = tw.objective("checkered_regression")
    z = np.array([[800.0, 800.0], [800.0, 800.0], [-800.0, 800.0]], dtype)
    value, g = mine.value_and_grad(z=z, y=np.array([1, -1, 1]))
    # P = 1, 2 exp(-800), 2 exp(-800) to the last digit
    assert value == pytest.approx(2 * (800 - np.log(2)) / 3, rel=1e-14)
    np.testing.assert_allclose(g["z"], [[0, 0], [1 / 6, 1 / 6], [-1 / 6, 1 / 6]], rtol=1e-6)
    assert np.isfinite(mine(z=np.full((2, 5), 3e38, dtype), y=np.array([1, 1])))


def test_rnn_vanishing_of_an_orthogonal_matrix_is_zero() -> None:
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    delta = rng.standard_normal((4, 3, 6))
    mine = tw.regularizer("rnn_vanishing(2)")
    assert mine.value(q, delta=delta, slope=np.ones_like(delta)) < 1e-28
    assert np.abs(mine.gradient(q, delta=delta, slope=np.ones_like(delta))).max() < 1e-13


def test_rnn_vanishing_edges() -> None:
    mine, delta = tw.regularizer("rnn_vanishing(2)"), np.zeros((2, 4, 3))
    assert mine.value(np.ones((3, 3)), delta=delta, slope=np.ones_like(delta)) == 0
    delta[0] = 1
    # no slope: every error vanishes, each of the four samples counts alpha/4
    assert mine.value(np.ones((3, 3)), delta=delta, slope=np.zeros_like(delta)) == 2
    assert not mine.gradient(np.ones((3, 3)), delta=delta, slope=np.zeros_like(delta)).any()
    # only directions count, at any scale
    rng = np.random.default_rng(9)
    w, delta, slope = rng.standard_normal((3, 3)), rng.standard_normal((2, 4, 3)), rng.uniform(0.1, 1, (2, 4, 3))
    for scale in (1e-300, 1e250):
        assert mine.value(w, delta=scale * delta, slope=slope) == pytest.approx(mine.value(w, delta=delta, slope=slope), rel=1e-12)
        np.testing.assert_allclose(mine.gradient(w, delta=scale * delta, slope=slope), mine.gradient(w, delta=delta, slope=slope), rtol=1e-11)


def test_rnn_vanishing_inside_a_pipeline() -> None:
    for text in ("penalty(rnn_vanishing) | sgd(lr=0.1)", "sgd(lr=0.1) | prox(rnn_vanishing)", "sgd(lr=0.1) | decoupled(rnn_vanishing(0.1))"):
        with pytest.raises(tw.NeedsError, match="`delta`, `slope`"):
            tw.Optimizer([np.ones((3, 3))], text)
    with pytest.raises(tw.UnsupportedError, match="prox"):
        tw.regularizer("rnn_vanishing").prox(np.ones((3, 3)), 0.1)


# ---- the pair, its cache, its buffers

Z = np.random.default_rng(0).standard_normal((6, 3))
Y = np.array([1, -1, 1, 1, -1, -1])


@pytest.fixture
def loss() -> tw.Objective:
    return tw.objective("checkered_regression")


def test_pullback_adds_times_upstream(loss: tw.Objective) -> None:
    z = Z.copy()
    value, cache = loss.forward(z=z, y=Y)
    assert value == loss(z=Z, y=Y)
    want = CheckeredRegression().gradients(z=Z, y=Y)["z"]
    z[:] = np.nan  # the cache has what it needs
    out = np.ones_like(Z)
    assert loss.pullback(cache, -2.5, z=out)["z"] is out
    np.testing.assert_allclose(out, 1 - 2.5 * want, rtol=1e-13)
    loss.pullback(cache, 2.5, z=out)
    np.testing.assert_allclose(out, np.ones_like(Z), rtol=1e-13)
    assert loss.pullback(cache, 1.0) == {}
    # a cache is filled anew
    assert loss.forward(cache, z=2 * Z, y=Y)[1] is cache
    np.testing.assert_allclose(loss.pullback(cache, z=np.zeros_like(Z))["z"], CheckeredRegression().gradients(z=2 * Z, y=Y)["z"], rtol=1e-12)


def test_a_failed_forward_keeps_the_cache(loss: tw.Objective) -> None:
    _, cache = loss.forward(z=Z, y=Y)
    before = loss.pullback(cache, z=np.zeros_like(Z))["z"]
    for wrong in ({"z": Z}, {"z": Z, "y": 2 * Y}, {"z": Z[:5], "y": Y}):
        with pytest.raises(tw.Error):
            loss.forward(cache, **wrong)
    assert loss.pullback(cache, z=np.zeros_like(Z))["z"].tobytes() == before.tobytes()


def test_dtypes_and_strides_mix(loss: tw.Objective) -> None:
    value, g = loss.value_and_grad(z=Z, y=Y)
    strided = np.full((12, 9), np.nan)[::2, ::-3]
    strided[:] = Z
    for y in (Y, Y.astype(np.int32), Y.astype(np.float32), Y.astype(np.float16), np.repeat(Y, 2)[::2]):
        assert loss(z=strided, y=y) == value
    _, cache = loss.forward(z=strided, y=Y)
    for dtype, limit in ((np.float64, 1e-15), (np.float32, 1e-7), (np.float16, 1e-3)):
        out = np.zeros((3, 12), dtype).T[::2]
        loss.pullback(cache, z=out)
        np.testing.assert_allclose(out, g["z"], atol=limit)
    scalar = tw.objective("sum_log_concave")
    f, grads = np.array([1.0, 2.0], np.float32), np.array([[1.0, 2.0], [3.0, 5.0]])
    assert scalar(f=f, grads=grads) == scalar(f=f.astype(np.float64))  # one float64 input is enough
    assert scalar.value_and_grad(f=f, grads=grads)[1]["f"].dtype == np.float32


def test_torch_tensors(loss: tw.Objective) -> None:
    torch = pytest.importorskip("torch")
    value, g = loss.value_and_grad(z=torch.tensor(Z), y=torch.tensor(Y))
    assert value == loss(z=Z, y=Y) and isinstance(g["z"], torch.Tensor)
    np.testing.assert_array_equal(g["z"].numpy(), loss.value_and_grad(z=Z, y=Y)[1]["z"])
    _, g = tw.objective("sum_log_concave").value_and_grad(f=torch.zeros(2), grads=torch.eye(2))
    assert isinstance(g["x"], torch.Tensor) and g["x"].tolist() == [0.5, 0.5]


def test_threads_do_not_change_a_bit(loss: tw.Objective) -> None:
    rng, bits = np.random.default_rng(7), set()
    z, y = rng.standard_normal((5000, 7)).astype(np.float32), rng.choice([-1, 1], 5000)
    w, delta, slope = (rng.standard_normal(s) for s in ((40, 40), (5, 90, 40), (5, 90, 40)))
    vanishing, before = tw.regularizer("rnn_vanishing"), tw.get_num_threads()
    try:
        for threads in (1, 2, 5):
            tw.set_num_threads(threads)
            value, g = loss.value_and_grad(z=z, y=y)
            bits.add((value, g["z"].tobytes(), vanishing.value(w, delta=delta, slope=slope),
                      vanishing.gradient(w, delta=delta, slope=slope).tobytes()))
    finally:
        tw.set_num_threads(before)
    assert len(bits) == 1


# ---- bad use


def test_inputs_that_do_not_fit(loss: tw.Objective) -> None:
    parts, penalty = tw.objective("sum_log_concave"), tw.regularizer("rnn_vanishing")
    w, d = np.ones((3, 3)), np.ones((2, 4, 3))
    for call, kind, message in (
        (lambda: loss(z=Z), tw.NeedsError, "`y`"),
        (lambda: loss(y=Y), tw.NeedsError, "`z`"),
        (lambda: loss(z=Z, y=Y, x=Z), tw.UnknownNameError, "'x'"),
        (lambda: loss(z=Z, y=Y[:5]), tw.ShapeError, "axis B has 5 elements in `y` and 6 in `z`"),
        (lambda: loss(z=Z[0], y=Y), tw.ShapeError, r"\(B, m\)"),
        (lambda: loss(z=Z[:, :0], y=Y), tw.ShapeError, "empty"),
        (lambda: loss(z=Z[:0], y=Y[:0]), tw.ShapeError, "empty"),
        (lambda: loss(z=Y[:, None], y=Y), tw.DtypeError, "`z` must hold real numbers"),
        (lambda: loss(z=Z, y=0 * Y), tw.RangeError, "-1 or 1"),
        (lambda: loss(z=Z, y=0.5 * Y), tw.RangeError, "whole numbers"),
        (lambda: loss(z=Z, y=np.nan * Y), tw.RangeError, "whole numbers"),
        (lambda: loss(z=Z, y=1e300 * Y), tw.RangeError, "whole numbers"),
        (lambda: loss(z=Z, y=Y.astype(">i8")), tw.DtypeError, "byte-swapped"),
        (lambda: loss(z=Z.astype(complex), y=Y), tw.DtypeError, "z"),
        (lambda: loss(z=Z.tolist(), y=Y), tw.DtypeError, "z"),
        (lambda: parts(f=np.ones(3), x=np.ones(2)), tw.ArgumentError, "`x` is written by the pull-back"),
        (lambda: parts(f=np.ones(3), grads=np.ones((2, 2))), tw.ShapeError, "axis S"),
        (lambda: parts(f=np.ones(())), tw.ShapeError, r"\(S,\)"),
        (lambda: penalty.value(w), tw.NeedsError, "`delta`"),
        (lambda: penalty.gradient(w), tw.NeedsError, "`delta`"),
        (lambda: penalty.value(w, delta=d), tw.NeedsError, "`slope`"),
        (lambda: penalty.value(np.ones((3, 2)), delta=d, slope=d), tw.ShapeError, "axis H"),
        (lambda: penalty.value(w, delta=d, slope=d[:1]), tw.ShapeError, "axis T"),
        (lambda: penalty.gradient(w, out=np.ones(3), delta=d, slope=d), tw.ShapeError, "`w`"),
        (lambda: tw.regularizer("l1(0.1)").value(w, delta=d), tw.UnknownNameError, "'delta'"),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_gradients_that_do_not_fit(loss: tw.Objective) -> None:
    _, cache = loss.forward(z=Z, y=Y)
    frozen = np.zeros_like(Z)
    frozen.flags.writeable = False
    for call, kind, message in (
        (lambda: loss.pullback(cache, z=np.zeros((3, 6))), tw.ShapeError, r"\[6, 3\]"),
        (lambda: loss.pullback(cache, y=np.zeros(6)), tw.ArgumentError, "`y` is held constant"),
        (lambda: loss.pullback(cache, w=Z), tw.UnknownNameError, "'w'"),
        (lambda: loss.pullback(cache, z=frozen), tw.LayoutError, "read-only"),
        (lambda: loss.pullback(cache, z=np.zeros((6, 3), np.int64)), tw.DtypeError, "z"),
        (lambda: loss.pullback(cache, np.inf, z=np.zeros_like(Z)), tw.RangeError, "finite"),
        (lambda: loss.pullback(cache, np.nan, z=np.zeros_like(Z)), tw.RangeError, "finite"),
        (lambda: loss.pullback(tw.Cache(), z=np.zeros_like(Z)), tw.Error, "empty"),
        (lambda: tw.objective("checkered_regression").pullback(cache, z=np.zeros_like(Z)), tw.Error, "another objective"),
        (lambda: loss.pullback(None, z=np.zeros_like(Z)), TypeError, "cache"),
        (lambda: loss.pullback(loss, z=np.zeros_like(Z)), TypeError, "cache"),
    ):
        with pytest.raises(kind, match=message):
            call()
    repeated = np.lib.stride_tricks.as_strided(np.zeros(3), (6, 3), (0, 8))
    with pytest.raises(tw.Error, match="share memory"):
        loss.pullback(cache, z=repeated)
    assert not repeated.any()
    parts, joint = tw.objective("sum_log_concave"), np.zeros(3)
    _, cache = parts.forward(f=np.ones(2), grads=np.ones((2, 2)))
    with pytest.raises(tw.OverlapError):
        parts.pullback(cache, f=joint[:2], x=joint[1:])
    assert not joint.any()
    _, cache = parts.forward(f=np.ones(2))
    with pytest.raises(tw.NeedsError, match="`x`"):
        parts.pullback(cache, x=np.zeros(2))


def test_handles(loss: tw.Objective) -> None:
    again = pickle.loads(pickle.dumps(loss))
    assert again(z=Z, y=Y) == loss(z=Z, y=Y) and repr(loss) == "objective('checkered_regression')"
    _, cache = loss.forward(z=Z, y=Y)
    cache.close()
    for call in (lambda: loss.forward(cache, z=Z, y=Y), lambda: loss.pullback(cache, z=np.zeros_like(Z))):
        with pytest.raises(tw.HandleError, match="closed"):
            call()
    _, cache = loss.forward(z=Z, y=Y)  # a failure above left the objective free
    loss.close()
    for call in (lambda: loss(z=Z, y=Y), lambda: loss.pullback(cache, z=np.zeros_like(Z))):
        with pytest.raises(tw.HandleError, match="closed"):
            call()
    cache.close()
    with pytest.raises(RuntimeError, match="already"):
        again.__init__("sum_log_concave")
    for cls in (tw.Objective, tw.Cache):
        cls.__new__(cls).close()
    for wrong in ("adamw", "l1(0.1)", "checkered_regression | sum_log_concave", "checkered_regression(1)", ""):
        with pytest.raises(tw.Error):
            tw.objective(wrong)
    with pytest.raises(tw.MethodError, match="an objective"):
        tw.objective("adamw")
    with pytest.raises(tw.MethodError, match="checkered_regression"):
        tw.objective("chekered_regression")
    with pytest.raises(tw.MethodError, match="an objective"):
        tw.Optimizer([Z], "checkered_regression | sgd(lr=0.1)")


def test_two_threads_on_one_objective() -> None:
    rng = np.random.default_rng(1)
    z, y = rng.standard_normal((60_000, 8)), rng.choice([-1, 1], 60_000)
    loss, busy, done, wrong = tw.objective("checkered_regression"), [], [], []

    def work() -> None:
        for _ in range(6):
            try:
                done.append(loss(z=z, y=y))
            except tw.BusyError as problem:
                busy.append(problem)
            except BaseException as problem:  # noqa: BLE001
                wrong.append(problem)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and busy and len(set(done)) == 1


def test_introspection() -> None:
    m = tw.method("sum_log_concave")
    assert m.kind == "objective"
    assert [(i.name, i.shape) for i in m.inputs] == [("f", "(S,)"), ("grads", "(S, n)"), ("x", "(n,)")]
    assert m.inputs[0].differentiable and m.inputs[1].optional and m.inputs[2].result
    assert tw.method("checkered_regression").inputs[1].integer
    assert [i.name for i in tw.method("rnn_vanishing").inputs] == ["w", "delta", "slope"]
    assert tw.method("adamw").inputs == ()
    assert tw.objective("sum_log_concave").inputs == m.inputs
