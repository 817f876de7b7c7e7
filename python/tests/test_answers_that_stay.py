"""Gradients that stay as they are until the step has ended: read where they lie, with the same bits as copies."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest

import thalweg as tw

# what combines gradients in every way: weights of their products, in order, what it writes to, what it remembers
SENTENCES = [
    "upgrad(tasks={})", "mgda(tasks={})", "pcgrad(tasks={})", "krum(tasks={}, n_byzantine=1)", "nash_mtl(tasks={})",
    "gradvac(tasks={})", "trimmed_mean(tasks={})", "coordinate_median(tasks={})", "gcond(tasks={})",
    "gcond(tasks={}, output=sign)", "sam_gs(tasks={})", "random_loss_weighting(tasks={})", "upgrad(tasks={}) | sam(0.05)",
    "gradient_accumulate(2) | pcgrad(tasks={})",
]  # fmt: skip


def answered(sentence: str, shapes: list[tuple[int, ...]], dtype: type, tasks: int, stay: bool) -> list[np.ndarray]:
    """Parameters after three steps, every answer in memory of its own."""
    rng = np.random.default_rng(3)
    params = [np.array(rng.standard_normal(s), dtype) for s in shapes]
    opt = tw.Optimizer(params, sentence.format(tasks) + " | adamw(lr=0.1)")
    for _ in range(3):
        for request in opt.requests():
            grads = [np.array(rng.standard_normal(s) * 3, dtype) for s in shapes]
            for g in grads:
                g.flags.writeable = False
            request.answer(grads, loss=1.0, stay=stay)
            del grads  # the optimizer holds what it reads
            gc.collect()
    return params


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_bits_of_copies(sentence: str, dtype: type) -> None:
    shapes = [(5, 7), (), (33,), (1, 2, 3, 2), (0,)]
    shapes += [(260, 270)] if sentence == SENTENCES[1] else []  # beyond a block, and where floats are added as such
    copied, read = (answered(sentence, shapes, dtype, 4, stay) for stay in (False, True))
    for a, b in zip(copied, read, strict=True):
        np.testing.assert_array_equal(a, b)


def test_layouts_that_are_copied_all_the_same() -> None:
    """Strided, narrow and scaled gradients are no operands as they lie."""
    def run(stay: bool, make: object, **settings: object) -> np.ndarray:
        rng = np.random.default_rng(5)
        w = np.ones((6, 9), np.float32)
        opt = tw.Optimizer([w], "mgda(tasks=3) | sgd(lr=0.1)", **settings)  # type: ignore[arg-type]
        for request in opt.requests():
            request.answer([make(rng.standard_normal((12, 9)).astype(np.float32))], stay=stay)  # type: ignore[operator]
        return w

    for make, settings in [
        (lambda g: g[::2], {}), (lambda g: g[:6].astype(np.float16), {}), (lambda g: g[6:].copy(), {"maximize": True}),
        (lambda g: g[:6], {"gradient_scale": 0.5}), (lambda g: g[:6].copy(), {"consume_gradients": True}),
    ]:  # fmt: skip
        np.testing.assert_array_equal(run(True, make, **settings), run(False, make, **settings))


def rows(seed: int, tasks: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tasks, n)) + 0.5 * rng.standard_normal(n)).astype(np.float32)


def test_a_step_that_ends_early_gives_the_memory_back() -> None:
    """After a cancelled step, and one that failed, the next is as if it had not been."""
    J = rows(1, 4, 1000)
    w = np.zeros(1000, np.float32)
    opt = tw.Optimizer([w], "upgrad(tasks=4) | sgd(lr=1)")
    for stop in range(4):
        for request in opt.requests():
            request.answer([J[request.index].copy()], stay=True)
            if request.index == stop:
                break
    bad = J.copy()
    bad[2, 17] = np.nan
    with pytest.raises(tw.NonfiniteError, match="task 2"):
        for request in opt.requests():
            request.answer([bad[request.index]], stay=True)
    np.testing.assert_array_equal(w, 0)
    for request in opt.requests():
        request.answer([J[request.index]])
    np.testing.assert_array_equal(-w, tw.aggregate("upgrad")(J))


def test_what_is_not_finite_is_skipped_where_that_is_the_policy() -> None:
    J = rows(2, 3, 50)
    J[1, 3] = np.inf
    w = np.zeros(50, np.float32)
    opt = tw.Optimizer([w], "pcgrad(tasks=3) | sgd(lr=1)", nonfinite="skip")
    for request in opt.requests():
        request.answer([J[request.index]], stay=True)
        np.testing.assert_array_equal(w, 0)


def test_saved_within_a_step() -> None:
    """A state that is saved while the optimizer reads the host's memory holds the numbers themselves."""
    J = rows(4, 4, 300)
    whole, cut = (np.zeros(300, np.float32) for _ in range(2))
    opt = tw.Optimizer([whole], "mgda(tasks=4) | adamw(lr=0.1)")
    saved = b""
    for request in opt.requests():
        if request.index == 2:
            saved = pickle.dumps(opt.state_dict())
        request.answer([J[request.index].copy()], stay=True)
    other = tw.Optimizer([cut], "mgda(tasks=4) | adamw(lr=0.1)")
    other.load_state_dict(pickle.loads(saved))
    seen = []
    for request in other.requests():
        seen.append(request.index)
        request.answer([J[request.index]], stay=True)
    assert seen == [2, 3]
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("tasks", [2, 5, 17, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_many_numbers(tasks: int, dtype: type) -> None:
    """From 65,536 numbers on, products of floats are added in float within runs of 512: G to far below 2**-24."""
    n = 70_001
    J = rows(6, tasks, n).astype(dtype)
    exact = J.astype(np.float64)
    G = exact @ exact.T
    # krum is told apart by the smallest sum of distances; mgda by the whole of G
    got = tw.aggregate("mgda")(J).astype(np.float64)
    a = np.linalg.lstsq(exact.T, got, rcond=None)[0]
    assert a.min() > -1e-5 and a.sum() == pytest.approx(1, abs=1e-5)
    slopes = G @ a  # of the shortest vector of the hull: equal where a weight is not 0, larger where it is
    used = a > 1e-4
    np.testing.assert_allclose(slopes[used], got @ got, rtol=2e-5)
    assert (slopes[~used] > (got @ got) * (1 - 2e-5)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18])
def test_products_beyond_the_range_of_floats(scale: float) -> None:
    J = rows(7, 3, 80_000)
    small = J * np.float32(scale)
    want, got = tw.aggregate("mgda")(J), tw.aggregate("mgda")(small)
    np.testing.assert_allclose(got / np.float32(scale), want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("tasks", [2, 3, 16, 17, 40, 65, 130])
def test_order_statistics_of_any_number_of_tasks(tasks: int) -> None:
    J = rows(8, tasks, 777)
    np.testing.assert_allclose(tw.aggregate("coordinate_median")(J), np.median(J, 0), rtol=3e-7, atol=1e-7)
    if tasks > 2:
        trimmed = np.sort(J.astype(np.float64), 0)[1:-1].mean(0)
        np.testing.assert_allclose(tw.aggregate("trimmed_mean")(J), trimmed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sentence", ["upgrad(tasks=5)", "trimmed_mean(tasks=5)"])
def test_the_same_bits_for_any_threads_and_order(sentence: str) -> None:
    """Of tensors that are large and small together."""
    shapes = [(200, 201), (7,), (40_000,), (2, 3)]
    parts = [np.random.default_rng(9).standard_normal((5, *s)).astype(np.float32) for s in shapes]

    def run(order: list[int]) -> list[np.ndarray]:
        params = [np.zeros(shapes[k], np.float32) for k in order]
        opt = tw.Optimizer(params, f"{sentence} | sgd(lr=1)")
        for request in opt.requests():
            request.answer([parts[k][request.index] for k in order], stay=True)
        return [params[order.index(k)] for k in range(4)]

    before = tw.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            tw.set_num_threads(threads)
            results += [run([0, 1, 2, 3]), run([3, 1, 0, 2])]
    finally:
        tw.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_in_torch_the_gradients_of_backward_are_not_copied() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    def run(told: bool) -> np.ndarray:
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 3)
        x = torch.randn(16, 40)
        opt = Optimizer(model.parameters(), "upgrad(tasks=3) | adamw(lr=0.1)")
        for _ in range(3):
            def losses() -> list[object]:
                out = model(x)
                return [(out[:, k] - k).square().mean() for k in range(3)]

            def closure(request: object = None) -> object:
                opt.zero_grad()
                if not told:
                    every = losses()
                    opt.backward(every)
                    return sum(every)
                loss = losses()[request.index]  # type: ignore[attr-defined]
                loss.backward()
                return loss

            def asked(request: object) -> object:
                return closure(request)

            opt.step(asked if told else closure)
        return model.weight.detach().numpy().copy()

    np.testing.assert_array_equal(run(True), run(False))


def test_rounds_of_one_step_that_differ() -> None:
    """A source that is asked again keeps the next gradients beside those that the host still shows."""
    J = rows(12, 8, 90)
    J.flags.writeable = False

    def run(stay: list[bool]) -> np.ndarray:
        w = np.ones(90, np.float32)
        opt = tw.Optimizer([w], "upgrad(tasks=2) | gradient_accumulate(2) | sam(0.05) | sgd(lr=0.1)")
        turn = iter(range(100))
        for _ in range(2):
            for request in opt.requests():
                k = next(turn)
                request.answer([J[k % 8]], stay=stay[k % len(stay)])
        return w

    for stay in ([True], [True, False], [False, True], [True, True, False, False], [False, False, True, True]):
        np.testing.assert_array_equal(run(stay), run([False]))


@pytest.mark.parametrize("stay", [[True, True, False], [True, False, True], [False, True, True]])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_is_not_finite_among_answers_of_both_kinds(stay: list[bool], bad: int) -> None:
    J = rows(13, 3, 40)
    J[bad, 5] = np.nan
    for policy, skipped in (("skip", 1), ("error", 0)):
        w = np.zeros(40, np.float32)
        opt = tw.Optimizer([w], "mgda(tasks=3) | sgd(lr=1)", nonfinite=policy)
        try:
            for request in opt.requests():
                request.answer([J[request.index]], stay=stay[request.index])
        except tw.NonfiniteError as e:
            assert not skipped and "NaN" in str(e)
        else:
            assert skipped
        assert opt.skipped == skipped
        np.testing.assert_array_equal(w, 0)


def test_not_finite_and_saved_within_the_step() -> None:
    """What nobody has looked at yet is looked at where the step goes on."""
    J = rows(14, 2, 30)
    J[0, 4] = np.inf
    w = np.zeros(30, np.float32)
    first, saved = tw.Optimizer([w], "upgrad(tasks=2) | sgd(lr=1)", nonfinite="skip"), {}
    for request in first.requests():
        if request.index == 1:
            saved = first.state_dict()
            break
        request.answer([J[0]], stay=True)
    other = tw.Optimizer([w], "upgrad(tasks=2) | sgd(lr=1)", nonfinite="skip")
    other.load_state_dict(saved)
    for request in other.requests():
        request.answer([J[1]])
    assert other.skipped == 1


def test_other_branches_of_a_route_are_looked_at_as_without() -> None:
    for stay in (False, True):
        a, b = np.zeros(3, np.float32), np.zeros(3, np.float32)
        opt = tw.Optimizer([("a.weight", a), ("b.bias", b)],
                           'route("*.bias"=(pcgrad(tasks=3) | sgd(lr=1)), other=(sgd(lr=1)))', nonfinite="error")
        with pytest.raises(tw.NonfiniteError, match="a.weight"):
            for request in opt.requests():
                grads = [np.full(3, request.index + 1.0, np.float32) for _ in "ab"]
                if request.pass_ == 2:
                    grads[0][1] = np.nan
                request.answer(grads, stay=stay)
