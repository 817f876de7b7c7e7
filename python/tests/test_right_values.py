"""Right values off the plain path: options, absent gradients, NaN, eps = 0, step sizes of 0, norms beyond doubles, groups.

The values are those of the rules in float64 by hand or by a few lines of NumPy.  One step rounds some twenty operations
to 1.1e-16, hence 1e-12 unless a test says otherwise.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from support import LOSSES_ALONE, Problem, sentence_of, shapes_for, take_step

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def steps(sentence: str, params: list[np.ndarray], *gradients: list[np.ndarray | None], **options: Any) -> tw.Optimizer:
    opt = tw.Optimizer(params, sentence, **options)
    for g in gradients:
        opt.step(g)
    return opt


def one(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


# ---- numbers of all tensors, and tensors that come and go


def test_a_dog_starts_with_its_constant() -> None:
    w = [one(1, -2)]
    steps("a_dog(reps_rel=0.1, alpha_const=2)", w, [one(1, 0.5)])
    np.testing.assert_allclose(w[0], [0.81909830, -2.09045085], atol=5e-9)


def test_optimistic_omd_counts_the_steps_of_all() -> None:
    w = [one(0), one(0)]
    steps("optimistic_omd(mu=1)", w, *[[one(1), None]] * 9, [None, one(1)])
    np.testing.assert_allclose(w[1], [-(2 / 10 + 2 / 11)], **CLOSE)


@pytest.mark.parametrize("later", [0, 1])
def test_optimistic_omd_has_one_variation(later: int) -> None:
    """In the order of binding either way, and for a tensor that is added when the others have stepped."""
    first, second = one(0.5, 0.5), one(0.5, 0.5)
    g = one(10, -10)
    if later:
        opt = tw.Optimizer([first], "optimistic_omd(geometry=entropy)")
        for k in range(5):
            opt.step([(-1) ** k * g])
        opt.add_param_group({"params": [second]})
    else:
        opt = steps("optimistic_omd(geometry=entropy)", [first, second], *[[(-1) ** k * g, None] for k in range(5)])
    opt.step([one(1, -1), one(1, -1)])

    v, last = 0.0, one(0, 0)
    for k in range(5):
        v, last = v + np.sum(((-1) ** k * g - last) ** 2), (-1) ** k * g
    eta = 1 / np.sqrt(1 + v)
    v += np.sum((one(1, -1) - last) ** 2) + 2
    x = np.exp(-(eta + 1 / np.sqrt(1 + v)) * one(1, -1))
    np.testing.assert_allclose(second, x / x.sum(), **CLOSE)
    np.testing.assert_allclose(second, [0.48305868, 0.51694132], atol=5e-9)


def test_nigt_counts_the_steps_of_all() -> None:
    w = [one(1), one(1)]
    steps("nigt(lr=0.1, normalize=false, eta_power=0.5)", w, [one(1), None], [one(1), one(1)])
    np.testing.assert_allclose(w[1], [0.92301996], atol=5e-9)


# ---- NaN shows


def answered(opt: tw.Optimizer, params: list[np.ndarray], poison: Any, rounds: int) -> None:
    """Steps with a NaN in every gradient that is asked for."""
    problem, grads = Problem([p.shape for p in params], seed=1), [np.zeros_like(p) for p in params]
    opt.bind_gradients(grads)
    for k in range(rounds):
        for what in ("loss", "metric"):
            try:
                opt.observe(what, 1.0)
            except tw.Error:
                pass
        for request in opt.requests():
            problem.answer(request, params, grads, k)
            request.loss = 1.0
            poison(grads)


# (a participant that is not finite is left out of a round: test_federated)
@pytest.mark.parametrize("name", [m.name for m in tw.methods("optimizer") if m.name not in {*LOSSES_ALONE, "diloco_outer"}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nan_shows_in_every_optimizer(name: str, dtype: Any) -> None:
    """After four steps the entry whose gradient is NaN is NaN, unless the step was refused."""
    method = tw.method(name)
    params = Problem(shapes_for(method), seed=1).start(dtype)
    opt = tw.Optimizer(params, sentence_of(method))

    def poison(grads: list[np.ndarray]) -> None:
        grads[-1].flat[-1] = np.nan

    try:
        answered(opt, params, poison, 4)
    except tw.NonfiniteError:
        return
    assert np.isnan(params[-1].flat[-1])


@pytest.mark.parametrize("sentence", [
    "adam(lr=0.1) | cautious", "adam(lr=0.1) | cautious(scale=count)", "adam(lr=0.1) | cautious(scale=none)",
    "cautious_adamw(lr=0.1)",
    "sgd(lr=0.1) | cautious", "clip_value(0.5) | sgd(lr=0.1)", "coordinate_clip(threshold=0.5) | sgd(lr=0.1)",
    "coordinate_clip(fraction=0.5) | sgd(lr=0.1)", "clip_global_norm(0.5) | sgd(lr=0.1)",
    "clip_global_norm(0.5, norm_type=inf) | sgd(lr=0.1)",
    "clip_global_norm(0.5, per_tensor=true) | sgd(lr=0.1)", "powerprop_precond | sgd(lr=0.1)",
    "curl_descent | sgd(lr=0.1)",
    "sgd(lr=0.1) | prox(l1(0.1))", "sgd(lr=0.1) | prox(elastic_net(0.1))", "sgd(lr=0.1) | project(box)",
    "penalty(l1(0.1)) | sgd(lr=0.1)",
    "sgd(lr=0.1) | project(box(lo=[-1, -1, -1], hi=1))", "split_sgd(fraction=0.5)", "split_sgd(fraction=0.9)",
    "optimistic_omd(domain=box)", "optimistic_omd(domain=ball)", "amsgrad", "adamw(amsgrad=true)",
    "rmsprop(centered=true)",
    "lars(skip_1d=false)", "gradient_accumulate(1) | sgd", "adam | lookahead(2)", "signum | schedule_free",
])
def test_a_nan_shows_behind_masks_and_clips(sentence: str) -> None:
    w = [one(1, 1, 1)]
    opt = steps(sentence, w, *[[one(np.nan, 1, -1)]] * 3)
    assert np.isnan(w[0][0]), opt


def test_optimistic_omd_keeps_a_nan_of_the_weights() -> None:
    w = [one(np.nan, 0.5, 0.5)]
    steps("optimistic_omd(geometry=entropy)", w, [one(1, 1, 1)])
    assert np.isnan(w[0][0])


@pytest.mark.parametrize("sentence", ["lars(skip_1d=false)", "lamb"])
def test_a_norm_that_is_nan_is_no_trust_ratio_of_one(sentence: str) -> None:
    w = [one(1, 2, 3)]
    steps(sentence, w, [one(np.nan, 1, 1)])
    assert np.isnan(w[0]).all()


def test_dal_does_not_take_a_nan_for_a_flat_place() -> None:
    w, g = [one(1, 2)], [one(1, 1)]
    opt = tw.Optimizer(w, "dal(0.1)")
    opt.bind_gradients(g)
    for request in opt.requests():
        g[0][:] = np.nan if request.kind == "hessian_vector" else 1
    assert np.isnan(w[0]).all()


# ---- division


def test_a_clip_sees_the_infinity_of_a_quotient() -> None:
    w = [one(1, 1)]
    steps("adopt(lr=0.1, beta1=0, eps=0)", w, [one(0, 1)], [one(1, 1)])
    np.testing.assert_allclose(w[0], [0.9, 0.9], **CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sentence", [
    "adam(lr=0.1, beta2=0, eps=0)", "adamw(lr=0.1, beta2=0, eps=0, weight_decay=0)", "adam_snsm(lr=0.1, beta2=0, eps=0)",
    "adam_snsm(lr=0.1, beta2=0, eps=0, subset=off)", "nadam(lr=0.1, beta2=0, eps=0)"])
def test_a_quotient_by_zero_is_infinite_and_zero_by_zero_is_zero(sentence: str, dtype: Any) -> None:
    w = [np.array([[1, 1]], dtype)]
    steps(sentence, w, [np.array([[1, 0]], dtype)], [np.zeros((1, 2), dtype)])
    assert w[0][0, 0] == -np.inf and w[0][0, 1] == 1


def test_adadelta_from_nothing_stays() -> None:
    """Its root of the steps is 0 at first, and so is that of the gradients: the step is 0, however often."""
    w = [one(1, 1)]
    opt = steps("adadelta(rho=0)", w, [one(1, 1)])
    opt.set("eps", 0.0)
    before = w[0].copy()
    opt.step([one(0, 0)])
    assert np.array_equal(w[0], before)


@pytest.mark.parametrize("name", [
    "a_dog", "nigt", "opt_amsgrad", "lars", "optimistic_omd", "dadapt_sgd", "dadapt_adam", "rolling_ball",
])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_move_of_a_rule_over_a_step_size_of_zero(name: str, dtype: Any) -> None:
    """Behind an update transform the rule's direction is its move over lr, which is 0 there."""
    method = tw.method(name)
    params = [np.ones((2, 3), dtype)]
    opt = tw.Optimizer(params, sentence_of(method, lr="0") + " | cautious(scale=none)")
    problem = Problem([(2, 3)], seed=1)
    opt.bind_gradients([np.zeros((2, 3), dtype)])
    for k in range(3):
        take_step(opt, problem, k, params, opt.grads)
    assert np.isfinite(params[0]).all()


# ---- step sizes of 0, and what does not depend on them


def test_split_sgd_signs_whatever_the_step_size() -> None:
    w = [one(0, 0)]
    steps("split_sgd(lr=0, sign_lr=0.1, fraction=0.5)", w, [one(3, 1)])
    np.testing.assert_array_equal(w[0], [-0.1, 0])
    w = [one(0, 0)]
    rule = "split_sgd(lr=linear(1, end=0, total=1), sign_lr=0.25, fraction=0.5, momentum=0, dampening=0)"
    steps(rule, w, [one(3, 1)], [one(3, 1)])
    np.testing.assert_array_equal(w[0], [-0.5, -1])


@pytest.mark.parametrize("name, parameter", [
    (m.name, p.name) for m in tw.methods("optimizer") for p in m.parameters
    if p.name in ("lr", "static_lr", "max_lr", "scaling", "sign_lr", "dt", "projection_lr", "step", "lr_1d_factor") and p.type == "number"
])
def test_a_schedule_of_a_step_size_may_end_at_zero(name: str, parameter: str) -> None:
    """The step at 0 is taken; where it is the step size of the whole rule, parameters stay."""
    method = tw.method(name)
    problem = Problem(shapes_for(method), seed=4)
    params = problem.start()
    opt = tw.Optimizer(params, sentence_of(method, **{parameter: "linear(1e-3, end=0, total=1)"}))
    opt.bind_gradients([np.zeros_like(p) for p in params])
    take_step(opt, problem, 0, params, opt.grads)
    before = [p.copy() for p in params]
    take_step(opt, problem, 1, params, opt.grads)
    assert all(np.isfinite(p).all() for p in params)
    if name in ("sania", "xgd", "rolling_ball", "svrg", "sgd", "adamw", "harpg") and parameter == "lr":
        assert all(np.array_equal(a, b) for a, b in zip(params, before))


def test_rolling_ball_asks_for_nothing_more_at_a_step_size_of_zero() -> None:
    w = [one(1, 2)]
    opt = tw.Optimizer(w, "rolling_ball(lr=0)")
    opt.bind_gradients([one(1, 1)])
    asked = 0
    for request in opt.requests():
        request.loss, asked = 1.0, asked + 1
    assert asked == 1 and np.array_equal(w[0], [1, 2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start, size", [
    ([1.0], 1e20), ([-1.0], -1e20), ([3.0], 1e30), ([1.0, 0.0, 0.0], 1e25), ([0.6, 0.8], 1e18),
])
def test_spherical_langevin_stays_on_the_sphere(start: list[float], size: float, dtype: Any) -> None:
    """However long the gradient is along the point; on the sphere of one element there is nowhere to go."""
    w = [np.array(start, dtype)]
    unit = w[0] / np.linalg.norm(w[0])
    for g in (size * unit, size * unit[::-1]):
        steps("spherical_langevin(dt=0.01)", w, [g.astype(dtype)])
        assert abs(np.linalg.norm(w[0].astype(np.float64)) - 1) < (1e-15 if dtype == np.float64 else 3e-7)
        assert w[0].size > 1 or w[0][0] == np.sign(start[0])


# ---- norms that doubles cannot square

HUGE = [one(3e300, 0, -1e299), one(4e300)]
LENGTH = np.hypot(5.0, 0.1)


@pytest.mark.parametrize("sentence, length", [
    ("clip_global_norm(1.0) | sgd(lr=1)", 1), ("clip_global_norm(0.25, eps=1e290) | sgd(lr=1)", 0.25),
    ("beta_ngd(lr=0.5)", 0.5), ("spider(lr=0.5)", 0.5), ("harpg(lr=0.5)", 0.5), ("nigt(lr=0.5)", 0.5),
    ("adagrad_norm(lr=0.5)", 0.5),
])
def test_a_norm_beyond_the_squares_of_doubles(sentence: str, length: float) -> None:
    w = [np.zeros(3), np.zeros(1)]
    opt = tw.Optimizer(w, sentence)
    opt.bind_gradients(HUGE)
    for _ in opt.requests():
        pass
    opt.eval()   # nigt's parameters are ahead of its iterate
    np.testing.assert_allclose(np.concatenate(w), -length / (LENGTH * 1e300) * np.concatenate(HUGE), rtol=1e-9)


def test_o2nc_moves_within_its_radius() -> None:
    opt = steps("o2nc(radius=0.5)", [np.zeros(3), np.zeros(1)], HUGE)
    move = np.concatenate([np.ravel(x) for x in opt.state()["o2nc.delta"]])
    np.testing.assert_allclose(move, -0.5 / (LENGTH * 1e300) * np.concatenate(HUGE), rtol=1e-9)


def test_norms_of_one_tensor_beyond_the_squares_of_doubles() -> None:
    w = [np.zeros(3), np.zeros(1)]
    steps("clip_global_norm(1.0, per_tensor=true) | sgd(lr=1)", w, HUGE)
    np.testing.assert_allclose([np.linalg.norm(w[0]), np.linalg.norm(w[1])], 1, rtol=1e-12)
    w = [one(3, 4)]
    steps("lars(lr=1, momentum=0, trust_coefficient=0.1, skip_1d=false)", w, [one(0, 1e300)])
    np.testing.assert_allclose(w[0], [3, 3.5], rtol=1e-12)
    w = [np.full(2, 1e200)]
    steps("lamb(lr=0.1)", w, [one(1, 1)])
    np.testing.assert_allclose(w[0], 0.9e200, rtol=1e-5)


def test_sums_and_norms_that_are_no_doubles_are_the_largest() -> None:
    """|1e308| + |1e308| is beyond doubles: the quotient is right to the factor by which it is, and never 0."""
    for p in ("1", "2"):
        w = [np.zeros(2)]
        steps(f"clip_global_norm(1.0, norm_type={p}) | sgd(lr=1)", w, [one(1.7e308, 1.7e308)])
        assert 0.5 <= -w[0][0] <= 1 and w[0][0] == w[0][1]


def test_sums_of_squares_that_are_kept_may_leave_the_range() -> None:
    """dog and adagrad_norm over several steps: the same as with gradients that are smaller by a power of two."""
    rules = ("dog(reps_rel=0.1, eps={})", "adagrad_norm(lr=0.1, b0={})", "a_dog(reps_rel=0.1, eps=0)", "dowg(r_eps=0.1)")
    for sentence in rules:
        ends = []
        for scale in (1.0, 2.0**900):
            start = {"dog": 1e-30 * scale**0.5, "adagrad_norm": 1e-10}.get(sentence.split("(")[0], 0)
            w = [one(1, 2), one(-1)]
            steps(sentence.format(start), w, *[[scale * one(1, -0.5), scale * one(k)] for k in (1, 2, -1, 3)])
            ends.append(np.concatenate(w))
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-10)


def test_sam_perturbs_along_a_huge_gradient() -> None:
    w, g, seen = [one(1, 1)], [np.zeros(2)], []
    opt = tw.Optimizer(w, "sam(0.5) | sgd(lr=0)")
    opt.bind_gradients(g)
    for request in opt.requests():
        seen.append(w[0].copy())
        g[0][:] = [3e300, 4e300]
    np.testing.assert_allclose(seen[1], [1.3, 1.4], rtol=1e-12)


def test_infinite_and_nan_norms_are_neither_mended() -> None:
    for g, right in (([np.inf, 1.0], [np.nan, 0]), ([np.nan, 1.0], [np.nan, np.nan])):
        w = [np.zeros(2)]
        steps("clip_global_norm(1.0) | sgd(lr=1)", w, [np.array(g)])
        np.testing.assert_array_equal(w[0], right)


# ---- start values


def set_first(sentence: str, name: str, value: float, gradients: int = 3) -> np.ndarray:
    w = [one(1.0, -2.0)]
    opt = tw.Optimizer(w, sentence)
    opt.set(name, value)
    opt.bind_gradients([np.zeros(2)])
    problem = Problem([(2,)], seed=5)
    for k in range(gradients):
        take_step(opt, problem, k, w, opt.grads)
    return w[0]


@pytest.mark.parametrize("rule, name, value", [
    ("adagrad(lr=0.1)", "initial_accumulator_value", 4.0), ("yogi(lr=0.1)", "initial_accumulator", 0.3),
    ("adagrad_norm(lr=0.1)", "b0", 3.0),
    ("dowg", "r_eps", 0.2), ("prodigy", "d0", 0.05), ("dadapt_sgd", "d0", 0.05), ("dadapt_adam", "d0", 0.05),
    ("dog", "eps", 2.0),
    ("dog(layerwise=true)", "eps", 2.0), ("oasis", "lr0", 0.05), ("oasis(adaptive=false)", "lr0", 0.05),
    ("a_dog", "alpha_const", 3.0),
    ("dog", "reps_rel", 0.1), ("u_dog", "r_eps_rel", 0.1),
])
@pytest.mark.parametrize("state", ["f32", "bf16"])
def test_a_start_value_set_before_the_first_step_is_used(rule: str, name: str, value: float, state: str) -> None:
    """Bit for bit as if the sentence had it, and not as without."""
    head, _, rest = rule.partition("(")
    given = f"{head}({name}={value}{', ' + rest if rest else ')'}"
    want = set_first(given, name, value)
    got = set_first(rule, name, value)
    assert got.tobytes() == want.tobytes()
    w = [one(1.0, -2.0)]
    opt = tw.Optimizer(w, rule)
    opt.bind_gradients([np.zeros(2)])
    for k in range(3):
        take_step(opt, Problem([(2,)], seed=5), k, w, opt.grads)
    assert w[0].tobytes() != want.tobytes()


def test_adagrad_from_a_value_that_was_set() -> None:
    w = [one(1)]
    opt = tw.Optimizer(w, "adagrad")
    opt.set("initial_accumulator_value", 4.0)
    for _ in range(3):
        opt.step([w[0].copy()])
    np.testing.assert_allclose(w[0], [0.98770628], atol=5e-9)


@pytest.mark.parametrize("rule, name", [
    ("adagrad(lr=0.1)", "initial_accumulator_value"), ("yogi(lr=0.1)", "initial_accumulator"), ("dog(layerwise=true)", "eps"),
])
def test_every_group_has_its_own_start_value(rule: str, name: str) -> None:
    a, b, alone = one(1, 2), one(1, 2), one(1, 2)
    opt = tw.Optimizer([{"params": [a]}, {"params": [b], name: 5.0}], rule)
    single = tw.Optimizer([alone], rule)
    single.set(name, 5.0)
    for k in range(3):
        g = one(1, k)
        opt.step([g, g])
        single.step([g])
    assert b.tobytes() == alone.tobytes() and a.tobytes() != b.tobytes()


# ---- groups of stages that ask for gradients


def visited(sentence: str, groups: list[dict[str, Any]], answer: Any) -> list[list[np.ndarray]]:
    """Where the parameters stand at the requests of one step."""
    opt = tw.Optimizer(groups, sentence)
    params = opt.params
    opt.bind_gradients([np.zeros_like(p) for p in params])
    seen = []
    for request in opt.requests():
        seen.append([p.copy() for p in params])
        if request.wants_loss:
            request.loss = 1.0
        for g, x in zip(opt.grads, answer(request)):
            g[...] = x
    return seen + [[p.copy() for p in params]]


def test_sam_has_a_radius_for_every_group() -> None:
    g = [one(3.0), one(4.0), one(12.0)]
    groups = [
        {"params": [one(1)], "rho": 1.0}, {"params": [one(1)], "rho": 0.5}, {"params": [one(1)], "rho": 0.5, "norm": "linf"},
    ]
    at = visited("sam(rho=0.1) | sgd(lr=0)", groups, lambda r: g)[1]
    np.testing.assert_allclose(np.concatenate(at), [1 + 3 / 13, 1 + 0.5 * 4 / 13, 1.5], rtol=1e-12)


def test_fd_grad_reg_has_a_weight_for_every_group() -> None:
    def answer(request: tw.Request) -> list[np.ndarray]:
        return [one(1.0 + request.pass_), one(1.0 + request.pass_)]

    groups = [{"params": [one(1)], "gamma": 0.5}, {"params": [one(1)], "gamma": 0.25}]
    end = visited("fd_grad_reg(eps=0.1) | sgd(lr=1)", groups, answer)[-1]
    # g + gamma/eps*(2 - 1) with g = 1
    np.testing.assert_allclose(np.concatenate(end), [1 - (1 + 5), 1 - (1 + 2.5)], rtol=1e-12)


def test_sga_uap_has_a_ball_for_every_group() -> None:
    groups = [{"params": [one(0)], "eps": 1.0, "step": 0.5}, {"params": [one(0)], "eps": 0.25, "step": 1.0}]
    seen = visited("sga_uap(inner_steps=3)", groups, lambda r: [one(1), one(-1)])
    np.testing.assert_array_equal(np.concatenate(seen[1]), [-0.5, 0.25])
    np.testing.assert_array_equal(np.concatenate(seen[2]), [-1, 0.25])
    np.testing.assert_array_equal(np.concatenate(seen[3]), [-0.5, 0.25])


def test_numbers_of_a_group_without_a_step_size_do_not_count() -> None:
    """prodigy: the estimate is that of the groups that move."""
    def end(groups: list[dict[str, Any]], k: int) -> np.ndarray:
        opt = tw.Optimizer(groups, "prodigy(d0=0.01)")
        for t in range(4):
            opt.step([one(1 + t, -1)] * k)
        return opt.params[-1]

    both = end([{"params": [one(3, 4)], "lr": 0.0}, {"params": [one(1, 2)]}], 2)
    still = tw.Optimizer([{"params": [one(3, 4)], "lr": 0.0}, {"params": [one(1, 2)]}], "prodigy(d0=0.01)")
    for t in range(4):
        still.step([one(1 + t, -1)] * 2)
    assert np.array_equal(still.params[0], [3, 4])
    assert np.isfinite(both).all() and not np.array_equal(both, [1, 2])


# ---- schedules that remember


def cut() -> tw.Schedule:
    s = tw.schedule("reduce_on_plateau(lr=1, patience=0)")
    for _ in range(4):
        s.observe("metric", 5.0)
    return s


COPIES = {
    "deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "sentence": lambda s: tw.schedule(s._sentence()),
}


def loaded(s: tw.Schedule) -> tw.Schedule:
    other = tw.schedule(s.sentence)
    other.load_state_dict(s.state_dict())
    return other


COPIES["state_dict"] = loaded


def shown(
    sentence: str, *, size: float | None = None, samples: int = 0, commands: tuple[str, ...] = (), at: int = 0
) -> tw.Schedule:
    s = tw.schedule(sentence)
    s(at)
    if size is not None:
        s.observe("batch_size", size)
    for k in range(samples):
        s.observe_samples(np.random.default_rng(k).standard_normal((4, 6)) + 0.2)
    for c in commands:
        s.command(c)
    return s


@pytest.mark.parametrize("how", sorted(COPIES))
@pytest.mark.parametrize("make", [
    cut,
    lambda: shown("norm_test(max_batch=4096, eta=0.2)", samples=2),
    lambda: shown("inner_product_test(max_batch=999)", samples=2),
    lambda: shown("batch_lr_scaling(lr=1)", size=4.0),
    lambda: shown("wsd(lr=1, warmup_steps=0, stable_steps=9, decay_steps=4)", at=2, commands=("begin_decay",)),
    lambda: shown("norm_test(max_batch=4096, eta=0.2, parts=3)", samples=2),
    lambda: shown("norm_test(max_batch=4096, eta=0.2, parts=3, coordinate=true)", samples=4),
    lambda: shown("warmup(2, norm_test(max_batch=4096, parts=3))", samples=4),
    lambda: shown("join([norm_test(max_batch=4096, parts=3), norm_test(max_batch=4096, eta=0.1)], [2])", samples=4),
])
def test_a_copy_of_a_schedule_remembers(make: Any, how: str) -> None:
    s = make()
    other = COPIES[how](s)
    for _ in range(3):
        assert [other(k) for k in range(8)] == [s(k) for k in range(8)]
        for each in (s, other):
            try:
                each.observe("metric", 6.0)
            except tw.Error:
                pass
            try:
                each.observe_samples(np.random.default_rng(9).standard_normal((4, 6)) + 0.2)
            except tw.Error:
                pass
    assert other.state_dict()["state"] == s.state_dict()["state"] or how == "sentence"


def test_an_optimizer_goes_on_from_a_schedule_object() -> None:
    s = cut()
    assert s(0) == 0.001 or s(0) == pytest.approx(0.001)
    w = [one(1)]
    opt = tw.SGD(w, lr=s)
    opt.step([one(1)])
    np.testing.assert_allclose(w[0], [1 - s(0)], rtol=1e-12)
    opt.observe("metric", 9.0)
    s.observe("metric", 9.0)
    assert opt.get("lr") == s(1)
    other = tw.SGD([one(1)], lr=cut())
    other.load_state_dict(opt.state_dict())
    assert other.get("lr") == s(1)


def test_what_was_saved_of_a_schedule_is_checked() -> None:
    s, state = cut(), cut().state_dict()["state"]
    value = s(0)
    for bad in (b"", state[:-1], state + b"\0", b"x" * len(state), state[:40] + bytes([state[40] ^ 1]) + state[41:]):
        with pytest.raises(tw.FormatError):
            s.load_state_dict({"state": bad})
    with pytest.raises(tw.MismatchError, match="reduce_on_plateau"):
        s.load_state_dict(tw.schedule("reduce_on_plateau(lr=2, patience=0)").state_dict())
    assert s(0) == value
    for bad in ("memory=[1]", "memory=3", "memory=[1, 2, a, 3]"):
        with pytest.raises(tw.Error, match="memory"):
            tw.schedule(f"reduce_on_plateau(lr=1, {bad})")
    with pytest.raises(tw.Error, match="memory"):
        tw.schedule("cosine(lr=1, total=3, memory=[1])")


# ---- what cards have besides


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_l2_ball_around_a_centre(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    c, w, g = rng.standard_normal((3, 3, 4))
    w, g = w.astype(dtype), g.astype(dtype)
    rows = "[" + ", ".join("[" + ", ".join(repr(float(x)) for x in row) + "]" for row in c) + "]"
    tolerance = {"rtol": 1e-12 if dtype == np.float64 else 1e-5}
    for axis in (None, 0, 1):
        ball = tw.constraint(f"l2_ball(0.5, center={rows}, axis={'none' if axis is None else axis})")
        n = np.sqrt(np.sum((w - c) ** 2, axis=axis, keepdims=True))
        np.testing.assert_allclose(ball.project(w.copy()), np.where(n > 0.5, c + (w - c) * (0.5 / n), w), **tolerance)
        length = np.sqrt(np.sum(g * g, axis=axis, keepdims=True))
        np.testing.assert_allclose(ball.lmo(g), c - 0.5 * g / length, **tolerance)
    inside = (c + 0.01).astype(dtype)
    assert np.array_equal(tw.constraint(f"l2_ball(0.5, center={rows})").project(inside.copy()), inside)
    np.testing.assert_allclose(tw.constraint("l2_ball(0, center=[2])").project(w.copy()), 2, **tolerance)
    with pytest.raises(tw.ShapeError, match="center"):
        tw.constraint("l2_ball(1, center=[1, 2])").project(np.ones(3))
    for origin in ("zero", "none", "[0]", "[]"):
        ball = tw.constraint(f"l2_ball(1, center={origin})")
        np.testing.assert_allclose(ball.project(one(3, 4)), [0.6, 0.8], rtol=1e-15)


def test_a_box_with_bounds_by_entry() -> None:
    w, g = one(-5, 5, 0.5), one(1, -1, 0)
    box = tw.constraint("box(lo=[-1, -2, -inf], hi=[1, 2, 3])")
    np.testing.assert_array_equal(box.project(w.copy()), [-1, 2, 0.5])
    np.testing.assert_array_equal(box.lmo(g), [-1, 2, 0])
    np.testing.assert_array_equal(tw.constraint("box(lo=0.25, hi=[1, 2, 0.3])").project(w.copy()), [0.25, 2, 0.3])
    params = [one(0, 0, 0)]
    steps("sgd(lr=1) | project(box(lo=[-1, -2, -3], hi=inf))", params, [one(9, 9, -9)])
    np.testing.assert_array_equal(params[0], [-1, -2, 9])
    with pytest.raises(tw.ShapeError, match="lo"):
        box.project(np.ones(4))
    with pytest.raises(tw.RangeError, match="above"):
        tw.constraint("box(lo=[0, 2], hi=[1, 1])")
    with pytest.raises(tw.RangeError, match="numbers"):
        tw.constraint("box(lo=[0, 2], hi=[3, 3, 3])")
    with pytest.raises(tw.RangeError):
        tw.constraint("box(lo=[], hi=1)")


def test_nm_sparsity_may_leave_a_tail_dense() -> None:
    w = np.array([[1.0, 2, 3, 4, 0.5, 0.25], [4.0, 3, 2, 1, 0.5, -0.25]])
    right = [[0, 0, 0, 4, 0.5, 0.25], [4, 0, 0, 0, 0.5, -0.25]]
    np.testing.assert_array_equal(tw.constraint("nm_sparsity(1, 4, tail=dense)").project(w.copy()), right)
    with pytest.raises(tw.ShapeError, match="tail=dense"):
        tw.constraint("nm_sparsity(1, 4)").project(w)
    params = [w.copy()]
    steps("sgd(lr=1) | nm_sparsity(1, 4, tail=dense, decay=0)", params, [np.zeros_like(w)])
    np.testing.assert_array_equal(params[0], right)


def test_saga_with_a_prox_and_a_full_table() -> None:
    """Least squares with an l1 penalty, sample by sample, beside NumPy."""
    rng = np.random.default_rng(3)
    A, y, lr, weight = rng.standard_normal((5, 3)), rng.standard_normal(5), 0.05, 0.1

    def sample(x: np.ndarray, i: int) -> np.ndarray:
        return (A[i] @ x - y[i]) * A[i]

    w, g = [np.zeros(3)], [np.zeros(3)]
    opt = tw.Optimizer(w, f"saga(lr={lr}, n=5, init=full) | prox(l1({weight}))")
    opt.bind_gradients(g)
    x, table = np.zeros(3), np.array([sample(np.zeros(3), i) for i in range(5)])
    order = [2, 0, 4, 4, 1, 3, 2]
    for t, i in enumerate(order):
        opt.observe("sample", float(i))
        kinds = []
        for request in opt.requests():
            kinds.append(request.kind)
            g[0][:] = sample(w[0], request.index if request.kind == "task_gradient" else i)
        assert kinds == (["task_gradient"] * 5 if t == 0 else ["gradient"])
        new = sample(x, i)
        d = new - table[i] + table.mean(axis=0)
        table[i] = new
        x = x - lr * d
        x = np.sign(x) * np.maximum(np.abs(x) - lr * weight, 0)
        np.testing.assert_allclose(w[0], x, **CLOSE)


def test_a_full_table_of_saga_that_was_broken_off_is_empty() -> None:
    w, g = [np.zeros(3)], [np.ones(3)]
    opt = tw.Optimizer(w, "saga(lr=0.1, n=3, init=full)")
    opt.bind_gradients(g)
    before = opt.state_dict()["state"]
    requests = opt.requests()
    next(requests)
    next(requests)
    requests.close()
    assert opt.state_dict()["state"] == before


def test_norm_test_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    batch = rng.standard_normal((12, 7)) + 0.3
    for extra in ("", ", coordinate=true"):
        whole = tw.schedule(f"norm_test(max_batch=100000, eta=0.3{extra})")
        whole.observe_samples(batch)
        for cuts in ([4, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11]):
            parts = np.split(batch, cuts)
            s = tw.schedule(f"norm_test(max_batch=100000, eta=0.3, parts={len(parts)}{extra})")
            for k, p in enumerate(parts):
                assert k == 0 or s(0) == 1
                s.observe_samples(p)
            assert s(0) == whole(0) > 12
    s = tw.schedule("norm_test(max_batch=9, parts=2)")
    s.observe_samples(np.ones((2, 3)))
    with pytest.raises(tw.ShapeError):
        s.observe_samples(np.ones((2, 4)))


# ---- sentences


def test_a_negative_zero_is_read_and_written() -> None:
    w = [one(1)]
    opt = tw.Optimizer(w, "sgd(lr=0.1, dampening=-0, momentum=0.5)")
    assert "dampening=-0," in opt.sentence
    assert np.signbit(opt.get("dampening"))
    again = tw.Optimizer([one(1)], opt.sentence)
    assert again.sentence == opt.sentence


def test_sentences_are_nested_to_a_limit() -> None:
    def nested(depth: int) -> str:
        return "warmup(1, " * depth + "0.1" + ")" * depth

    assert tw.schedule(nested(24))(0) == 0
    for text in (nested(25), nested(62), nested(5000)):
        with pytest.raises(tw.SentenceError, match="nested"):
            tw.schedule(text)
