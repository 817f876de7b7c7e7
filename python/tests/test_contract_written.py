"""The next step starts from what a host wrote into its weights: master copies and stored iterates follow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, Host, cases, narrow, same, shapes_of
from support import sentence_of

FORMATS = ["f16", "bf16"]

# Rules whose steps are bounded to a set, go by the size of the weights, or hide some of them; the weights of ftrl and of
# dual_averaging are a function of their sums.
BOUND_TO_A_SET = {
    "project",
    "sam_project",
    "manifold",
    "spherical_langevin",
    "sga_uap",
    "sga_uap_3",
    "optimistic_omd",
    "powerprop",
    "nm_sparsity",
    "nm_sparsity_decay",
    "ftrl",
    "dual_averaging",
    "frank_wolfe",
    "mirror_descent",
    "hyperball",
    # to where the participants are; along curvatures that were learnt elsewhere
    "diloco_outer",
    "fedavg",
    "fedavg_fedopt",
    "lbfgs",
}


def drift(host: Host, k: int) -> list[np.ndarray]:
    """Gradients that know nothing of the weights, so that a host's writing is all that differs."""
    return [0.5 + n for n in host.problem.noise[k]]


class Blind(Host):
    """A host whose gradients are those of a sloping plane, at whatever point it is asked."""

    def values(self, request: tw.Request, k: int) -> list[np.ndarray]:
        return drift(self, k)

    def loss(self, k: int) -> float:
        return 1.0


# ---- stored iterates


@pytest.mark.parametrize("rebind", [False, True], ids=["written", "rebound"])
@pytest.mark.parametrize("name", [n for n in cases() if n not in BOUND_TO_A_SET])
def test_the_next_step_starts_from_what_was_written(name: str, rebind: bool) -> None:
    """Far from the old place: no step is longer than those before by more than decays and ratios to the weights add."""
    method = next((m for m in tw.methods("optimizer") if m.name == name), None)
    host = Blind(sentence_of(method) if method else CASES[name], shapes_of(name), seed=8)
    longest = 0.0
    for k in range(3):
        before = [w.copy() for w in host.weights]
        host.step(k)
        longest = max([longest, *(float(np.max(np.abs(w - b))) for w, b in zip(host.weights, before))])
    assert longest < 4
    written = [np.array(w + 64.0) for w in host.weights]
    if rebind:
        host.params = [w.copy() for w in written]
        host.opt.rebind_parameters(host.params)
    else:
        host.write(written)
    for k in (3, 4):
        host.step(k)
        for w, there in zip(host.weights, written):
            assert np.max(np.abs(w - there)) < 4 * (k - 2) * (longest + 1), f"step {k}"


STORING = [
    "schedule_free",
    "schedule_free_adam",
    "schedule_free_sgd",
    "schedule_free_adamw",
    "lookahead",
    "lookahead_reset",
    "a_dog",
    "u_dog",
    "nigt",
    "o2nc",
    "dog",
    "dowg",
    "prodigy",
    "dadapt_sgd",
    "opt_amsgrad",
    "ema",
    "swa",
    "poly_decay_average",
    "harpg",
    "svrg",
    "spider",
    "mars_exact",
    "oasis",
]


@pytest.mark.parametrize("name", STORING)
def test_writing_what_is_there_is_no_writing(name: str) -> None:
    """Nor is rebinding to other memory with the same values, nor looking at the evaluation weights, nor a copy."""
    want, host = Host(name, seed=8), Host(name, seed=8)
    for k in range(7):
        want.step(k)
        host.step(k)
        same(host, want)
        if k % 3 == 0:
            host.write([w.copy() for w in host.weights])
        elif k % 3 == 1:
            params = [p.copy() for p in host.params]
            host.opt.rebind_parameters(params)
            host.params = params
        else:
            with host.opt.averaged():
                pass
            host.opt.eval()
            host.opt.train()


@pytest.mark.parametrize("name", STORING)
def test_one_tensor_is_written(name: str) -> None:
    """The others go on as if nothing had been, where a tensor does not know of the others."""
    want, host = Blind(name, seed=8), Blind(name, seed=8)
    for k in range(3):
        want.step(k)
        host.step(k)
    host.weights[1][...] += 64
    written = host.weights[1].copy()
    for k in (3, 4):
        want.step(k)
        host.step(k)
        assert np.max(np.abs(host.weights[1] - written)) < 16
        for i, (a, b) in enumerate(zip(host.weights, want.weights)):
            if i != 1 and name in (
                "schedule_free",
                "schedule_free_adam",
                "schedule_free_sgd",
                "lookahead",
                "lookahead_reset",
                "ema",
                "swa",
            ):
                assert a.tobytes() == b.tobytes()


def test_iterates_by_hand() -> None:
    """lookahead(k=2, alpha=0.5) from 0: -0.1, then (-0.2 + 0)/2; written 10: 9.9, then (9.8 + 10)/2, as a fresh one."""
    w = np.zeros(1)
    opt = tw.Optimizer([w], "sgd(lr=0.1) | lookahead(k=2, alpha=0.5)")
    for want in (-0.1, -0.1):
        opt.step([np.ones(1)])
        np.testing.assert_allclose(w, want, rtol=1e-14)
    w[:] = 10
    for want in (9.9, 9.9, 9.8, 9.8):
        opt.step([np.ones(1)])
        np.testing.assert_allclose(w, want, rtol=1e-14)


# ---- master copies


def rounded(x: np.ndarray, dtype: Any) -> np.ndarray:
    return np.asarray(x, np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
def test_weights_that_are_loaded_after_a_step(dtype: str) -> None:
    """0 - 0.1; written 10, and 10 - 0.1 in the 16-bit type; the same where the memory is another."""
    kind = narrow(dtype)
    for rebind in (False, True):
        w, g = np.zeros(3, kind), np.ones(3, kind)
        opt = tw.SGD([w], lr=0.1, master="f32")
        opt.step([g])
        assert np.all(w == rounded(np.float32(-0.1), kind))
        if rebind:
            w = np.full(3, 10, kind)
            opt.rebind_parameters([w])
        else:
            w[:] = 10
        opt.step([g])
        assert np.all(w == rounded(np.float32(10) - np.float32(0.1), kind))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("size", [5, 600])
def test_elements_that_were_not_written_keep_their_bits(dtype: str, size: int) -> None:
    """Steps too short for 16 bits add up; one element is written, the others go on.  Float32 is exact here."""
    kind, lr = narrow(dtype), 2.0**-14
    w, g = np.ones(size, kind), np.ones(size, kind)
    opt = tw.SGD([w], lr=lr, master="f32")
    master = np.ones(size)
    for k in range(200):
        if k == 90:
            w[2] = 0.5
            master[2] = 0.5
        opt.step([g])
        master -= lr
        assert w.tobytes() == rounded(master, kind).tobytes(), k
    assert w[0] != 1 and w[2] != 0.5


@pytest.mark.parametrize("dtype", FORMATS)
def test_clipping_of_weights(dtype: str) -> None:
    """A limit of 0.5 at every step, beside a float32 loop: what is stored never leaves it by more than one step."""
    kind, rng = narrow(dtype), np.random.default_rng(3)
    w = rounded(rng.standard_normal(40), kind)
    opt = tw.SGD([w], lr=0.125, master="f32")
    master = w.astype(np.float32)
    for _ in range(30):
        g = np.round(16 * rng.standard_normal(40)).astype(np.float32) / 16 - np.float32(0.25)
        opt.step([g])
        master = master - np.float32(0.125) * g
        shown = rounded(master, kind)
        assert w.tobytes() == shown.tobytes()
        w[:] = np.clip(w, kind.type(-0.5), kind.type(0.5))
        master = np.where(w == shown, master, w.astype(np.float32))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "adamw",
        "lion",
        "adafactor",
        "muon",
        "lamb",
        "nadam",
        "rmsprop",
        "radam",
        "adan",
        "signum",
        "adagrad",
        "clip",
        "decoupled",
        "prox",
        "ema",
    ],
)
def test_a_master_copy_is_a_float32_run(name: str, dtype: str) -> None:
    """Whatever the rule: the weights are those of a float32 run into which the same was written, rounded.

    A tensor as a whole, one place and nothing are written by turns.
    """
    kind = narrow(dtype)
    start = [rounded(s, kind) for s in Host(name).problem.start()]
    host = Blind(name, dtype=dtype, master="f32", start=start, seed=8)
    wide = Blind(name, dtype="f32", start=start, seed=8)
    grads = [np.zeros(p.shape, np.float32) for p in host.params]
    host.grads, wide.grads = grads, [g.copy() for g in grads]
    for k in range(8):
        host.step(k)
        wide.step(k)
        for w, v in zip(host.weights, wide.weights):
            assert w.tobytes() == rounded(v, kind).tobytes(), f"step {k}"
        for i, place, value in ((1, ..., 2.5),) if k % 3 == 1 else ((2, (0, 1), -1.75),) if k % 3 == 2 else ():
            mine, other = host.weights[i], wide.weights[i]
            other[place] = np.where(mine[place] == value, other[place], value)  # what stood there already is no writing
            mine[place] = value


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    "name",
    ["schedule_free", "schedule_free_adamw", "lookahead", "dog", "prodigy", "u_dog", "nigt", "o2nc", "sam", "ema"],
)
def test_master_copies_of_what_stores_iterates(name: str, dtype: str) -> None:
    """They go on from what was written."""
    method = next((m for m in tw.methods("optimizer") if m.name == name), None)
    host = Blind(sentence_of(method) if method else CASES[name], shapes_of(name), dtype=dtype, master="f32", seed=8)
    for k in range(4):
        host.step(k)
    host.write([np.full(w.shape, 64.0) for w in host.weights])
    for k in range(4, 7):
        host.step(k)
        for w in host.weights:
            assert np.max(np.abs(w.astype(np.float64) - 64)) < 4, f"step {k}"


AVERAGED = [
    "ema",
    "swa",
    "poly_decay_average",
    "schedule_free",
    "schedule_free_adam",
    "schedule_free_adamw",
    "a_dog",
    "u_dog",
    "o2nc",
]


@pytest.mark.parametrize("dtype, master", [("f64", None), ("f32", None), ("f16", "f32"), ("bf16", "f32")])
@pytest.mark.parametrize("name", AVERAGED)
def test_evaluation_is_no_writing(name: str, dtype: str, master: str | None) -> None:
    """The extra bits of the master survive eval() and train()."""
    want, host = (Host(name, dtype=dtype, master=master, seed=8) for _ in range(2))
    for k in range(6):
        want.step(k)
        host.step(k)
        same(host, want)
        with host.opt.averaged():
            pass


@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize("dtype, master", [("f64", None), ("f16", "f32"), ("bf16", "f32")])
@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "adamw",
        "sam",
        "prodigy",
        "ema",
        "lookahead",
        "schedule_free",
        "schedule_free_adamw",
        "u_dog",
        "nigt",
        "o2nc",
    ],
)
def test_resuming_is_no_writing(name: str, dtype: str, master: str | None, weights_first: bool) -> None:
    """Weights and state come from files in either order; a master keeps the bits that the 16-bit weights lack."""
    want = Host(name, dtype=dtype, master=master, seed=8)
    for k in range(4):
        want.step(k)
    host = Host(name, dtype=dtype, master=master, start=[np.zeros(s) for s in shapes_of(name)], seed=8)
    if weights_first:
        host.write(want.weights)
    host.opt.load_state_dict(want.opt.state_dict())
    host.write(want.weights)
    for k in range(4, 7):
        want.step(k)
        host.step(k)
        same(host, want)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_failed_step_writes_nothing_over(dtype: str) -> None:
    """What was written before a step that is broken off is there behind it, and the next step starts from it."""
    kind = narrow(dtype)
    w = np.zeros(2, kind)
    opt = tw.Optimizer([w], "sam(0.5) | sgd(lr=0.125)", master="f32", nonfinite="error")
    for request in opt.requests():
        request.answer([np.ones(2, kind)])
    w[:] = 8
    for bad in (0, 1):
        with pytest.raises(tw.NonfiniteError):
            for n, request in enumerate(opt.requests()):
                request.answer([np.full(2, np.nan if n == bad else 1, kind)])
        assert np.all(w == 8)
    for request in opt.requests():
        request.answer([np.ones(2, kind)])
    assert np.all(w == 8 - 0.125)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("strided", [False, True])
def test_what_starts_anew_with_an_element(dtype: type, strided: bool) -> None:
    """In a tensor of up to 512 elements itself, in a larger one its group of 32."""
    for n, at, anew in ((5, 0, [0]), (512, 300, [300]), (513, 100, range(96, 128)), (6000, 5999, range(5984, 6000))):
        memory = np.zeros(2 * n, dtype)
        w = memory[::2] if strided else memory[:n]
        opt, g = tw.Optimizer([w], "sgd(lr=0.125) | lookahead(k=100)"), np.ones(n, dtype)
        for _ in range(3):
            opt.step([g])
        w[at] = 5
        opt.step([g])
        slow = opt.state()["lookahead.slow"][0]
        assert np.nonzero(slow)[0].tolist() == list(anew)
        assert slow[at] == 5
