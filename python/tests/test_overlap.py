"""Which tensors may share memory: compared with the set of bytes of every view, for layouts of all kinds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg as tw

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)]


def places(view: np.ndarray) -> np.ndarray:
    """The address of every byte of every element; equal numbers are the same byte."""
    at = np.array([view.ctypes.data], np.int64)
    for count, stride in zip(view.shape, view.strides):
        at = np.add.outer(at, np.arange(count) * stride)
    return np.add.outer(at, np.arange(view.itemsize)).reshape(-1)


def overlaps(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(set(places(a).tolist()) & set(places(b).tolist()))


def overlaps_itself(a: np.ndarray) -> bool:
    at = places(a)
    return len(set(at.tolist())) != len(at)


def outcome(call) -> str:
    try:
        call()
    except (tw.OverlapError, tw.LayoutError) as error:
        # these layouts are small: nothing may be left undecided
        assert "may share" not in str(error)
        return "overlap" if isinstance(error, tw.OverlapError) else "layout"
    return "taken"


def view(buffer: np.ndarray, dtype: np.dtype, shape: tuple, strides: tuple, place: int) -> np.ndarray:
    """A view whose strides count elements; `place` says which of the offsets that keep it inside the buffer."""
    reach = [(n - 1) * s for n, s in zip(shape, strides)]
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
    if 0 in shape:
        low = high = 0
    room = buffer.nbytes // dtype.itemsize - (high - low)
    start = (place % room - low) * dtype.itemsize
    return np.ndarray(shape, dtype, buffer.data, start, tuple(s * dtype.itemsize for s in strides))


@st.composite
def views(draw, dtype=None) -> tuple:
    axes = draw(st.integers(0, 4))
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=axes, max_size=axes)))
    strides = tuple(draw(st.lists(st.integers(-9, 9), min_size=axes, max_size=axes)))
    return draw(st.sampled_from(DTYPES)) if dtype is None else dtype, shape, strides, draw(st.integers(0, 10**6))


# 4 axes of at most 4 elements, strides of at most 9 elements of 8 bytes, and some room to move in
BUFFER = (4 * 3 * 9 + 12) * 8


def test_all_pairs_of_rectangles_of_an_array() -> None:
    base = np.zeros((3, 6), np.float32)
    spans = lambda n: [slice(i, j) for i, j in itertools.combinations(range(n + 1), 2)]
    parts = [base[r, c] for r in spans(3) for c in spans(6)]
    found = 0
    for a, b in itertools.combinations(parts, 2):
        shared = outcome(lambda: tw.SGD([a, b], lr=1.0)) != "taken"
        assert shared == overlaps(a, b), (a.shape, b.shape)
        found += shared
    assert len(parts) == 126 and 0 < found < 7875


@settings(max_examples=600, deadline=None)
@given(st.lists(views(), min_size=1, max_size=3))
def test_parameters_are_taken_when_no_byte_is_shared(layouts: list) -> None:
    buffer = np.zeros(BUFFER, np.uint8)
    made = [view(buffer, *layout) for layout in layouts]
    expected = "taken"
    if any(overlaps_itself(v) for v in made):
        expected = "layout"
    elif any(overlaps(a, b) for a, b in itertools.combinations(made, 2)):
        expected = "overlap"
    assert outcome(lambda: tw.SGD(made, lr=1.0)) == expected

    def one_by_one() -> None:
        opt = tw.SGD(made[:1], lr=1.0)
        for v in made[1:]:
            opt.add_param_group({"params": [v]})

    one = outcome(one_by_one)
    assert (one == "taken") == (expected == "taken")


@settings(max_examples=400, deadline=None)
@given(views(), views(), st.data())
def test_gradients_that_are_read_and_written(first: tuple, second: tuple, data) -> None:
    """Two parameters, and a gradient for each somewhere in the same buffer."""
    buffer = np.zeros(BUFFER, np.uint8)
    w = [view(buffer, *layout) for layout in (first, second)]
    if any(map(overlaps_itself, w)) or overlaps(*w):
        return
    g = []
    for p in w:
        strides = tuple(data.draw(st.lists(st.integers(-9, 9), min_size=p.ndim, max_size=p.ndim)))
        g.append(view(buffer, data.draw(st.sampled_from(DTYPES)), p.shape, strides, data.draw(st.integers(0, 10**6))))
    read_bad = any(overlaps(a, b) for a in w for b in g)
    for options in ({}, {"zero_gradients": True}, {"consume_gradients": True}):
        opt = tw.Optimizer(w, "sgd(lr=0)", **options)
        expected = "overlap" if read_bad else "taken"
        if options and any(map(overlaps_itself, g)):
            expected = "layout"
        elif options and overlaps(*g):
            expected = "overlap"
        assert outcome(lambda: opt.bind_gradients(g)) == expected
        # an absent gradient shares nothing
        alone = "overlap" if any(overlaps(p, g[0]) for p in w) else "taken"
        if options and overlaps_itself(g[0]):
            alone = "layout"
        assert outcome(lambda: opt.bind_gradients([g[0], None])) == alone


def test_the_gradient_of_one_parameter_is_another_parameter() -> None:
    x, y = np.ones(1), np.ones(1)
    opt = tw.SGD([x, y], lr=0.1)
    with pytest.raises(tw.OverlapError, match="gradient 0 and parameter 1 share memory"):
        opt.step([y, x])
    assert (x[0], y[0]) == (1, 1)


@pytest.mark.parametrize("options", [{"zero_gradients": True}, {"consume_gradients": True}])
def test_written_gradients_have_their_own_elements(options: dict) -> None:
    g, a, b = np.ones(1), np.zeros(1), np.zeros(1)
    opt = tw.Optimizer([a, b], "sgd(lr=1)", **options)
    with pytest.raises(tw.OverlapError, match="gradients are written by .* share memory"):
        opt.step([g, g])
    assert (a[0], b[0], g[0]) == (0, 0, 1)
    wide = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (200_000,), (0,))
    w = np.zeros(200_000, np.float32)
    opt = tw.Optimizer([w], "sgd(lr=1)", **options)
    with pytest.raises(tw.LayoutError, match="its elements share memory"):
        opt.step([wide])
    assert not w.any()


def test_gradients_that_are_read_may_share() -> None:
    g, a, b = np.ones(1), np.zeros(1), np.zeros(1)
    tw.SGD([a, b], lr=1).step([g, g])
    assert (a[0], b[0], g[0]) == (-1, -1, 1)
    w = np.zeros(200_000, np.float32)
    tw.SGD([w], lr=1).step([np.broadcast_to(np.float32(1), w.shape)])
    assert (w == -1).all()


def test_rebinding_parameters_onto_what_is_bound() -> None:
    w, g, shadow = np.zeros(4, np.float32), np.ones(4, np.float32), np.zeros(4, np.float16)
    opt = tw.SGD([w], lr=1)
    opt.bind_gradients([g])
    opt.bind_shadow([shadow])
    with pytest.raises(tw.OverlapError, match="gradient 0 and parameter 0"):
        opt.rebind_parameters([g])
    inside = np.ndarray((4,), np.float32, np.zeros(8, np.float32))
    part = np.ndarray((4,), np.float16, inside, 4)
    opt.bind_shadow([part])
    with pytest.raises(tw.OverlapError, match="parameter 0 and shadow 0"):
        opt.rebind_parameters([inside])
    opt.step()
    assert w.tolist() == [-1] * 4 and part.tolist() == [-1] * 4


def test_shadows_share_with_nothing() -> None:
    space = np.zeros(32, np.float16)
    w, g = np.zeros(4, np.float32), space[8:12]
    opt = tw.SGD([w], lr=1)
    opt.bind_gradients([g])
    with pytest.raises(tw.OverlapError, match="gradient 0 and shadow 0"):
        opt.bind_shadow([space[10:14]])
    opt.bind_shadow([space[12:16]])
    with pytest.raises(tw.OverlapError, match="gradient 0 and shadow 0"):
        opt.bind_gradients([space[12:20:2]])
    opt.bind_gradients([space[16:20]])
    with pytest.raises(tw.LayoutError, match="its elements share memory"):
        opt.bind_shadow([np.lib.stride_tricks.as_strided(space, (4,), (0,))])
    with pytest.raises(tw.OverlapError, match="parameter 1 .* and shadow 0"):
        opt.add_param_group({"params": [space[14:20]]})
    two = tw.SGD([np.zeros(4, np.float32), np.zeros(4, np.float32)], lr=1)
    with pytest.raises(tw.OverlapError, match="shadows 0 .* and 1"):
        two.bind_shadow([space[0:4], space[3:7]])


def intricate(count: int) -> np.ndarray:
    """A view of many short axes with large strides that have nothing in common: nobody reads it."""
    rng = np.random.default_rng(5)
    strides = [int(s) | 1 for s in rng.integers(1 << 33, 1 << 34, count)]
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2,) * count, [4 * s for s in strides])


def test_what_is_too_intricate_is_refused_and_said_so() -> None:
    """Whether 48 numbers of 34 bits have two subsets of one sum takes more than a search of a moment can tell."""
    with pytest.raises(tw.LayoutError, match="may share memory"):
        tw.SGD([intricate(48)], lr=1)
    # with 12 the search ends, and finds none; most likely: 3^12 sums among 2^34
    tw.SGD([intricate(12)], lr=1)


def test_columns_rows_and_steps_of_one_matrix() -> None:
    m = np.zeros((64, 48), np.float32)
    opt = tw.SGD([m[:, k] for k in range(48)], lr=1)
    opt.step([np.full(64, k, np.float32) for k in range(48)])
    assert (m == -np.arange(48)).all()
    tw.SGD([m[i::3, j::4] for i in range(3) for j in range(4)], lr=1)
    with pytest.raises(tw.OverlapError):
        tw.SGD([m[:, 0], m[:2, 1], m[3, 0:1]], lr=1)
    # strides 2 and 3 of a vector: 0, 2, 4 and 0, 3 give 0, 2, 3, 4, 5, 7
    v = np.zeros(8, np.float32)
    tw.SGD([np.lib.stride_tricks.as_strided(v, (3, 2), (8, 12)), v[1:2], v[6:7]], lr=1)


def test_parameters_may_move_into_the_memory_of_gradients_that_a_step_replaces() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch

    pool = torch.ones(3, 64)
    p = torch.nn.Parameter(pool[0])
    opt = thalweg.torch.SGD([p], lr=0.5)
    p.grad = pool[1]
    opt.step()
    p.data, p.grad = pool[1], pool[2]
    opt.step()
    assert (p == 0.5).all() and (pool[0] == 0.5).all()
    p.data, p.grad = pool[0], pool[0]  # this one is the gradient now
    with pytest.raises(tw.OverlapError, match="gradient 0"):
        opt.step()
    p.grad = pool[2]
    opt.step()
    assert (p == 0).all()


def test_a_refused_move_says_how_to_let_go_of_gradients() -> None:
    w, g = np.ones(64, np.float32), np.ones(64, np.float32)
    opt = tw.SGD([w], lr=1)
    opt.step([g])
    with pytest.raises(tw.OverlapError, match=r"opt\.release_gradients\(\)"):
        opt.rebind_parameters([g])
    opt.release_gradients()
    opt.rebind_parameters([g])
    opt.step([w])  # which is 0
    assert (g == 1).all()
