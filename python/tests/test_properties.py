"""Laws that hold for every method, tested over the registry: a new method is covered without a line here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from contract import SOURCES, Host, same
from support import LOSSES_ALONE, Problem, assert_same_bits, is_matrix_method, optimizers, run, sentence_of, shapes_for, snapshot, take_step

METHODS = [pytest.param(m, id=m.name) for m in optimizers()]

# Methods whose rule looks at the whole tensor or the whole list: cutting a tensor changes what they see.
WHOLE = {
    "adafactor", "adam_snsm", "muon", "mars", "lamb", "lars", "cautious_adamw", "adam_cm", "adagrad_norm", "beta_ngd", "dog", "dowg", "dadapt_sgd",
    "dadapt_adam", "prodigy", "polyak_sgd", "sania", "oasis", "nigt", "opt_amsgrad", "optimistic_omd", "u_dog", "a_dog", "dal", "spherical_langevin", "sgld",
    "split_sgd", "visual_prompt", "frank_wolfe", "mirror_descent", "prox_linear", "truncated_model",
    "o2nc", "spider", "rolling_ball", "harpg", "spsa", "mezo", "lbfgs", "newton_cg", "nonlinear_cg", "prodigy_schedule_free", "adalomo", "adam_mini", "apollo", "came", "fromage", "grokadamw", "lomo", "momo", "novograd",
    "schedule_free_plus", "scion", "stable_adamw", "adamuon", "dion2", "norm_descent", "norm_direction", "normuon", "polargrad",
    "shampoo", "soap", "kl_shampoo", "kl_soap", "adahessian", "sophia", "trion", "dion", "psgd_kron",
    "psgd_lra", "psgd_xmat", "psgd_dense", "mfac", "scaled_gd", "robust_subgm", "norm_trust_region", "saddle_free_newton",
}
# Methods whose state has the square of a tensor's size: they refuse large ones.
SMALL = {"psgd_dense"}
# draws are keyed by the tensor's place in the list
NOISY = {"sgld", "spherical_langevin", "oasis", "spsa", "mezo", "apollo", "coap", "dion", "sophia", "psgd_kron", "psgd_lra", "psgd_xmat", "psgd_dense"}
ORDERED = NOISY | {"grokadamw"}  # whose rate falls from tensor to tensor


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_keep_everything_finite(method: tw.Method) -> None:
    shapes = shapes_for(method)
    params = [np.full(s, 0.5) for s in shapes]
    grads = [np.zeros(s) for s in shapes]
    opt = tw.Optimizer(params, sentence_of(method))
    opt.bind_gradients(grads)
    flat = Problem(shapes, noise=0.0)
    flat.a = [np.zeros(s) for s in shapes]
    for k in range(5):
        take_step(opt, flat, k, params, grads)
    assert all(np.all(np.isfinite(p)) for p in params)


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_a_bit(method: tw.Method) -> None:
    shapes = [(65, 40), (300, 70), (9,)] if not is_matrix_method(method) else [(65, 40), (80, 70)]
    if method.name in ("adafactor", "adam_snsm"):
        shapes += [(700, 130), (130, 700), (3, 260, 130)]  # in several parts
    if method.name not in WHOLE | {"adam_snsm"}:
        shapes.append((150_001,))
    if method.name in SMALL:
        shapes = [(65, 40), (9,)]
    results = []
    for threads in (1, 2, 3):
        tw.set_num_threads(threads)
        results.append(run(sentence_of(method), Problem(shapes, seed=1, steps=3), 3, np.float32)[0])
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("sentence", SOURCES)
def test_threads_do_not_change_a_bit_of_several_sources(sentence: str) -> None:
    results = []
    for threads in (1, 2, 3):
        tw.set_num_threads(threads)
        host = Host(sentence, [(65, 40), (300, 70), (9,), (150_001,)], dtype="f32")
        assert sum(host.step(k) for k in range(3)) > 3
        results.append(host)
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("method", [m for m in METHODS if m.values[0].name not in WHOLE])
def test_a_cut_tensor_gives_the_same_bits(method: tw.Method) -> None:
    n = 9_001
    problem = Problem([(n,)], seed=2, steps=4)
    whole = run(sentence_of(method), problem, 4, np.float32)[0][0]
    for cuts in ([1], [4096], [5, 4099, 9000]):
        pieces = Problem([(n,)], seed=2, steps=4)
        at = [0, *cuts, n]
        spans = list(zip(at, at[1:]))
        params = [pieces.start(np.float32)[0][a:b].copy() for a, b in spans]
        grads = [np.zeros_like(p) for p in params]
        opt = tw.Optimizer(params, sentence_of(method))
        opt.bind_gradients(grads)
        for k in range(4):
            for request in opt.requests():
                full = pieces.gradient([np.concatenate(params)], k, request.index if request.kind == "task_gradient" else 0)[0]
                for g, (a, b) in zip(grads, spans):
                    g[...] = full[a:b]
        assert np.concatenate(params).tobytes() == whole.tobytes(), cuts


@pytest.mark.parametrize("method", [m for m in METHODS if m.values[0].name not in ORDERED])
def test_order_of_tensors_does_not_matter(method: tw.Method) -> None:
    shapes = shapes_for(method)
    problem = Problem(shapes, seed=3)
    forward = run(sentence_of(method), problem, 6)[0]
    turned = Problem(shapes, seed=3)
    for name in ("shapes", "origin", "a", "b"):
        setattr(turned, name, getattr(turned, name)[::-1])
    turned.noise = [row[::-1] for row in turned.noise]
    turned.loss = lambda at, k: problem.loss(list(at)[::-1], k)  # type: ignore[method-assign]
    backward = run(sentence_of(method), turned, 6)[0]
    assert_same_bits(forward, backward[::-1])


@pytest.mark.parametrize("state", ["f32", "bf16", "q8"])
@pytest.mark.parametrize("method", METHODS)
def test_save_and_resume_at_every_step(method: tw.Method, state: str) -> None:
    shapes = shapes_for(method) + ([(70, 64)] if method.name not in {"adam_snsm"} | SMALL else [])
    problem = Problem(shapes, seed=4)
    sentence = sentence_of(method)
    params = problem.start(np.float32)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, state_dtype=state)
    opt.bind_gradients(grads)
    for k in range(4):
        other = [p.copy() for p in params]
        other_grads = [np.zeros_like(p) for p in params]
        resumed = tw.Optimizer(other, sentence, state_dtype=state)
        resumed.bind_gradients(other_grads)
        resumed.load_state_dict(opt.state_dict())
        take_step(opt, problem, k, params, grads)
        take_step(resumed, problem, k, other, other_grads)
        assert_same_bits(params, other)


@pytest.mark.parametrize("dtype, limit", [("float32", 2e-3), ("float16", 0.15), ("bfloat16", 0.6)])
@pytest.mark.parametrize("method", METHODS)
def test_narrow_types_stay_close_to_float64(method: tw.Method, dtype: str, limit: float) -> None:
    """Five steps. A 16-bit parameter is rounded at every step (2^-11 and 2^-8 relative), and a method that divides by the small
    first gradients amplifies it: the mean over all elements is compared, not the worst one."""
    if method.name == "lbfgs" and dtype == "float32":
        pytest.skip("its iterations end where rounding decides, and the last pair is made of what is left: no limit holds")
    if dtype == "bfloat16":
        narrow: Any = pytest.importorskip("ml_dtypes").bfloat16
    else:
        narrow = np.dtype(dtype)
    shapes = [(33, 12), (20, 7)]
    wide = run(sentence_of(method), Problem(shapes, seed=5), 5)[0]
    problem = Problem(shapes, seed=5)
    params = [p.astype(narrow) for p in problem.start()]
    grads = [np.zeros(s, np.float32) for s in shapes]
    opt = tw.Optimizer(params, sentence_of(method), master="f32" if dtype != "float32" else None)
    opt.bind_gradients(grads)
    for k in range(5):
        take_step(opt, problem, k, params, grads)
    error = np.mean([np.mean(np.abs(a - b.astype(np.float64))) for a, b in zip(wide, params)])
    moved = np.mean([np.mean(np.abs(a - b)) for a, b in zip(wide, problem.start())])
    assert error <= limit * max(moved, 0.02)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_checked_when_read_and_when_set(method: tw.Method) -> None:
    opt = tw.Optimizer([np.ones((4, 3))], sentence_of(method))
    for p in method.parameters:
        if p.type not in ("number", "integer"):
            continue
        wrong = []
        if np.isfinite(p.min):
            wrong.append(p.min - 1)
            if p.min_open:
                wrong.append(p.min)
        if np.isfinite(p.max):
            wrong.append(p.max + 1)
            if p.max_open:
                wrong.append(p.max)
        for value in wrong:
            with pytest.raises(tw.RangeError, match=p.name):
                tw.Optimizer([np.ones((4, 3))], sentence_of(method, **{p.name: repr(float(value)) if p.type == "number" else str(int(value))}))
            if p.live:
                before = opt.sentence
                with pytest.raises(tw.RangeError, match=p.name):
                    opt.set(p.name, value)
                assert opt.sentence == before
        with pytest.raises(tw.ValueTypeError):
            tw.Optimizer([np.ones((4, 3))], sentence_of(method, **{p.name: "true"}))


@pytest.mark.parametrize("method", METHODS)
def test_unknown_options_are_refused(method: tw.Method) -> None:
    with pytest.raises(tw.UnknownNameError, match=method.name):
        tw.Optimizer([np.ones((4, 3))], sentence_of(method, no_such_thing="1"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("policy", ["skip", "error"])
@pytest.mark.parametrize("method", [m for m in METHODS if m.values[0].name not in LOSSES_ALONE])
def test_nonfinite_gradients_change_nothing(method: tw.Method, policy: str, bad: float) -> None:
    shapes = shapes_for(method)
    problem = Problem(shapes, seed=6)
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence_of(method), nonfinite=policy)
    opt.bind_gradients(grads)
    take_step(opt, problem, 0, params, grads)
    before = snapshot(opt)[0]
    state = opt.state()
    skipped = opt.skipped

    def step() -> None:
        for request in opt.requests():
            problem.answer(request, params, grads, 1)
            grads[-1].flat[-1] = bad

    if policy == "error":
        with pytest.raises(tw.NonfiniteError):
            step()
    else:
        step()
        assert opt.skipped == skipped + 1
    assert snapshot(opt)[0] == before
    after = opt.state()
    assert all(np.array_equal(a, b) for name in state for a, b in zip(state[name], after[name]))
    take_step(opt, problem, 1, params, grads)
    assert all(np.all(np.isfinite(p)) for p in params)


@pytest.mark.parametrize("method", METHODS)
def test_maximize_ascends(method: tw.Method) -> None:
    """Maximising f is minimising -f, bit for bit where nothing but the gradient's sign matters."""
    if (method.requests and method.name != "mars") or method.name in ("polyak_sgd", "sania", "momo", "schedule_free_plus"):
        pytest.skip("it looks at the loss or at curvature, whose signs the host would have to turn too")
    shapes = shapes_for(method)
    problem = Problem(shapes, seed=7)
    down = run(sentence_of(method), problem, 4)[0]
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence_of(method), maximize=True)
    for k in range(4):
        opt.step([-g for g in problem.gradient(params, k)])
    assert_same_bits(down, params)


@pytest.mark.parametrize(
    "route",
    [
        "route(matrix=(sgd(lr=1)), other=(sgd(lr=1)))",
        "route(matrix=(clip_global_norm(1e9) | sgd(lr=1)), other=(sgd(lr=1)))",
        "route(matrix=(muon(lr=1, weight_decay=0)), other=(clip_global_norm(10) | lamb(lr=1)))",
    ],
)
def test_a_norm_behind_a_route_is_that_of_all_tensors(route: str) -> None:
    """The pipelines come to it after different numbers of walks."""
    params = [np.zeros((4, 5)), np.zeros(7)]
    with tw.Optimizer(params, route + " | clip_global_norm(0.5)") as opt:
        opt.step([np.ones((4, 5)), np.full(7, 2.0)])
    norm = np.sqrt(sum(np.sum(p * p) for p in params))
    assert norm == pytest.approx(0.5, rel=1e-6)  # the clip divides by the norm plus a little


def test_a_restarted_rule_clears_its_own_state_alone() -> None:
    """A factored moment is smaller than its tensor; what lies behind it belongs to others."""
    rng = np.random.default_rng(5)
    start = [rng.standard_normal((50, 60)) for _ in range(2)]
    sentence = "adafactor(lr=0.01) | lookahead(k=2, pullback=reset)"
    together, alone = [w.copy() for w in start], [w.copy() for w in start]
    grads = [[rng.standard_normal(w.shape) for w in start] for _ in range(6)]
    with tw.Optimizer(together, sentence) as opt:
        for g in grads:
            opt.step(g)
    for k, w in enumerate(alone):
        with tw.Optimizer([w], sentence) as opt:
            for g in grads:
                opt.step([g[k]])
    for a, b in zip(together, alone):
        np.testing.assert_array_equal(a, b)
