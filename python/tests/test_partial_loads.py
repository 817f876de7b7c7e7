"""State of another model or another sentence: what fits is taken; the report says what, and why the rest was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw

SHAPES = {"first": (3, 4), "second": (4,), "third": (2, 2), "a/b": (5,)}


def made(sentence: str, names: Any = ("first", "second"), seed: int = 1, **options: Any) -> tw.Optimizer:
    rng = np.random.default_rng(seed)
    return tw.Optimizer([(n, rng.standard_normal(SHAPES[n]).astype(np.float32)) for n in names], sentence, **options)


def run(opt: tw.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        opt.step([np.random.default_rng([k, len(n)]).standard_normal(SHAPES[n]).astype(np.float32) for n in opt.names])


def follow(opt: tw.Optimizer, other: tw.Optimizer) -> None:
    """Gives `opt` the parameters of `other`, by name."""
    values = dict(zip(other.names, other.params))
    for name, p in zip(opt.names, opt.params):
        if name in values and values[name].shape == p.shape:
            p[...] = values[name]


def values(opt: tw.Optimizer) -> dict[str, Any]:
    return dict(zip(opt.names, opt.params))


@pytest.mark.parametrize("sentence", ["adamw(lr=0.1)", "nadam | ema(0.9)", "prodigy", "sgd(lr=0.1)",
                                      "route(matrix=(muon), other=(adamw)) | swa"])
def test_where_all_fits_it_is_as_strict(sentence: str, tmp_path: Path) -> None:
    opt, other = made(sentence), made(sentence)
    run(opt, 0, 3)
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert report is not None and report.complete and other.state_dict()["state"] == opt.state_dict()["state"]
    opt.save(tmp_path / "state")
    again = made(sentence)
    assert again.load(tmp_path / "state", strict=False) == report and again.steps == 3
    assert str(report) == f"taken: {len(report.taken)}, left: 0, missing: 0"


def test_tensors_that_come_and_go() -> None:
    """Those that stay go on as if nothing had happened, in another order too; the new one begins."""
    opt = made("adamw(lr=0.1)", ("first", "second", "a/b"))
    run(opt, 0, 3)
    other = made("adamw(lr=0.1)", ("third", "a/b", "first"))
    follow(other, opt)
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert {*report.taken} == {"engine/step"} | {f"{n}/{slot}" for n in ("first", "a/b") for slot in (
        "adamw/exp_avg", "adamw/exp_avg_sq", "engine/steps")}
    assert [*report.left] == ["second"] and "no tensor of that name" in report.left["second"]
    assert [*report.missing] == ["third"] and not report.complete and "third" in str(report)
    alone = made("adamw(lr=0.1)", ("third",))
    follow(alone, other)
    run(opt, 3, 5)
    run(alone, 3, 5)
    run(other, 3, 5)
    for name in ("first", "a/b"):
        assert np.array_equal(values(other)[name], values(opt)[name])
    assert np.array_equal(values(other)["third"], values(alone)["third"]) and other.steps == 5


def test_a_stage_more_and_a_stage_less() -> None:
    """The rule goes on; an average that is new begins at the parameters: one step of ema(0.75) later it is
    three quarters of what they were and one of what they are."""
    opt = made("adamw(lr=0.1)")
    run(opt, 0, 4)
    more = made("clip_global_norm(1e6) | adamw(lr=0.1) | ema(0.75)")
    follow(more, opt)
    report = more.load_state_dict(opt.state_dict(), strict=False)
    new = {"first/ema/average", "second/ema/average", "clip_global_norm/scalars"}
    assert not report.left and {*report.missing} == new
    assert report.missing["first/ema/average"] == "the saved sentence has no `ema`"
    before = [p.copy() for p in more.params]
    run(opt, 4, 5)
    run(more, 4, 5)
    for p, q in zip(opt.params, more.params):
        assert np.array_equal(p, q)
    now = [p.copy() for p in more.params]
    with more.averaged():
        for p, old, last in zip(more.params, before, now):
            np.testing.assert_allclose(p, 0.75 * old + 0.25 * last, rtol=1e-6)
    less = made("adamw(lr=0.1)")
    follow(less, more)
    report = less.load_state_dict(more.state_dict(), strict=False)
    assert not report.missing and {*report.left} == new
    run(less, 5, 6)
    run(opt, 5, 6)
    assert all(np.array_equal(p, q) for p, q in zip(opt.params, less.params))


def test_an_average_over_masters_begins_at_the_masters() -> None:
    torch = pytest.importorskip("torch")
    low = [torch.full((4,), 1.0, dtype=torch.bfloat16) for _ in range(2)]
    opt = tw.Optimizer([("w", low[0])], "sgd(lr=0.0009765625)", master="f32")
    for _ in range(3):
        opt.step([torch.ones(4)])
    more = tw.Optimizer([("w", low[1])], "sgd(lr=0.0) | ema(0.5)", master="f32")
    low[1].copy_(low[0])
    more.load_state_dict(opt.state_dict(), strict=False)
    more.step([torch.ones(4)])
    assert (more.state()["ema.average"][0] == 1 - 3 / 1024).all() and low[1][0] == 0.99609375


def test_another_rule_and_other_shapes() -> None:
    opt = made("adamw(lr=0.1) | ema(0.9)")
    run(opt, 0, 3)
    other = made("lion | ema(0.9)")
    before = other.state_dict()["state"]
    report = other.load_state_dict(opt.state_dict(), strict=False)
    assert not report.taken and report.missing["first"] == (
        "the update rule is another one: `lion` here, `adamw` was saved")
    assert other.state_dict()["state"] == before and other.steps == 0
    plain = made("sgd(lr=0.1)")
    report = plain.load_state_dict(opt.state_dict(), strict=False)
    assert not report.taken and "another one: `sgd` here, `adamw` was saved" in report.missing["first"]
    arrays = {"first": np.ones((3, 5), np.float32), "second": np.ones(4, np.float32)}
    wide = tw.Optimizer(arrays, "adamw | ema(0.9)")
    report = wide.load_state_dict(opt.state_dict(), strict=False)
    assert report.missing == report.left == {
        "first": "adamw: 'exp_avg' has shape (3, 4) in the saved state, (3, 5) here"}
    assert wide.state()["adamw.exp_avg"][0].sum() == 0 and np.abs(wide.state()["ema.average"][1]).sum() > 0
    more = made("sgd(lr=0.1, momentum=0.9, nesterov=true)")
    report = more.load_state_dict(made("sgd(lr=0.1)").state_dict(), strict=False)
    assert report.missing["second"] == "sgd: nothing of `sgd` was saved for it"


def test_state_stored_otherwise() -> None:
    opt = made("adamw(lr=0.1)")
    run(opt, 0, 3)
    half = made("adamw(lr=0.1)", state_dtype="bf16")
    assert half.load_state_dict(opt.state_dict(), strict=False).complete
    want = np.concatenate([a.ravel() for a in opt.state()["adamw.exp_avg"]])
    got = np.concatenate([a.ravel() for a in half.state()["adamw.exp_avg"]])
    assert np.abs(got - want).max() <= np.abs(want).max() / 256 and (got != want).any()
    back = made("adamw(lr=0.1)")
    assert back.load_state_dict(half.state_dict(), strict=False).complete
    assert np.array_equal(np.concatenate([a.ravel() for a in back.state()["adamw.exp_avg"]]), got)
    big = [tw.Optimizer([("w", np.ones((80, 80), np.float32))], "adamw", state_dtype=kind) for kind in ("q8", "f32")]
    report = big[1].load_state_dict(big[0].state_dict(), strict=False)
    assert report.missing == {"w": "adamw: 'exp_avg' is stored as 8 bits in the saved state, as f32 here"}


def test_what_cannot_be_taken_in_part(tmp_path: Path) -> None:
    """Each refusal leaves the optimizer as it was."""
    opt, other = made("sam(0.1) | adamw | ema(0.9)"), made("sam(0.1) | adamw | ema(0.9)")
    run_closure = [np.ones(p.shape, np.float32) for p in opt.params]
    opt.step(lambda: (0.0, run_closure))
    before = other.state_dict()["state"]
    good = opt.state_dict()
    damaged = bytearray(good["state"])
    damaged[-1] ^= 1
    loop = opt.requests()
    next(loop)
    within = opt.state_dict()
    loop.close()
    opt.eval()
    evaluating = opt.state_dict()
    for state, kind, says in ((within, tw.MismatchError, "within a step"),
                              (evaluating, tw.MismatchError, "in evaluation mode"),
                              ({**good, "state": bytes(damaged)}, tw.FormatError, "damaged"),
                              ({**good, "state": b"nothing"}, tw.FormatError, "not a checkpoint")):
        with pytest.raises(kind, match=says):
            other.load_state_dict(state, strict=False)
        assert other.state_dict()["state"] == before
    with pytest.raises(tw.SequenceError, match="evaluation"):
        opt.load_state_dict(good, strict=False)
    with pytest.raises(tw.FileError, match="nowhere"):
        other.load(tmp_path / "nowhere", strict=False)


def test_in_torch() -> None:
    """By name, and by position where there are none; param_groups stay, notes of the caller's do not come."""
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    def model(*sizes: int) -> Any:
        torch.manual_seed(1)
        return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))

    def steps(opt: Any) -> None:
        for k in range(2):
            for p in (p for group in opt.param_groups for p in group["params"]):
                p.grad = torch.full_like(p, 1.0 + k)
            opt.step()

    old = model(3, 4, 2)
    opt = twt.AdamW(old.named_parameters(), lr=0.1)
    steps(opt)
    new = model(3, 4, 2, 5)
    other = twt.AdamW(new.named_parameters(), lr=0.3, after="ema(0.9)")
    with pytest.raises(tw.CountError):
        other.load_state_dict(opt.state_dict())
    report = other.load_state_dict(opt.state_dict(), strict=False)
    averages = {f"{n}/ema/average" for n, _ in old.named_parameters()}
    assert not report.left and {*report.missing} == {"2.weight", "2.bias"} | averages
    assert other.param_groups[0]["lr"] == 0.3 and other.engine.steps == 2
    for (name, p), q in zip(old.named_parameters(), new.parameters()):
        assert torch.equal(opt.state[p]["exp_avg"], other.state[q]["exp_avg"]), name
        assert other.state[q]["step"] == 2
    assert other.state[new[2].weight]["step"] == 0
    plain = twt.AdamW(new.parameters(), lr=0.3)
    report = plain.load_state_dict(twt.AdamW(old.parameters()).state_dict(), strict=False)
    assert {*report.missing} == {"4", "5"}
    assert twt.AdamW(old.parameters()).load_state_dict(twt.AdamW(old.parameters()).state_dict()) is None


def layers(*sizes: int) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))


def stepped(opt: Any, count: int = 3) -> Any:
    import torch

    for k in range(count):
        for p in (p for group in opt.param_groups for p in group["params"]):
            p.grad = torch.full_like(p, 1.0 + k)
        opt.step()
    return opt


def test_a_refusal_says_that_a_part_can_be_taken(tmp_path: Path) -> None:
    opt, other = made("adamw"), made("lion")
    with pytest.raises(tw.MismatchError, match="this optimizer is `lion`; strict=False takes what fits"):
        other.load_state_dict(opt.state_dict())
    opt.save(tmp_path / "state")
    with pytest.raises(tw.MismatchError, match="strict=False takes what fits"):
        other.load(tmp_path / "state")
    pytest.importorskip("torch")
    import thalweg.torch as twt

    model = layers(3, 4)
    state = twt.AdamW(model.parameters()).state_dict()
    for there in (twt.Lion(model.parameters()), twt.AdamW(model.parameters(), after="ema(0.9)")):
        with pytest.raises(tw.MismatchError) as caught:
            there.load_state_dict(state)
        assert str(caught.value).count("; strict=False takes what fits") == 1


@pytest.mark.parametrize("rule, options", [
    ("AdamW", {}), ("Adam", {"amsgrad": True}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("NAdam", {}), ("RMSprop", {}),
    ("Adagrad", {})])
@pytest.mark.parametrize("named", [True, False])
def test_a_part_of_the_state_of_torch(rule: str, options: dict[str, Any], named: bool) -> None:
    """What is taken goes on as in torch; in a larger model the rest begins, of a larger model the rest is left."""
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    def given(model: Any) -> Any:
        return model.named_parameters() if named else model.parameters()

    old, large = layers(3, 4), layers(3, 4, 2)
    theirs = stepped(getattr(torch.optim, rule)(given(old), **options))
    large[0].load_state_dict(old[0].state_dict())
    ours = getattr(twt, rule)(given(large), **options)
    with pytest.raises(tw.CountError, match="strict=False takes what fits"):
        ours.load_state_dict(theirs.state_dict())
    report = ours.load_state_dict(theirs.state_dict(), strict=False)
    names = [n for n, _ in large.named_parameters()] if named else ["0", "1", "2", "3"]
    assert {*report.missing} == {*names[2:]} and not report.left
    assert {f"{n}/engine/steps" for n in names[:2]} < {*report.taken}
    stepped(theirs, 2)
    stepped(ours, 2)
    for p, q in zip(old.parameters(), large.parameters()):
        torch.testing.assert_close(p, q)
    # of the larger one into the smaller
    theirs = stepped(getattr(torch.optim, rule)(given(large), **options))
    old[0].load_state_dict(large[0].state_dict())
    ours = getattr(twt, rule)(given(old), **options)
    report = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert {*report.left} == ({*names[2:]} if named else {"parameter 2", "parameter 3"}) and not report.missing
    stepped(theirs, 1)
    stepped(ours, 1)
    for p, q in zip(large.parameters(), old.parameters()):
        torch.testing.assert_close(p, q)


def test_what_of_torch_cannot_be_taken() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    model = layers(3, 4)
    adam = stepped(torch.optim.AdamW(model.parameters())).state_dict()
    for there, says in ((twt.Lion(model.parameters()), "torch.optim has no optimizer that 'lion"),
                        (twt.SGD(model.parameters(), lr=0.1, momentum=0.9), "another optimizer than torch.optim.SGD"),
                        (twt.NAdam(model.parameters()), "than torch.optim.NAdam: it has step, exp_avg")):
        before = there.engine.state_dict()["state"]
        with pytest.raises(tw.MismatchError, match=says):
            there.load_state_dict(adam, strict=False)
        assert there.engine.state_dict()["state"] == before
    averaged = twt.AdamW(model.parameters(), after="ema(0.9)", state_dtype="bf16")
    report = averaged.load_state_dict(adam, strict=False)
    assert {*report.missing} == {"0/ema/average", "1/ema/average"} and "0/adamw/exp_avg" in report.taken
    amsgrad = twt.AdamW(model.parameters(), amsgrad=True)
    report = amsgrad.load_state_dict(adam, strict=False)
    assert "no 'max_exp_avg_sq' was saved" in report.missing["0"] and not amsgrad.engine.steps
    fresh = torch.optim.AdamW(model.parameters()).state_dict()
    report = twt.AdamW(model.parameters()).load_state_dict(fresh, strict=False)
    assert {*report.missing} == {"0", "1"}


def test_masters_of_a_part_of_the_state_of_torch() -> None:
    torch = pytest.importorskip("torch")
    import thalweg.torch as twt

    theirs = torch.nn.Parameter(torch.linspace(0, 1, 8))
    low = torch.nn.Parameter(theirs.detach().bfloat16())
    opt = stepped(torch.optim.AdamW([theirs], lr=0.1))
    ours = twt.AdamW([low], lr=0.1, master="f32")
    with torch.no_grad():
        low.copy_(theirs)
    assert ours.load_state_dict(opt.state_dict(), strict=False).complete
    stepped(opt, 1)
    stepped(ours, 1)
    torch.testing.assert_close(low.float(), theirs, rtol=0, atol=0.02)
