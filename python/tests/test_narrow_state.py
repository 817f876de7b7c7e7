"""State in 16 and 8 bits trains like state in float32: stochastic rounding, its bits, and averages that must fall."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw

from support import Problem, optimizers, sentence_of, take_step

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import maps  # noqa: E402

N = 4096  # the smallest tensor with 8-bit state
Array = np.ndarray


def buffer(opt: tw.Optimizer, name: str, tensor: int = 0) -> Array:
    """The state buffer `name` of a tensor, widened."""
    return {k.split(".")[-1]: v for k, v in opt.state().items()}[name][tensor].reshape(-1)


def first_momentum(values: Array, state: str, **options: Any) -> Array:
    """The momentum buffer after one step with these gradients: each of them, rounded once."""
    with tw.SGD([np.zeros(values.shape, np.float32)], lr=0.1, momentum=0.9, state_dtype=state, **options) as opt:
        opt.step([values])
        return buffer(opt, "momentum_buffer")


def bf16(x: Array, bits: Array) -> Array:
    """float32 rounded to bfloat16 and widened: the upper 16 of the random bits are added below the cut."""
    return ((x.view(np.uint32) + (bits >> np.uint32(16))) & np.uint32(0xFFFF0000)).view(np.float32)


# ---- one rounding


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("part", [0.004, 0.25, 0.5, 0.97])
def test_bf16_rounds_up_as_often_as_the_mean_asks(part: float, sign: int) -> None:
    """Neighbours of 1 are 2^-7 apart.  The mean of 2^18 roundings has the standard error
    2^-7 sqrt(part (1 - part) / 2^18); five of them pass."""
    count, gap = 1 << 18, 2.0**-7
    x = np.float32(sign * (1 + part * gap))
    stored = first_momentum(np.full(count, x), "bf16").astype(np.float64)
    assert set(np.unique(np.abs(stored))) == {1, 1 + gap}
    assert abs(stored.mean() - float(x)) < 5 * gap * np.sqrt(part * (1 - part) / count)


@pytest.mark.parametrize("level", [0.8, 0.31, 0.011, 4e-4])
def test_8_bit_moments_keep_their_mean(level: float) -> None:
    """A block with one number 1 and many of +-level: codes are at most 1/15 of level + 1/240 apart.  The codes around
    an octave's end lie on two slopes of the logarithm, where the mean is off by up to a sixteenth of their distance;
    everywhere else 2^18 roundings leave the standard error alone."""
    count = 1 << 18
    signs = np.where(np.arange(count) % 2, -1, 1)
    x = (signs * level).astype(np.float32)
    x[:: maps.BLOCK] = 1
    inner = np.arange(count) % maps.BLOCK > 0
    stored = first_momentum(x, "q8").astype(np.float64)
    np.testing.assert_array_equal(stored[~inner], stored[0])
    sizes = np.abs(stored[inner])
    neighbours = np.unique(sizes)
    assert len(neighbours) == 2 and neighbours[0] < np.float32(level) < neighbours[1]
    np.testing.assert_array_equal(np.sign(stored[inner]), signs[inner])
    gap = neighbours[1] - neighbours[0]
    assert gap < (level + 1 / 240) / 14
    assert abs(sizes.mean() - float(np.float32(level))) < gap * (1 / 16 + 5 * 0.5 / np.sqrt(count))


@pytest.mark.parametrize("level", [0.7, 0.03, 3e-4, 2e-5])
def test_8_bit_squares_keep_their_mean(level: float) -> None:
    """Octaves end at codes here: the mean is exact, but for five standard errors of half a distance / sqrt(count)."""
    count = 1 << 18
    g = np.full(count, np.sqrt(level), np.float32)
    g[:: maps.BLOCK] = 1
    with tw.RMSprop([np.zeros(count, np.float32)], lr=0.1, alpha=0.5, state_dtype="q8") as opt:
        opt.step([g])
        stored = buffer(opt, "square_avg").astype(np.float64)[np.arange(count) % maps.BLOCK > 0]
    right = float(np.float32(0.5) * g[1] * g[1])
    neighbours = np.unique(stored)
    assert len(neighbours) == 2 and neighbours[0] < right < neighbours[1]
    assert abs(stored.mean() - right) < 5 * (neighbours[1] - neighbours[0]) * 0.5 / np.sqrt(count)


def test_noise_of_neighbours_is_independent() -> None:
    """Sums over 64 neighbours, which share one random draw, and over 64 numbers of different draws have the variance of
    independent roundings: 4096 sums tell it to 2 % (sqrt(2 / 4096)), five times which passes.  Steps, tensors and
    buffers share no noise either."""
    count, gap = 1 << 18, 2.0**-7
    x = np.full(count, 1 + 0.3 * gap, np.float32)
    up = first_momentum(x, "bf16").reshape(-1, 64) > 1
    assert np.var(up.sum(1)) == pytest.approx(64 * 0.3 * 0.7, rel=0.11)
    assert np.var(up.reshape(64, -1).sum(0)) == pytest.approx(64 * 0.3 * 0.7, rel=0.11)
    places = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))  # step, tensor, buffer
    bits = [maps.noise(0, *place, count) / 2.0**32 - 0.5 for place in places]
    for i, a in enumerate(bits):
        for b in bits[:i]:
            assert abs(np.mean(a * b)) < 5 / 12 / np.sqrt(count)


@pytest.mark.parametrize("state", ["bf16", "q8"])
def test_what_can_be_stored_is_stored_exactly(state: str) -> None:
    """Zero, and a block's largest number of either sign."""
    x = np.zeros(N, np.float32)
    x[:: maps.BLOCK] = np.where(np.arange(N // maps.BLOCK) % 2, -0.125, 3.0)
    np.testing.assert_array_equal(first_momentum(x, state), x)


def test_bf16_at_the_ends_of_its_range() -> None:
    """Nothing finite becomes infinite, infinities and NaN stay, less than the smallest number keeps its mean."""
    x = np.full(N, 2.0**-133 * 0.25, np.float32)
    x[:6] = np.finfo(np.float32).max, -np.finfo(np.float32).max, np.inf, -np.inf, np.nan, -np.nan
    stored = first_momentum(x, "bf16")
    most = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]
    np.testing.assert_array_equal(stored[:6], [most, -most, np.inf, -np.inf, np.nan, np.nan])
    assert set(np.unique(stored[6:])) == {0, 2.0**-133}
    # 0.15: five standard errors of sqrt(3 / N)
    assert stored[6:].astype(np.float64).mean() == pytest.approx(2.0**-135, rel=0.15)


def test_8_bits_never_round_a_positive_square_to_zero() -> None:
    g = (10.0 ** -np.linspace(0, 15, N)).astype(np.float32)
    with tw.RMSprop([np.zeros(N, np.float32)], lr=0.1, state_dtype="q8") as opt:
        for _ in range(20):
            opt.step([g])
            assert np.all(buffer(opt, "square_avg") > 0)


# ---- its bits


SIZES = [4096, 5001, 70_000, 131_072 + 65]


def bits_after(sentence: str, state: str, layout: Callable[[Array], Array] | None = None, **options: Any) -> bytes:
    """Parameters and state of three steps on tensors of SIZES, as bytes; `layout` says where the parameters lie."""
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(n).astype(np.float32) for n in SIZES]
    params = [layout(p) if layout else p for p in params]
    with tw.Optimizer(params, sentence, state_dtype=state, **options) as opt:
        for _ in range(3):
            opt.step([rng.standard_normal(n).astype(np.float32) for n in SIZES])
        arrays = [*params, *(a for row in opt.state().values() for a in row if a is not None)]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


SENTENCES = ["adamw(lr=0.1)", "clip_global_norm(1.0) | adamw(lr=0.1) | cautious | ema(0.9)", "lars(lr=0.1)"]


@pytest.mark.parametrize("state", ["bf16", "q8"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_bits_do_not_depend_on_threads_or_layout(sentence: str, state: str) -> None:
    """Strided parameters are walked in chunks, dense ones in one pass; threads cut a tensor where they like."""

    def strided(p: Array) -> Array:
        wide = np.zeros((p.size, 3), np.float32)
        wide[:, 1] = p
        return wide[:, 1]

    before = tw.get_num_threads()
    try:
        tw.set_num_threads(1)
        right = bits_after(sentence, state)
        assert right == bits_after(sentence, state)
        assert right == bits_after(sentence, state, layout=strided)
        for threads in (2, 3):
            tw.set_num_threads(threads)
            assert right == bits_after(sentence, state)
    finally:
        tw.set_num_threads(before)


@pytest.mark.parametrize("state", ["bf16", "q8"])
def test_bits_depend_on_the_seed_alone(state: str) -> None:
    assert bits_after("adamw(lr=0.1)", state) != bits_after("adamw(lr=0.1)", state, seed=1)
    assert bits_after("adamw(lr=0.1)", "f32") == bits_after("adamw(lr=0.1)", "f32", seed=1)


MOMENTUM = [
    "sgd(lr=0.1, momentum=0.5)",
    "clip_value(100) | sgd(lr=0.1, momentum=0.5) | ema(0.9)",
    "muon(lr=0.1, momentum=0.5)",
]


@pytest.mark.parametrize("sentence", MOMENTUM)
def test_bf16_bits_are_those_of_the_definition(sentence: str) -> None:
    """Kernel, chunks and whole-tensor stages against NumPy: noise is that of seed, step, tensor, buffer and place."""
    shapes = [(70, 63), (9, 5)]
    rng = np.random.default_rng(2)
    opt = tw.Optimizer([np.zeros(s, np.float32) for s in shapes], sentence, state_dtype="bf16", seed=11)
    ours = [np.zeros(int(np.prod(s)), np.float32) for s in shapes]
    for step in range(4):
        # half of eight bits and seven bits more: exact in float32
        grads = [(rng.integers(-64, 64, s) / 16).astype(np.float32) for s in shapes]
        opt.step(grads)
        for i, g in enumerate(grads):
            exact = np.float32(0.5) * ours[i] + g.reshape(-1)
            ours[i] = bf16(exact, maps.noise(11, step, i, 0, exact.size))
            np.testing.assert_array_equal(buffer(opt, "momentum_buffer", i), ours[i])
    opt.close()


@pytest.mark.parametrize("state", ["bf16", "q8"])
def test_looking_and_evaluating_change_no_bit(state: str) -> None:
    rng = np.random.default_rng(3)
    made = []
    for looks in (False, True):
        w = np.ones(5000, np.float32)
        with tw.Optimizer([w], "schedule_free_adamw(lr=0.1)", state_dtype=state) as opt:
            rng = np.random.default_rng(3)
            for _ in range(40):
                opt.step([rng.standard_normal(5000).astype(np.float32)])
                if looks:
                    opt.eval()
                    opt.train()
                    opt.state_dict()
            made.append((w.tobytes(), opt.state_dict()["state"]))
    assert made[0] == made[1]


# ---- averages that must fall

METHODS: dict[str, tuple[str, list[str]]] = {  # sentence; the buffers whose medians are compared
    "adamw": ("adamw(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "adam": ("adam(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "nadam": ("nadam(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "radam": ("radam(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "laprop": ("laprop(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "adamax": ("adamax(lr=1e-3, beta2={rate})", ["exp_inf"]),
    "rmsprop": ("rmsprop(lr=1e-3, alpha={rate})", ["square_avg"]),
    "yogi": ("yogi(lr=1e-3, beta2={rate})", ["exp_avg_sq"]),
    "adadelta": ("adadelta(lr=1, rho={rate})", ["square_avg"]),
    "adagrad": ("adagrad(lr=1e-3)", ["sum"]),
    "sgd": ("sgd(lr=1e-3, momentum={rate})", ["momentum_buffer"]),
    "ademamix": ("ademamix(lr=1e-3, beta2={rate}, beta3={slow})", ["exp_avg_sq", "exp_avg_slow"]),
}


Gradients = Callable[[np.random.Generator, float], Array]  # at this scale


def dropped(
    sentence: str, state: str, gradients: Gradients, steps: tuple[int, int], drop: float
) -> tuple[Array, dict[str, float]]:
    """How far each element moved after its gradient dropped, and the medians of the magnitudes of the final state."""
    w, g, rng = np.zeros(N, np.float32), np.zeros(N, np.float32), np.random.default_rng(0)
    with tw.Optimizer([w], sentence, state_dtype=state) as opt:
        opt.bind_gradients([g])
        for scale, count in zip((1.0, drop), steps):
            start = w.copy()
            for _ in range(count):
                g[:] = gradients(rng, scale)
                opt.step()
        names = [k.split(".")[-1] for k in opt.state()]
        return w - start, {k: float(np.median(np.abs(buffer(opt, k)))) for k in names}


def noise(rng: np.random.Generator, scale: float) -> Array:
    return rng.standard_normal(N, np.float32) * np.float32(scale)


def constant(rng: np.random.Generator, scale: float) -> Array:
    return np.full(N, scale, np.float32)


@pytest.mark.parametrize("gradients", [noise, constant])
@pytest.mark.parametrize("method", METHODS)
def test_bf16_state_follows_gradients_that_drop(method: str, gradients: Gradients) -> None:
    """400 steps and then 1600 of a tenth, rates 0.998: what falls by 0.2 % in a step changes by less than half the
    distance of two neighbours of bfloat16, and to nearest would stay.  The noise of 4096 elements averages out: medians
    within 3 %, distances within 2 %."""
    sentence, names = METHODS[method]
    sentence = sentence.format(rate=0.998, slow=0.9995)
    moved, state = dropped(sentence, "f32", gradients, (400, 1600), 0.1)
    ours, narrow = dropped(sentence, "bf16", gradients, (400, 1600), 0.1)
    assert np.abs(ours).mean() == pytest.approx(np.abs(moved).mean(), rel=0.02)
    for name in names:
        assert narrow[name] == pytest.approx(state[name], rel=0.03), name


class Dropping(Problem):
    """Gradients of one mean and noise at whatever point, `scale` times; the loss says nothing."""

    scale = 1.0

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__([shape], noise=1.0, steps=40)

    def gradient(self, at: Any, step: int, task: int = 0) -> list[Array]:
        return [self.scale * (self.noise[(7 * step + task) % len(self.noise)][0] + 0.3)]

    def loss(self, at: Any, step: int) -> float:
        return 1.0


# (lbfgs divides the noise of this slope by itself, and is at 1e17 after 40 steps in f32, too; see its own test below)
@pytest.mark.parametrize("method", [m for m in optimizers() if m.name != "lbfgs"], ids=lambda m: m.name)
def test_every_optimizer_moves_as_with_f32_state(method: tw.Method) -> None:
    """100 steps and 300 of a tenth, with the method's own rates: the mean distance of 1024 elements within 2 %.  Where
    a step size that the method finds itself grows exponentially on this endless slope, its exponent is compared so."""
    distance, bytes_of_state = {}, {}
    for state in ("f32", "bf16"):
        problem = Dropping((32, 32))
        params = problem.start(np.float32)
        grads = [np.zeros_like(p) for p in params]
        with tw.Optimizer(params, sentence_of(method), state_dtype=state) as opt:
            opt.bind_gradients(grads)
            bytes_of_state[state] = opt.memory_report().total
            if state == "bf16" and bytes_of_state["bf16"] == bytes_of_state["f32"]:
                return  # nothing of its state may be narrow
            for scale, steps in ((1.0, range(100)), (0.1, range(100, 400))):
                problem.scale, start = scale, params[0].copy()
                for k in steps:
                    take_step(opt, problem, k, params, grads)
        distance[state] = np.abs(params[0].astype(np.float64) - start).mean()
    assert distance["bf16"] == pytest.approx(distance["f32"], rel=0.02 * max(1, np.log(distance["f32"])))


@pytest.mark.parametrize("rate", [0.999, 0.9999])
@pytest.mark.parametrize("state", ["bf16", "q8"])
def test_second_moments_fall_at_the_usual_rates(state: str, rate: float) -> None:
    """2000 steps and 6000 of a hundredth: f32 falls to exp(-6) or exp(-0.6), to nearest bf16 stands still."""
    sentence = METHODS["adamw"][0].format(rate=rate)
    moved, right = dropped(sentence, "f32", noise, (2000, 6000), 0.01)
    ours, narrow = dropped(sentence, state, noise, (2000, 6000), 0.01)
    assert narrow["exp_avg_sq"] == pytest.approx(right["exp_avg_sq"], rel=0.05)
    assert np.abs(ours).mean() == pytest.approx(np.abs(moved).mean(), rel=0.05)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ademamix"])
def test_8_bit_state_follows_beside_an_element_that_stays_large(method: str) -> None:
    """The scale of a block stays where its first element keeps it; the others drop tenfold and walk down their codes:
    in the mean as f32 does, within the noise of 8 bits (15 %)."""

    def beside(rng: np.random.Generator, scale: float) -> Array:
        g = (rng.standard_normal(N, np.float32) + np.float32(0.5)) * np.float32(scale)
        g[:: maps.BLOCK] = 3
        return g

    small = np.arange(N) % maps.BLOCK > 0
    sentence, names = METHODS[method]
    sentence = sentence.format(rate=0.998)
    moved, state = dropped(sentence, "f32", beside, (400, 1600), 0.1)
    ours, narrow = dropped(sentence, "q8", beside, (400, 1600), 0.1)
    assert np.abs(ours[small]).mean() == pytest.approx(np.abs(moved[small]).mean(), rel=0.15)
    for name in names:
        assert narrow[name] == pytest.approx(state[name], rel=0.15), name


PROJECTED = ["galore(rank=64, update_proj_gap=5)", "galore(rank=64, inner=(adamw))", "online_subspace_descent(rank=64)",
             "coap(rank=64)", "apollo(rank=64)", "dct_adamw(rank=64)"]


@pytest.mark.parametrize("sentence", PROJECTED)
@pytest.mark.parametrize("dtype, share, bound", [("bf16", 0.5, 0.01), ("q8", 0.26, 0.05)])
def test_moments_of_a_projection_are_kept_in_fewer_bits(sentence, dtype, share, bound):
    """What is not a moment (the projection, indices) stays.  A moment is off by 2^-9 of itself in bfloat16, by 2^-5 in a byte."""
    rng = np.random.default_rng(0)
    start = (0.1 * rng.standard_normal((128, 256))).astype(np.float32)
    gradients = [(0.01 * rng.standard_normal(start.shape)).astype(np.float32) for _ in range(8)]

    def run(kind):
        w = start.copy()
        opt = tw.Optimizer([w], sentence, state_dtype=kind)
        for k, g in enumerate(gradients):
            if k == 5:  # and goes on from what was saved
                state, opt = opt.state_dict(), tw.Optimizer([w], sentence, state_dtype=kind)
                opt.load_state_dict(state)
            opt.step([g])
        return w - start, opt.memory_report()

    moved, report = run(dtype)
    right, full = run("f32")
    moments = 2 * 64 * 256 * 4  # of r numbers a column, or a row of the longer side
    assert full.total - report.total == pytest.approx((1 - share) * moments, rel=0.02)
    assert np.linalg.norm(moved - right) < bound * np.linalg.norm(right)


# What of the state of a matrix or curvature method is stored in 16 bits; the rest stays as it is.
HALVES: dict[str, set[str]] = {
    "soap(precondition_frequency=3)": {"statistics", "exp_avg", "exp_avg_sq"},
    "kl_shampoo(precondition_frequency=3)": {"statistics", "exp_avg"},
    "kl_soap(precondition_frequency=3)": {"statistics", "exp_avg", "exp_avg_sq"},
    "dion(rank_fraction=0.5)": {"momentum_buffer", "basis"},
    "psgd_kron": {"exp_avg", "factors"},
    "psgd_lra(rank=4, momentum=0.9)": {"exp_avg", "left", "right", "diagonal"},
    "psgd_lra(rank=4, momentum=0.9, fit=whiten)": {"exp_avg", "left", "right", "diagonal"},
    "psgd_xmat(momentum=0.9)": {"exp_avg", "diagonal", "antidiagonal"},
    "mfac(ngrads=4, damp=0.1, lr=0.1)": {*(f"gradient_{k}" for k in range(4)), "momentum_buffer"},
    "lbfgs(history_size=3, max_iter=2)": {f"{x}_{k}" for x in "sy" for k in range(3)},
    "fosi(interval=3, k=2)": {"velocity", "exp_avg", "exp_avg_sq"},
    "kfac": {"momentum_buffer"},
    "singd": {"momentum_buffer", "inputs_root", "outputs_root", "inputs_momentum", "outputs_momentum"},
    "adahessian": {"exp_avg", "exp_avg_sq", "diagonal"},
}
# Moments that their rules alone look at, in 8 bits where the others keep 16.
BYTES = {"exp_avg", "exp_avg_sq", "momentum_buffer"}
SHAPE = (96, 48)


def trained(sentence: str, state: str, steps: int = 6, threads: int = 2, resumed: int = -1) -> tuple[Array, bytes]:
    """The move of some steps, and its bits with those of the state; a saved state begins with step `resumed`."""
    before, problem = tw.get_num_threads(), Problem([SHAPE], seed=4)
    params = problem.start(np.float32)
    start, grads = params[0].copy(), [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, state_dtype=state)
    try:
        tw.set_num_threads(threads)
        opt.bind_gradients(grads)
        for k in range(steps):
            if k == resumed:
                saved, opt = opt.state_dict(), tw.Optimizer(params, sentence, state_dtype=state)
                opt.load_state_dict(saved)
                opt.bind_gradients(grads)
            take_step(opt, problem, k, params, grads)
        arrays = [params[0], *(a for row in opt.state().values() for a in row if a is not None)]
        return params[0].astype(np.float64) - start, b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    finally:
        tw.set_num_threads(before)
        opt.close()


@pytest.mark.parametrize("sentence", HALVES)
def test_halves_of_matrix_methods(sentence: str) -> None:
    """Every one of them takes 2 bytes an element, nothing else has changed its size."""
    stored: dict[str, dict[str, tuple[int, int]]] = {}
    for state in ("f32", "bf16", "q8"):
        with tw.Optimizer([np.zeros(SHAPE, np.float32)], sentence, state_dtype=state) as opt:
            stored[state] = {row.slot: (row.count, row.bytes) for row in opt.memory_report().rows if row.tensor == 0}
    own = sentence.partition("(")[0]
    for slot, (count, size) in stored["f32"].items():
        assert stored["bf16"][slot] == (count, size // 2 if slot in HALVES[sentence] else size), (own, slot)
        narrow = stored["q8"][slot][1]
        if slot not in HALVES[sentence] or count < N:
            assert narrow == size, (own, slot)
        elif slot in BYTES and own != "fosi":  # fosi's are those of a source
            assert narrow < 0.27 * size, (own, slot)
        else:
            assert narrow == size // 2, (own, slot)


@pytest.mark.parametrize("sentence", HALVES)
@pytest.mark.parametrize("state, bound", [("bf16", 0.02), ("q8", 0.05)])
def test_steps_of_matrix_methods_in_fewer_bits(sentence: str, state: str, bound: float) -> None:
    """16 bits are off by 2^-8 of a number at most, 8 bits by 2^-4; six steps together by 5 times and once that (those
    of lbfgs, whose pairs are differences, by ten times more; of soap, whose basis turns, by twice).  The bits are the
    same for any threads, and from a saved state."""
    right, _ = trained(sentence, "f32")
    moved, bits = trained(sentence, state)
    room = {"lbfgs": 10, "soap": 2}.get(sentence.partition("(")[0], 1)
    assert 0 < np.linalg.norm(moved - right) < room * bound * np.linalg.norm(right)
    assert trained(sentence, state, threads=1)[1] == bits
    assert trained(sentence, state, resumed=4)[1] == bits


def test_pairs_of_lbfgs_in_16_bits_still_reach_the_minimum() -> None:
    """24 unknowns, condition 100: the loss falls by eight digits with rounded pairs, too."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    hessian = turn @ np.diag(np.logspace(0, -2, 24)) @ turn.T
    x, g = np.ones(24, np.float32), np.zeros(24, np.float32)
    with tw.Optimizer([x], "lbfgs(history_size=10, max_iter=4)", state_dtype="bf16") as opt:
        opt.bind_gradients([g])
        for _ in range(100):
            for request in opt.requests():
                at = x.astype(np.float64)
                g[...] = hessian @ at
                request.loss = 0.5 * at @ hessian @ at
    at = x.astype(np.float64)
    assert 0.5 * at @ hessian @ at < 1e-8 * 0.5 * np.ones(24) @ hessian @ np.ones(24)
