"""Inside jit: a sentence as an Optax transformation, one call of XLA into the library a step.

The call is a function: parameters, gradients and the whole state go in, parameters and state come out, in the same
memory where they are donated.  Nothing is kept on the host, so jit, scan, checkpoints and functional code see an
ordinary pytree.
"""

from __future__ import annotations

import contextlib
import functools
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .. import _notices, _optimizer, _options, _sentence
from .._errors import (
    ArgumentError,
    Error,
    NeedsError,
    ShapeError,
    ValueTypeError,
    error,
)
from . import _call
from ._state import PACK_FROM, STORAGE, Layout, Row, State, laid, of_state, packed_bytes, placed
from ._trees import Flat, check_order, flatten, forms, leaves_like, like

TRAIN, EVAL = 0, 1
SCALE = "gradient_scale"


class _Pair(NamedTuple):
    """What Optax calls a gradient transformation, where Optax is missing."""

    init: Callable[..., Any]
    update: Callable[..., Any]


def _base() -> type:
    try:
        from optax import GradientTransformationExtraArgs
    except ImportError:
        return _Pair
    return GradientTransformationExtraArgs


def optimizer(
    sentence: str,
    *,
    state_dtype: str = "f32",
    master: str | None = None,
    nonfinite: str = "propagate",
    maximize: bool = False,
    seed: int = 0,
    values: Mapping[str, Any] | None = None,
    pack: bool | None = None,
    **hyper: Any,
) -> Transformation:
    """A sentence as an Optax transformation that runs inside jax.jit, on the CPU.  (`thalweg.jax.Optimizer`, with a
    capital, is another thing: an object that keeps the parameters and steps them, outside jit.)

    sentence     the pipeline, as for thalweg.Optimizer: one that needs one gradient a step (and the loss, if it does,
                 passed as `value`).  Those that ask for more (sam, oasis, aggregators) need thalweg.jax.Optimizer,
                 outside jit
    state_dtype, master, nonfinite, maximize, seed   as for thalweg.Optimizer
    values       live hyper-parameters by path, {"adamw.lr": 1e-3}; keywords are the same for paths without a dot
                 (lr=1e-3).  A Python number, or a text ("cosine(1e-3, 1000)"), is fixed; an array, also one that is
                 traced, is read at every step, in float32 unless it is float64.  With Optax's schedules:
                 optax.inject_hyperparams(lambda lr: thalweg.jax.optimizer("adamw", lr=lr))(lr=schedule).
                 gradient_scale, the inverse of a loss scale, is given in the same way
    pack         True: all buffers of state of at most 64 KiB lie in one array, `state.packed`, and a step of many small
                 tensors takes JAX half the time; False: each is an array of its own in `state.tensors`; None: packed
                 from 256 buffers on.  Transformation.repack makes one of the other

    NeedsError for a sentence that asks for more, UnsupportedError where the extension was built without JAX, and what
    thalweg.Optimizer raises for sentences and values.
    """
    options = dict(state_dtype=state_dtype, master=master, nonfinite=nonfinite, maximize=maximize, seed=seed)
    _sentence.check_text(sentence)
    if pack is not None and not isinstance(pack, bool):
        raise error(ValueTypeError, f"`pack` is True, False or None, got {pack!r}")
    given = dict(values or {})
    for key, value in hyper.items():
        if key in ("max_skips", "zero_gradients", "consume_gradients"):
            raise error(ArgumentError, f"{key} is not available inside jit: take thalweg.jax.Optimizer for it")
        if key in given:
            raise error(ArgumentError, f"`{key}` is given in `values` and as a keyword")
        given[key] = value
    fixed = {k: v for k, v in given.items() if _is_fixed(v)}
    # (`gradient_scale` is set to be checked; the sentence, which carries what is fixed, does not have it)
    read = {k: v for k, v in given.items() if k not in fixed or k == SCALE}
    for path, value in read.items():
        _number(path, value)
    return _made(_Step(sentence, options, fixed, read, pack))


@functools.cache
def _class() -> type:
    base = _base()

    class Made(base):  # type: ignore[misc, valid-type]
        __doc__ = Transformation.__doc__
        _step: _Step

        @property
        def apply(self) -> Callable[..., Any]:
            return self._step.apply

        @property
        def averaged(self) -> Callable[..., Any]:
            return self._step.averaged

        @property
        def slots(self) -> Callable[..., Any]:
            return self._step.slots

        @property
        def repack(self) -> Callable[..., Any]:
            return self._step.repack

        @property
        def sentence(self) -> str:
            return self._step.sentence

        def __repr__(self) -> str:
            return f"<thalweg.jax.optimizer: {self._step.sentence}>"

        def __reduce__(self) -> tuple[Any, ...]:
            return _made, (self._step,)

    Made.__name__ = Made.__qualname__ = "Transformation"
    return Made


def _made(step: _Step) -> Transformation:
    made = _class()(step.init, step.update)
    made._step = step
    return made


class Transformation(Protocol):
    """What `optimizer` gives: an optax.GradientTransformationExtraArgs with a fused step beside it.

    init(params) -> state
    update(grads, state, params, **observed) -> updates, state   new minus old parameters, for optax.apply_updates
    apply(grads, state, params, **observed) -> params, state     the step itself; in place where params and state are
                                                                 donated to jit (in programs for several devices the
                                                                 largest 256 buffers; the others are copied): update
                                                                 costs a copy and two passes more
    averaged(state, params) -> params                            the evaluation weights (ema, swa, schedule_free_*);
                                                                 the parameters themselves where there are none
    slots(state, params) -> {"adamw.exp_avg": {"['w']": array, ...}, ...}   the state by name, packed or not
    repack(state, params) -> state                               of the same sentence with another `pack` (a checkpoint
                                                                 of such a run), as this one keeps it

    `observed` are numbers that the sentence watches: loss= for Polyak steps, metric= for reduce_on_plateau, value=
    (Optax's name) for either; None is nothing.  apply refuses what nobody watches, update leaves it out.  A number
    that the sentence needs (the loss, for polyak_sgd) and is not given is a NeedsError when the function is traced.

    Gradients have the structure and the shapes of the parameters; narrower dtypes are widened.  ShapeError, DtypeError,
    ArgumentError say what does not fit, when the function is traced; what the library refuses when it runs (a loss that
    is not finite, nonfinite="error") is a JaxRuntimeError, and then nothing was changed, except that JAX has given up
    what was donated to the call.
    """

    init: Callable[..., State]
    update: Callable[..., tuple[Any, State]]
    apply: Callable[..., tuple[Any, State]]
    averaged: Callable[..., Any]
    slots: Callable[..., dict[str, dict[str, jax.Array]]]
    repack: Callable[..., State]
    sentence: str


class _Step:
    """A sentence with its options; the functions of the transformation are its methods."""

    def __init__(
        self, sentence: str, options: dict[str, Any], fixed: dict[str, Any], read: dict[str, Any], pack: bool | None
    ) -> None:
        self.sentence, self._options, self._fixed, self._read, self._pack = sentence, options, fixed, read, pack
        self._layouts: dict[tuple[Any, ...], tuple[str, Layout]] = {}
        self._layout(("",), ((4, 4),), (np.dtype(np.float32),), probe=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layouts": {}}

    def init(self, params: Any) -> State:
        names, leaves, _ = flatten(params)
        if not leaves:
            return State(jnp.zeros(0, jnp.uint32), {})
        _, layout = self._layout(names, *forms(leaves))
        tensors: dict[str, dict[str, jax.Array]] = {}
        for row in layout.rows:
            if row.place < 0:
                tensors.setdefault(row.slot, {})[row.name] = jnp.zeros(row.shape, row.dtype)
        packed = {"bytes": jnp.zeros(layout.packed, jnp.uint8)} if layout.packed else {}
        return State(jnp.zeros(2 * layout.numbers, jnp.uint32), tensors, packed)

    def slots(self, state: State, params: Any) -> dict[str, dict[str, jax.Array]]:
        check_order("slots", state=state, params=params)
        names, leaves, _ = flatten(params)
        found: dict[str, dict[str, jax.Array]] = {}
        if leaves:
            for row in laid(self._layout(names, *forms(leaves))[1], state).rows:
                found.setdefault(row.slot, {})[row.name] = of_state(state, row)
        return found

    def repack(self, state: State, params: Any) -> State:
        check_order("repack", state=state, params=params)
        names, leaves, _ = flatten(params)
        if not leaves:
            return state
        layout = self._layout(names, *forms(leaves))[1]
        there = laid(layout, state)
        if there == layout:
            return state
        tensors: dict[str, dict[str, jax.Array]] = {}
        packed = jnp.zeros(layout.packed, jnp.uint8)
        for old, row in zip(there.rows, layout.rows):
            value = of_state(state, old)
            if row.place < 0:
                tensors.setdefault(row.slot, {})[row.name] = value
            else:
                part = value if row.dtype == np.uint8 else jax.lax.bitcast_convert_type(value, jnp.uint8)
                packed = jax.lax.dynamic_update_slice(packed, part.reshape(-1), (row.place,))
        return State(state.numbers, tensors, {"bytes": packed} if layout.packed else {})

    def apply(self, grads: Any, state: State, params: Any, **observed: Any) -> tuple[Any, State]:
        if params is None:
            raise error(ArgumentError, "a step needs the parameters: pass params")
        check_order("apply", grads=grads, state=state, params=params)
        return self._stepped(grads, state, flatten(params), observed)

    def update(self, grads: Any, state: State, params: Any = None, **observed: Any) -> tuple[Any, State]:
        if params is None:
            raise error(ArgumentError, "update needs the parameters: update(grads, state, params)")
        check_order("update", grads=grads, state=state, params=params)
        # Optax hands the arguments of one transformation to all of a chain.
        flat = flatten(params)
        observed = {k: v for k, v in observed.items() if not (flat.leaves and self._refuses(flat, k))}
        new, state = self._stepped(grads, state, flat, observed)
        return jax.tree_util.tree_map(lambda a, b: a - jnp.asarray(b), new, params), state

    def averaged(self, state: State, params: Any) -> Any:
        check_order("averaged", state=state, params=params)
        flat = flatten(params)
        return self._call(flat, flat.leaves, state, EVAL, {})[0]

    def _stepped(self, grads: Any, state: State, flat: Flat, observed: Mapping[str, Any]) -> tuple[Any, State]:
        given = leaves_like(grads, flat.tree)
        return self._call(flat, [like(g, p) for g, p in zip(given, flat.leaves)], state, TRAIN, observed)

    def _call(
        self, flat: Flat, grads: list[Any], state: State, mode: int, observed: Mapping[str, Any]
    ) -> tuple[Any, State]:
        names, leaves, tree = flat
        if not leaves:
            return jax.tree_util.tree_unflatten(tree, []), state
        text, layout = self._layout(names, *forms(leaves))
        own = [row for row in layout.rows if row.place < 0]
        tensors = [of_state(state, row) for row in own]
        if layout.packed:
            tensors.append(packed_bytes(state, layout.packed))
        if getattr(state.numbers, "dtype", None) != np.uint32:
            kind = type(state.numbers).__name__
            raise error(ShapeError, f"`numbers` of the state is {kind}, expected an array of uint32")
        if state.numbers.shape != (2 * layout.numbers,):
            raise error(ShapeError, f"the state has {state.numbers.size // 2} numbers, `{self.sentence}` has "
                        f"{layout.numbers} for these parameters: it is the state of another sentence")
        watched: dict[str, jax.Array] = {}
        for what, value in sorted(observed.items()):
            if value is not None and (name := self._name_of(flat, what)) in watched:
                raise error(ArgumentError, f"`{what}` and `{name}` are the same: pass one of them")
            if value is not None:
                watched[name] = _number(what, value)
        if mode == TRAIN and (problem := self._problem(flat, watched)):
            raise problem
        read = {path: _number(path, value) for path, value in self._read.items()}
        kept = [state.numbers, *leaves, *tensors]
        n, m, options = len(leaves), len(tensors), self._options
        settings = (
            n, m, len(read), len(watched), _options.STATE_DTYPES[options["state_dtype"]],
            _options.MASTERS[options["master"]], _options.NONFINITE[options["nonfinite"]], int(options["maximize"]),
            _signed(int(options["seed"])), mode,
        )
        out = _call.step(
            [*kept, *grads, *read.values(), *watched.values()], len(kept), sentence=text, names="\n".join(names),
            paths="\n".join(read), observed="\n".join(watched), settings=settings,
            places=tuple(row.place for row in layout.rows) or (-1,),  # (an array of nothing is no attribute)
        )
        new: dict[str, dict[str, jax.Array]] = {}
        for row, x in zip(own, out[n + 1 :]):
            new.setdefault(row.slot, {})[row.name] = x
        packed = {"bytes": out[-1]} if layout.packed else {}
        return jax.tree_util.tree_unflatten(tree, out[1 : n + 1]), State(out[0], new, packed)

    def _refuses(self, flat: Flat, what: str) -> bool:
        """Whether the sentence takes no number of this name."""
        return self._problem(flat, [self._name_of(flat, what)], step=False) is not None

    def _name_of(self, flat: Flat, what: str) -> str:
        """What the library calls a number: Optax's `value` is the loss, or the metric of a sentence that watches that
        alone."""
        if what != "value":
            return what
        with self._sample(flat) as made:
            return "metric" if "metric" in made._seen_by_schedules() and not made._watches_loss() else "loss"

    def _sample(self, flat: Flat) -> _optimizer.Optimizer:
        """An optimizer of the smallest tensor."""
        name, leaf = min(zip(flat.names, flat.leaves), key=lambda pair: pair[1].size)
        with _notices.quiet():  # (one tensor is not all that a route is for)
            made = _optimizer.Optimizer(
                [np.zeros(leaf.shape, leaf.dtype)], self.sentence, names=[name], **self._options)
        for path, value in self._fixed.items():
            made.set(path, value)
        return made

    def _problem(self, flat: Flat, watched: Iterable[str], step: bool = True) -> Exception | None:
        """Why the sentence does not take numbers of these names, or cannot do without another; None where it can.

        What it asks for does not depend on the tensors: a step of the smallest alone tells.
        """
        with self._sample(flat) as made:
            try:
                for what in watched:
                    made.observe(what, 1.0)
            except Error as problem:
                return problem
            try:
                if step:
                    made.step([np.zeros_like(made.params[0])])
            except NeedsError as problem:
                wants = re.match(r'(.*?): call opt\.observe\("(\w+)"', str(problem))
                if wants is None:
                    return problem
                given = "value=loss" if wants[2] == "loss" else f"{wants[2]}=..."
                return error(NeedsError, f"{wants[1]}: pass {given} to apply or update")
            except Error:  # of numbers, which are others when it runs
                pass
        return None

    def _layout(
        self, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], dtypes: tuple[np.dtype, ...],
        probe: bool = False,
    ) -> tuple[str, Layout]:
        """The sentence with its fixed values, and what it keeps for such parameters; `probe`: for any parameters."""
        key = (names, shapes, dtypes)
        if key in self._layouts:
            return self._layouts[key]
        # memory that nobody touches: the library reads the state's form from the shapes
        arrays = [np.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
        try:
            with _notices.quiet() if probe else contextlib.nullcontext():
                made = _optimizer.Optimizer(arrays, self.sentence, names=list(names), **self._options)
        except ShapeError:
            if probe:  # a route for other shapes
                return self.sentence, Layout(0, (), 0)
            raise
        with made:
            for path, value in self._fixed.items():
                made.set(path, value)
            for path in self._read:
                made.get(path)
            try:
                count = made._carried_numbers()
            except NeedsError as problem:
                why = str(problem).partition(";")[0]
                outside = "it cannot run inside jit; thalweg.jax.Optimizer steps it outside"
                raise error(NeedsError, f"{why}: {outside}") from None
            rows, taken = [], set()
            for stage, slot, tensor, size, used, storage in made._state_rows():
                name, copy = f"{stage}.{slot}", 0
                while (name, tensor) in taken:  # two stages of one name
                    copy += 1
                    name = f"{stage}#{copy}.{slot}"
                taken.add((name, tensor))
                shape = shapes[tensor] if size == int(np.prod(shapes[tensor])) else (size,)
                rows.append(Row(name, names[tensor], (used,) if storage == 3 else shape, STORAGE[storage]))
            packs = len(rows) >= PACK_FROM if self._pack is None else self._pack
            layout = made.sentence if self._fixed else self.sentence, placed(Layout(count, tuple(rows), 0), packs)
            for path in [k for k, v in self._read.items() if not isinstance(v, jax.Array)]:  # they are known by now
                made.set(path, self._read[path])
        if not probe:
            self._layouts[key] = layout
        return layout


# ---- numbers


def _is_fixed(value: Any) -> bool:
    return isinstance(value, (str, bytes, bool, np.bool_, tuple, list)) or value is None or (
        isinstance(value, numbers.Number) and not isinstance(value, np.generic))


def _number(path: str, value: Any) -> jax.Array:
    try:
        x = jnp.asarray(value)
    except TypeError:
        hint = ""
        if callable(value) or isinstance(value, Mapping):  # Optax's habits
            hint = ("; Optax's schedules come in by optax.inject_hyperparams(lambda lr: "
                    'thalweg.jax.optimizer("adamw", lr=lr))(lr=schedule), those of thalweg in the sentence: '
                    "adamw(lr=cosine(1e-3, 1000))")
        raise error(ValueTypeError, f"`{path}` is one number, got a {type(value).__name__}{hint}") from None
    real = x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)
    if x.shape != () or not real:
        raise error(ShapeError, f"`{path}` is one real number, got {x.dtype} of shape {x.shape}")
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed
