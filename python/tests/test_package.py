"""The package as its users meet it: classes, groups, closures, modes, arrays of every kind, the command line."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest

import thalweg as tw


@pytest.fixture
def w() -> np.ndarray:
    return np.array([1.0, -2.0, 3.0])


@pytest.fixture
def g() -> np.ndarray:
    return np.array([0.5, 0.25, -1.0])


# ---- classes and sentences


def test_class_writes_a_sentence(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.5, momentum=0.9)
    assert opt.sentence.startswith("sgd(lr=0.5") and "momentum=0.9" in opt.sentence


def test_class_steps_as_the_rule_says(w: np.ndarray, g: np.ndarray) -> None:
    expected = w - 0.5 * g
    tw.SGD([w], lr=0.5).step([g])
    np.testing.assert_array_equal(w, expected)


def test_no_name_is_given_twice() -> None:
    names = [m.name for m in tw.methods()]
    assert sorted(set(names)) == sorted(names)


def test_classes_for_all_optimizers() -> None:
    classes = [getattr(tw, name) for name in dir(tw)]  # each is made when it is first looked at
    names = {getattr(cls, "method", None) for cls in classes if isinstance(cls, type)}
    assert {m.name for m in tw.methods("optimizer")} <= names
    assert tw.AdamW is tw.AdamW and tw.AdamW.__module__ == "thalweg"
    with pytest.raises(AttributeError, match="no attribute 'AdamWW'"):
        tw.AdamWW


def test_signature_has_the_defaults_of_the_library() -> None:
    parameters = inspect.signature(tw.AdamW).parameters
    assert list(parameters)[:2] == ["params", "lr"]
    assert parameters["beta1"].default == 0.9 and parameters["betas"].default is None
    assert inspect.signature(tw.AdamW.__init__).parameters["self"]
    assert parameters["nonfinite"].default == "propagate"


def test_docstring_tells_rule_and_source() -> None:
    text = tw.AdamW.__doc__
    assert "Rule" in text and "Source" in text and "weight_decay" in text and "betas" in text


def test_betas_are_beta1_and_beta2(w: np.ndarray) -> None:
    opt = tw.AdamW([w], lr=0.1, betas=(0.8, 0.95))
    assert opt.get("beta1") == 0.8 and opt.get("beta2") == 0.95
    with pytest.raises(ValueError, match="beta1"):
        tw.AdamW([w], betas=(0.8, 0.95), beta1=0.5)
    with pytest.raises(ValueError, match="betas"):
        tw.AdamW([w], betas=(0.8,))


def test_before_and_after(w: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.5, before="clip_global_norm(1.0)", after="ema(0.9)")
    assert [part.split("(")[0].strip() for part in opt.sentence.split("|")] == ["clip_global_norm", "sgd", "ema"]


def test_schedule_as_value(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.SGD([w], lr=tw.schedule("linear(lr=0.5, end=0, total=2)"))
    assert opt.get("lr") == 0.5
    opt.step([g])
    assert opt.get("lr") == 0.25


def test_registry() -> None:
    m = tw.method("adamw")
    assert m.kind == "optimizer" and m.parameter("lr").live and m.summary and m.source
    assert [x.name for x in tw.methods()] == sorted(x.name for x in tw.methods())
    assert all(x.kind == "schedule" for x in tw.methods("schedule"))
    with pytest.raises(tw.MethodError, match="adamw"):
        tw.method("adamww")


def test_positional_hyperparameters(w: np.ndarray) -> None:
    assert tw.SGD([w], 0.25).get("lr") == 0.25


# ---- parameters


def test_names(w: np.ndarray) -> None:
    assert tw.SGD([("layer.weight", w)], lr=0.1).names == ["layer.weight"]
    assert tw.SGD([w], lr=0.1, names=["a"]).names == ["a"]
    assert tw.SGD([w], lr=0.1).names == [None]
    with pytest.raises(tw.CountError, match="names"):
        tw.SGD([w], lr=0.1, names=["a", "b"])


def test_groups(w: np.ndarray, g: np.ndarray) -> None:
    v = w.copy()
    opt = tw.SGD([{"params": [w]}, {"params": v, "lr": 0.125, "name": "head"}], lr=0.5)
    assert [group.name for group in opt.param_groups] == ["group0", "head"]
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.125]
    before = w.copy()
    opt.step([g, g])
    np.testing.assert_array_equal(w, before - 0.5 * g)
    np.testing.assert_array_equal(v, before - 0.125 * g)
    opt.param_groups[0]["lr"] = 0.25
    opt.step([g, g])
    np.testing.assert_array_equal(w, before - 0.5 * g - 0.25 * g)
    np.testing.assert_array_equal(v, before - 0.125 * g - 0.125 * g)


def test_group_is_a_mapping(w: np.ndarray) -> None:
    group = tw.AdamW([w], lr=0.1, betas=(0.8, 0.9)).param_groups[0]
    assert group["betas"] == (0.8, 0.9) and "lr" in dict(group) and group["params"][0] is w
    group["betas"] = (0.7, 0.95)
    assert group["beta1"] == 0.7
    with pytest.raises(KeyError):
        group["nothing"]
    with pytest.raises(TypeError):
        del group["lr"]
    with pytest.raises(tw.RangeError, match="lr"):
        group["lr"] = -1.0
    assert group["lr"] == 0.1


def test_add_param_group(w: np.ndarray, g: np.ndarray) -> None:
    v = w.copy()
    opt = tw.SGD([w], lr=0.5)
    opt.add_param_group({"params": [v], "lr": 0.25})
    before = w.copy()
    opt.step([g, g])
    np.testing.assert_array_equal(v, before - 0.25 * g)
    np.testing.assert_array_equal(w, before - 0.5 * g)


def test_get_and_set(w: np.ndarray) -> None:
    opt = tw.Optimizer([w], "sgd(lr=0.5, nesterov=false, momentum=0.9) | ema(0.9)")
    opt.set("sgd.lr", 0.25)
    assert opt.get("lr") == opt.get("sgd.lr") == 0.25
    opt.set("nesterov", True)
    assert opt.get("nesterov") in (True, 1.0)
    opt.set("lr", "linear(lr=0.1, end=0, total=10)")
    assert opt.get("lr") == 0.1
    with pytest.raises(tw.UnknownNameError):
        opt.get("no_such_thing")


# ---- arrays


def test_strided_views(g: np.ndarray) -> None:
    big = np.arange(12.0)
    view = big[::-4]
    expected = view - 0.5 * g
    tw.SGD([view], lr=0.5).step([g])
    np.testing.assert_array_equal(view, expected)
    assert big[10] == 10.0


def test_fortran_order_and_many_axes() -> None:
    w = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    g = np.arange(6.0).reshape(2, 3)
    expected = w - g
    tw.SGD([w], lr=1.0).step([g])
    np.testing.assert_array_equal(w, expected)
    w = np.zeros((1, 2, 1, 2, 1, 2, 1, 2))
    tw.SGD([w], lr=1.0).step([np.ones_like(w)])
    assert (w == -1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dtypes(dtype: str) -> None:
    w, g = np.ones(5, dtype), np.ones(5, dtype)
    tw.SGD([w], lr=0.5).step([g])
    assert (w == 0.5).all()


def test_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w, g = np.ones(5, ml_dtypes.bfloat16), np.ones(5, ml_dtypes.bfloat16)
    tw.SGD([w], lr=0.5).step([g])
    assert (w.astype(np.float32) == 0.5).all()


def test_buffers_that_are_not_numpy() -> None:
    import array

    w = array.array("d", [1.0, 2.0])
    opt = tw.SGD([w], lr=0.5)
    opt.step([memoryview(np.ones(2))])
    assert list(w) == [0.5, 1.5]
    with pytest.raises(BufferError):
        w.append(3.0)
    opt.close()
    w.append(3.0)


def test_empty_and_scalar_arrays() -> None:
    w, empty = np.array(1.0), np.zeros((0, 3))
    tw.SGD([w, empty], lr=0.5).step([np.array(1.0), np.zeros((0, 3))])
    assert w == 0.5


def test_dlpack() -> None:
    class Exporter:
        """An array that has nothing but DLPack."""

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    w = np.ones((4, 3))[:, ::2]
    opt = tw.SGD([Exporter(w)], lr=0.5)
    opt.step([Exporter(np.ones((4, 2)))])
    assert (w == 0.5).all()


def test_array_interface() -> None:
    class Exporter:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array
            self.__array_interface__ = array.__array_interface__

    w = np.ones(3)
    tw.SGD([Exporter(w)], lr=0.5).step([np.ones(3)])
    assert (w == 0.5).all()


def test_absent_gradient(w: np.ndarray, g: np.ndarray) -> None:
    v, before = w.copy(), w.copy()
    opt = tw.AdamW([w, v], lr=0.1)
    opt.step([g, None])
    np.testing.assert_array_equal(v, before)
    assert (w != before).all()


def test_memory_is_held_while_bound(g: np.ndarray) -> None:
    w, grad = np.ones(3), g.copy()
    seen = weakref.ref(grad)
    opt = tw.SGD([w], lr=0.5)
    opt.bind_gradients([grad])
    del grad
    gc.collect()
    assert seen() is not None
    opt.step()
    opt.release_gradients()
    gc.collect()
    assert seen() is None
    before = w.copy()
    opt.step()  # an absent gradient leaves the tensor alone
    np.testing.assert_array_equal(w, before)


def test_same_list_is_not_bound_again(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.SGD([w], lr=1.0)
    grads = [g]
    start = w.copy()
    opt.step(grads)
    g *= 2  # seen, because memory is shared
    opt.step(grads)
    np.testing.assert_array_equal(w, start - g / 2 - g)
    grads[0] = np.ones(3)  # another object is bound anew
    before = w.copy()
    opt.step(grads)
    np.testing.assert_array_equal(w, before - 1)


def test_shadow() -> None:
    w, shadow = np.full(3, 1.0, np.float32), np.zeros(3, np.float16)
    opt = tw.SGD([w], lr=0.5)
    opt.bind_shadow([shadow])
    opt.step([np.ones(3, np.float32)])
    assert (shadow == 0.5).all()
    opt.bind_shadow(None)
    opt.step([np.ones(3, np.float32)])
    assert (shadow == 0.5).all() and (w == 0.0).all()


def test_rebind_parameters(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.SGD([w], lr=0.5, momentum=0.9)
    opt.step([g])
    other = w.copy()
    opt.rebind_parameters([other])
    opt.step([g])
    np.testing.assert_array_equal(other, w - 0.5 * (0.9 * g + g))


def test_zero_grad_and_zero_gradients(w: np.ndarray, g: np.ndarray) -> None:
    strided = np.ones((4, 4))[::2, ::2]
    opt = tw.SGD([w, np.ones((2, 2))], lr=0.5)
    opt.bind_gradients([g, strided])
    opt.zero_grad()
    assert not g.any() and not strided.any() and strided.base.sum() == 12
    g[:] = 1
    opt = tw.SGD([w], lr=0.5, zero_gradients=True)
    opt.step([g])
    assert not g.any()


def test_maximize_and_scale(w: np.ndarray, g: np.ndarray) -> None:
    before = w.copy()
    tw.SGD([w], lr=0.5, maximize=True, gradient_scale=2.0).step([g])
    np.testing.assert_array_equal(w, before + g)


# ---- closures


def test_closure_forms(g: np.ndarray) -> None:
    for closure in (lambda: (1.5, [g]), lambda: (1.5, g), lambda request: (1.5, [g])):
        w = np.ones(3)
        assert tw.SGD([w], lr=0.5).step(closure) == 1.5
        np.testing.assert_array_equal(w, 1 - 0.5 * g)
    for closure in (lambda: [g], lambda: (g,), lambda: g):
        w = np.ones(3)
        assert tw.SGD([w], lr=0.5).step(closure) is None
        np.testing.assert_array_equal(w, 1 - 0.5 * g)
    w = np.ones(3)
    opt = tw.SGD([w], lr=0.5)
    opt.bind_gradients([g])
    assert opt.step(closure=lambda: 2.5) == 2.5
    assert opt.step(lambda: None) is None
    np.testing.assert_array_equal(w, 1 - 0.5 * g - 0.5 * g)


def test_closure_that_raises_leaves_everything(g: np.ndarray) -> None:
    w = np.ones(3)
    opt = tw.Optimizer([w], "sam(0.5) | sgd(lr=0.1)")
    calls = []

    def closure() -> tuple[float, list[np.ndarray]]:
        calls.append(w.copy())
        if len(calls) == 2:
            raise KeyError("mine")
        return 1.0, [g]

    with pytest.raises(KeyError, match="mine"):
        opt.step(closure)
    assert not np.array_equal(calls[0], calls[1])  # the second call saw the perturbed point
    np.testing.assert_array_equal(w, np.ones(3))
    assert opt.steps == 0
    opt.step(lambda: (1.0, [g]))
    assert opt.steps == 1


# ---- modes


def test_averaged(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.Optimizer([w], "sgd(lr=0.5) | swa")
    points = []
    for _ in range(3):
        opt.step([g])
        points.append(w.copy())
    trained = w.copy()
    with opt.averaged():
        np.testing.assert_allclose(w, np.mean(points, axis=0), rtol=1e-15)
        with pytest.raises(tw.SequenceError):
            opt.step([g])
    np.testing.assert_array_equal(w, trained)
    opt.eval()
    assert not opt.training
    opt.train()
    np.testing.assert_array_equal(w, trained)


# ---- reports, copies


def test_state_and_memory(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.AdamW([w, np.ones((2, 2), np.float32)], lr=0.1)
    report = opt.memory_report()
    assert report.total == 2 * 3 * 8 + 2 * 4 * 4 == sum(row.bytes for row in report.rows)
    assert "adamw" in str(report)
    opt.step([g, np.ones((2, 2), np.float32)])
    state = opt.state()
    assert all(name.startswith("adamw.") for name in state)
    first = next(iter(state.values()))
    assert [a.shape for a in first] == [(3,), (2, 2)]
    np.testing.assert_allclose(first[0], 0.1 * g)


def test_pickle_and_deepcopy(w: np.ndarray, g: np.ndarray) -> None:
    opt = tw.AdamW([{"params": [("w", w)], "name": "a"}], lr=0.1)
    opt.step([g])
    opt.param_groups[0]["lr"] = 0.05
    for twin in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        assert type(twin) is tw.AdamW and twin.names == ["w"] and twin.steps == 1
        assert twin.param_groups[0]["lr"] == 0.05
        twin.step([g])
        v = twin.params[0]
        assert v is not w
        other = copy.deepcopy(opt)
        other.step([g])
        np.testing.assert_array_equal(v, other.params[0])


def test_pickle_keeps_the_identity_of_arrays(w: np.ndarray) -> None:
    again, opt = pickle.loads(pickle.dumps((w, tw.SGD([w], lr=0.1))))
    assert opt.params[0] is again


def test_closing(w: np.ndarray) -> None:
    with tw.SGD([w], lr=0.1) as opt:
        assert not opt.closed
    assert opt.closed and "closed" in repr(opt)
    opt.close()


def test_nothing_leaks(w: np.ndarray, g: np.ndarray) -> None:
    before = sys.getrefcount(w), sys.getrefcount(g)
    for _ in range(50):
        opt = tw.SGD([w], lr=0.1)
        opt.me = opt  # a cycle
        opt.step([g])
        with pytest.raises(tw.ShapeError):
            opt.step([np.ones(4)])
        del opt
    gc.collect()
    assert (sys.getrefcount(w), sys.getrefcount(g)) == before


# ---- objects


def test_regularizer() -> None:
    w = np.array([1.0, -2.0, 0.05])
    l1 = tw.regularizer("l1(0.5)")
    assert l1.value(w) == pytest.approx(0.5 * 3.05)
    np.testing.assert_array_equal(l1.gradient(w), [0.5, -0.5, 0.5])
    out = np.ones(3)
    assert l1.gradient(w, out=out) is out
    np.testing.assert_array_equal(out, [1.5, 0.5, 1.5])
    assert l1.prox(w, 1.0) is w
    np.testing.assert_array_equal(w, [0.5, -1.5, 0.0])
    with pytest.raises(tw.MethodError):
        tw.regularizer("l3(0.5)")


def test_constraint() -> None:
    w = np.array([3.0, 4.0])
    ball = tw.constraint("l2_ball(1)")
    assert ball.project(w) is w
    np.testing.assert_allclose(w, [0.6, 0.8])
    np.testing.assert_allclose(ball.lmo(np.array([0.0, 2.0])), [0.0, -1.0])
    ball.close()
    with pytest.raises(tw.HandleError):
        ball.project(w)


def test_schedule() -> None:
    line = tw.schedule("linear(lr=1, end=0, total=4)")
    assert [line(k) for k in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    with pytest.raises(tw.RangeError):
        line(-1)
    assert pickle.loads(pickle.dumps(line))(1) == 0.75
    assert type(line(np.int64(1))) is float
    for steps in (np.arange(6, dtype=np.int32).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]):
        np.testing.assert_array_equal(line(steps), [[1, 0.75, 0.5], [0.25, 0, 0]])
    assert line(range(2)).tolist() == [1.0, 0.75] and line([]).shape == (0,)
    for wrong in (1.5, [0.5, 1.0], "1", None):
        with pytest.raises(TypeError, match="whole number"):
            line(wrong)
    with pytest.raises(tw.RangeError):
        line(np.array([0, -1]))


def test_random_normal() -> None:
    x = tw.random_normal(3, step=2, n=1001)
    np.testing.assert_array_equal(x[500:600], tw.random_normal(3, step=2, n=100, offset=500))
    assert abs(x.mean()) < 0.15 and abs(x.std() - 1) < 0.1
    assert not np.array_equal(x, tw.random_normal(4, step=2, n=1001))
    assert tw.random_normal(3, shape=(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="seed"):
        tw.random_normal(-1, n=3)


def test_threads() -> None:
    tw.set_num_threads(3)
    assert tw.get_num_threads() == 3
    with pytest.raises(ValueError):
        tw.set_num_threads(0)
    assert tw.get_num_threads() == 3


def test_errors_are_builtin_exceptions_too() -> None:
    for cls, builtin in ((tw.SentenceError, ValueError), (tw.ValueTypeError, TypeError), (tw.FileError, OSError),
                         (tw.LayoutError, BufferError), (tw.AllocationError, MemoryError),
                         (tw.NonfiniteError, FloatingPointError), (tw.UnsupportedError, NotImplementedError)):
        assert issubclass(cls, builtin) and issubclass(cls, tw.Error) and issubclass(cls, RuntimeError)


# ---- the command line


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "thalweg", *arguments], capture_output=True, text=True, timeout=120)


def test_command_line() -> None:
    assert "adamw" in command("methods").stdout
    assert "adamw" not in command("methods", "--kind", "schedule").stdout
    assert "kinds" in command("methods", "--kind", "nothing").stderr
    assert "Rule" in command("show", "adamw").stdout
    wrong = command("show", "adamww")
    assert wrong.returncode == 1 and "adamw" in wrong.stderr
    timed = command("bench", "sgd(lr=0.1)", "--size", "10000", "--threads", "1")
    assert "ns an element" in timed.stdout, timed.stderr


# ---- adapters


def test_torch_adapter() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    pairs = []
    for model, make in zip(models, (lambda p: Optimizer(p, "adamw(lr=0.01, weight_decay=0.1)"),
                                    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))):
        opt = make(model.parameters())
        pairs.append((model, opt, torch.optim.lr_scheduler.StepLR(opt, 3, 0.5)))
    x = torch.randn(8, 4)
    for _ in range(10):
        for model, opt, scheduler in pairs:
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
            scheduler.step()
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    opt = pairs[0][1]
    assert opt.param_groups[0]["lr"] == pytest.approx(pairs[1][1].param_groups[0]["lr"])
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(saved)
    assert opt.engine.steps == 10


def test_torch_schedulers_cycle_momentum() -> None:
    """OneCycleLR finds lr and betas, changes both, and the engine follows."""
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    for sentence, key in (("adamw(lr=0.01)", "betas"), ("sgd(lr=0.01, momentum=0.9)", "momentum")):
        p = torch.nn.Parameter(torch.ones(3))
        opt = Optimizer([p], sentence)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
        seen = []
        for _ in range(9):
            p.grad = torch.ones(3)
            opt.step()
            value = opt.param_groups[0][key]
            seen.append(value[0] if key == "betas" else value)
            assert opt.engine.get("lr") == opt.param_groups[0]["lr"]
            assert opt.engine.get("beta1" if key == "betas" else "momentum") == seen[-1]
            scheduler.step()
        assert len(set(seen)) > 5
    opt = Optimizer([{"params": [p], "betas": (0.8, 0.9)}], "adamw(lr=0.01)")
    assert opt.param_groups[0]["betas"] == (0.8, 0.9) and opt.engine.param_groups[0]["beta2"] == 0.9


def test_torch_closure_and_moved_memory() -> None:
    torch = pytest.importorskip("torch")
    from thalweg.torch import Optimizer

    p = torch.nn.Parameter(torch.ones(3))
    opt = Optimizer([p], "sam(0.1) | sgd(lr=0.5)")
    seen = []

    def closure() -> torch.Tensor:
        seen.append(p.detach().clone())
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(opt.step(closure).detach()) == 3.0
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])
    p.data = p.data.clone()
    before = p.detach().clone()
    opt.step(closure)
    assert not torch.equal(p.detach(), before)


def test_torch_kinds() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        p = torch.ones(4, dtype=dtype, requires_grad=True)
        tw.SGD([p], lr=0.5).step([torch.ones(4, dtype=dtype)])
        assert (p == 0.5).all()
    for wrong in (torch.ones(3, dtype=torch.int64), torch.ones(3).to_sparse(), torch.ones(3, device="meta")):
        with pytest.raises(tw.DtypeError, match="parameter 0"):
            tw.SGD([wrong], lr=0.5)


def test_jax_adapter() -> None:
    jax = pytest.importorskip("jax")
    from thalweg.jax import Optimizer

    params = {"w": jax.numpy.ones((3, 4)), "b": jax.numpy.zeros(5)}
    opt = Optimizer(params, "sgd(lr=0.25)")
    function = jax.jit(jax.value_and_grad(lambda p: (p["w"] ** 2).sum() + p["b"].sum()))
    loss, grads = function(opt.params)
    opt.step(grads)
    assert (opt.params["w"] == 0.5).all() and (opt.params["b"] == -0.25).all()
    assert float(opt.step(function)) == pytest.approx(3.0 - 1.25)
    with pytest.raises(tw.LayoutError, match="read-only"):
        tw.SGD([params["w"]], lr=0.1)
