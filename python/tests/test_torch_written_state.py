"""`opt.state` as torch's users treat it: written in place, replaced, deleted, cleared; the next step goes by that."""

from __future__ import annotations

import collections
import copy
from typing import Any, Callable

import pytest
from torch_support import parameter, step, torch

import thalweg as tw
import thalweg.torch as twt
from thalweg.torch import Optimizer

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", dict(momentum=0.9)), ("Adam", {}), ("AdamW", dict(amsgrad=True)),
    ("Adagrad", dict(initial_accumulator_value=0.5)), ("RMSprop", dict(centered=True, momentum=0.5)),
    ("Adamax", {}), ("NAdam", {}), ("RAdam", {}), ("Adadelta", {}), ("Rprop", {}),
]


def tensors(row: dict[str, Any], p: Any) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, torch.Tensor) and value.shape == p.shape]


def cleared(opt: Any, params: list[Any]) -> None:
    opt.state.clear()


def replaced_whole(opt: Any, params: list[Any]) -> None:
    opt.state = collections.defaultdict(dict)


def deleted(opt: Any, params: list[Any]) -> None:
    del opt.state[params[0]]


def scaled(opt: Any, params: list[Any]) -> None:
    for key in tensors(row := opt.state[params[1]], params[1]):
        row[key].mul_(0.25)


def replaced(opt: Any, params: list[Any]) -> None:
    for key in tensors(row := opt.state[params[0]], params[0]):
        row[key] = torch.full_like(row[key], 0.5)


def counted_again(opt: Any, params: list[Any]) -> None:
    for p in params:
        if "step" in opt.state[p]:
            opt.state[p]["step"].fill_(1.0)


def moved_rows(opt: Any, params: list[Any]) -> None:
    """What is done to replace a parameter: the row is taken out, changed and put back."""
    row = opt.state.pop(params[0])
    for key in tensors(row, params[0]):
        row[key] = row[key].flip(0)
    opt.state[params[0]] = row


CHANGES = [cleared, replaced_whole, deleted, scaled, replaced, counted_again, moved_rows]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name, arguments", CASES, ids=[name for name, _ in CASES])
def test_as_in_torch(name: str, arguments: dict[str, Any], change: Callable[[Any, list[Any]], None]) -> None:
    runs = []
    for module in (twt, torch.optim):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64)) for _ in range(2)]
        opt = getattr(module, name)(params, **arguments)
        for k in range(6):
            if k == 3:
                before = [p.detach().clone() for p in params]
                change(opt, params)
                assert all(torch.equal(p, q) for p, q in zip(params, before))
            for p in params:
                p.grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
            opt.step()
        runs.append(params)
    for p, q in zip(*runs, strict=True):  # NAdam's product is in single precision in torch
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sentence", [
    "soap", "muon | ema(0.9)", "adamw | lookahead", "schedule_free_adamw", "adamw | ema(0.9)",
])
def test_a_deleted_row_begins_anew_and_the_others_go_on(sentence: str) -> None:
    def run(opt: Any, params: list[Any], steps: range) -> None:
        for k in steps:
            for index, p in enumerate(params):
                generator = torch.Generator().manual_seed(10 * k + index)
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            opt.step()

    params = [torch.nn.Parameter(torch.ones(3, 4) + k) for k in range(2)]
    opt = Optimizer(params, sentence)
    run(opt, params, range(3))
    same = copy.deepcopy(opt)
    del opt.state[params[0]]
    alone = torch.nn.Parameter(params[0].detach().clone())
    new = Optimizer([alone], sentence)
    run(opt, params, range(3, 6))
    run(new, [alone], range(3, 6))
    assert torch.equal(alone, params[0])
    theirs = same.param_groups[0]["params"]
    run(same, theirs, range(3, 6))
    assert torch.equal(theirs[1], params[1]) and not torch.equal(theirs[0], params[0])


def test_numbers_of_the_whole_run_begin_anew_with_the_last_row() -> None:
    p = parameter(1.0, 2.0)
    opt = Optimizer([p], "prodigy")
    for _ in range(20):
        step(opt)
    q = torch.nn.Parameter(p.detach().clone())
    opt.state.clear()
    new = Optimizer([q], "prodigy")
    for o in (opt, new):
        step(o)
        step(o)
    assert torch.equal(p, q) and opt.engine.steps == 22


def test_steps_within_the_backward_pass() -> None:
    """Rows of InBackward's state are those of its optimizers."""
    weights = []
    for module in (twt, torch.optim):
        p = parameter(1.0, 2.0)
        opt = twt.InBackward([p], twt.SGD, lr=0.5, momentum=0.5) if module is twt else torch.optim.SGD([p], 0.5, 0.5)
        for k in range(3):
            if k == 2:
                opt.state[p]["momentum_buffer"].mul_(0.25)
            opt.zero_grad()
            p.square().sum().backward()
            opt.step()
        weights.append(p)
    assert torch.equal(*weights)


def test_a_state_that_was_written_is_saved() -> None:
    p = parameter(1.0, 2.0)
    opt = twt.AdamW([p])
    step(opt)
    opt.state[p]["exp_avg"].zero_()
    assert opt.state_dict()["state"][0]["exp_avg"].tolist() == [0.0, 0.0]
    assert opt.state[p]["exp_avg"].tolist() == [0.0, 0.0]
    opt.state[p]["exp_avg"].fill_(3.0)
    twin = copy.deepcopy(opt)
    assert twin.state[twin.param_groups[0]["params"][0]]["exp_avg"].tolist() == [3.0, 3.0]


def test_inference_mode() -> None:
    p = parameter(1.0, 2.0)
    opt = twt.AdamW([p])
    step(opt)
    with torch.inference_mode():
        assert opt.state[p]["step"] == 1 and len(opt.state_dict()["state"]) == 1
        opt.state[p]["exp_avg"].zero_()
        assert opt.state_dict()["state"][0]["exp_avg"].tolist() == [0.0, 0.0]
        opt.state[p]["exp_avg"] = torch.ones(2, dtype=torch.float64)
    step(opt, 0.0)
    torch.testing.assert_close(opt.state[p]["exp_avg"], torch.full((2,), 0.9, dtype=torch.float64))


def test_a_sentence_of_ones_own_keeps_its_schedule() -> None:
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=1.0, end=0, total=8), momentum=0.5)")
    for _ in range(4):
        step(opt)
    before, rate = p.item(), opt.param_groups[0]["lr"]
    opt.state.clear()
    step(opt, 2.0)
    assert before - p.item() == pytest.approx(2 * rate) and rate == pytest.approx(0.5)


def test_what_does_not_fit_is_refused_until_it_is_mended() -> None:
    p = parameter(1.0, 2.0)
    opt = twt.AdamW([p], lr=0.1)
    step(opt)
    before, kept = p.detach().clone(), opt.state[p]["exp_avg"]
    opt.state[p]["exp_avg"] = torch.zeros(3)
    with pytest.raises(tw.MismatchError, match=r"'0'.*shape \(3,\) as 'exp_avg', where a tensor of shape \(2,\) was"):
        step(opt)
    del opt.state[p]["exp_avg"]
    with pytest.raises(tw.MismatchError, match="None as 'exp_avg'.*delete all of exp_avg, exp_avg_sq to begin anew"):
        step(opt)
    assert torch.equal(p.detach(), before)
    opt.state[p]["exp_avg"] = kept
    step(opt)
    assert not torch.equal(p.detach(), before) and opt.engine.steps == 2


def test_looking_changes_nothing() -> None:
    """The same bits, with state in 8 bits and with masters too."""
    for options in ({}, dict(state_dtype="q8"), dict(master="f32")):
        dtype = torch.bfloat16 if "master" in options else torch.float32
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 600).to(dtype)) for _ in range(2)]
        opts = [Optimizer([p], "adamw(lr=0.1)", **options) for p in params]
        for _ in range(4):
            for opt in opts:
                step(opt)
            assert opts[0].state[params[0]]["step"] > 0
            list(opts[0].state[params[0]].items())
        assert torch.equal(*params)
