"""Parameter groups of thalweg.torch.Optimizer, as people who come from torch.optim take them for granted."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest

import thalweg as tw

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler

from torch_support import assert_equal, parameter, step  # noqa: E402

import thalweg.torch as twt  # noqa: E402
from thalweg.torch import Optimizer  # noqa: E402


def test_the_first_group_is_one_of_several() -> None:
    """A value for the group of a plain list stays there when another group has come."""
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.1)")
    opt.add_param_group({"params": [q], "lr": 0.75})
    opt.param_groups[0]["lr"] = 0.25
    step(opt)
    assert (p.item(), q.item()) == (-0.25, -0.75)
    assert [g["lr"] for g in opt.param_groups] == [0.25, 0.75]
    assert [g["lr"] for g in opt.engine.param_groups] == [0.25, 0.75]


def test_groups_under_schedulers_are_as_in_torch() -> None:
    def build(make: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
        p, q = parameter(1.0), parameter(1.0)
        opt = make([p])
        opt.add_param_group({"params": [q], "lr": 0.5})
        scheduler = schedulers.LambdaLR(opt, [lambda k: 0.5**k, lambda k: 1.0])
        for _ in range(4):
            step(opt)
            scheduler.step()
        return opt, [p, q]

    ours, theirs = build(lambda p: Optimizer(p, "sgd(lr=0.25)")), build(lambda p: torch.optim.SGD(p, lr=0.25))
    assert_equal(ours[1], theirs[1])
    assert [g["lr"] for g in ours[0].param_groups] == [g["lr"] for g in theirs[0].param_groups]


def test_a_later_group_starts_from_the_sentence() -> None:
    """Not from what the first group was given: torch takes `defaults`, which are those of the constructor."""
    for make in (lambda p: Optimizer(p, "sgd(lr=0.1, weight_decay=0.5)"),
                 lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5)):
        opt = make([{"params": [parameter(1.0)], "lr": 0.5}])
        opt.param_groups[0]["weight_decay"] = 0.0
        opt.add_param_group({"params": [parameter(1.0)]})
        assert [(g["lr"], g["weight_decay"]) for g in opt.param_groups] == [(0.5, 0.0), (0.1, 0.5)]
        assert opt.defaults["lr"] == 0.1
        opt.defaults["lr"] = 0.25
        opt.add_param_group({"params": [parameter(1.0)]})
        assert opt.param_groups[2]["lr"] == 0.25


def test_keywords_are_what_groups_have_that_do_not_say_otherwise() -> None:
    """As the classes of torch: the groups given, those that come later, and copies."""
    a, b, c = parameter(1.0), parameter(1.0), parameter(1.0)
    opt = Optimizer([{"params": [a]}, {"params": [b], "lr": 0.25, "weight_decay": 0.0}], sentence="clip_value(9) | adamw",
                    lr=0.5, betas=(0.5, 0.75), weight_decay=0.125, seed=3)
    with pytest.raises(tw.RangeError):
        opt.add_param_group({"params": [parameter(1.0)], "lr": -1.0})
    opt.add_param_group({"params": [c], "weight_decay": 0.5})
    for one in (opt, copy.deepcopy(opt)):
        assert [(g["lr"], g["betas"], g["weight_decay"]) for g in one.param_groups] == [
            (0.5, (0.5, 0.75), 0.125), (0.25, (0.5, 0.75), 0.0), (0.5, (0.5, 0.75), 0.5)]
        one.add_param_group({"params": [parameter(1.0)]})
        assert one.param_groups[3]["lr"] == 0.5
    theirs = [parameter(1.0), parameter(1.0), parameter(1.0)]
    twin = Optimizer([{"params": [p], "lr": lr, "weight_decay": decay} for p, lr, decay in
                      zip(theirs, (0.5, 0.25, 0.5), (0.125, 0.0, 0.5))], "clip_value(9) | adamw(beta1=0.5, beta2=0.75)")
    for one in (opt, twin):
        step(one)
    assert_equal([a, b, c], theirs)


def test_keywords_of_all_rules_and_in_place_of_a_schedule() -> None:
    opt = Optimizer([parameter([[1.0]]), parameter(1.0)], "route(matrix=(muon(lr=0.5)), other=(adamw(lr=0.125)))", lr=0.25)
    assert (opt.param_groups[0]["muon.lr"], opt.param_groups[0]["adamw.lr"]) == (0.25, 0.0625)
    opt = Optimizer([parameter(1.0)], "adamw(lr=linear(lr=1.0, end=0, total=8))", lr=0.25)
    opt.add_param_group({"params": [parameter(1.0)]})
    for _ in range(3):
        assert [g["lr"] for g in opt.param_groups] == [0.25, 0.25]
        step(opt)


def test_keywords_that_are_none() -> None:
    for sentence, given in (("adamw", {"lrr": 1.0}), ("rprop", {"betas": (0.9, 0.99)}), ("adamw", {"ns_steps": 3})):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{[*given][0]}'"):
            Optimizer([parameter(1.0)], sentence, **given)
    with pytest.raises(tw.RangeError, match="`lr` must be at least 0"):
        Optimizer([parameter(1.0)], "adamw", lr=-1.0)
    # No decay is true of every rule: Hugging Face and get_parameter_groups say it of every group.
    for cls in (lambda p: Optimizer(p, "rprop"), twt.LBFGS):
        assert cls([{"params": [parameter(1.0)], "weight_decay": 0.0}]).engine.steps == 0
        with pytest.raises(tw.UnknownNameError, match="no hyper-parameter `weight_decay`"):
            cls([{"params": [parameter(1.0)], "weight_decay": 0.5}])


def test_a_later_group_has_the_schedule() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=1.0, end=0, total=8))")
    for k in range(4):
        assert opt.param_groups[0]["lr"] == 1 - k / 8
        step(opt)
    opt.add_param_group({"params": [q]})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]
    step(opt)
    step(opt)
    assert q.item() == -(0.5 + 0.375) and [g["lr"] for g in opt.param_groups] == [0.25, 0.25]
    assert "lr" not in opt.defaults  # torch would hand a number to groups that come later


def test_what_is_shown_is_what_the_next_step_uses() -> None:
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=linear(lr=1.0, end=0, total=4))")
    group = opt.param_groups[0]
    step(opt)
    assert group["lr"] == 0.75
    group["lr"] *= 0.5  # half of the present rate, for good
    before = p.item()
    step(opt)
    step(opt)
    assert p.item() - before == -2 * 0.375 and group["lr"] == 0.375
    opt.engine.set("lr", "linear(lr=1.0, end=0, total=8)")
    assert opt.param_groups[0]["lr"] == 1 - 3 / 8
    group["lr"] = "constant(lr=0.125)"
    step(opt)
    assert opt.param_groups[0]["lr"] == 0.125


def test_observed_metrics_are_shown() -> None:
    opt = Optimizer([parameter(0.0)], "sgd(lr=reduce_on_plateau(lr=1.0, patience=0, factor=0.5))")
    group = opt.param_groups[0]
    for _ in range(3):
        opt.observe("metric", 1.0)
    assert group["lr"] == opt.engine.get("lr") < 1.0


def test_routed_rules_have_keys_that_work() -> None:
    w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    opt = Optimizer([w, b], "route(matrix=(sgd(lr=0.5)), other=(adamw(lr=0.25)))")
    group = opt.param_groups[0]
    assert group["sgd.lr"] == 0.5 and group["adamw.lr"] == 0.25
    group["adamw.lr"] = 0.0
    step(opt)
    assert (w == 0.5).all() and (b == 1).all()
    group["sgd.lr"] = 0.0
    group["adamw.lr"] = 0.125
    step(opt)
    assert (w == 0.5).all() and (b != 1).all()
    # Two rules of one name are told apart as in the paths of the engine.
    twice = Optimizer([w, b], "clip_value(9) | route(matrix=(sgd(lr=0.5)), other=(sgd(lr=0.25))) | ema(0.5)")
    assert twice.param_groups[0]["sgd.lr"] == 0.5 and twice.param_groups[0]["sgd#1.lr"] == 0.25


def test_schedulers_scale_all_rates_of_a_routed_sentence() -> None:
    w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    opt = Optimizer([w, b], "route(matrix=(sgd(lr=0.5)), other=(adamw(lr=0.25)))")
    scheduler = schedulers.LambdaLR(opt, lambda k: [0.0, 0.5, 1.0][k])  # from 0, as warmups do
    rates = []
    for _ in range(3):
        step(opt)
        rates.append((opt.engine.get("sgd.lr"), opt.engine.get("adamw.lr"), opt.param_groups[0]["lr"]))
        if len(rates) < 3:
            scheduler.step()
    assert rates == [(0.0, 0.0, 0.0), (0.25, 0.125, 0.25), (0.5, 0.25, 0.5)]
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1.0})
    assert [opt.param_groups[1][key] for key in ("lr", "sgd.lr", "adamw.lr")] == [1.0, 1.0, 0.5]


def test_a_refused_group_changes_nothing() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([p], "sgd(lr=0.5)")
    for bad in ({"params": [q], "lr": -1.0}, {"params": [q], "learning_rate": 0.1},
                {"params": [q], "lr": 0.25, "weight_decay": -1.0}):
        given = dict(bad)
        with pytest.raises((tw.RangeError, tw.UnknownNameError)):
            opt.add_param_group(bad)
        assert bad == given and len(opt.param_groups) == len(opt.engine.param_groups) == 1
        assert len(opt.engine.params) == 1
    step(opt)
    opt.add_param_group({"params": [q], "lr": 0.25})
    step(opt)
    assert (p.item(), q.item()) == (-1.0, -0.25)


def test_a_refused_value_is_refused_until_it_is_mended() -> None:
    p, q = parameter(0.0), parameter(0.0)
    opt = Optimizer([{"params": [p]}, {"params": [q]}], "sgd(lr=0.5)")
    opt.param_groups[1]["lr"] = -1.0
    for _ in range(2):
        with pytest.raises(tw.RangeError):
            step(opt)
    assert p.item() == q.item() == 0 and opt.engine.steps == 0
    opt.param_groups[1]["lr"] = 0.25
    step(opt)
    assert (p.item(), q.item()) == (-0.5, -0.25)


def test_values_that_are_right_together() -> None:
    """nesterov needs momentum: the order of the keys does not matter, and a refusal leaves both."""
    p = parameter(0.0)
    opt = Optimizer([p], "sgd(lr=1.0, momentum=0.5)")
    group = opt.engine.param_groups[0]
    group["momentum"] = 0.0
    with pytest.raises(tw.Error):
        opt.engine._set_together({"lr": 0.5, "nesterov": True}, "")
    assert group["lr"] == 1.0 and not group["nesterov"]
    opt.engine._set_together({"nesterov": True, "momentum": 0.25}, "")
    assert group["nesterov"] and group["momentum"] == 0.25
    adam = Optimizer([p], "adamw(lr=1.0, beta1=0.5, beta2=0.75)").engine
    with pytest.raises(tw.RangeError):
        adam.param_groups[0]["betas"] = (0.25, 2.0)
    assert adam.param_groups[0]["betas"] == (0.5, 0.75)


def test_a_copied_group_is_taken() -> None:
    """{**opt.param_groups[0], "params": [...]}, as code that moves tensors between groups writes it."""
    opt = Optimizer([parameter(0.0)], "sam(rho=0.5) | sgd(lr=0.5)")
    schedulers.ConstantLR(opt, 1.0)
    opt.add_param_group({**opt.param_groups[0], "params": [parameter(0.0)]})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]


def test_names_of_groups_are_notes() -> None:
    opt = Optimizer([{"params": [parameter(0.0)], "name": "a", "lr": 0.5}, {"params": [parameter(0.0)], "name": "a", "lr": 0.25}],
                    "sgd(lr=1.0)")
    assert [g["name"] for g in opt.param_groups] == ["a", "a"] and [g["lr"] for g in opt.param_groups] == [0.5, 0.25]
    step(opt)
    assert [g["params"][0].item() for g in opt.param_groups] == [-0.5, -0.25]


def test_tensor_rates() -> None:
    """A tensor as lr is kept, filled in place by schedulers, and read at every step."""
    for make in (lambda p: Optimizer(p, "sgd(lr=1.0)"), lambda p: torch.optim.SGD(p, lr=1.0)):
        p, rate = parameter(0.0), torch.tensor(0.5)
        opt = make([{"params": [p], "lr": rate}])
        scheduler = schedulers.ExponentialLR(opt, 0.5)
        step(opt)
        assert p.item() == -0.5
        scheduler.step()
        assert opt.param_groups[0]["lr"] is rate and rate.item() == 0.25
        step(opt)
        assert p.item() == -0.75


ROUTE = "route(matrix=(muon(lr=0.02)), other=(adamw(lr=0.01)))"


def test_two_rates_and_two_decays_are_one_in_a_group() -> None:
    w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    opt = Optimizer([{"params": [("w", w)], "weight_decay": 0.0}, {"params": [("b", b)], "lr": 0.04}], ROUTE)
    shown = [{k: g[k] for k in ("lr", "muon.lr", "adamw.lr", "weight_decay", "adamw.weight_decay")} for g in opt.param_groups]
    assert shown == [
        {"lr": 0.02, "muon.lr": 0.02, "adamw.lr": 0.01, "weight_decay": 0.0, "adamw.weight_decay": 0.0},
        {"lr": 0.04, "muon.lr": 0.04, "adamw.lr": 0.02, "weight_decay": 0.1, "adamw.weight_decay": 0.01},
    ]
    opt.param_groups[1]["weight_decay"] = 0.5
    step(opt)
    assert opt.engine.get("adamw.weight_decay", opt.engine.param_groups[1].name) == 0.5
    assert opt.param_groups[1]["muon.weight_decay"] == 0.5 and opt.param_groups[0]["weight_decay"] == 0.0


@pytest.mark.parametrize("sentence, after", [("clip_global_norm(1.0) | adamw", 1), ("adamw", 2)])
def test_weights_that_are_no_numbers_are_told_of_once(sentence: str, after: int, caplog: Any) -> None:
    import warnings

    p = parameter(1.0, 2.0)
    opt = Optimizer([p], sentence)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(opt)
        if after == 1:
            step(opt)
            step(opt)  # 4 follows: this step is seen because of the norm alone
    with caplog.at_level("WARNING", "thalweg"), pytest.warns(RuntimeWarning, match="nonfinite='skip'"):
        step(opt, float("nan"))
    assert "has become weights" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(opt, float("nan"))
        quiet = Optimizer([parameter(1.0)], sentence, nonfinite="skip")
        step(quiet, float("nan"))
        assert quiet.engine.skipped == 1


def test_groups_of_a_model() -> None:
    from thalweg.torch import AdamW, get_parameter_groups

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
            self.norm = torch.nn.LayerNorm(4)
            self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    groups = get_parameter_groups(Net(), weight_decay=0.1, layer_decay=0.5, lr=0.8)
    rows = {tuple(n for n, _ in g["params"]): (g["weight_decay"], g["role"], g["lr"]) for g in groups}
    assert rows == {
        ("embed.weight",): (0.1, "embedding", 0.8 * 0.125),
        ("blocks.0.weight",): (0.1, "weight", 0.8 * 0.25), ("blocks.0.bias",): (0.0, "bias", 0.8 * 0.25),
        ("blocks.1.weight",): (0.1, "weight", 0.4), ("blocks.1.bias",): (0.0, "bias", 0.4),
        ("norm.weight", "norm.bias"): (0.0, "norm", 0.8),
    }
    step(AdamW(groups))
    assert [len(g["params"]) for g in get_parameter_groups(torch.nn.Linear(2, 2), 0.1)] == [1, 1]
    for bad in (dict(weight_decay=-1.0), dict(layer_decay=0.5), dict(layer_decay=-1.0, lr=0.1)):
        with pytest.raises(tw.RangeError):
            get_parameter_groups(Net(), **bad)


def test_groups_of_a_model_keep_the_decay_of_the_sentence() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
    for opt in (Optimizer(twt.get_parameter_groups(net), "adamw(weight_decay=0.3)"),
                twt.AdamW(twt.get_parameter_groups(net), weight_decay=0.3),
                twt.InBackward(twt.get_parameter_groups(net), "adamw(weight_decay=0.3)")):
        decays = {g["role"]: g["weight_decay"] for g in opt.param_groups}
        assert decays == {"weight": 0.3, "bias": 0.0, "norm": 0.0}
    several = "route(matrix=(muon(weight_decay=0.2)), other=(adamw(weight_decay=0.1)))"
    opt = Optimizer(twt.get_parameter_groups(net, head="2"), several)
    weights = [g for g in opt.param_groups if g["role"] in ("weight", "head")]
    assert len(weights) == 2 and all(g["muon.weight_decay"] == 0.2 for g in weights)
    assert all(g["adamw.weight_decay"] == 0.1 for g in weights)
    assert {g["weight_decay"] for g in twt.get_parameter_groups(net, 0.0)} == {0.0}


class Classifier(torch.nn.Module):
    """The head stands first, and is longer than the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
        self.embed = torch.nn.Embedding(5, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(2)])
        self.norm = torch.nn.LayerNorm(4)


@pytest.mark.parametrize("head", ["head", ["head"], ("head.0", "head.1", "head.2", "head.3"), iter(["head"])])
def test_the_head_has_the_whole_rate_wherever_it_stands(head: Any) -> None:
    net = Classifier()
    groups = twt.get_parameter_groups(net, weight_decay=0.1, layer_decay=0.5, lr=0.8, head=head)
    rows = {tuple(n for n, _ in g["params"]): (g["weight_decay"], g["role"], g["lr"]) for g in groups}
    assert rows == {
        tuple(f"head.{k}.weight" for k in range(4)): (0.1, "head", 0.8),
        tuple(f"head.{k}.bias" for k in range(4)): (0.0, "bias", 0.8),
        ("embed.weight",): (0.1, "embedding", 0.8 * 0.125), ("blocks.0.weight",): (0.1, "weight", 0.8 * 0.25),
        ("blocks.1.weight",): (0.1, "weight", 0.4), ("norm.weight", "norm.bias"): (0.0, "norm", 0.8),
    }
    opt = Optimizer(twt.get_parameter_groups(net, head="head"), "route(matrix=(muon), other=(adamw))")
    step(opt)
    assert [n for n, p in net.named_parameters() if "momentum_buffer" in opt.state[p]] == [
        "blocks.0.weight", "blocks.1.weight"]


def test_heads_that_are_members_of_the_stack_or_tied() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(3)))
    rates = [(g["role"], g["lr"]) for g in twt.get_parameter_groups(layers, layer_decay=0.5, lr=1.0, head="2")]
    assert rates == [("weight", 0.25), ("weight", 0.5), ("head", 1.0)]
    tied = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "lm_head": torch.nn.Linear(4, 5, bias=False)})
    tied["lm_head"].weight = tied["embed"].weight
    assert [g["role"] for g in twt.get_parameter_groups(tied, head="lm_head")] == ["embedding"]


def test_what_groups_of_a_model_refuse() -> None:
    net = Classifier()
    with pytest.raises(tw.ArgumentError, match="a module 'classifier'; it has head, embed, blocks, norm"):
        twt.get_parameter_groups(net, head="classifier")
    with pytest.raises(TypeError, match="model is the torch.nn.Module whose parameters are grouped, not generator"):
        twt.get_parameter_groups(net.parameters(), 0.1)
    with pytest.raises(tw.ArgumentError, match="in a module 'hea'"):
        twt.get_parameter_groups(net, head=["head", "hea"])
    for head in (net.head, [net.head], [3], 3):
        with pytest.raises(tw.ValueTypeError, match="head is the name of a module"):
            twt.get_parameter_groups(net, head=head)
    for name in ("weight_decay", "layer_decay", "lr"):
        for value in (float("nan"), -1.0, float("inf")):
            with pytest.raises(tw.RangeError, match=f"{name} is "):
                twt.get_parameter_groups(net, **{"lr": 1.0, name: value})
        with pytest.raises(tw.ValueTypeError, match=f"{name} is a number, got '0.1'"):
            twt.get_parameter_groups(net, **{name: "0.1"})


def test_a_dict_of_tensors_is_their_names() -> None:
    net = torch.nn.Linear(3, 2)
    for opt in (twt.AdamW(dict(net.named_parameters()), lr=0.1), twt.Optimizer(dict(net.named_parameters()), "lion"),
                twt.Lion(dict(net.named_parameters()))):
        assert opt.param_groups[0]["param_names"] == opt.engine.names == ["weight", "bias"]
    for make in (twt.AdamW, twt.Lion, lambda model: twt.Optimizer(model, "lion")):
        with pytest.raises(TypeError, match=r"this is the model Linear: pass model\.parameters\(\)"):
            make(net)
    with pytest.raises(TypeError, match="the text 'adamw': they come first, the sentence second"):
        twt.Optimizer("adamw", net.parameters())
