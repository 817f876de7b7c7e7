"""Steps with state that the host carries are the same steps: for every sentence, from moving memory, on any handle."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import Host, cases, shapes_of
from thalweg._errors import Error

F64, F32, SKIPPED = 2, 1, 2
STEPS = 6
# Steps at which a tensor has no gradient.
ABSENT = {2: [1], 4: [0, 2]}
# Schedules whose memory has no fixed length.
GROWING = ("greedy",)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("ndim", ctypes.c_int32), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("flags", ctypes.c_uint32), ("role", ctypes.c_uint32), ("reserved", ctypes.c_uint64 * 3),
    ]


class Carried(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t), ("count", ctypes.c_size_t), ("parameters", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p), ("state", ctypes.c_void_p), ("state_count", ctypes.c_size_t),
        ("numbers", ctypes.c_void_p), ("number_count", ctypes.c_size_t), ("observed", ctypes.c_void_p),
        ("values", ctypes.c_void_p), ("observed_count", ctypes.c_size_t), ("mode", ctypes.c_int32),
    ]


# (by its name: the one that is loaded already, for this processor)
LIBRARY = ctypes.CDLL("libthalweg.so.1")
LIBRARY.tw_last_error.restype = ctypes.c_char_p
LIBRARY.tw_optimizer_carried_numbers.restype = LIBRARY.tw_optimizer_state_count.restype = ctypes.c_size_t
for function in ("destroy", "carried_numbers", "state_count", "step", "step_carried", "save", "set_mode", "bind_gradients"):
    getattr(LIBRARY, f"tw_optimizer_{function}").argtypes = None


class Handle:
    """An optimizer of the C interface over arrays of certain shapes, which it need not own."""

    def __init__(self, sentence: str, arrays: list[np.ndarray], names: list[str]) -> None:
        self.handle = ctypes.c_void_p()
        assert LIBRARY.tw_optimizer_create(sentence.encode(), None, ctypes.byref(self.handle)) == 0, self.error
        tensors = self.tensors(arrays)
        spelt = (ctypes.c_char_p * len(names))(*[n.encode() for n in names])
        assert LIBRARY.tw_optimizer_add_parameters(
            self.handle, tensors, ctypes.c_size_t(len(arrays)), spelt, None) == 0, self.error
        self.numbers = LIBRARY.tw_optimizer_carried_numbers(self.handle)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        assert LIBRARY.tw_optimizer_destroy(self.handle) == 0

    @property
    def error(self) -> str:
        return LIBRARY.tw_last_error().decode()

    def tensors(self, arrays: list[np.ndarray]) -> Any:
        made = (Tensor * len(arrays))()
        self._shapes = [(ctypes.c_int64 * max(1, a.ndim))(*a.shape) for a in arrays]
        for t, a, shape in zip(made, arrays, self._shapes):
            t.data, t.dtype, t.ndim = a.ctypes.data, F64 if a.dtype == np.float64 else F32, a.ndim
            t.shape = ctypes.addressof(shape)
        return made

    def step(self, weights: list[Any], grads: list[Any], state: list[Any], numbers: np.ndarray, *, mode: int = 0,
             observed: dict[str, float] | None = None, **wrong: Any) -> int:
        def pointers(arrays: list[Any]) -> Any:
            return (ctypes.c_void_p * max(1, len(arrays)))(*[None if a is None else a.ctypes.data for a in arrays])

        observed = observed or {}
        names = (ctypes.c_char_p * max(1, len(observed)))(*[n.encode() for n in observed])
        values = (ctypes.c_double * max(1, len(observed)))(*observed.values())
        lists = [pointers(weights), pointers(grads), pointers(state)]
        c = Carried(
            ctypes.sizeof(Carried), len(weights), *[ctypes.addressof(x) for x in lists], len(state), numbers.ctypes.data,
            numbers.size, ctypes.addressof(names), ctypes.addressof(values), len(observed), mode)
        for key, value in wrong.items():
            setattr(c, key, value)
        return LIBRARY.tw_optimizer_step_carried(self.handle, ctypes.byref(c))


def moved(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The same numbers elsewhere; where they were stands rubbish."""
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.reshape(-1).view(np.uint8)[...] = 0xA5
    return copies


@pytest.mark.parametrize("name", cases())
def test_the_same_steps(name: str) -> None:
    plain = Host(name, shapes_of(name))
    names = [f"t{i}" for i in plain.order]
    weights = [np.array(w) for w in plain.params]
    with Handle(plain.sentence, weights, names) as one, Handle(plain.sentence, weights, names) as other:
        if one.numbers == 0:
            with pytest.raises(Error):
                plain.opt._carried_numbers()
            assert "asks for more" in one.error
            return
        rows = plain.opt._state_rows()
        state = [np.full(size, 0xA5, np.uint8) for *_, size, _ in rows]
        numbers = np.zeros(one.numbers)
        for k in range(STEPS):
            plain.bind(ABSENT.get(k, ()))
            values = plain.problem.gradient(plain.weights, k, 0)
            for g, i in zip(plain.grads, plain.order):
                g[...] = values[i]
            grads = [None if i in plain.absent else g.copy() for g, i in zip(plain.grads, plain.order)]
            told = {"loss": plain.loss(k), **{what: 0.5 + 0.25 * n for n, what in enumerate(plain.watched)}}
            try:
                for what, value in told.items():
                    plain.opt.observe(what, value)
                plain.opt.step()
            except Error as problem:  # samples that nobody gave, ...
                assert one.step(weights, grads, state, numbers, observed=told) < 0 and numbers[0] == 0 == k, problem
                return
            handle = (one, other)[k % 2]
            status = handle.step(weights, grads, state, numbers, observed=told)
            if status < 0 and name in GROWING:
                assert "remembers more and more" in handle.error
                return
            assert status >= 0, handle.error
            for a, b in zip(weights, plain.params):
                assert a.tobytes() == b.tobytes(), f"step {k}"
            weights, state = moved(weights), moved(state)
            numbers = moved([numbers])[0]
        assert numbers[1] == plain.opt.steps
        before = [w.copy() for w in state]
        assert one.step(weights, [None] * len(weights), state, numbers, mode=1) == 0, one.error
        plain.opt.eval()
        for a, b in zip([*weights, *before], [*plain.params, *state]):
            assert a.tobytes() == b.tobytes()


def made(sentence: str = "adamw(lr=0.1)") -> tuple[Handle, list[Any], list[Any], list[Any], np.ndarray]:
    weights = [np.ones(5, np.float32), np.ones((2, 3), np.float32)]
    handle = Handle(sentence, weights, ["a", "b"])
    state = [np.zeros(w.shape, np.float32) for w in weights for _ in range(2)]
    return handle, weights, [np.ones_like(w) for w in weights], state, np.zeros(handle.numbers)


def test_what_is_refused_changes_nothing() -> None:
    handle, weights, grads, state, numbers = made()
    odd = np.zeros(32, np.uint8)[1:21].view(np.uint8)

    class At:
        def __init__(self, address: int) -> None:
            self.ctypes = type("C", (), {"data": address})

    with handle:
        def refused(text: str, status: int | None = None, **change: Any) -> None:
            given = {"weights": weights, "grads": grads, "state": state, "numbers": numbers, **change}
            code = handle.step(**given)
            assert code < 0 and text in handle.error, handle.error
            assert (weights[0] == 1).all() and (numbers == 0).all()

        refused("struct_size", struct_size=8)
        refused("`count` must be 2", count=3)
        refused("`parameters` is NULL", parameters=None)
        refused("`gradients` is NULL", gradients=None)
        refused("`numbers` is NULL", **{"number_count": 3}, numbers=type("N", (), {"ctypes": At(0).ctypes, "size": 3})())
        refused("`number_count` must be", number_count=2**63)
        refused("`state_count` must be 4", state_count=2**64 - 1)
        refused("state 0 is NULL", state=[None] * 4)
        refused("parameter 1 (`b`) is NULL", weights=[weights[0], None])
        refused("aligned", weights=[At(odd.ctypes.data), weights[1]])
        refused("share memory", weights=[weights[0], weights[0]])
        refused("share memory", state=[state[0], state[0], *state[2:]])
        refused("share memory", grads=[weights[0], grads[1]])
        refused("mode", mode=7)
        refused("observed_count", observed_count=65)
        refused("observed_count", observed_count=2**63 + 5)
        refused("observed_count", observed_count=2**64 - 1)
        refused("share memory", numbers=np.frombuffer(state[0].data, np.float64, 2), number_count=handle.numbers)
        refused("past the end", weights=[At(2**64 - 4), weights[1]])
        refused("observed or values", observed_count=1, values=None)
        shared = handle.step(weights, [grads[0], grads[0]], state, numbers)  # two gradients may be one
        assert shared < 0 or shared == 0
        numbers[4] = -3
        assert handle.step(weights, grads, state, numbers) < 0 and "not those of a run" in handle.error


def test_own_state_and_carried_state_do_not_mix() -> None:
    handle, weights, grads, state, numbers = made()
    with handle:
        assert handle.step(weights, grads, state, numbers) == 0
        needed = ctypes.c_size_t()
        for call in (
            lambda: LIBRARY.tw_optimizer_step(handle.handle),
            lambda: LIBRARY.tw_optimizer_save(handle.handle, None, ctypes.c_size_t(0), ctypes.byref(needed)),
            lambda: LIBRARY.tw_optimizer_set_mode(handle.handle, 1),
        ):
            assert call() < 0 and "host carries" in handle.error
        assert handle.step(weights, grads, state, numbers) == 0 and numbers[1] == 2
    handle, weights, grads, state, numbers = made()
    with handle:
        tensors = handle.tensors(grads)
        assert LIBRARY.tw_optimizer_bind_gradients(handle.handle, tensors, ctypes.c_size_t(2)) == 0
        assert LIBRARY.tw_optimizer_step(handle.handle) == 0
        assert handle.step(weights, grads, state, numbers) < 0 and "state of its own" in handle.error


def test_a_step_that_fails_gives_everything_back() -> None:
    """A whole-tensor step that ends in a numeric error, after others have moved."""
    weights = [np.ones((3, 3)), np.ones((3, 3))]
    with Handle("shampoo(lr=0.1) | clip_update_rms(0.1)", weights, ["a", "b"]) as handle:
        rows = LIBRARY.tw_optimizer_state_count(handle.handle)
        twin = tw.Optimizer([w.copy() for w in weights], "shampoo(lr=0.1) | clip_update_rms(0.1)")
        state = [np.zeros(row[4], np.uint8) for row in twin._state_rows()]
        assert rows == len(state)
        numbers = np.zeros(handle.numbers)
        grads = [np.full((3, 3), 0.5), np.eye(3)]
        assert handle.step(weights, grads, state, numbers) == 0
        kept = [a.copy() for a in (*weights, *state, numbers)]
        assert handle.step(weights, [grads[0], np.full((3, 3), np.nan)], state, numbers) < 0
        for a, b in zip(kept, (*weights, *state, numbers)):
            assert a.tobytes() == b.tobytes()
