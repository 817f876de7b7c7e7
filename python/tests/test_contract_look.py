"""State starts from the weights of a tensor's first step: to look at an optimizer, save or copy it fixes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, Host, cases, copies, looks, same

# What keeps copies of weights: 16-bit parameters with a float32 copy, of every rule that keeps its own points too.
MASTERED = [
    "sgd",
    "adamw",
    "sam",
    "schedule_free",
    "schedule_free_adamw",
    "lookahead",
    "ema",
    "dog",
    "prodigy",
    "u_dog",
    "nigt",
    "o2nc",
    "a_dog",
    "opt_amsgrad",
    "optimistic_omd",
    "nm_sparsity",
]

KINDS = [(name, "f64", None) for name in cases()] + [
    (name, dtype, "f32") for dtype in ("f16", "bf16") for name in MASTERED
]
LOOKS = ["state_dict", "state", "save", "deepcopy", "pickle", "memory_report", "values"]


def other_weights(host: Host) -> list[Any]:
    """Weights that a host loads after it has made the optimizer; exact in 16 bits."""
    rng = np.random.default_rng(11)
    return [np.round(8 * rng.standard_normal(s)) / 4 + 0.125 for s in host.problem.shapes]


def made(kind: tuple[str, str, str | None], **options: Any) -> Host:
    name, dtype, master = kind
    return Host(name, dtype=dtype, master=master, seed=3, **options)


def straight(kind: tuple[str, str, str | None], steps: int = 3) -> Host:
    """Never looked at before its last step."""
    host = made(kind)
    host.write(other_weights(host))
    for k in range(steps):
        host.step(k)
    return host


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_looking_before_the_first_step(kind: tuple[str, str, str | None], tmp_path: Path) -> None:
    """All looks, one after another, and those to blame when that goes wrong."""
    want = straight(kind)
    every = looks(tmp_path)

    def differs(names: list[str]) -> str:
        host = made(kind)
        for name in names:
            every[name](host.opt)
        host.write(other_weights(host))
        for k in range(3):
            host.step(k)
        try:
            same(host, want)
        except AssertionError as problem:
            return str(problem)
        return ""

    why = differs(LOOKS)
    assert not why, (why, {name: differs([name]) for name in LOOKS})


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_a_look_before_the_first_step_moves_nothing(kind: tuple[str, str, str | None], tmp_path: Path) -> None:
    """The weights that the host sees are its own until the first request."""
    host = made(kind)
    before = [w.copy() for w in host.weights]
    for look in looks(tmp_path).values():
        look(host.opt)
        for w, old in zip(host.weights, before):
            assert w.tobytes() == old.tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_a_copy_made_before_the_first_step(kind: tuple[str, str, str | None]) -> None:
    """It starts from the weights that it has at its own first step; the original does so too."""
    want = straight(kind)
    host = made(kind)
    for name, opt in copies(host.opt).items():
        twin = host.adopted(opt)
        assert not any(np.shares_memory(a, b) for a, b in zip(twin.params, host.params) if a.size), name
        twin.write(other_weights(twin))
        for k in range(3):
            twin.step(k)
        same(twin, want)
    host.write(other_weights(host))
    for k in range(3):
        host.step(k)
    same(host, want)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_a_checkpoint_made_before_the_first_step(kind: tuple[str, str, str | None], tmp_path: Path) -> None:
    """Loaded into another optimizer, whose weights come later still."""
    want = straight(kind)
    first = made(kind)
    first.opt.save(tmp_path / "state")
    for file in (False, True):
        host = made(kind)
        if file:
            host.opt.load(tmp_path / "state")
        else:
            host.opt.load_state_dict(first.opt.state_dict())
        host.write(other_weights(host))
        for k in range(3):
            host.step(k)
        same(host, want)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_a_tensor_whose_first_step_is_late(kind: tuple[str, str, str | None], tmp_path: Path) -> None:
    """While it has no gradient the host may overwrite it: it starts like one that always had those weights."""
    name, dtype, master = kind
    want = made(kind)
    late = other_weights(want)[1]
    want.weights[1][...] = late
    host = made(kind)
    for k in range(2):
        host.step(k, absent=[1])
        want.step(k, absent=[1])
        for look in looks(tmp_path).values():
            look(host.opt)
    host.weights[1][...] = late
    for k in range(2, 5):
        host.step(k)
        want.step(k)
        same(host, want)


AVERAGES = [
    "ema",
    "swa",
    "schedule_free",
    "schedule_free_adamw",
    "poly_decay_average",
    "trajectory_moments",
    "a_dog",
    "u_dog",
    "o2nc",
]


@pytest.mark.parametrize("name", AVERAGES)
def test_evaluation_weights_before_the_first_step(name: str) -> None:
    """They are the weights themselves, and asking for them is a look too."""
    kind = (name, "f64", None)
    want, host = straight(kind), made(kind)
    before = [w.copy() for w in host.weights]
    with host.opt.averaged():
        for w, old in zip(host.weights, before):
            np.testing.assert_allclose(w, old, rtol=1e-15)
    for w, old in zip(host.weights, before):
        assert w.tobytes() == old.tobytes()
    host.write(other_weights(host))
    for k in range(3):
        host.step(k)
    same(host, want)


# ---- numbers worked out by hand


def test_pretrained_weights_that_come_after_a_look() -> None:
    """sgd with a float32 copy: 10 - 0.1; schedule_free's first step is one of sgd; lookahead(k=2) for three steps."""
    w = np.zeros(1, np.float16)
    opt = tw.SGD([w], lr=0.1, master="f32")
    opt.state_dict()
    w[:] = 10
    opt.step([np.ones(1, np.float16)])
    assert w[0] == np.float16(9.9)
    for sentence, steps, want in [
        ("sgd(lr=0.1) | schedule_free", 1, 9.9),
        ("sgd(lr=0.1) | lookahead(k=2, alpha=0.5)", 3, 9.8),
    ]:
        v = np.zeros(1)
        opt = tw.Optimizer([v], sentence)
        opt.state()
        v[:] = 10
        for _ in range(steps):
            opt.step([np.ones(1)])
        # k = 2: 10, 9.9, 9.8 -> 10 + 0.5*(9.8 - 10) = 9.9, then 9.8
        np.testing.assert_allclose(v, want, rtol=1e-15)


def test_the_distance_of_dog_is_from_the_first_step() -> None:
    """The first step is r_eps/|g| long with r_eps = reps_rel*(1 + |x|) of the weights that are there then."""
    w = np.zeros(1)
    opt = tw.Optimizer([w], "dog(reps_rel=0.01)")
    opt.state()
    w[:] = 10
    opt.step([np.ones(1)])
    np.testing.assert_allclose(w, 10 - 0.01 * 11, rtol=1e-9)  # eps is 1e-8 beside g^2 = 1


@pytest.mark.parametrize(
    "name",
    ["nm_sparsity", "nm_sparsity_decay", "schedule_free", "lookahead", "dog", "sam_dog", "u_dog", "nigt", "o2nc"],
)
def test_a_failed_first_step_moves_nothing(name: str) -> None:
    """Nor does it fix anything: the view of a mask is shown by a request, and taken back."""
    want = straight((name, "f64", None))
    host = Host(name, nonfinite="error", seed=3)
    before = [w.tobytes() for w in host.weights]
    with pytest.raises(tw.NonfiniteError):
        for request in host.opt.requests():
            host.answer(request, 0)
            host.grads[-1].flat[0] = np.nan
    assert [w.tobytes() for w in host.weights] == before
    host.write(other_weights(host))
    for k in range(3):
        host.step(k)
    same(host, want)


def test_every_case_is_there() -> None:
    assert set(CASES) >= {m.name for m in tw.methods("optimizer")}
