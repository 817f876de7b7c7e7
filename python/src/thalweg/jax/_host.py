"""Outside jit: parameters in memory that NumPy writes and JAX reads, without a copy.

JAX arrays cannot change, so the parameters live in 64-byte aligned NumPy arrays (the alignment that JAX asks for before
it borrows memory), and `opt.params` is the same pytree of JAX arrays that look at them.  Two things follow:

- step() waits for the gradients, and then writes.  A computation that still reads the parameters at that moment, and
  that the gradients do not depend on, would see them change: finish it first (jax.block_until_ready).
- a JAX array from `opt.params` shows the new values after a step.  Keep old values with jnp.array(x, copy=True).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np

from .. import _arrays, _optimizer, _requests
from .._errors import DtypeError, LayoutError, NeedsError, error, of_adapter
from ._trees import leaves_like

ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A new NumPy array, not initialised, whose memory JAX can borrow."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Any) -> np.ndarray:
    """A copy of an array (JAX, NumPy, ...) whose memory JAX can borrow."""
    if _arrays.is_masked(array):
        raise error(DtypeError, _arrays.MASKED)
    if _arrays.is_traced(array):
        raise error(DtypeError, _arrays.TRACED)
    source = np.asarray(array)
    copy = aligned_empty(source.shape, source.dtype)
    copy[...] = source
    return copy


def view(array: np.ndarray) -> jax.Array:
    """A JAX array on the CPU that looks at the memory of an aligned NumPy array, without a copy."""
    looking = jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
    if array.size and looking.unsafe_buffer_pointer() != array.ctypes.data:
        raise error(LayoutError, f"JAX copies a {array.dtype} array of shape {array.shape} where it should look at it")
    return looking


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


class Optimizer:
    """A sentence at work on a pytree of parameters.

    params    any pytree of floating-point arrays; they are copied once, into `arrays`.  Their names are the paths in
              it, as jax.tree_util.keystr writes them: route("*bias*"=(sgd(lr=0.1)), other=(adamw)) goes by those
    sentence  the pipeline, as for thalweg.Optimizer
    options   those of thalweg.Optimizer: state_dtype, nonfinite, seed, ...

    params    (attribute) the pytree of JAX arrays that look at the memory
    arrays    the same memory as NumPy arrays, in the order of the leaves
    engine    the thalweg.Optimizer inside, for everything else

    A copy (deepcopy, pickle) has memory of its own, and goes on as the original would.  What state_dict() and
    save(path) give holds the state without the parameters: save `params` beside it, and begin with those.
    """

    def __init__(self, params: Any, sentence: str, **options: Any) -> None:
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(params)
        self.arrays = [aligned_copy(leaf) for _, leaf in leaves]
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
        if len(set(names)) == len(names) and all(names):
            options.setdefault("names", names)
        self.engine = _optimizer.Optimizer(self.arrays, sentence, **options)
        self._views = [view(array) for array in self.arrays]

    @property
    def params(self) -> Any:
        """The parameters as JAX arrays; they show every step, and may be donated: then new ones look at the memory."""
        for index, looking in enumerate(self._views):
            if looking.is_deleted():
                self._views[index] = view(self.arrays[index])
        return jax.tree_util.tree_unflatten(self._tree, self._views)

    @of_adapter
    def step(self, grads: Any) -> Any:
        """One step.

        grads  a pytree like the parameters, of JAX or NumPy arrays, even if it can be called (a module); or a closure:
               closure(params) -> (loss, grads), called as often as the method asks; the loss may be None for methods
               that do not ask for it, and the loss alone is an answer where nothing else is wanted (spsa).  Methods
               that ask for more than gradients and losses (hessian_vector, matrices), or for the gradients of several
               tasks, need the requests of `engine`

        Returns the closure's first loss, else None.
        """
        if callable(grads):
            # What JAX does not know is a leaf: a function has the structure of a lone array.
            leaves, tree = jax.tree_util.tree_flatten(grads)
            if tree != self._tree or any(leaf is grads for leaf in leaves):
                return self._step_closure(grads)
        self.engine.step(self._leaves(grads))
        self.engine.release_gradients()
        return None

    def _step_closure(self, closure: Callable[[Any], Any]) -> Any:
        def answer(request: _requests.Request) -> tuple[Any, list[Any] | None]:
            if _requests.needs_request(request):
                raise error(NeedsError, f"the method asks for {_requests.asked_for(request)}, which closure(params) "
                            "cannot know: answer every request in opt.engine.requests()")
            returned = closure(self.params)
            if request.kind == "loss" and not isinstance(returned, (tuple, list)):
                return _requests.number_of(returned), None
            if not isinstance(returned, (tuple, list)) or len(returned) != 2:
                raise TypeError(f"closure(params) returns (loss, grads), not {type(returned).__name__}")
            loss, grads = returned
            if request.kind == "loss":
                return _requests.number_of(loss), None
            return None if loss is None else _requests.number_of(loss), self._leaves(grads)

        loss = self.engine.step(answer)
        self.engine.release_gradients()
        return loss

    def _leaves(self, grads: Any) -> list[Any]:
        return jax.block_until_ready(leaves_like(grads, self._tree))

    # ---- modes

    @of_adapter
    def train(self) -> None:
        """Puts the training weights back into the parameters, bit for bit; waits for computations that read them."""
        _finish()
        self.engine.train()

    @of_adapter
    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters; waits for computations
        that read them."""
        _finish()
        self.engine.eval()

    def averaged(self) -> contextlib.AbstractContextManager[Optimizer]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights.  What is computed with them there
        is finished before it ends."""
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
        made = ("arrays", "engine", "_tree", "_views")
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


def _finish() -> None:
    """Waits for the results of all computations that JAX has begun: they may read memory that is about to change."""
    jax.block_until_ready(jax.live_arrays("cpu"))


def _restore(
    cls: type[Optimizer], skeleton: Any, arrays: list[np.ndarray], engine: type[_optimizer.Optimizer],
    groups: list[tuple[Any, ...]], *rest: Any
) -> Optimizer:
    """Rebuilds a pickled or copied optimizer over memory that JAX can borrow."""
    optimizer = cls.__new__(cls)
    optimizer._tree = jax.tree_util.tree_structure(skeleton)
    optimizer.arrays = [aligned_copy(array) for array in arrays]
    moved = iter(optimizer.arrays)
    groups = [(name, [next(moved) for _ in members], *more) for name, members, *more in groups]
    optimizer.engine = _optimizer._restore(engine, groups, *rest)
    optimizer._views = [view(array) for array in optimizer.arrays]
    return optimizer
