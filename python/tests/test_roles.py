"""What route(...) goes by, and how it is given: roles in groups, names; and closures that do not know the task."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import thalweg as tw

BY_ROLE = "route(bias=(sgd(lr=0.25)), norm=(sgd(lr=0.5)), matrix=(sgd(lr=1.0)), other=(sgd(lr=2.0)))"
BY_NAME = 'route("*.bias"=(sgd(lr=0.25)), other=(sgd(lr=2.0)))'


def moves(opt: tw.Optimizer) -> list[float]:
    before = [p.copy() for p in opt.params]
    opt.step([np.ones_like(p) for p in opt.params])
    return [float((b - p).flat[0]) for b, p in zip(before, opt.params)]


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.zeros(shape) for shape in shapes]


def test_roles_of_groups_route() -> None:
    groups = [{"params": arrays((2, 2))}, {"params": arrays((3,), (2,)), "role": "bias"},
              {"params": arrays((3,)), "role": "norm"}, {"params": arrays((2, 2)), "role": "head"},
              {"params": arrays((3,))}]
    opt = tw.Optimizer(groups, BY_ROLE)
    opt.add_param_group({"params": arrays((4,)), "role": "bias", "name": "late"})
    expected = [1.0, 0.25, 0.25, 0.5, 2.0, 2.0, 0.25]
    assert moves(opt) == expected
    assert [g.role for g in opt.param_groups] == [None, "bias", "norm", "head", None, "bias"]
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert moves(twin) == expected
    opt.rebind_parameters([p.copy() for p in opt.params])
    assert moves(opt) == expected
    with pytest.raises(TypeError, match="role"):
        opt.param_groups[0]["role"] = "bias"


@pytest.mark.parametrize("role", ["biases", "matrix", 2, ["bias"]])
def test_unknown_roles_are_refused(role: Any) -> None:
    with pytest.raises(tw.ArgumentError, match="'role' is one of 'weight', 'bias', 'norm', 'embedding', 'head'"):
        tw.Optimizer([{"params": arrays((2,)), "role": role}], BY_ROLE)
    opt = tw.Optimizer(arrays((2,)), BY_ROLE)
    with pytest.raises(tw.ArgumentError, match="'role' is one of"):
        opt.add_param_group({"params": arrays((2,)), "role": role})
    assert len(opt.params) == 1


def test_roles_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    def parameter(*shape: int) -> Any:
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.ones(shape)
        return p

    made = [parameter(2, 2), parameter(3), parameter(2)]
    opt = Optimizer([{"params": made[:1]}, {"params": made[1:2], "role": "bias"}], BY_ROLE)
    opt.add_param_group({"params": made[2:], "role": "norm"})
    opt.step()
    assert [-p.flatten()[0].item() for p in made] == [1.0, 0.25, 0.5]
    twin = copy.deepcopy(opt)
    twin.load_state_dict(opt.state_dict())
    for p in (q for g in twin.param_groups for q in g["params"]):
        p.grad = torch.ones_like(p)
    twin.step()
    assert [-p.flatten()[0].item() for g in twin.param_groups for p in g["params"]] == [2.0, 0.5, 1.0]
    with pytest.raises(tw.ArgumentError, match="'role' is one of"):
        Optimizer([{"params": [parameter(2)], "role": "biases"}], BY_ROLE)


def test_patterns_of_names_need_names() -> None:
    with pytest.raises(tw.ArgumentError, match=r'"\*\.bias".*\(name, array\) pairs.*named_parameters'):
        tw.Optimizer(arrays((2,)), BY_NAME)
    with pytest.raises(tw.ArgumentError, match="named_parameters"):
        tw.Optimizer(arrays((2,)), f"clip_value(9) | {BY_NAME} | ema(0.9)")
    assert moves(tw.Optimizer(arrays((2,), (2,)), BY_NAME, names=["a.bias", "b"])) == [0.25, 2.0]
    opt = tw.Optimizer([("a.bias", np.zeros(2))], BY_NAME)
    with pytest.raises(tw.ArgumentError, match="named_parameters"):
        opt.add_param_group({"params": arrays((2,))})
    assert moves(pickle.loads(pickle.dumps(opt))) == [0.25]
    # Everything fits "*", and a pattern outside of the selectors is none.
    assert moves(tw.Optimizer(arrays((2,)), 'route("*"=(sgd(lr=0.5)), other=(sgd(lr=2.0)))')) == [0.5]
    assert moves(tw.Optimizer(arrays((2,)), BY_ROLE)) == [2.0]


def test_patterns_of_names_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    model = torch.nn.Linear(2, 2)
    with pytest.raises(tw.ArgumentError, match="named_parameters"):
        Optimizer(model.parameters(), BY_NAME.replace("*.", "*"))
    Optimizer(model.named_parameters(), BY_NAME.replace("*.", "*"))


TASKS = ["pcgrad(tasks=2) | sgd(lr=0.1)", "saga(lr=0.1, init=full, n=3)"]


def test_closures_that_do_not_know_the_task() -> None:
    """One gradient for every task would be combined with itself, or tabled for every sample."""
    for sentence in TASKS:
        w = np.ones(3)
        opt = tw.Optimizer([w], sentence)
        with pytest.raises(tw.NeedsError, match=r"task_gradient \(task 0 of \d\).*takes the Request"):
            opt.step(lambda: (1.0, [np.ones(3)]))
        assert (w == 1).all() and opt.steps == 0
        opt.step(lambda request: (1.0, [np.ones(3)]))
        assert opt.steps == 1
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    p = torch.nn.Parameter(torch.ones(2))

    def closure() -> Any:
        p.grad = torch.ones(2)
        return torch.tensor(1.0)

    with pytest.raises(tw.NeedsError, match="task 0 of 2"):
        Optimizer([p], TASKS[0]).step(closure)


def test_closures_that_do_not_know_the_task_in_jax() -> None:
    pytest.importorskip("jax")
    from thalweg.jax import Optimizer

    opt = Optimizer({"a": np.ones(2, np.float32)}, TASKS[0])
    with pytest.raises(tw.NeedsError, match="task 0 of 2"):
        opt.step(lambda params: (1.0, {"a": np.ones(2, np.float32)}))


@pytest.mark.parametrize("dtype, name", [(np.int64, "int64"), (np.int8, "int8"), (np.uint32, "uint32"), (bool, "bool"),
                                         (np.longdouble, "longdouble"), ("S3", "'3s'"), ("c16", "complex128")])
def test_element_types_are_called_by_their_names(dtype: Any, name: str) -> None:
    with pytest.raises(tw.DtypeError, match=f"element type {name} is not supported"):
        tw.Optimizer([np.zeros(2, dtype)], "sgd(lr=0.1)")
