"""Compositions that once passed without a word and did something else: sources in a route, penalties before rules that ask
for their own gradients, trials without a loss, noise of several ranks, thresholds over all tensors.  What cannot be right is
refused; everything else is compared with what it has to be."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import thalweg as tw

PRIVATE = "dp_sgd(noise_multiplier=0, expected_batch_size=2, clip=10)"


def test_a_source_without_gradients_in_a_route_steps():
    x, m = np.ones(3), np.ones((2, 2))
    with tw.Optimizer([x, m], f"route(vector=({PRIVATE} | sgd(lr=0.1)), other=(sgd(lr=0.2)))") as opt:
        for r in opt.requests():
            if r.kind == "sample_gradients":
                r.answer_samples([np.ones((2, 3)), np.ones((2, 2, 2))])
            else:
                r.answer([np.ones(3), np.ones((2, 2))])
    np.testing.assert_allclose(x, 0.9)  # the mean of two samples of 1, none of them clipped
    np.testing.assert_allclose(m, 0.8)


RULES = "lbfgs", "nonlinear_cg", "newton_cg", "rolling_ball", "saddle_free_newton", "u_dog", "fish(meta_steps=2)"


@pytest.mark.parametrize("rule", RULES)
def test_a_penalty_before_a_rule_that_asks_for_its_own_gradients_is_refused(rule):
    with pytest.raises(tw.MethodError, match="add the term to the loss"):
        tw.Optimizer([np.ones(3)], f"penalty(l2(1)) | {rule}")


@pytest.mark.parametrize("rule", ["adahessian", "sophia", "oasis", "psgd_kron"])
def test_a_penalty_before_a_rule_with_curvature_is_taken(rule):
    tw.Optimizer([np.ones((3, 3))], f"penalty(l2(1)) | {rule}").close()


BEFORE = "", "gradient_accumulate(1) | ", "gradient_accumulate(2) | ", "sam(0.001) | ", "gradient_accumulate(2) | sam(0.001) | "


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("rule", ["lbfgs(line_search=strong_wolfe)", "nonlinear_cg"])
@pytest.mark.parametrize("nothing", [np.inf, np.nan])
def test_a_trial_without_a_finite_loss_fails_behind_sources_too(before, rule, nothing):
    x = np.array([1.0, 2.0])

    def loss():
        return float(np.sum(x - 0.5 * np.log(x))) if (x > 0).all() else nothing

    failed, first = 0, loss()
    with tw.Optimizer([x], before + rule) as opt:
        for _ in range(8):
            for r in opt.requests():
                value = loss()
                failed += not np.isfinite(value)
                with np.errstate(divide="ignore", invalid="ignore"):
                    r.answer([1 - 0.5 / x], value)
    assert failed  # (a step of 1 along -g, grown by the search, leaves the domain)
    assert loss() < first


@pytest.mark.parametrize("sentence", [
    f"{PRIVATE} | pcgrad(tasks=2) | sgd", "openai_es(pairs=1) | pcgrad(tasks=2) | sgd", "zo_gradient | upgrad(tasks=2) | sgd",
    f"{PRIVATE} | coordinate_median(tasks=2) | sgd",
])
def test_one_gradient_made_of_all_before_the_gradients_of_tasks_is_refused(sentence):
    with pytest.raises(tw.MethodError, match="asks for the gradient of every task"):
        tw.Optimizer([np.ones(3)], sentence)


def pruned(order, again=None):
    """Zeros of two tensors whose magnitudes are all the same."""
    sentence = "sgd(lr=0) | magnitude_pruning(linear(0.17, total=2, end=0.6))"
    w = {"a": np.ones(3), "b": np.ones(3)}
    opt = tw.Optimizer([(k, w[k]) for k in order], sentence)
    opt.step([np.zeros(3)] * 2)
    if again:
        other = tw.Optimizer([(k, w[k]) for k in again], sentence)
        other.load_state_dict(opt.state_dict())
        opt = other
    opt.step([np.zeros(3)] * 2)
    return {k: v.tolist() for k, v in w.items()}


def test_ties_of_a_global_threshold_do_not_go_by_the_order_of_binding():
    assert pruned("ab") == pruned("ab", "ba")
    assert pruned("ba") == pruned("ba", "ab")


def test_a_group_of_which_nothing_is_to_be_pruned_keeps_all():
    a, b, c = np.linspace(1, 2, 8), np.linspace(0.1, 0.2, 8), np.linspace(3, 4, 8)
    groups = [{"params": [a, c]}, {"params": [b], "sparsity": 0.0}]
    with tw.Optimizer(groups, "sgd(lr=1) | magnitude_pruning(0.5, min_keep=0)") as opt:
        opt.step([np.zeros(8)] * 3)
    assert (a == 0).all() and (b != 0).all() and (c != 0).all()  # half of those that are left: the smaller tensor


@pytest.mark.parametrize("use", ["prox", "penalty", "decoupled"])
def test_initial_weights_that_a_partial_load_leaves_out_are_sorted_all_the_same(use):
    w = np.array([3.0, -1, 2, 0.5])
    opt = tw.Optimizer([("w", w)], "sgd(lr=0.1)")
    opt.step([np.zeros(4)])
    before = w.copy()
    stage = f"{use}(wasserstein_init(0.5))"
    sentence = f"{stage} | sgd(lr=0.1)" if use == "penalty" else f"sgd(lr=0.1) | {stage}"
    other = tw.Optimizer([("w", w)], sentence)
    other.load_state_dict(opt.state_dict(), strict=False)
    other.step([np.zeros(4)])
    np.testing.assert_array_equal(w, before)  # they are where they began


def test_bounds_of_a_box_may_follow_schedules():
    w = np.full(3, 5.0)
    with tw.Optimizer([w], "sgd | project(box(lo=constant(0), hi=linear(3, total=3, end=0)))") as opt:
        for hi in (3, 2, 1, 0):
            opt.step([np.zeros(3)])
            np.testing.assert_allclose(w, hi)
    with pytest.raises(tw.RangeError, match="must not be above"):
        tw.Optimizer([w], "sgd | project(box(lo=2, hi=1))")


def test_ranks_draw_different_numbers():
    def noise(rank):
        w = [np.zeros(5), np.zeros(5)]
        opt = tw.Optimizer(w, "gradient_noise | sgd")
        opt.set_reducer(lambda sums, maxima: None, "tensors", rank=rank)
        opt.step([np.zeros(5), np.zeros(5)])
        return [x.tolist() for x in w]

    assert noise(0) == noise(0)
    all_of_them = noise(0) + noise(1) + noise(2)
    assert all(all_of_them[i] != all_of_them[j] for i in range(6) for j in range(i))
    opt = tw.Optimizer([np.zeros(1)], "sgd")
    for bad in (-1, 1 << 14):
        with pytest.raises(ValueError, match="rank must be in"):
            opt.set_reducer(lambda sums, maxima: None, rank=bad)


def test_a_period_by_the_number_of_parameters_counts_those_of_all_ranks():
    """Without `restart` nonlinear_cg begins anew after as many steps as there are parameters, on all ranks."""
    seen = []

    def reduce(sums, maxima):
        seen.append(sums.copy())
        sums += np.where(sums == 3, 4, 0)  # the other rank has four numbers

    x = np.array([1.0, 2.0, 3.0])
    opt = tw.Optimizer([x], "nonlinear_cg")
    opt.set_reducer(reduce)
    for r in opt.requests():
        r.answer([x.copy()], float(0.5 * x @ x))
    assert any((s == 3).any() for s in seen)


MEMORY = """
import sys
import numpy as np
import thalweg as tw
def held():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
w = [np.ones(4_000_000, 'f4'), np.eye(16, dtype='f4')]
g = [np.ones(4_000_000, 'f4'), np.ones((16, 16), 'f4')]
opt = tw.Optimizer(w, sys.argv[1])
if sys.argv[2] == 'reducer':
    opt.set_reducer(lambda sums, maxima: None, 'elements')
before = held()
opt.step(g)
opt.step(g)
print(held() - before)
"""


def grown(sentence: str, how: str = "alone") -> int:
    command = [sys.executable, "-c", MEMORY, sentence, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("sentence, how", [
    ("route(matrix=(soap), other=(adamw))", "alone"), ("route(matrix=(adamw | project(stiefel)), other=(adamw))", "alone"),
    ("adamw", "reducer"), ("clip_global_norm(1) | adamw", "reducer"),
])
def test_tensors_that_are_not_at_risk_are_not_copied(sentence, how):
    """adamw has 8 bytes of state an element, 32 MB; copies of it and of the weights would be 48 MB more."""
    assert grown(sentence, how) < grown("adamw") + 24_000_000


def test_a_group_of_torch_that_names_a_stage_is_heard_at_every_step():
    torch = pytest.importorskip("torch")
    import thalweg.torch as tt

    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    opt = tt.Optimizer([{"params": [p], "sgd.lr": 0.5}], "sgd(lr=0.1)")
    assert opt.param_groups[0]["lr"] == 0.5 and "sgd.lr" not in opt.param_groups[0]
    opt.step()
    opt.param_groups[0]["sgd.lr"] = 0.25
    opt.step()
    assert opt.param_groups[0]["lr"] == 0.25 and p[0].item() == -0.75
    opt.param_groups[0]["sgd.lr"] = -1
    with pytest.raises(tw.RangeError, match="at least 0"):
        opt.step()
    assert p[0].item() == -0.75


@pytest.mark.parametrize("sentence", ["sgd(lr=0.1) | magnitude_pruning(0.5)", "grokadamw"])
def test_what_goes_by_the_other_tensors_is_refused_within_the_backward_pass(sentence):
    torch = pytest.importorskip("torch")
    import thalweg.torch as tt

    m = torch.nn.Linear(4, 3)
    with pytest.raises(tw.UnsupportedError, match="needs all gradients at once"):
        tt.InBackward(m.named_parameters(), sentence)
    tt.InBackward(m.named_parameters(), "sgd(lr=0.1) | magnitude_pruning(0.5, scope=local)").remove()


@pytest.mark.parametrize("name", ["coordinate_median", "median_gd", "trimmed_mean", "graddrop", "and_mask", "upgrad"])
def test_a_gradient_that_is_no_number_is_named_with_its_task(name):
    w = np.ones(3)
    opt = tw.Optimizer([w], f"{name}(tasks=3) | sgd", nonfinite="error")
    with pytest.raises(tw.NonfiniteError, match="gradient 0 of task 1"):
        for r in opt.requests():
            r.answer([np.array([1.0, np.nan, 0.0]) if r.index == 1 else np.ones(3)])
    assert (w == 1).all()


def test_solvers_have_not_converged_to_what_is_no_number():
    """Distances of 1e19 squared are infinite in float32, and their differences no numbers."""
    x = np.random.default_rng(0).standard_normal((6, 3))
    support = (1e19 * x).astype(np.float32)
    run = tw.solver("transductive_clustering(classes=2)").run(
        queries=support, support=support[:4], y=np.array([0, 1, 0, 1]))
    assert not np.isnan(run["z"]).any() or run.outcome == "nonfinite"


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(tw.ShapeError, match=r"muon needs a tensor of rank 2 or more, got shape \(5,\)"):
        tw.Optimizer([np.ones(5)], "muon")


@pytest.mark.parametrize("last", ["project(stiefel)", "project(spd)", "project(psd_cone)", "prox(nuclear_norm(1))"])
def test_a_step_that_fails_behind_the_move_leaves_the_narrow_copies_too(last):
    a, b = np.eye(3), np.eye(3)
    copies = [np.full((3, 3), 7, np.float16) for _ in range(2)]
    opt = tw.Optimizer([a, b], f"sgd(lr=1e10) | {last}")
    opt.bind_shadow(copies)
    with pytest.raises(tw.Error):
        opt.step([np.full((3, 3), 1e-12), np.full((3, 3), 1e300)])  # the second overflows as it moves
    assert (a == np.eye(3)).all() and (b == np.eye(3)).all() and all((c == 7).all() for c in copies)
