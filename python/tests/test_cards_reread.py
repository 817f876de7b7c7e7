"""What the cards say off the plain path: decay stages together, first steps of tensors that join late, ends of ranges."""

import warnings

import numpy as np
import pytest
import thalweg as tw


def stepped(sentence, start, *gradients, dtype=float):
    """The parameters after a step on each gradient."""
    w = np.array(start, dtype)
    optimizer = tw.Optimizer([w], sentence)
    for g in gradients:
        optimizer.step([np.array(g, dtype)])
    return w


# ---- stages behind a rule

SIGNS = np.array([1.0, 1, -1, -1])
POINT = np.array([1.0, -1, 2, -2])


@pytest.mark.parametrize("stages", ["corrected_decay(max_lr=0.2) | cautious_decay", "cautious_decay | corrected_decay(max_lr=0.2)"])
def test_the_mask_is_on_the_corrected_decay(stages):
    w = stepped(f"adamw(lr=0.1, weight_decay=0.3, eps=0) | {stages}", POINT, SIGNS)
    np.testing.assert_allclose(w, POINT - 0.1 * SIGNS - 0.1**2 / 0.2 * 0.3 * POINT * (SIGNS * POINT > 0), rtol=1e-12)


@pytest.mark.parametrize("order", ["{0} | {1}", "{1} | {0}"])
@pytest.mark.parametrize("decay, factor", [
    ("cautious_decay", SIGNS * POINT > 0), ("corrected_decay(max_lr=0.4)", 0.25), ("decoupled_weight_decay(0.3, min_rank=0)", 1)])
def test_directions_act_before_the_decay(order, decay, factor):
    rule = "adamw(lr=0.1, weight_decay=0.3, eps=0)" if "decoupled" not in decay else "adam(lr=0.1, eps=0)"
    w = stepped(f"{rule} | {order.format(decay, 'clip_update_rms(threshold=0.5)')}", POINT, SIGNS)
    np.testing.assert_allclose(w, POINT - 0.1 * 0.5 * SIGNS - 0.1 * 0.3 * POINT * factor, rtol=1e-12)


@pytest.mark.parametrize("decay, keep", [("cautious_decay", np.array([1, 1])), ("corrected_decay(max_lr=0.2)", 1 - 0.015)])
def test_the_brake_measures_the_decayed_tensor(decay, keep):
    w = stepped(f"adamw(lr=0.1, weight_decay=0.3, eps=0) | {decay} | radial_brake", [3, 4], [-1, -1])
    before = keep * np.array([3.0, 4])
    after = before + 0.1
    norm = np.linalg.norm
    np.testing.assert_allclose(w, after * (norm(before) + 0.5 * (norm(after) - norm(before))) / norm(after), rtol=1e-12)


def test_the_peak_of_the_decay_is_that_of_the_schedule():
    schedule = "warmup_cosine(peak=0.1, warmup=5, total=20)"
    lr = tw.schedule(schedule)
    expected = np.array([1.0, 2])
    for k in range(12):
        expected *= 1 - lr(k) ** 2 / 0.1 * 0.5
    zeros = [[0, 0]] * 12
    np.testing.assert_allclose(stepped(f"adamw(lr={schedule}, weight_decay=0.5) | corrected_decay", [1, 2], *zeros), expected, rtol=1e-12)
    expected = np.array([1.0, 2])
    for k in range(12):
        expected *= 1 - lr(k) / 0.1 * 0.5
    sentence = f"sgd(lr={schedule}) | decoupled_weight_decay(0.5, mode=independent, min_rank=0)"
    np.testing.assert_allclose(stepped(sentence, [1, 2], *zeros), expected, rtol=1e-12)


@pytest.mark.parametrize("sentence", [
    "schedule_free_adamw | clip_update_rms", "schedule_free_sgd | cautious", "schedule_free_radam | hyperball",
    "stable_adamw | cautious_decay", "soap | corrected_decay", "soap | cautious_decay", "kl_shampoo | cautious_decay",
    "kl_soap | cautious_decay", "kfac | cautious_decay", "psgd_kron | cautious_decay", "shampoo(momentum=0.9) | cautious_decay"])
def test_stages_that_would_do_nothing_are_refused(sentence):
    with pytest.raises(tw.MethodError, match="cannot stand behind|finds no decay"):
        tw.Optimizer([np.zeros((2, 2))], sentence)


def test_the_mask_is_on_the_decay_of_shampoo():
    start, g = np.array([[1.0, -2, 3], [-1, 2, 0.5]]), np.array([[1.0, 1, -1], [2, -1, 0.5]])
    plain = stepped("shampoo(lr=0.1)", start, g)
    u = (start - plain) / 0.1
    for decay, mask in [("", 1), (" | cautious_decay", u * start >= 0)]:
        w = stepped(f"shampoo(lr=0.1, weight_decay=0.3){decay}", start, g)
        np.testing.assert_allclose(w, start - 0.1 * 0.3 * mask * start - 0.1 * u, rtol=1e-12)


FRONTS = ["grokfast(form=ma, window=2, warmup=false)", "gradient_centralization", "spectral_clip", "coordinate_clip(fraction=0.3)"]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("rule", ["sgd(lr=0.1, momentum=0.9)", "adam(lr=0.1)", "sm3(lr=0.1)", "muon(lr=0.1)"])
@pytest.mark.parametrize("stage", ["cautious", "cautious(scale=none)", "dual_sum"])
def test_updates_are_compared_with_the_gradient_that_the_rule_saw(front, rule, stage):
    rng = np.random.default_rng(3)
    shape = (3, 5)
    start = rng.standard_normal(shape)
    gradients = rng.standard_normal((5, *shape))
    plain = start.copy()
    front_alone = tw.Optimizer([plain], f"{front} | sgd(lr=1)")
    behind, whole = start.copy(), start.copy()
    rule_alone = tw.Optimizer([behind], f"{rule} | {stage}")
    together = tw.Optimizer([whole], f"{front} | {rule} | {stage}")
    for g in gradients:
        plain[...] = whole  # some fronts look at the parameters
        front_alone.step([g])
        seen = whole - plain
        rule_alone.step([seen])
        together.step([g])
        np.testing.assert_allclose(whole, behind, rtol=1e-9, atol=1e-12)


def test_coupled_decay_is_added_once_behind_a_gradient_stage():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 5))
    expected, optimizer = w.copy(), tw.Optimizer([w], "gradient_centralization | riemannian_sgd(lr=0.1, weight_decay=0.5)")
    for _ in range(4):
        g = rng.standard_normal((3, 5))
        optimizer.step([g])
        expected -= 0.1 * (g - g.mean(1, keepdims=True) + 0.5 * expected)
    np.testing.assert_allclose(w, expected, rtol=1e-12)


# ---- rules that leave the new point

@pytest.mark.parametrize("dtype, small", [(np.float64, 40), (np.float32, 25)])
def test_small_weights_survive_mirror_descent(dtype, small):
    simplex = stepped("mirror_descent(lr=1)", [0.5, 0.5], [0, small], dtype=dtype)
    np.testing.assert_allclose(simplex, [1, np.exp(-small)], rtol=1e-5)
    orthant = stepped("mirror_descent(lr=1, geometry=orthant)", [0.5, 0.5], [0, small], [0, -small], dtype=dtype)
    np.testing.assert_allclose(orthant, [0.5, 0.5], rtol=1e-5)


def test_a_prox_far_above_the_weights_ends_at_zero():
    assert (stepped("prox_sgd(l1(weight=1e6), lr=0.1)", [1e5, -3e4, 2.0], [0.1, 0.2, 0.3]) == 0).all()


def test_a_stage_behind_such_a_rule_sees_the_move():
    free, held = (stepped("mirror_descent(lr=1)" + more, [0.5, 0.5], [0, 4]) for more in ("", " | clip_update_rms(threshold=100)"))
    np.testing.assert_allclose(free, held, rtol=1e-12)


# ---- tensors that join late

def test_friendly_sam_begins_with_each_tensor():
    a, b = np.zeros(2), np.zeros(2)
    optimizer = tw.Optimizer([a, b], "friendly_sam(rho=1) | sgd(lr=0)")
    seen = []
    for g in (None, np.array([1.0, 0]), np.array([1.0, 0])):
        for request in optimizer.requests():
            if request.pass_ == 1:
                seen.append(b.copy())
            request.answer([np.zeros(2), g])
    np.testing.assert_allclose(seen, [[0, 0], [1, 0], [0, 0]], rtol=1e-9)


def test_gaqat_counts_no_change_at_a_first_gradient():
    a, b = np.zeros(1), np.zeros(1)
    optimizer = tw.Optimizer([a, b], "gaqat_freeze(window=3, threshold=0.3, rho=0) | sgd(lr=1)")
    moves = []
    for k in range(6):
        before = b.copy()
        for request in optimizer.requests():
            request.answer([np.ones(1), np.ones(1) if k else None])
        moves.append((b - before)[0])
    assert moves == [0, -2, -2, -1, -1, -1]  # frozen: the smoothness gradient alone


def test_the_adam_inside_fish_counts_the_steps_of_each_tensor():
    a, b = np.zeros(1), np.zeros(1)
    optimizer = tw.Optimizer([a, b], "fish(meta_steps=2, inner=adam, inner_lr=0.1, meta_lr=1)")
    for k in range(4):
        for request in optimizer.requests():
            request.answer([np.ones(1), np.ones(1) if k == 3 else None])
    np.testing.assert_allclose(b, -0.2, rtol=1e-7)


def test_opt_amsgrad_extrapolates_from_what_a_tensor_has():
    w = [np.zeros(1), np.zeros(1)]
    optimizer = tw.Optimizer(w, "opt_amsgrad(lr=1, beta1=0, beta2=0, eps=0)")
    for gradients in ([1, None], [2, None], [3, 1]):
        optimizer.step([None if g is None else np.array([float(g)]) for g in gradients])
    assert w[1] == -2


def test_grokadamw_counts_the_tensors_of_a_group_and_pipeline():
    rng = np.random.default_rng(5)
    start = [rng.standard_normal(s) for s in ((2, 2), (3,), (4,), (5,))]
    alone, routed = ([x.copy() for x in start] for _ in range(2))
    one = tw.Optimizer(alone[1:3], "grokadamw(lr=0.1)")
    one.add_param_group({"params": [alone[3]]})
    other = tw.Optimizer(routed[:3], "route(matrix=(sgd), other=(grokadamw(lr=0.1)))")
    other.add_param_group({"params": [routed[3]]})
    third = tw.Optimizer([alone[0]], "grokadamw(lr=0.1)")  # the first of its own
    fourth = start[3].copy()
    fresh = tw.Optimizer([fourth], "grokadamw(lr=0.1)")
    for _ in range(4):
        g = [rng.standard_normal(x.shape) for x in start]
        one.step(g[1:])
        other.step(g)
        third.step(g[:1])
        fresh.step(g[3:])
    for a, b in zip(alone[1:], routed[1:]):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(alone[3], fourth)


# ---- ends of ranges, zeros, large numbers

def test_zeros_in_denominators():
    np.testing.assert_allclose(stepped("adamax(lr=0.1, beta2=0, eps=0)", [1, 2], [1, 1], [0, 1]), [0.9, 1.8], rtol=1e-12)
    np.testing.assert_array_equal(stepped("sgd(lr=0.1) | relative_update(eps=0)", [3, 4], [0, 0]), [3, 4])
    np.testing.assert_array_equal(stepped("sgd(lr=0.1) | radial_brake(eps=1)", [2, 0], [15, 0]), [0, 0])
    zero_row = np.ones((3, 4), np.float32)
    zero_row[0] = 0
    w = stepped("adafactor(lr=0.1, eps1=1e-30)", np.ones((3, 4)), zero_row, zero_row, dtype=np.float32)
    assert (w[0] == 1).all() and np.isfinite(w).all()


def test_adafactor_takes_a_new_square_whole():
    w = stepped("adafactor(lr=0.5, beta2_decay=0, d=1e9)", [0, 0], [1e4, 1], dtype=np.float32)
    after = stepped("adafactor(lr=0.5, beta2_decay=0, d=1e9)", [0, 0], [1e4, 1], [1e-2, 1], dtype=np.float32)
    np.testing.assert_allclose((after - w)[0], (after - w)[1], rtol=1e-5)


def test_the_buffer_of_adam_cm_forgets_what_left_it():
    rng = np.random.default_rng(0)
    w = np.zeros(50, np.float32)
    optimizer = tw.Optimizer([w], "adam_cm(lr=0.01)")
    for k in range(100):
        optimizer.step([(rng.standard_normal(50) * (1e8 if k == 5 else 1)).astype(np.float32)])
    state = optimizer.state()
    total = sum(state[f"adam_cm.buffer_{i}"][0] for i in range(5))
    np.testing.assert_allclose(state["adam_cm.buffer_sum"][0], total, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4, 1e5])
def test_optimistic_entropy_stays_on_the_simplex(scale):
    w = stepped("optimistic_omd(geometry=entropy)", [0.3, 0.7], [2 * scale, 3 * scale], [0.1, -0.1])
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-9)
    half = [[1, -1]] * 3 + [[-1, 1]] * 7
    np.testing.assert_allclose(stepped("optimistic_omd(geometry=entropy, lr=10)", [0.5, 0.5], *half, dtype=np.float16), [1, 0], atol=1e-3)


@pytest.mark.parametrize("p", [1.5, 3, 8])
@pytest.mark.parametrize("dtype, size", [(np.float64, 1.0), (np.float64, 1e200), (np.float32, 1e30), (np.float32, 1e-30)])
def test_norms_of_any_p(p, dtype, size):
    g = np.array([3, -4, 5, 0.5], dtype) * dtype(size)
    for sentence in (f"clip_norm(max_norm={size}, norm_type={p}, eps=0) | sgd(lr=1)", f"clip_global_norm({size}, norm_type={p}) | sgd(lr=1)"):
        w = stepped(sentence, np.zeros(4), g, dtype=dtype).astype(np.longdouble)
        np.testing.assert_allclose(float((np.abs(w / size) ** p).sum() ** (1 / p)), 1, rtol=1e-5)


def test_signum_keeps_its_average_while_the_momentum_is_zero():
    w = np.zeros(1)
    optimizer = tw.Optimizer([w], "signum(lr=1, momentum=0.9)")
    for momentum, g in ((0.9, 1.0), (0.9, 1.0), (0.0, -5.0), (0.9, 0.1)):
        optimizer.set("momentum", momentum)
        optimizer.step([np.array([g])])
    np.testing.assert_allclose(optimizer.state()["signum.exp_avg"][0], -4.49)


def test_momo_has_one_first_step():
    """Without preconditioner the average of a tensor that joins late starts from nothing, as the sums do."""
    w = [np.ones(1), np.ones(1)]
    optimizer = tw.Optimizer(w, "momo(lr=0.3)")
    for k, gradients in enumerate(([1.0, None], [1.0, 1.0])):
        optimizer.observe("loss", 1.0 - 0.1 * k)
        optimizer.step([None if g is None else np.array([g]) for g in gradients])
    np.testing.assert_allclose(optimizer.state()["momo.exp_avg"][1], 0.1)
    assert tw.Optimizer([np.ones(1)], "momo(precondition=adam)").get("lr") == 0.01


# ---- schedules, defaults

def test_one_cycle_stays_at_its_end():
    s = tw.schedule("one_cycle(lr=0.1, total=10, pct_start=0.9, three_phase=true)")
    assert [s(k) for k in (10, 12, 17)] == [s(40)] * 3


def test_the_plateau_ends_once():
    optimizer = tw.Optimizer([np.zeros(1)], "sgd(lr=wsd(lr=1, warmup_steps=2, stable_steps=3, decay_steps=4))")
    rates = []
    for k in range(10):
        if k in (1, 6):
            optimizer.command("begin_decay")
        rates.append(optimizer.get("lr"))
        optimizer.step([np.ones(1)])
    np.testing.assert_allclose(rates, [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0])


def test_defaults_that_follow_others():
    lr = [tw.Optimizer([np.zeros((2, 2))], s).get("lr") for s in ("sara", "sara(threshold=0.004)", "sara(threshold=0.004, lr=0.1)")]
    np.testing.assert_allclose(lr, [1e-3 * np.exp(-0.7), 1e-3 * np.exp(-1.4), 0.1], rtol=1e-15)
    opposed = np.array([[1.0, 0], [-1, 1]])
    np.testing.assert_allclose(tw.aggregate("prograd(mode=remove_conflict)")(opposed), [0.5, 0.5])


def test_lawn_warms_up_free_tensors_too():
    b, w = np.ones(3), np.ones((2, 3))
    optimizer = tw.Optimizer([b, w], "lawn(part=gradient) | sgd(lr=0.1) | lawn(part=norm, warmup_steps=7)")
    optimizer.step([np.ones(3), np.ones((2, 3))])
    np.testing.assert_allclose(b, 1 - 0.1 / 7)


@pytest.mark.parametrize("sentence, values", [
    ("riemannian_adam(eps=0)", "above 0"), ("riemannian_adagrad(eps=0)", "above 0"), ("sara(eps=0)", "above 0"),
    ("newton_schulz(form=gram, resets=[0]) | sgd", "at least 1"), ("newton_schulz(form=gram, resets=[1.5]) | sgd", "at least 1")])
def test_ranges(sentence, values):
    with pytest.raises(tw.RangeError, match=values):
        tw.Optimizer([np.ones((3, 3))], sentence)


def test_what_is_hardly_meant_is_a_warning():
    def said(sentence):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tw.Optimizer([np.ones((3, 3))], sentence)
        return [str(w.message) for w in caught]

    assert len(said("sgd(lr=0.1, momentum=1.5)")) == 1
    assert len(said("curl_descent(fraction=1) | sgd(lr=0.1)")) == 1
    assert said("curl_descent | sgd(lr=0.1, momentum=0.9)") == []


# ---- losses alone

@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("sentence", [
    "zo_gradient(q=3, mu=0.1) | sgd(lr=0.05)", "zo_gradient(q=3, mu=0.1, central=true) | sgd(lr=0.05)",
    "mezo(lr=0.1, n_seeds=2)", "openai_es(pairs=3) | sgd(lr=0.05)"])
def test_a_loss_that_is_not_finite_is_left_out(sentence, bad):
    def run(broken):
        w = np.array([1.0, 2])
        optimizer = tw.Optimizer([w], sentence)
        for k, request in enumerate(optimizer.requests()):
            request.answer(loss=bad if k in broken else float((w * w).sum()))
        return w

    assert np.isfinite(run([2])).all()
    assert (run([2]) != run([])).any()
    if "zo" in sentence or "mezo" in sentence:
        np.testing.assert_array_equal(run(range(20)), [1, 2])


# ---- sets, objectives

def test_short_vectors_reach_the_sphere():
    np.testing.assert_array_equal(tw.constraint("sphere").project(np.array([1e-40, 0, 0], np.float32)), [1, 0, 0])
    np.testing.assert_allclose(tw.constraint("sphere").project(np.array([1.0, -2, 3]) * 1e-310), np.array([1, -2, 3]) / np.sqrt(14), rtol=1e-9)
    np.testing.assert_array_equal(tw.constraint("capped_simplex(0.9, cap=0.3)").project(np.ones(3)), [0.3] * 3)


def test_ends_of_objectives():
    value, grads = tw.objective("macl_from_similarities(temperature=0.001)").value_and_grad(
        pos=np.array([1.0, 0.9]), neg=np.array([[-1.0, -1], [-1, 0.3]]))
    assert np.isfinite(value) and np.isfinite(grads["pos"]).all()
    value, grads = tw.objective("fccov").value_and_grad(u=np.ones((1, 3)), distances=np.zeros((1, 1)))
    assert value == 0 and (grads["u"] == 0).all()
    with pytest.raises(tw.RangeError):
        tw.solver("mpad(iters=0)")


@pytest.mark.parametrize("masks", [False, True])
def test_a_row_of_zeros_has_cosines_of_zero(masks):
    x = np.array([[0.0, 0], [1, 0], [0.6, 0.8]])
    p = np.full((3, 3), 1 / 3) if not masks else (1 - np.eye(3)) / 2
    u = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    q = np.exp(u @ u.T)
    if masks:
        np.fill_diagonal(q, 0)
    q /= q.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nansum(np.where(p > 0, p * np.log(p / q), 0)) / 3
    objective = tw.objective(f"icon_embedding(kind=cosine, mask_diagonal={str(masks).lower()})")
    np.testing.assert_allclose(objective(x=x, p=p), expected, rtol=1e-12)
    at = x + 0.1
    grads = objective.value_and_grad(x=at, p=p)[1]["x"]
    for i in range(3):
        for j in range(2):
            d = np.zeros_like(x)
            d[i, j] = 1e-6
            slope = (objective(x=at + d, p=p) - objective(x=at - d, p=p)) / 2e-6
            np.testing.assert_allclose(grads[i, j], slope, atol=1e-8)


def test_binary_cross_entropy_takes_any_shape_and_spreads_weights():
    o = tw.objective("bce_with_logits")
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((4, 3)), rng.random((4, 3))
    each = (1 - t) * z + np.log1p(np.exp(-z))
    np.testing.assert_allclose(o(z=z[0, 0], t=t[0, 0]), each[0, 0])
    for weight in (rng.random(3), rng.random((4, 1)), rng.random((1, 3)), rng.random()):
        weight = np.asarray(weight)
        np.testing.assert_allclose(o(z=z, t=t, weight=weight), (weight * each).mean())
    with pytest.raises(tw.ShapeError, match="spread"):
        o(z=z, t=t, weight=np.ones((3, 1)))


def test_shapes_that_were_refused():
    value, out = tw.weighting("hybrid_post_training").value_and_grad(rewards=np.zeros((2, 0)))
    assert value == 2 and out["weights"].shape == (2, 0) and (out["demonstration"] == 1).all()
    assert np.isfinite(tw.objective("coarse_to_fine_blur(sigma=1, axes=1)")(x=np.ones(3), dy=np.ones(3)))
    with pytest.raises(tw.ShapeError, match="H, W"):
        tw.objective("coarse_to_fine_blur(sigma=1)")(x=np.ones(3))
    w, g = (np.random.default_rng(k).standard_normal((2, 3, 2, 2)) for k in (0, 1))
    for name in ("weight_conditioning", "weight_standardization"):
        flat = tw.objective(name).value_and_grad(w=w.reshape(2, -1), g=g.reshape(2, -1))
        deep = tw.objective(name).value_and_grad(w=w, g=g)
        assert flat[0] == deep[0]
        np.testing.assert_array_equal(deep[1]["w"].reshape(2, -1), flat[1]["w"])
    with pytest.raises(tw.RangeError, match="`m` must lie"):
        tw.diagnostic("compound_binomial")(x=np.array([3.0, 2]), n=np.array([4.0, 4]), m=np.array([1.5, 0.5]))


# ---- aggregators, solvers

def test_opposite_gradients_cancel():
    for rows in ([[1.0], [-2.0]], [[3.0, 4], [-6, -8]]):
        np.testing.assert_array_equal(tw.aggregate("config")(np.array(rows)), 0)


def test_no_conflict_is_left_between_rows_of_different_lengths():
    rng = np.random.default_rng(138)
    m = int(rng.integers(2, 10))
    rows = rng.standard_normal((m, m + 3)) * 10.0 ** rng.uniform(-3, 3, (m, 1))
    for name in ("dualproj", "upgrad"):
        x = tw.aggregate(f"{name}(norm_eps=0, reg_eps=0)")(rows)
        assert (rows @ x / np.linalg.norm(rows, axis=1)).min() >= -1e-6 * np.linalg.norm(x)


def test_constraints_that_were_not_observed_weigh_nothing():
    seen = []
    tw.solver("primal_dual(inequalities=2, max_iter=1)").run(
        multipliers0=np.array([3.0, 5]), constraints=lambda: (np.array([np.nan, 1.0]), np.array([np.nan, 1.0])),
        descend=lambda weights: seen.append(np.array(weights)))
    np.testing.assert_allclose(seen, [[0, 5.01]])


def test_a_line_without_numbers_has_no_minimum():
    assert tw.solver("golden_section").run(low=-2.0, high=3.0, value=lambda a: float("nan")).outcome == "nonfinite"


@pytest.mark.parametrize("seed", range(8))
def test_charts_of_too_low_rank_are_refused(seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((4, 1))
    jacobians = np.concatenate([a, a * rng.standard_normal()], 1)[None]
    with pytest.raises(tw.NumericError, match="singular"):
        tw.solver("chart_step(lr=0.1, retraction=chart)").run(
            x0=np.zeros(4), coordinates=np.zeros((1, 2)), jacobians=jacobians, gradients=np.ones((1, 2)),
            weights=np.ones(1), decode=lambda chart, u: np.concatenate([u, u]))


@pytest.mark.parametrize("rule", [
    "riemannian_sgd(lr=0.1)", "mirror_descent(lr=0.1, geometry=l2)", "prox_sgd(l1(1e-3), lr=0.1)", "ranger(lr=0.1)", "split_sgd(lr=0.1)"])
def test_stages_behind_rules_that_take_their_own_step_see_a_direction(rule):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 5))
    w = start.copy()
    optimizer = tw.Optimizer([w], rule + " | hyperball")
    for _ in range(3):
        optimizer.step([rng.standard_normal((4, 5))])
    np.testing.assert_allclose(np.linalg.norm(w), np.linalg.norm(start), rtol=1e-9)
    plain, decayed = (stepped(rule + more, start, np.zeros((4, 5))) for more in ("", " | decoupled_weight_decay(0.3)"))
    np.testing.assert_allclose(decayed, plain - 0.1 * 0.3 * start, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("stages", [
    "", "cautious_decay | ", "corrected_decay(max_lr=0.8) | ", "decoupled_weight_decay(0.3) | ", "radial_brake | ", "relative_update | ",
    "hyperball | ", "lawn(part=norm) | ", "cautious_decay | radial_brake | "])
def test_a_step_size_that_is_set_moves_along_the_proposed_update(stages, share):
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    start = w.copy()
    optimizer = tw.Optimizer([w], f"adamw(lr=0.4, weight_decay=0.5) | {stages}ghost_step")
    for request in optimizer.requests():
        if request.kind == "logit_derivatives":
            update = request.probe[0].copy()
            rows = np.zeros((2, 4))
            rows[:, 0] = np.pi / (0.4 * share)
            request.answer_matrix(rows)
        else:
            request.answer([g], 1.0)
    tau = optimizer.get("ghost_step.tau")
    np.testing.assert_allclose(tau, 0.4 * share)
    np.testing.assert_allclose(w, start + tau * update, rtol=1e-12, atol=1e-14)


def test_an_average_behind_the_rule_takes_the_decay_that_was_decided():
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(5), rng.standard_normal((4, 5))
    corrected = stepped("adamw(lr=0.1, weight_decay=0.5) | corrected_decay(max_lr=0.2) | schedule_free", start, *gradients)
    np.testing.assert_allclose(corrected, stepped("adamw(lr=0.1, weight_decay=0.25) | schedule_free", start, *gradients), rtol=1e-9)


@pytest.mark.parametrize("lr", ["exponential(0.4, 1.05)", "exponential(0.4, 1.00001)", "linear(lr=0.4, total=1000000000, end=1e9)"])
@pytest.mark.parametrize("stage", [
    "sgd(lr={}) | decoupled_weight_decay(0.3, mode=independent)", "adamw(lr={}, weight_decay=0.3) | corrected_decay"])
def test_a_rate_that_grows_without_end_is_its_own_peak(lr: str, stage: str):
    w, rates = np.ones((2, 2)), tw.schedule(lr)
    opt = tw.Optimizer([w], stage.format(lr))
    want = 1.0
    for k in range(3):
        opt.step([np.zeros((2, 2))])
        want *= 1 - (0.3 if "independent" in stage else 0.3 * rates(k))
    np.testing.assert_allclose(w, want, rtol=1e-12)


@pytest.mark.parametrize("lr", ["warmup_cosine(0.5, 3, 9)", "cosine_restarts(0.5, 7)", "exponential(0.5, 0.9)"])
def test_other_rates_have_a_peak(lr: str):
    w, rates = np.ones((2, 2)), tw.schedule(lr)
    tw.Optimizer([w], f"sgd(lr={lr}) | decoupled_weight_decay(0.3, mode=independent)").step([np.zeros((2, 2))])
    np.testing.assert_allclose(w, 1 - rates(0) / 0.5 * 0.3, rtol=1e-6)


def test_the_peak_of_a_rate_that_follows_the_run_is_its_first():
    w = np.ones(2)
    optimizer = tw.Optimizer([w], "adamw(lr=reduce_on_plateau(lr=0.1, factor=0.5, patience=0), weight_decay=0.5) | corrected_decay")
    expected = 1.0
    for k in range(5):
        expected *= 1 - optimizer.get("lr") ** 2 / 0.1 * 0.5
        optimizer.step([np.zeros(2)])
        optimizer.observe("metric", 1.0 + k)
    assert optimizer.get("lr") < 0.05
    np.testing.assert_allclose(w, expected, rtol=1e-9)


@pytest.mark.parametrize("stage", ["relative_update", "radial_brake(form=direction)", "radial_brake(form=direction, pin=true)"])
def test_what_a_mask_spares_counts_in_norms(stage):
    rng = np.random.default_rng(1)
    start, g = rng.standard_normal(7), rng.standard_normal(7)
    lr, wd = 0.1, 0.5
    w = stepped(f"adamw(lr={lr}, weight_decay={wd}, eps=0) | cautious_decay | {stage}", start, g)
    u = np.sign(g)
    decayed = start * np.where(u * start >= 0, 1 - lr * wd, 1)
    size = np.linalg.norm(decayed)
    if stage == "relative_update":
        u = u * size / np.linalg.norm(u)
    else:
        c = u @ decayed / size**2
        u = u + ((0.5 if c < 0 else 1) - 1) * c * decayed
    new = decayed - lr * u
    if "pin" in stage:
        new *= (size - lr * (u @ decayed) / size) / np.linalg.norm(new)
    np.testing.assert_allclose(w, new, rtol=1e-9)


def test_masks_stand_once_and_see_the_direction():
    with pytest.raises(tw.MethodError, match="twice"):
        tw.Optimizer([np.ones(2)], "adamw | cautious_decay | cautious_decay")
    orders = ["cautious_decay | decoupled_weight_decay(3, min_rank=0)", "decoupled_weight_decay(3, min_rank=0) | cautious_decay"]
    one, other = (stepped(f"adamw(lr=0.1, weight_decay=0.5) | {order}", POINT, SIGNS) for order in orders)
    np.testing.assert_array_equal(one, other)


def test_losses_that_are_never_finite_move_nothing():
    w = np.array([1.0, 2])
    optimizer = tw.Optimizer([w], "openai_es(pairs=2) | sgd(lr=0.1)")
    for request in optimizer.requests():
        request.answer(loss=np.nan)
    np.testing.assert_array_equal(w, [1, 2])


def test_no_samples_weigh_nothing_whatever_their_mean():
    w = np.zeros(2)
    optimizer = tw.Optimizer([w], "gradient_accumulate(every=2, mode=weighted) | sgd(lr=1)")
    for samples, g in ((0, [np.nan, np.nan]), (3, [1.0, 2])):
        optimizer.observe("samples", samples)
        optimizer.step([np.array(g)])
    np.testing.assert_array_equal(w, [-1, -2])


def test_the_power_of_a_norm_is_fixed():
    for sentence, path in (("clip_norm(0.5) | sgd", "norm_type"), ("clip_global_norm(0.5) | sgd", "norm_type"), ("sgd | radial_brake", "radial_brake.form")):
        optimizer = tw.Optimizer([np.ones(4)], sentence)
        with pytest.raises(tw.SequenceError, match="fixed"):
            optimizer.set(path, 3 if path == "norm_type" else "direction")


@pytest.mark.parametrize("sentence", [
    "schedule_free_sgd | project(l2_ball(0.5))", "sgd | schedule_free | prox(l1(1e-3))", "adam | schedule_free | magnitude_pruning(0.5)"])
def test_averages_refuse_what_moves_the_parameters_alone(sentence):
    with pytest.raises(tw.MethodError, match="averaged"):
        tw.Optimizer([np.ones((3, 3))], sentence)
    tw.Optimizer([np.ones((3, 3))], "sgd | ema | project(l2_ball(1))")
