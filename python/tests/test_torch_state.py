"""State in torch's shape; runs that move between torch.optim and here; torch.distributed.checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from test_torch_classes import CASES, CLOSE, gradients, problem
from torch_support import parameter, step, torch

import thalweg as tw
import thalweg.torch as twt
from thalweg.torch._state import CONVERTS

MOVES = [(name, arguments) for name, arguments in CASES if name in CONVERTS] + [("Muon", dict(lr=0.01))]


def run(opt: Any, params: list[Any], first: int, last: int) -> list[Any]:
    for k in range(first, last):
        gradients(params, k)
        opt.step()
    return [p.detach().clone() for p in params]


def moved(made: Any, params: list[Any], name: str, arguments: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Another optimizer on equal parameters, with other rates, which what is loaded has to replace."""
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    return made(others, **{**copy.deepcopy(arguments), "lr": 0.7}), others


@pytest.mark.parametrize("back", [False, True], ids=["from torch", "to torch"])
@pytest.mark.parametrize("name, arguments", MOVES)
def test_a_run_moves_in_both_directions(name: str, arguments: dict[str, Any], back: bool) -> None:
    """Six steps there, six here: as twelve there."""
    dtype = torch.float32 if name == "Muon" else torch.float64
    ours, theirs = getattr(twt, name), getattr(torch.optim, name)
    params = problem(dtype, name == "Muon")
    straight = copy.deepcopy(params)
    want = run(theirs(straight, **copy.deepcopy(arguments)), straight, 0, 12)
    opt = (ours if back else theirs)(params, **copy.deepcopy(arguments))
    run(opt, params, 0, 6)
    other, params = moved(theirs if back else ours, params, name, arguments)
    other.load_state_dict(opt.to_torch_state_dict() if back else opt.state_dict())
    assert other.param_groups[0]["lr"] == arguments.get("lr", other.__class__(problem(dtype, True)).param_groups[0]["lr"])
    for p, q, start in zip(run(other, params, 6, 12), want, problem(dtype, name == "Muon"), strict=True):
        if name == "Muon":
            assert (p - q).norm() < 0.02 * (q - start).norm()
        else:
            torch.testing.assert_close(p, q, **CLOSE[torch.float32 if name == "NAdam" else dtype])


def test_groups_and_parameters_without_a_gradient_move_too() -> None:
    def made(cls: Any, params: list[Any]) -> Any:
        return cls([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "weight_decay": 0.5}], lr=0.01)

    params = [*problem(torch.float64), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]
    opt = made(torch.optim.AdamW, params)
    torch.optim.lr_scheduler.StepLR(opt, 2)
    for k in range(3):
        gradients(params[:2], k)
        opt.step()
    twin = copy.deepcopy(params)
    other = made(twt.AdamW, twin)
    other.load_state_dict(opt.state_dict())
    assert [g["lr"] for g in other.param_groups] == [0.1, 0.01] and other.param_groups[0]["initial_lr"] == 0.1
    for k in range(3, 6):
        for o, group in ((opt, params), (other, twin)):
            gradients(group, k)
            o.step()
    for p, q in zip(twin, params):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)
    theirs = made(torch.optim.AdamW, params)
    theirs.load_state_dict(other.to_torch_state_dict())
    assert [float(row["step"]) for row in theirs.state_dict()["state"].values()] == [6.0, 6.0, 3.0]


def test_sentences_move_where_their_rule_has_a_twin() -> None:
    params = problem(torch.float32)
    opt = twt.Optimizer(params, "clip_global_norm(1.0) | adamw(lr=0.1, amsgrad=true)", state_dtype="bf16")
    run(opt, params, 0, 3)
    theirs = torch.optim.AdamW(params, amsgrad=True)
    theirs.load_state_dict(opt.to_torch_state_dict())
    assert theirs.param_groups[0]["lr"] == 0.1 and theirs.param_groups[0]["amsgrad"] is True
    assert {*theirs.state[params[0]]} == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    for sentence in ("lion", "adamw | ema(0.9)", "muon", "route(matrix=(muon), other=(adamw))"):
        with pytest.raises(tw.MismatchError):
            twt.Optimizer(problem(torch.float32, True), sentence).to_torch_state_dict()


def test_a_state_of_another_method_is_refused_and_nothing_changes() -> None:
    params = problem(torch.float64)
    opt = twt.Adam(params, lr=0.5)
    before = run(opt, params, 0, 2)
    state = opt.engine.state_dict()["state"]
    for cls, arguments, expected in [
        (torch.optim.SGD, dict(momentum=0.9), "momentum_buffer"), (torch.optim.Adam, dict(amsgrad=True), "amsgrad|max_exp"),
        (torch.optim.Adamax, {}, "exp_inf"), (torch.optim.RMSprop, {}, "exp_avg|square_avg"),
    ]:
        others = problem(torch.float64)
        other = cls(others, **arguments)
        run(other, others, 0, 1)
        with pytest.raises(tw.Error, match=expected):
            opt.load_state_dict(other.state_dict())
        assert opt.engine.state_dict()["state"] == state and opt.param_groups[0]["lr"] == 0.5
    assert all(torch.equal(p.detach(), q) for p, q in zip(params, before))
    with pytest.raises(tw.CountError, match="groups"):
        opt.load_state_dict(torch.optim.Adam(params[:1]).state_dict())
    small = twt.Adam([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(5))])
    others = problem(torch.float32)
    other = torch.optim.Adam(others)
    run(other, others, 0, 1)
    with pytest.raises(tw.MismatchError, match="shape"):
        small.load_state_dict(other.state_dict())


@pytest.mark.parametrize("cls", ["SGD", "Lion"])
def test_no_part_is_offered_of_the_state_of_another_method(cls: str) -> None:
    """strict=False refuses it as well, and the first message does not send there."""
    params = problem(torch.float64)
    theirs = torch.optim.AdamW(params)
    run(theirs, params, 0, 1)
    opt = getattr(twt, cls)(params)
    for strict in (True, False):
        with pytest.raises(tw.MismatchError) as told:
            opt.load_state_dict(theirs.state_dict(), strict=strict)
        assert "strict=False" not in str(told.value)
    with pytest.raises(tw.MismatchError, match="strict=False takes what fits"):  # of the same, for other shapes
        twt.AdamW([torch.nn.Parameter(torch.ones(2)) for _ in params]).load_state_dict(theirs.state_dict())


OTHERS = [("SGD", dict(lr=0.1, momentum=0.9), "momentum"), ("RMSprop", {}, "alpha"), ("Adadelta", {}, "rho"),
          ("Adamax", {}, "amsgrad"), ("NAdam", dict(decoupled_weight_decay=True), "momentum_decay")]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name, arguments, says", OTHERS)
def test_a_state_of_another_method_without_a_step_is_refused(
    name: str, arguments: dict[str, Any], says: str, strict: bool
) -> None:
    params = problem(torch.float64)
    opt = twt.AdamW(params, lr=0.5)
    keys = {*opt.param_groups[0]}
    other = getattr(torch.optim, name)(params, **arguments)
    with pytest.raises(tw.MismatchError, match=f"another optimizer.*{says}"):
        opt.load_state_dict(other.state_dict(), strict=strict)
    with pytest.raises(tw.MismatchError, match="another optimizer"):
        twt.Lion(params).load_state_dict(torch.optim.SGD(params).state_dict())
    assert opt.param_groups[0]["lr"] == 0.5 and {*opt.param_groups[0]} == keys


@pytest.mark.parametrize("name", [*CONVERTS])
def test_a_state_of_the_same_method_without_a_step_is_taken(name: str) -> None:
    params = [torch.nn.Parameter(torch.ones(2, 2))]
    opt, theirs = getattr(twt, name)(params), getattr(torch.optim, name)(params, lr=0.25)
    opt.load_state_dict(theirs.state_dict())
    assert opt.param_groups[0]["lr"] == 0.25
    if name == "AdamW":
        sentence = twt.Optimizer(params, "clip_global_norm(1.0) | adamw | ema")
        sentence.load_state_dict(theirs.state_dict())
        assert sentence.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_that_went_through_torch_says_so(strict: bool) -> None:
    params = problem(torch.float32)
    opt = twt.AdamW(params)
    run(opt, params, 0, 2)
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(opt.state_dict())  # torch takes anything
    with pytest.raises(tw.FormatError, match=r"went through an optimizer of torch\.optim.*to_torch_state_dict\(\)"):
        opt.load_state_dict(theirs.state_dict(), strict=strict)


def test_state_is_seen_by_parameter() -> None:
    params = problem(torch.float32)
    opt, theirs = twt.AdamW(params), torch.optim.AdamW(problem(torch.float32))
    assert opt.state[params[0]]["step"] == 0
    run(opt, params, 0, 3)
    run(theirs, [*theirs.param_groups[0]["params"]], 0, 3)
    for p, q in zip(params, theirs.param_groups[0]["params"]):
        for key, value in theirs.state[q].items():
            torch.testing.assert_close(opt.state[p][key], value, rtol=1e-5, atol=1e-9)
    saved = opt.state_dict()
    kept = saved["state"][0]["exp_avg"].clone()
    run(opt, params, 3, 4)
    assert torch.equal(saved["state"][0]["exp_avg"], kept) and opt.state[params[0]]["step"] == 4


PIPELINES = ["adamw", "nadam | ema(0.9)", "prodigy", "schedule_free_adamw", "route(matrix=(muon), other=(adamw))",
             "clip_global_norm(1.0) | sgd(lr=linear(lr=1.0, end=0, total=8), momentum=0.9)"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sentence", PIPELINES)
def test_a_state_dict_through_a_file_gives_the_same_bits(sentence: str, named: bool, tmp_path: Any) -> None:
    def made(params: list[Any]) -> Any:
        given = [(f"layer.{k}/w", p) for k, p in enumerate(params)] if named else params
        return twt.Optimizer(given, sentence)

    params = problem(torch.float32)
    opt = made(params)
    run(opt, params, 0, 3)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    twin = copy.deepcopy(params)
    other = made(twin)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.engine.state_dict()["state"] == opt.engine.state_dict()["state"]
    for p, q in zip(run(opt, params, 3, 6), run(other, twin, 3, 6)):
        assert torch.equal(p, q)


def test_eight_bits_and_masters_and_a_state_within_evaluation(tmp_path: Any) -> None:
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(80, 80)), torch.nn.Parameter(torch.randn(7))]
    opt = twt.Optimizer(params, "adamw(lr=0.1) | ema(0.5)", state_dtype="q8")
    half = [torch.nn.Parameter(torch.randn(8, 8, dtype=torch.bfloat16))]
    low = twt.AdamW(half, lr=0.1, master="f32")
    for o, group in ((opt, params), (low, half)):
        run(o, group, 0, 2)
        twin = copy.deepcopy(group)
        other = type(o)(twin, **({"sentence": "adamw | ema(0.5)", "state_dtype": "q8"} if o is opt else {"master": "f32"}))
        other.load_state_dict(o.state_dict())
        for p, q in zip(run(o, group, 2, 4), run(other, twin, 2, 4)):
            assert torch.equal(p, q)
    assert low.state[half[0]]["master"].dtype == torch.float32
    state = low.to_torch_state_dict()["state"][0]
    assert state["exp_avg"].dtype == torch.bfloat16
    assert opt.state[params[0]]["exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("flat", [False, True])
def test_torch_distributed_checkpoint(flat: bool, tmp_path: Any) -> None:
    """On one process, without a process group: saved, and loaded into a fresh model whose groups come in another order."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def made(order: int) -> tuple[Any, Any]:
        torch.manual_seed(order)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        groups = [{"params": [*layer.named_parameters(str(k))], "lr": 0.1 + 0.1 * k} for k, layer in enumerate(model)]
        return model, twt.NAdam(groups[::order], before="clip_global_norm(1.0)")

    def steps(model: Any, opt: Any, count: int) -> None:
        for k in range(count):
            gradients([*model.parameters()], k)
            opt.step()

    model, opt = made(1)
    steps(model, opt, 3)
    weights, state = get_state_dict(model, opt, options=options)
    assert opt.engine.steps == 3 and state
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "saved")
    other, again = made(-1)
    weights, state = get_state_dict(other, again, options=options)
    assert again.engine.steps == 0
    whole = {"model": weights, "optimizer": state}
    dcp.load(whole, checkpoint_id=tmp_path / "saved")
    set_state_dict(other, again, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"], options=options)
    assert again.engine.steps == 3 and [g["lr"] for g in again.param_groups] == [0.2, 0.1]
    steps(model, opt, 3)
    steps(other, again, 3)
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)


@pytest.mark.parametrize("sentence, most", [
    ("adamw", 4096), ("clip_global_norm(1.0) | adamw(lr=cosine(lr=0.1, total=10)) | ema(0.9)", 8192),
    ("route(matrix=(muon), other=(adamw))", 16384), ("mfac", 40960)])
def test_what_belongs_to_the_run_has_one_size_whatever_has_changed(sentence: str, most: int) -> None:
    """torch.distributed.checkpoint loads into tensors of the size that was saved."""
    def made(count: int = 1) -> Any:
        return twt.Optimizer([{"params": [parameter([[1.0, 2.0], [3.0, 4.0]])]} for _ in range(count)], sentence)

    for count in (1, 3):
        opt = made(count)
        size = opt.state_dict()["state"][0]["thalweg"].numel()
        assert size <= most * count
        for k in range(4):
            for group in opt.param_groups:
                group["lr"] = 0.012345678901234567 / (k + 1)
            step(opt)
            assert opt.state_dict()["state"][0]["thalweg"].numel() == size
        # as an earlier version padded it
        state = opt.state_dict()
        head = bytes(state["state"][0]["thalweg"].tolist())
        state["state"][0]["thalweg"] = torch.tensor(list(head.ljust(1 << 16)), dtype=torch.uint8)
        again = made(count)
        again.load_state_dict(state)
        assert again.engine.steps == 4 and again.param_groups[0]["lr"] == opt.param_groups[0]["lr"]


def test_state_dicts_that_are_none() -> None:
    """Each refusal leaves the state as it was."""
    def stepped(library: Any, name: str) -> Any:
        opt = getattr(library, name)([parameter(1.0, 2.0), parameter(1.0)])
        step(opt)
        return opt

    opt = stepped(twt, "Adam")
    good, before = opt.state_dict(), opt.engine._save()
    groups, (first, second) = good["param_groups"], (good["state"][0], good["state"][1])
    wrong = [
        (None, tw.ArgumentError, "NoneType"), ([], tw.ArgumentError, "a list"),
        ({"state": {0: 5, 1: second}, "param_groups": groups}, tw.ArgumentError, "a dict, not 5"),
        ({"state": {0: {**first, "exp_avg": torch.zeros(2, dtype=torch.int64)}, 1: second}, "param_groups": groups},
         tw.FormatError, "int64"),
        ({"state": good["state"], "param_groups": [{**groups[0], "amsgrad": True}]},
         tw.ArgumentError, "'amsgrad' is settled"),
    ]
    for state_dict, kind, says in wrong:
        with pytest.raises(kind, match=says):
            opt.load_state_dict(state_dict)
        assert opt.engine._save() == before
    step(opt)
    with pytest.raises(tw.MismatchError, match="mu_product"):
        stepped(twt, "NAdam").load_state_dict(stepped(torch.optim, "Adam").state_dict())
