"""Outside jit: parameters in memory that NumPy writes and JAX reads, without a copy where nobody looks.

They live in 64-byte aligned NumPy arrays (the alignment that JAX asks for before it borrows memory).  What `opt.params`
hands out never changes, and what a computation reads does not change under it: see _memory.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np

from .. import _optimizer, _requests
from .._errors import NeedsError, error, of_adapter
from ._memory import Memory, aligned_copy
from ._trees import leaves_like


Given = ParamSpec("Given")
Result = TypeVar("Result")


def _of_engine(
    method: Callable[Concatenate[_optimizer.Optimizer, Given], Result],
) -> Callable[Concatenate[Optimizer, Given], Result]:
    """The method of the optimizer inside, as one of this class."""

    @of_adapter
    @functools.wraps(method)
    def call(self: Optimizer, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return method(self.engine, *args, **kwargs)

    return call


class Request(_requests.Request):
    """What a method needs now, from `thalweg.jax.Optimizer.requests`: a thalweg.Request whose arrays are pytrees.

    opt.params stands where the answer is wanted; kind, pass_, tag, index, count and loss are those of thalweg.Request.
    """

    __slots__ = ("_host",)

    def __init__(self, host: Optimizer, optimizer: _optimizer.Optimizer, row: tuple[int, ...]) -> None:
        super().__init__(optimizer, row)  # type: ignore[arg-type]
        self._host = host

    @property
    def probe(self) -> Any:
        """The vector of a Hessian-vector product, or the direction of derivatives: a pytree like the parameters."""
        return jax.tree_util.tree_unflatten(self._host._tree, [jax.numpy.asarray(x) for x in super().probe])

    def answer(self, grads: Any = None, loss: Any = None, *, stay: bool = False) -> None:
        """Gives the answer: gradients, a Hessian-vector product or the parameters of a participant, and the loss.

        grads  a pytree like the parameters, None in the place of a leaf that has none
        stay   as for thalweg.Request.answer

        ShapeError for another structure, and what thalweg.Request.answer raises.
        """
        number = None if loss is None else _requests.number_of(loss, "the loss of an answer", grads)
        super().answer(None if grads is None else self._host._leaves(grads), number, stay=stay)

    def answer_matrix(self, first: Any = None, second: Any = None) -> None:
        super().answer_matrix(*jax.block_until_ready((first, second)))

    answer_matrix.__doc__ = _requests.Request.answer_matrix.__doc__

    def answer_samples(self, gradients: Any) -> None:
        """Answers "sample_gradients": a pytree like the parameters of arrays (samples, shape of the parameter...), as
        jax.vmap(jax.grad(loss), (None, 0)) gives them, None in the place of a leaf that has none.

        SequenceError when no such request waits.  ShapeError and ArgumentError leave the request waiting.
        """
        super().answer_samples(self._host._leaves(gradients))


class Engine(_optimizer.Optimizer):
    """The optimizer inside: before it writes the parameters, it sees to it that nobody outside looks at them."""

    _memory: Memory | None = None

    def _begin(self) -> None:
        if self._memory is not None and self._memory.release():
            moved = self._memory.arrays
            self.rebind_parameters([*moved, *self.params[len(moved):]])

    def _wait(self) -> None:
        if self._memory is not None:
            self._memory.wait()

    @property
    def _movable(self) -> bool:
        """Whether the parameters can be bound elsewhere."""
        return self.closed or (self._pending is None and self.training and self._waiting() is None)

    def step(self, grads: Any = None, /, **named: Any) -> Any:
        self._begin()
        return super().step(grads, **named)

    step.__doc__ = _optimizer.Optimizer.step.__doc__

    def _requests(self, *made: Any) -> Generator[_requests.Request, None, None]:
        self._begin()
        yield from super()._requests(*made)

    def _next(self, loss: float | None, stays: bool, /) -> tuple[int, int, int, int, int, int] | None:
        self._wait()
        return super()._next(loss, stays)

    def cancel(self) -> None:
        self._wait()
        super().cancel()

    def close(self) -> None:
        self._wait()
        super().close()

    def _set_mode(self, mode: int, /) -> None:
        self._begin()
        super()._set_mode(mode)

    def _load(self, data: Any, /) -> None:
        self._begin()
        super()._load(data)

    def _load_file(self, path: Any, /) -> None:
        self._begin()
        super()._load_file(path)

    def __reduce__(self) -> tuple[Any, ...]:
        restore, (_, *rest) = super().__reduce__()
        return restore, (_optimizer.Optimizer, *rest)


class Optimizer:
    """A sentence at work on a pytree of parameters, outside jit.  (`thalweg.jax.optimizer`, in lower case, is another
    thing: an Optax transformation, which runs inside jit and keeps nothing.)

    params    any pytree of floating-point arrays; they are copied once, into `arrays`.  Their names are the paths in
              it, as jax.tree_util.keystr writes them: route("*bias*"=(sgd(lr=0.1)), other=(adamw)) goes by those
    sentence  the pipeline, as for thalweg.Optimizer
    options   those of thalweg.Optimizer: state_dtype, nonfinite, seed, ...

    params    (attribute) the parameters as they are now, as a pytree of JAX arrays, which never change: keep them as
              the best so far, donate them, or step while a computation still reads them
    arrays    the memory that is stepped, as NumPy arrays in the order of the leaves, for reading and writing between
              steps: look there anew after a step, which may have put other arrays there
    engine    the thalweg.Optimizer inside, for everything else

    Parameters of less than half a megabyte are copied whenever they are handed out, all in one call.  Larger ones are
    looked at without a copy, and step() copies those that somebody still has, or that a computation still reads; it
    does not wait for those.  So `loss, grads = f(opt.params)` costs no copy of them, and `kept = opt.params` one, at
    the next step.  Within the requests of a step, and in evaluation mode, all are copied when they are handed out.

    A copy (deepcopy, pickle) has memory of its own, and goes on as the original would.  What state_dict() and
    save(path) give holds the state without the parameters: save `params` beside it, and begin with those.
    """

    def __init__(self, params: Any, sentence: str, **options: Any) -> None:
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(params)
        self.arrays = [aligned_copy(leaf) for _, leaf in leaves]
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        if len(set(names)) == len(names) and all(names):
            options.setdefault("names", names)
        self._bind(Engine(self.arrays, sentence, **options))

    def _bind(self, engine: Engine) -> None:
        self.engine = engine
        self._memory = engine._memory = Memory(self.arrays)

    @property
    def params(self) -> Any:
        """The parameters as they are now, as JAX arrays that never change; they may be donated."""
        return jax.tree_util.tree_unflatten(self._tree, self._memory.shown(self.engine._movable))

    @of_adapter
    def step(self, grads: Any) -> Any:
        """One step.

        grads  a pytree like the parameters, of JAX or NumPy arrays, even if it can be called (a module); or a closure:
               closure(params) -> (loss, grads), called as often as the method asks; the loss may be None for methods
               that do not ask for it, and the loss alone is an answer where nothing else is wanted (spsa).  Methods
               that ask for more than gradients and losses (hessian_vector, matrices), or for the gradients of several
               tasks, need `requests`

        Waits for the gradients, and for copies of small parameters that are being made; not for what is computed with
        those.  Returns the closure's first loss, else None.
        """
        if callable(grads):
            # What JAX does not know is a leaf: a function has the structure of a lone array.
            leaves, tree = jax.tree_util.tree_flatten(grads)
            if tree != self._tree or any(leaf is grads for leaf in leaves):
                return self._step_closure(grads)
        self.engine.step(jax.block_until_ready(leaves_like(grads, self._tree)))
        self.engine.release_gradients()
        return None

    def _step_closure(self, closure: Callable[[Any], Any]) -> Any:
        ready: list[Any] = []
        if self.engine._movable and not any(method.requests for _, method in self.engine._stages()):
            # One gradient is all that is asked for: it is computed before the step, when parameters can still move.
            ready.append(jax.block_until_ready(closure(self.params)))

        def answer(request: _requests.Request) -> tuple[Any, list[Any] | None]:
            if _requests.needs_request(request):
                raise error(NeedsError, f"the method asks for {_requests.asked_for(request)}, which closure(params) "
                            "cannot know: answer every request in opt.requests()")
            returned = ready.pop() if ready else closure(self.params)
            if request.kind == "loss" and not isinstance(returned, (tuple, list)):
                return _requests.number_of(returned), None
            if not isinstance(returned, (tuple, list)) or len(returned) != 2:
                raise TypeError(f"closure(params) returns (loss, grads), not {type(returned).__name__}")
            loss, grads = returned
            if request.kind == "loss":
                return _requests.number_of(loss), None
            grads = jax.block_until_ready(leaves_like(grads, self._tree))
            return None if loss is None else _requests.number_of(loss), grads

        loss = self.engine.step(answer)
        self.engine.release_gradients()
        return loss

    def requests(self) -> Generator[Request, None, None]:
        """One step as a loop over what the method asks for, for every sentence: several tasks, Hessian products, the
        gradients of samples.

            for request in opt.requests():                             # "pcgrad(tasks=2) | adamw"
                loss, grads = value_and_grad[request.index](opt.params)
                request.answer(grads, loss)

            for request in opt.requests():                             # "adahessian"
                if request.kind == "hessian_vector":
                    request.answer(jax.jvp(jax.grad(loss), (opt.params,), (request.probe,))[1])
                else:
                    request.answer(jax.grad(loss)(opt.params))

        The step is done when the loop ends; leaving it early cancels it, as in thalweg.Optimizer.requests.
        """
        with contextlib.closing(self.engine._loop(functools.partial(Request, self))) as loop:
            while (request := self._next_of(loop)) is not None:
                yield request
        self.engine.release_gradients()

    @of_adapter
    def _next_of(self, loop: Generator[Request, None, None]) -> Request | None:
        return next(loop, None)

    def _leaves(self, grads: Any) -> list[Any]:
        """The leaves of an answer, None where there is none."""
        leaves, tree = jax.tree_util.tree_flatten(grads, is_leaf=lambda x: x is None)
        if tree != self._tree:
            leaves = leaves_like(grads, self._tree)
        return jax.block_until_ready(leaves)

    # ---- modes

    @of_adapter
    def train(self) -> None:
        """Puts the training weights back into the parameters, bit for bit."""
        self.engine.train()

    @of_adapter
    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters."""
        self.engine.eval()

    def averaged(self) -> contextlib.AbstractContextManager[Optimizer]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights.  What is handed out there stays
        what it is behind it."""
        return _optimizer.evaluating(self)

    @property
    def training(self) -> bool:
        """False while the parameters hold the evaluation weights."""
        return self.engine.training

    # ---- hyper-parameters and state

    get = _of_engine(_optimizer.Optimizer.get)
    set = _of_engine(_optimizer.Optimizer.set)
    observe = _of_engine(_optimizer.Optimizer.observe)
    state_dict = _of_engine(_optimizer.Optimizer.state_dict)
    load_state_dict = _of_engine(_optimizer.Optimizer.load_state_dict)
    save = _of_engine(_optimizer.Optimizer.save)
    load = _of_engine(_optimizer.Optimizer.load)
    memory_report = _of_engine(_optimizer.Optimizer.memory_report)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return self.engine.steps

    @property
    def skipped(self) -> int:
        """How many steps the non-finite policy refused."""
        return self.engine.skipped

    def __reduce__(self) -> tuple[Any, ...]:
        made = ("arrays", "engine", "_tree", "_memory")
        # A pytree of numbers: its structure can be copied where the classes in it can.
        skeleton = jax.tree_util.tree_unflatten(self._tree, range(len(self.arrays)))
        rest = {key: value for key, value in self.__dict__.items() if key not in made}
        return _restore, (type(self), skeleton, self.arrays, *self.engine.__reduce__()[1]), rest

    if not TYPE_CHECKING:  # (who checks types is told by the checker)

        def __getattr__(self, name: str) -> NoReturn:
            """What there is not: where it is a hyper-parameter, AttributeError names the way to read it."""
            if "engine" in self.__dict__ and not name.startswith("_") and not self.engine.closed:
                if name in {path.rpartition(".")[2] for path in self.engine._live_paths()}:
                    raise AttributeError(f"{name!r} is a hyper-parameter: opt.get({name!r}) reads it")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if "engine" in self.__dict__ and not name.startswith("_") and not hasattr(self, name):
            if name in {path.rpartition(".")[2] for path in self.engine._live_paths()}:
                raise AttributeError(f"{name!r} is a hyper-parameter: opt.set({name!r}, ...) changes it")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<thalweg.jax.Optimizer: {self.engine!r}>"


def _restore(
    cls: type[Optimizer], skeleton: Any, arrays: list[np.ndarray], engine: type[_optimizer.Optimizer],
    groups: list[tuple[Any, ...]], *rest: Any
) -> Optimizer:
    """Rebuilds a pickled or copied optimizer over memory that JAX can borrow.

    engine  as which its engine was pickled
    """
    optimizer = cls.__new__(cls)
    optimizer._tree = jax.tree_util.tree_structure(skeleton)
    optimizer.arrays = [aligned_copy(array) for array in arrays]
    moved = iter(optimizer.arrays)
    groups = [(name, [next(moved) for _ in members], *more) for name, members, *more in groups]
    optimizer._bind(_optimizer._restore(Engine, groups, *rest))
    return optimizer
