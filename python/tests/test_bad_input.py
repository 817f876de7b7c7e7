"""Everything that can be wrong with what comes in: the right exception, a message that names the argument, nothing changed."""

from __future__ import annotations

import threading
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from support import snapshot


@pytest.fixture
def w() -> np.ndarray:
    return np.array([1.0, -2.0, 3.0])


@pytest.fixture
def g() -> np.ndarray:
    return np.array([0.5, 0.25, -1.0])


@pytest.fixture
def opt(w: np.ndarray, g: np.ndarray) -> tw.Optimizer:
    """An AdamW of two named tensors that has taken a step."""
    made = tw.AdamW([("first", w), ("second", np.ones((2, 3), np.float32))], lr=0.1)
    made.step([g, np.ones((2, 3), np.float32)])
    return made


def refused(opt: tw.Optimizer, call: Callable[[], Any], error: type[Exception], match: str) -> None:
    """The call raises, and parameters and state are as before."""
    before = snapshot(opt)
    with pytest.raises(error, match=match or None):
        call()
    assert snapshot(opt) == before


# ---- sentences

SENTENCES = [
    ("", tw.SentenceError, ""),
    ("adamw(", tw.SentenceError, ""),
    ("adamw)", tw.SentenceError, ""),
    ("adamw(lr=)", tw.SentenceError, ""),
    ("adamw | | ema(0.9)", tw.SentenceError, ""),
    ("adamww(lr=0.1)", tw.MethodError, "adamw"),
    ("ema(0.9)", tw.Error, ""),
    ("sgd(lr=0.1) | sgd(lr=0.1)", tw.Error, ""),
    ("cosine(lr=0.1, total=10)", tw.Error, "cosine"),
    ("adamw(lrr=0.1)", tw.UnknownNameError, "lr"),
    ("adamw(lr=0.1, lr=0.2)", tw.UnknownNameError, "lr"),
    ("adamw(lr=true)", tw.ValueTypeError, "lr"),
    ("sgd(nesterov=3)", tw.ValueTypeError, "nesterov"),
    ("adamw(lr=-0.1)", tw.RangeError, "lr"),
    ("adamw(beta1=1.0)", tw.RangeError, "beta1"),
    ("adamw(lr=nan)", tw.Error, ""),
    ("adamw(lr=[1, 2])", tw.ValueTypeError, "lr"),
    ("adamw(lr=adamw)", tw.ValueTypeError, "lr"),
]


@pytest.mark.parametrize("sentence, error, match", SENTENCES, ids=[s for s, _, _ in SENTENCES])
def test_sentences(w: np.ndarray, sentence: str, error: type[Exception], match: str) -> None:
    before = w.copy()
    with pytest.raises(error, match=match or None):
        tw.Optimizer([w], sentence)
    np.testing.assert_array_equal(w, before)


def test_sentence_errors_show_the_place(w: np.ndarray) -> None:
    with pytest.raises(tw.SentenceError) as caught:
        tw.Optimizer([w], "clip_global_norm(1.0) | adamw(lr=)")
    assert "adamw(lr=)" in str(caught.value) and "^" in str(caught.value)
    assert caught.value.status == -10


def test_sentences_that_are_no_text(w: np.ndarray) -> None:
    for wrong in (None, 3, b"sgd", ["sgd"]):
        with pytest.raises((TypeError, ValueError), match="sentence"):
            tw.Optimizer([w], wrong)
    with pytest.raises(ValueError, match="null"):
        tw.Optimizer([w], "sgd(lr=0.1)\0")


def test_deep_and_long_sentences(w: np.ndarray) -> None:
    for sentence in ("(" * 100_000, "sgd(lr=" * 50_000, "sgd(" + "[" * 100_000, "a" * 1_000_000, "sgd(lr=0." + "1" * 500_000 + ")"):
        try:
            tw.Optimizer([w], sentence)
        except tw.Error:
            pass


def test_misspelt_keywords_of_classes(w: np.ndarray) -> None:
    with pytest.raises(tw.UnknownNameError, match="weight_decay"):
        tw.AdamW([w], weight_decai=0.1)
    with pytest.raises(TypeError, match="lr"):
        tw.AdamW([w], 0.1, lr=0.1)


def test_values_of_wrong_type_and_range(w: np.ndarray) -> None:
    for wrong in (True, [1, 2], "nonsense("):
        with pytest.raises(tw.Error):
            tw.AdamW([w], lr=wrong)
    for wrong in (object(), 1j, {}):
        with pytest.raises(tw.ValueTypeError, match="lr"):
            tw.AdamW([w], lr=wrong)
    with pytest.raises(tw.Error):
        tw.AdamW([w], lr=float("nan"))
    with pytest.raises(tw.RangeError, match="beta2"):
        tw.AdamW([w], betas=(0.9, 1.5))


# ---- options


@pytest.mark.parametrize("option, wrong", [
    ("state_dtype", "f8"), ("state_dtype", None), ("master", "f64"), ("nonfinite", "ignore"), ("nonfinite", []),
    ("seed", -1), ("seed", 2**64), ("seed", 1.5), ("gradient_scale", float("nan")), ("gradient_scale", float("inf")),
])
def test_options(w: np.ndarray, option: str, wrong: Any) -> None:
    with pytest.raises((tw.Error, TypeError, ValueError), match=option):
        tw.SGD([w], lr=0.1, **{option: wrong})


# ---- parameters


def test_no_parameters() -> None:
    for nothing in ([], (), iter([]), [{"params": []}]):
        with pytest.raises(ValueError, match="empty"):
            tw.SGD(nothing, lr=0.1)


def test_parameters_that_are_no_list(w: np.ndarray) -> None:
    for wrong in (w, "abc", {"params": [w]}, {1: w}, memoryview(w)):
        with pytest.raises(TypeError, match="params"):
            tw.SGD(wrong, lr=0.1)
    with pytest.raises(TypeError):
        tw.SGD(3, lr=0.1)
    with pytest.raises(ValueError, match="'params'"):
        tw.SGD([{"lr": 0.1}], lr=0.1)
    with pytest.raises(TypeError, match="params"):
        tw.SGD([{"params": [w]}, w.copy()], lr=0.1)


@pytest.mark.parametrize("wrong", [
    np.ones(3, np.int64), np.ones(3, bool), np.ones(3, complex), np.ones(3, np.dtype("f4").newbyteorder()),
    np.array([1.0, None]), np.ones(3, np.longdouble), np.array("text"), np.zeros(3, [("x", "f4")]), [1.0, 2.0], 1.0, "text",
    b"12345678", None,
], ids=lambda a: str(getattr(a, "dtype", type(a).__name__)))
def test_wrong_dtypes(w: np.ndarray, wrong: Any) -> None:
    with pytest.raises(tw.DtypeError, match="parameter 1"):
        tw.SGD([w, wrong], lr=0.1)


def test_byte_swapped_arrays_say_so(w: np.ndarray) -> None:
    with pytest.raises(TypeError, match="byte-swapped"):
        tw.SGD([w, w.astype(w.dtype.newbyteorder())], lr=0.1)


def test_read_only_parameters(w: np.ndarray) -> None:
    frozen = w.copy()
    frozen.flags.writeable = False
    with pytest.raises(tw.LayoutError, match="parameter 1.*read-only"):
        tw.SGD([w, frozen], lr=0.1)
    with pytest.raises(BufferError, match="'b'.*read-only"):
        tw.SGD([("a", w), ("b", frozen)], lr=0.1)


def test_read_only_gradients(w: np.ndarray, g: np.ndarray) -> None:
    g.flags.writeable = False
    tw.SGD([w], lr=0.5).step([g])
    for option in ("zero_gradients", "consume_gradients"):
        opt = tw.SGD([w], lr=0.5, **{option: True})
        refused(opt, lambda: opt.step([g]), tw.LayoutError, "gradient 0")
    opt = tw.SGD([w], lr=0.5)
    opt.bind_gradients([g])
    refused(opt, opt.zero_grad, tw.LayoutError, "gradient 0.*read-only")


def test_misaligned() -> None:
    crooked = np.frombuffer(bytearray(33), np.float64, 4, offset=1)
    with pytest.raises(tw.LayoutError, match="parameter 0"):
        tw.SGD([crooked], lr=0.1)
    opt = tw.SGD([np.ones(4)], lr=0.1)
    refused(opt, lambda: opt.step([crooked]), tw.LayoutError, "gradient 0")


def test_strides_between_elements() -> None:
    record = np.zeros(4, [("x", "f4"), ("tag", "i2")])
    with pytest.raises(tw.LayoutError, match="parameter 0.*stride"):
        tw.SGD([record["x"]], lr=0.1)


def test_overlap(w: np.ndarray) -> None:
    big = np.zeros(10)
    with pytest.raises(tw.OverlapError, match="1"):
        tw.SGD([big[:6], big[5:]], lr=0.1)
    with pytest.raises(tw.OverlapError):
        tw.SGD([w, w], lr=0.1)
    with pytest.raises(tw.OverlapError):
        tw.SGD([("a", w), ("b", w[::-1])], lr=0.1)
    with pytest.raises(tw.LayoutError):
        tw.SGD([np.lib.stride_tricks.as_strided(big, (3, 3), (0, 8))], lr=0.1)
    with pytest.raises(tw.LayoutError):
        tw.SGD([np.lib.stride_tricks.as_strided(big, (3, 3), (8, 8))], lr=0.1)
    tw.SGD([big[:5], big[5:]], lr=0.1)
    tw.SGD([big[::2], big[1::2]], lr=0.1)  # interleaved, but apart
    with pytest.raises(ValueError):
        w_opt = tw.SGD([w], lr=0.1)
        w_opt.step([w])  # the gradient is the parameter


def test_duplicate_names(w: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same"):
        tw.SGD([("same", w), ("same", w.copy())], lr=0.1)


def test_group_overrides(w: np.ndarray) -> None:
    with pytest.raises(tw.UnknownNameError, match="lrr"):
        tw.SGD([{"params": [w], "lrr": 0.1}], lr=0.1)
    with pytest.raises(tw.RangeError, match="lr"):
        tw.SGD([{"params": [w], "lr": -0.1}], lr=0.1)
    opt = tw.SGD([{"params": [w], "name": "a"}], lr=0.1)
    with pytest.raises(tw.UnknownNameError, match="b"):
        opt.set("lr", 0.1, "b")


# ---- gradients


def test_stepping_before_binding(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.1)
    refused(opt, opt.step, tw.SequenceError, "gradient")
    refused(opt, lambda: opt.step(lambda: 1.0), tw.SequenceError, "gradient")


def test_wrong_count(opt: tw.Optimizer, g: np.ndarray) -> None:
    refused(opt, lambda: opt.step([g]), tw.CountError, "1.*2|2.*1")
    refused(opt, lambda: opt.bind_gradients([]), tw.CountError, "0|2")
    refused(opt, lambda: opt.step([g, np.ones((2, 3), np.float32), g]), tw.CountError, "3.*2|2.*3")


def test_wrong_shapes(opt: tw.Optimizer, g: np.ndarray) -> None:
    good = np.ones((2, 3), np.float32)
    refused(opt, lambda: opt.step([g[:2], good]), tw.ShapeError, "first|0")
    refused(opt, lambda: opt.step([g, good.T]), tw.ShapeError, "second|1")
    refused(opt, lambda: opt.step([g, good.reshape(6)]), tw.ShapeError, "second|1")
    refused(opt, lambda: opt.step([g.reshape(3, 1), good]), tw.ShapeError, "first|0")


def test_wrong_gradient_dtypes(opt: tw.Optimizer, g: np.ndarray) -> None:
    good = np.ones((2, 3), np.float32)
    refused(opt, lambda: opt.step([g.astype(int), good]), tw.DtypeError, "gradient 0 \\('first'\\)")
    refused(opt, lambda: opt.step([g, good.astype(complex)]), tw.DtypeError, "gradient 1 \\('second'\\)")
    refused(opt, lambda: opt.step([g, good.astype(good.dtype.newbyteorder())]), tw.DtypeError, "gradient 1.*byte-swapped")
    refused(opt, lambda: opt.step([g, [1.0]]), tw.DtypeError, "gradient 1")


def test_gradients_that_are_no_list(opt: tw.Optimizer, g: np.ndarray) -> None:
    for wrong in (g, "text", 3, memoryview(g)):
        refused(opt, lambda wrong=wrong: opt.step(wrong), TypeError, "")
    refused(opt, lambda: opt.step(g, g), TypeError, "step")
    refused(opt, lambda: opt.step(gradients=[g]), TypeError, "grads")


def test_binding_stays_when_another_is_refused(opt: tw.Optimizer, g: np.ndarray) -> None:
    good = [g, np.ones((2, 3), np.float32)]
    opt.bind_gradients(good)
    with pytest.raises(tw.ShapeError):
        opt.bind_gradients([g, g])
    assert all(a is b for a, b in zip(opt.grads, good))
    opt.step()


def test_shape_changes_between_steps(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.AdamW([w], lr=0.1)
    opt.step([g])
    refused(opt, lambda: opt.step([np.ones(4)]), tw.ShapeError, "0")
    refused(opt, lambda: opt.rebind_parameters([np.ones(4)]), tw.ShapeError, "0")
    refused(opt, lambda: opt.rebind_parameters([w.astype(np.float32)]), tw.DtypeError, "0")
    refused(opt, lambda: opt.rebind_parameters([w, w]), tw.CountError, "")
    opt.step([g])


def test_resizing_bound_arrays(w: np.ndarray) -> None:
    owned, grad = np.ones(3), np.ones(3)
    opt = tw.SGD([owned], lr=0.1)
    opt.step([grad])
    for array in (owned, grad):
        for given in ({}, {"refcheck": False}):
            with pytest.raises(ValueError, match="cannot resize"):
                array.resize(1000, **given)
    opt.step([grad])
    opt.close()
    owned.resize(1000, refcheck=False)  # the buffers are released; what is left are names in this test
    grad.resize(1000, refcheck=False)


@pytest.mark.parametrize("view", [lambda a: a[2:8], lambda a: a.reshape(2, 5), lambda a: a[::-1][1:4], lambda a: memoryview(a),
                                  lambda a: memoryview(a[1:5]), lambda a: a.view(type("Named", (np.ndarray,), {}))])  # fmt: skip
def test_resizing_arrays_of_which_a_view_is_bound(view: Any) -> None:
    """The view would stay, and its memory be freed."""
    owned, grad = np.ones(10), np.ones(10)
    opt = tw.SGD([view(owned)], lr=0.1)
    opt.step([view(grad)])
    for array in (owned, grad):
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(100_000, refcheck=False)
    opt.step([view(grad)])
    opt.close()
    owned.resize(100_000, refcheck=False)
    grad.resize(100_000, refcheck=False)


def test_list_that_changes_while_it_is_read(w: np.ndarray) -> None:
    grads: list[Any] = []

    class Sneaky:
        @property
        def __array_interface__(self) -> dict[str, Any]:
            del grads[1:]
            return np.ones(3).__array_interface__

    grads += [Sneaky(), np.ones(3)]
    opt = tw.SGD([w, w.copy()], lr=0.1)
    with pytest.raises((IndexError, tw.Error)):
        opt.step(grads)


def test_reentry(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.1)

    class Reentrant:
        @property
        def __array_interface__(self) -> dict[str, Any]:
            for call in (opt.step, opt.close, lambda: opt.set("lr", 1.0)):
                with pytest.raises(tw.BusyError):
                    call()
            return np.ones(3).__array_interface__

    opt.step([Reentrant()])
    assert opt.steps == 1


# ---- numbers that are not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sentence", ["sgd(lr=0.1, momentum=0.9)", "adamw(lr=0.1)", "clip_global_norm(1.0) | adamw(lr=0.1) | ema(0.9)"])
def test_nonfinite_policies(sentence: str, bad: float) -> None:
    def fresh(policy: str) -> tuple[np.ndarray, tw.Optimizer]:
        w = np.ones(5000, np.float32)
        opt = tw.Optimizer([w], sentence, nonfinite=policy)
        opt.step([np.ones(5000, np.float32)])
        return w, opt

    grad = np.ones(5000, np.float32)
    grad[4321] = bad
    w, opt = fresh("propagate")
    opt.step([grad])
    assert not np.isfinite(w).all()

    w, opt = fresh("skip")
    before = [p.copy() for p in opt.params], opt.state()
    opt.step([grad])
    np.testing.assert_array_equal(w, before[0][0])
    for name, arrays in opt.state().items():
        np.testing.assert_array_equal(arrays[0], before[1][name][0])
    assert opt.skipped == 1 and opt.steps == 1
    opt.step([np.ones(5000, np.float32)])
    other, twin = fresh("skip")
    twin.step([np.ones(5000, np.float32)])
    np.testing.assert_array_equal(w, other)  # as if the bad step had never been

    w, opt = fresh("error")
    refused(opt, lambda: opt.step([grad]), tw.NonfiniteError, "0")
    opt.step([np.ones(5000, np.float32)])
    np.testing.assert_array_equal(w, other)


def test_nonfinite_option_values(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.1)
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(tw.RangeError, match="lr"):
            opt.set("lr", wrong)
        assert opt.get("lr") == 0.1


# ---- handles


def test_closed(opt: tw.Optimizer, g: np.ndarray) -> None:
    opt.close()
    for call in (opt.step, lambda: opt.step([g, g]), lambda: opt.step(lambda: 1.0), lambda: opt.get("lr"), opt.eval,
                 lambda: opt.sentence, opt.state, opt.state_dict, opt.zero_grad, opt.cancel, lambda: opt.bind_gradients([g, g]),
                 lambda: opt.save("/nowhere"), lambda: opt.observe("loss", 1.0), lambda: opt.add_param_group({"params": [g]})):
        with pytest.raises(tw.HandleError, match="closed"):
            call()
    opt.close()
    for thing in (tw.regularizer("l1(0.1)"), tw.schedule("constant(lr=0.1)"), tw.constraint("l2_ball(1)")):
        thing.close()
        with pytest.raises(tw.HandleError, match="closed"):
            {"Regularizer": lambda t: t.value(g), "Schedule": lambda t: t(0), "Constraint": lambda t: t.project(g)}[
                type(thing).__name__](thing)


def test_never_initialised() -> None:
    for cls in (tw.Optimizer, tw.AdamW, tw.Regularizer, tw.Schedule, tw.Constraint):
        empty = cls.__new__(cls)
        with pytest.raises((RuntimeError, AttributeError)):
            empty.step() if isinstance(empty, tw.Optimizer) else empty.observe("x", 1.0)
        empty.close()


def test_initialised_twice(opt: tw.Optimizer, w: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="already"):
        opt.__init__([w], lr=0.1)


def test_two_threads_on_one_handle() -> None:
    n = 4_000_000
    w, g = np.ones(n, np.float32), np.ones(n, np.float32)
    opt = tw.AdamW([w], lr=0.0)
    opt.bind_gradients([g])
    busy, done, wrong = [], [], []

    def work() -> None:
        for _ in range(12):
            try:
                opt.step()
                done.append(1)
            except tw.BusyError as problem:
                busy.append(problem)
            except BaseException as problem:  # noqa: BLE001
                wrong.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert busy and len(busy) + len(done) == 48
    assert opt.steps == len(done)


def test_deleting_while_another_thread_steps() -> None:
    n = 4_000_000
    for _ in range(3):
        box = [tw.AdamW([np.ones(n, np.float32)], lr=0.0)]
        box[0].bind_gradients([np.ones(n, np.float32)])
        thread = threading.Thread(target=box[0].step)
        thread.start()
        box.clear()
        thread.join()


# ---- the other objects


def test_regularizers_and_constraints(w: np.ndarray) -> None:
    l1 = tw.regularizer("l1(0.1)")
    with pytest.raises(tw.DtypeError, match="w"):
        l1.value([1.0])
    with pytest.raises(tw.ShapeError):
        l1.gradient(w, out=np.zeros(4))
    with pytest.raises(ValueError):
        l1.prox(w, -1.0)
    with pytest.raises(ValueError):
        l1.prox(w, float("nan"))
    frozen = w.copy()
    frozen.flags.writeable = False
    with pytest.raises(tw.LayoutError, match="w.*read-only"):
        l1.prox(frozen, 0.1)
    with pytest.raises(tw.LayoutError, match="w.*read-only"):
        tw.constraint("l2_ball(1)").project(frozen)
    with pytest.raises(tw.ShapeError):
        tw.constraint("stiefel").project(w)
    for make, wrong in ((tw.regularizer, "sgd"), (tw.constraint, "l1(0.1)"), (tw.schedule, "adamw"),
                        (tw.schedule, "constant(lr=0.1) | constant(lr=0.1)")):
        with pytest.raises(tw.Error):
            make(wrong)


def test_schedules() -> None:
    line = tw.schedule("linear(lr=1, end=0, total=4)")
    for wrong in ("x", 1.5, None):
        with pytest.raises(TypeError):
            line(wrong)
    with pytest.raises(OverflowError):
        line(2**70)
    with pytest.raises(tw.Error):
        line.observe("metric", 1.0)
    with pytest.raises(tw.UnknownNameError):
        line.command("begin_decay")


def test_commands_and_observations(opt: tw.Optimizer) -> None:
    refused(opt, lambda: opt.command("adamw.explode"), tw.UnknownNameError, "explode")
    refused(opt, lambda: opt.observe("no_such_thing", 1.0), tw.Error, "no_such_thing")
    with pytest.raises(TypeError):
        opt.observe("loss", "high")
    with pytest.raises(TypeError):
        opt.command(3)
    with pytest.raises(tw.UnknownNameError, match="lr"):
        opt.get("adamw.lrr")
    with pytest.raises(tw.Error):
        opt.set("lr", "adamw")
    with pytest.raises(tw.ValueTypeError):
        opt.set("lr", object())


def test_complex_losses_and_answers_of_a_loop_that_is_over() -> None:
    w, g = np.ones(3), np.ones(3)
    opt = tw.Optimizer([w], "polyak_sgd")
    for loss in (1 + 2j, np.complex64(1), np.ones((), np.complex128)):
        refused(opt, lambda: opt.step(lambda: (loss, [g])), tw.ValueTypeError, "is one number")
        refused(opt, lambda: opt.observe("loss", loss), tw.ValueTypeError, "is a number")
    opt = tw.Optimizer([w], "sam(0.1) | sgd(lr=0.1)")
    first = None
    for request in opt.requests():
        if first is not None:
            with pytest.raises(tw.SequenceError, match="Request.gradient, pass 0, tag 0. is over"):
                first.answer([g])
        request.answer([g])
        request.answer([g])  # again, in the place of the other
        first = first or request
    steps = opt.requests()
    request = next(steps)
    del steps
    with pytest.raises(tw.SequenceError, match="has gone on, or was left"):
        request.answer([g])
    before = w.copy()
    opt.step(lambda: (1.0, [g]))
    assert opt.steps == 2 and not np.array_equal(w, before)


def test_the_state_of_one_parameter() -> None:
    w, b = np.ones((2, 3)), np.ones(3)
    opt = tw.Optimizer({"w": w, "b": b}, "clip_global_norm(1.0) | adamw(lr=0.1)")
    opt.step({"w": np.full((2, 3), 0.1), "b": np.full(3, 0.2)})
    whole = opt.state()
    for key, index in (("w", 0), ("b", 1), (0, 0), (-1, 1)):
        own = opt.state[key]
        assert own and own["adamw.exp_avg"].shape == (w, b)[index].shape
        for name, values in own.items():
            assert np.array_equal(values, whole[name][index])
    for key in ("v", 2, -3, None):
        with pytest.raises(tw.UnknownNameError, match="no parameter .*; there are 'w', 'b'; the whole state is opt.state"):
            opt.state[key]
    with pytest.raises(tw.UnknownNameError, match=r"they have no names, and go by position, opt.state\[0\]"):
        tw.AdamW([w], lr=0.1).state["w"]
    penalty = tw.regularizer("l1(0.5)")
    assert penalty(np.ones(6)) == penalty.value(np.ones(6)) == 3.0
