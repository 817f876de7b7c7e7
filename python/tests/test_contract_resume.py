"""A resumed run goes on as the straight one, bit by bit: by the tensors' names, in any order, for every rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import CASES, Host, cases, copies, many, same, shapes_of

NARROW = {
    "f64": {"dtype": "f64"},
    "f32": {"dtype": "f32"},
    "bf16-master": {"dtype": "bf16", "master": "f32"},
    "bf16-stochastic": {"dtype": "bf16", "master": "stochastic"},
    "bf16-state": {"dtype": "f32", "state_dtype": "bf16"},
    "q8-state": {"dtype": "f32", "state_dtype": "q8"},
}
LARGE = (70, 64)  # 8-bit state begins at 4,096 elements
# One rule of each build is enough where the storage alone differs.
SOME = [
    "sgd",
    "adamw",
    "nadam",
    "adam_cm",
    "adafactor",
    "adam_snsm",
    "muon",
    "lamb",
    "sgld",
    "oasis",
    "o2nc",
    "prodigy",
    "sam",
    "svrg",
    "mars_exact",
    "ema",
    "lookahead",
    "schedule_free",
    "nm_sparsity",
    "route",
    "gradient_noise",
    "harpg",
    "u_dog",
    "pcgrad",
]
RUNS = [(name, "f64") for name in cases()] + [(name, kind) for kind in NARROW if kind != "f64" for name in SOME]
# These move by distances from the start, which the noise of rounding counts into.
RUNS = [(n, k) for n, k in RUNS if not (k == "bf16-stochastic" and n in ("prodigy", "u_dog"))]

# Steps at which a tensor has no gradient: counters and scalars of the tensors come apart.
ABSENT = {1: [1], 2: [1], 3: [0, 1], 5: [2]}
STEPS = 8
CUTS = (0, 2, 4, 7)


def made(name: str, turned: bool = False, **options: Any) -> Host:
    shapes = shapes_of(name) + [LARGE] * (options.get("state_dtype") == "q8")
    order = list(range(len(shapes)))
    return Host(name, shapes, order=order[::-1] if turned else order, seed=5, **options)


def resumed(opt: tw.Optimizer, host: Host, folder: Path | None = None) -> Host:
    """`host` with the weights and the checkpoint of another; through a file when a folder is given."""
    if folder is None:
        host.opt.load_state_dict(opt.state_dict())
    else:
        opt.save(folder / "state")
        host.opt.load(folder / "state")
    return host


@pytest.mark.parametrize("name, kind", RUNS)
def test_in_another_order(name: str, kind: str, tmp_path: Path) -> None:
    """Saved at four places of a run in which tensors pause, loaded where they are bound the other way round."""
    options = NARROW[kind]
    straight = made(name, **options)
    others: list[Host] = []
    for k in range(STEPS):
        if k in CUTS:
            for turned in (False, True):
                twin = made(name, turned, start=straight.weights, **options)
                others.append(resumed(straight.opt, twin, tmp_path if turned else None))
                assert turned or twin.opt.state_dict()["state"] == straight.opt.state_dict()["state"]
        for host in [straight, *others]:
            host.step(k, ABSENT.get(k, ()))
        for host in others:
            same(host, straight)


@pytest.mark.parametrize("name", cases())
def test_copies_take_the_same_steps(name: str) -> None:
    """deepcopy and pickle in the middle of the same run."""
    straight = made(name)
    others: list[Host] = []
    for k in range(STEPS):
        if k in (2, 5):
            others += [straight.adopted(opt) for opt in copies(straight.opt).values()]
        for host in [straight, *others]:
            host.step(k, ABSENT.get(k, ()))
        for host in others:
            same(host, straight)


# ---- inside a step


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("pause", [False, True], ids=["", "pause"])
@pytest.mark.parametrize("name", many())
def test_inside_a_step(name: str, pause: bool, turned: bool, tmp_path: Path) -> None:
    """Saved while a request waits, at every request, and finished by another optimizer; a tensor may be absent."""
    straight = made(name, nonfinite="error")
    for k in range(3):
        straight.step(k, ABSENT.get(k, ()) if pause else ())
    absent = [1] if pause else []
    home, saved = straight.view(), straight.opt.state_dict()["state"]
    straight.bind(absent)
    straight.tell(3)
    others: list[tuple[int, Host, bool]] = []
    cancelled: list[Host] = []
    count = 0
    for request in straight.opt.requests():
        for bound in ("before", "behind", "never"):  # gradients, beside the load
            twin = made(name, turned, nonfinite="error", start=straight.weights, bound=False)
            if bound == "before":
                twin.bind(absent)
            try:
                resumed(straight.opt, twin, tmp_path if bound == "before" else None)
            except tw.MismatchError:
                assert turned and request.kind == "activations"  # its layers are asked for in the order of binding
                continue
            assert turned or twin.opt.state_dict()["state"] == straight.opt.state_dict()["state"]
            if bound == "behind":
                twin.bind(absent)
            twin.absent = set(absent)
            others.append((count, twin, bound == "never"))
        if request.pass_ > 0:
            broken = resumed(straight.opt, made(name, start=straight.weights, nonfinite="error"))
            broken.opt.cancel()
            now = broken.view()
            assert [key for key in home if now[key] != home[key]] == []
            assert broken.watched or broken.opt.state_dict()["state"] == saved
            broken.step(3, absent)
            cancelled.append(broken)
        straight.answer(request, 3)
        count += 1
    for at, twin, arrays in others:
        assert twin.finish(3, arrays, absent) == count - at
        same(twin, straight)
    for broken in cancelled:
        same(broken, straight)
    straight.step(4)
    for _, twin, _ in others:
        twin.step(4)
        same(twin, straight)


# ---- what was observed


def test_observed_weights_of_parts() -> None:
    """xgd(lr=1, q=[1, 1]) on f_0 = x, f_1 = 2x with the weights (1, 0): the observed numbers serve the resumed step.

    The straight run says how far the step goes, and it must not be that of equal weights.
    """

    def make() -> tuple[tw.Optimizer, np.ndarray, np.ndarray]:
        w, g = np.ones(1), np.zeros(1)
        opt = tw.Optimizer([("w", w)], "xgd(lr=1, q=[1, 1])")
        opt.bind_gradients([g])
        return opt, w, g

    ends = []
    for told, where in (((1.0, 0.0), None), ((1.0, 0.0), 0), ((1.0, 0.0), 1), (None, None)):
        opt, w, g = make()
        if told:
            opt.observe("weight_0", told[0])
            opt.observe("weight_1", told[1])
        if where == 0:  # before the first request
            other, w, g = make()
            other.load_state_dict(opt.state_dict())
            opt = other
        loop = opt.requests()
        next(loop)
        g[:] = 1
        if where == 1:
            next(loop)
            other, v, g = make()
            v[:] = w
            other.load_state_dict(opt.state_dict())
            w, loop = v, other.requests()
            next(loop)
        elif where is None or where == 0:
            next(loop)
        g[:] = 2
        assert next(loop, None) is None
        ends.append(float(w[0]))
    assert ends[0] == ends[1] == ends[2] != ends[3]


@pytest.mark.parametrize(
    "sentence, what, value",
    [
        ("saga(lr=0.1, n=4)", "sample", 3),
        ("gradient_accumulate(every=2, mode=weighted) | sgd(lr=0.1)", "samples", 5),
        ("polyak_sgd", "loss", 3.0),
        ("sgd(lr=reduce_on_plateau(lr=0.1, patience=0, factor=0.5))", "metric", 7.0),
    ],
)
def test_observed_and_not_yet_used(sentence: str, what: str, value: float, tmp_path: Path) -> None:
    """Told before the checkpoint, used behind it."""

    def make() -> Host:
        return Host(sentence, [(3,), (2, 2)], seed=1)

    def step(host: Host, k: int, tell: bool) -> None:
        if tell:
            host.opt.observe(what, value)
        host.bind()
        for g, v in zip(host.grads, host.problem.gradient(host.weights, k)):
            g[...] = v
        host.opt.step()

    straight = make()
    for k in range(2):
        step(straight, k, True)
    straight.opt.observe(what, value)
    twins = [Host(sentence, [(3,), (2, 2)], order=order, start=straight.weights, seed=1) for order in ([0, 1], [1, 0])]
    resumed(straight.opt, twins[0])
    resumed(straight.opt, twins[1], tmp_path)
    twins += [straight.adopted(opt) for opt in copies(straight.opt).values()]
    for host in [straight, *twins]:
        host.bind()
        for i, g in zip(host.order, host.grads):
            g[...] = host.problem.gradient(host.weights, 2)[i]
        host.opt.step()
    for twin in twins:
        same(twin, straight)


# ---- what else a checkpoint holds


@pytest.mark.parametrize("name", ["sgd", "adamw", "sam", "muon"])
def test_gradient_scale(name: str) -> None:
    """Set while running, as loss scaling does."""
    straight = made(name, gradient_scale=0.5)
    straight.step(0)
    straight.opt.set("gradient_scale", 1 / 1024)
    twin = resumed(straight.opt, made(name, True, start=straight.weights, gradient_scale=0.5))
    assert twin.opt.get("gradient_scale") == 1 / 1024
    for k in (1, 2):
        straight.step(k)
        twin.step(k)
        same(twin, straight)


EVALUATED = [
    "ema",
    "ema_zero",
    "swa",
    "poly_decay_average",
    "schedule_free",
    "schedule_free_adam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "a_dog",
    "u_dog",
    "o2nc",
    "sam_ema",
    "sam_schedule_free",
]


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", EVALUATED)
def test_saved_in_evaluation_mode(name: str, how: str, tmp_path: Path) -> None:
    """The checkpoint holds the training weights and the mode: train() puts them back, and the run goes on."""
    straight = made(name)
    for k in range(4):
        straight.step(k)
    trained = [w.copy() for w in straight.weights]
    straight.opt.eval()
    shown = [w.copy() for w in straight.weights]
    if how in ("state_dict", "file"):
        twin = resumed(straight.opt, made(name, True, start=shown), tmp_path if how == "file" else None)
    else:
        twin = straight.adopted(copies(straight.opt)[how])
    assert not twin.opt.training
    for w, v in zip(twin.weights, shown):
        assert w.tobytes() == v.tobytes()
    for host in (straight, twin):
        host.opt.train()
        assert host.opt.training
        for w, v in zip(host.weights, trained):
            assert w.tobytes() == v.tobytes()
    for k in (4, 5):
        straight.step(k)
        twin.step(k)
        same(twin, straight)


def test_the_average_and_the_weights_by_hand() -> None:
    """sgd(lr=0.5) on x^2/2 from 8: 4, 2, 1, 0.5; their average with 0.9, from the first: 4, 3.8, 3.52, 3.218."""
    w = np.full(1, 8.0)
    opt = tw.Optimizer([("w", w)], "sgd(lr=0.5) | ema(0.9)")
    for _ in range(4):
        opt.step([w.copy()])
    assert w[0] == 0.5
    opt.eval()
    np.testing.assert_allclose(w, 3.218, rtol=1e-14)
    v = w.copy()
    other = tw.Optimizer([("w", v)], "sgd(lr=0.5) | ema(0.9)")
    other.load_state_dict(opt.state_dict())
    np.testing.assert_allclose(v, 3.218, rtol=1e-14)
    other.train()
    assert v[0] == 0.5 and other.training
    other.step([v.copy()])
    assert v[0] == 0.25


def test_every_case_that_asks_more_than_once_is_cut() -> None:
    declared = {
        m.name
        for m in tw.methods()
        if m.requests and m.kind in ("optimizer", "perturbation", "aggregator", "transform", "update")
    }
    covered = (
        " ".join(CASES[name] for name in many()) + " saga polyak_sgd sania dp_adaptive_clip truncated_model prox_linear diloco_outer"
        + " automatic_clip robust_subgm norm_trust_region"
    )  # these ask once, some with a number beside it
    # Rules of the Gramian, and of streams, share the sources of those that are cut.
    declared -= {m.name for m in tw.methods("aggregator")} - {"pcgrad", "upgrad", "gcond", "graddrop", "bloop"}
    assert [name for name in declared if name not in covered] == []
