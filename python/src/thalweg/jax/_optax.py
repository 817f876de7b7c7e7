"""The state of `optimizer`, exchanged with that of the same rule in Optax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError, MismatchError, ValueTypeError, error
from .._optimizer import bare
from ._state import Layout, Row, State, laid, of_state
from ._transform import Transformation, optimizer
from ._trees import flatten, forms

MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
#: By rule: what Optax calls its state, and the field of each slot.
TWINS: dict[str, tuple[str, dict[str, str]]] = {
    "adabelief": ("ScaleByBeliefState", {"exp_avg": "mu", "exp_avg_var": "nu"}),
    "adadelta": ("ScaleByAdaDeltaState", {"square_avg": "e_g", "acc_delta": "e_x"}),
    "adagrad": ("ScaleByRssState", {"sum": "sum_of_squares"}),
    "adam": ("ScaleByAdamState", MOMENTS),
    "adamax": ("ScaleByAdamState", {"exp_avg": "mu", "exp_inf": "nu"}),
    "adamw": ("ScaleByAdamState", MOMENTS),
    "lion": ("ScaleByLionState", {"exp_avg": "mu"}),
    "radam": ("ScaleByAdamState", MOMENTS),
    "rmsprop": ("ScaleByRmsState", {"square_avg": "nu"}),
    "sgd": ("TraceState", {"momentum_buffer": "trace"}),
}
#: Stages whose numbers are made anew at every step.
MEASURED = ("clip_global_norm",)
MASTER = "engine.master"
BEGUN, HEAD = 1.0, 4  # of the numbers: the mark of a run that has begun; how many come before those of the tensors


def from_optax(tx: Transformation, optax_state: Any, params: Any, *, steps: int | None = None) -> State:
    """The state for `tx` of a run of the same rule in Optax, which goes on where that one stood.

        tx = thalweg.jax.optimizer("adamw(lr=1e-3)")
        state = thalweg.jax.from_optax(tx, optax_state, params)       # of optax.adamw(1e-3)

    optax_state  of optax.adam, adamw, sgd, lion, adagrad, rmsprop, adadelta, adamax, adabelief or radam, also within
                 chain and inject_hyperparams; concrete arrays (outside jit)
    params       the parameters as they stand
    steps        how many steps were taken, where Optax does not count them (sgd, adagrad, rmsprop without a schedule):
                 schedules of the sentence go on there.  None: what Optax says, else 1

    MismatchError where the rules differ, another stage of either side keeps state, or shapes do not fit.
    """
    if not hasattr(tx, "sentence"):
        raise error(ValueTypeError, "expected what thalweg.jax.optimizer(sentence) gives as the first argument, got "
                    f"{type(tx).__name__}")
    rule, layout = _twin(tx, params)
    kind, fields = TWINS[rule]
    rows = [row for row in layout.rows if row.slot != MASTER]
    theirs = _find(optax_state, kind) if rows else None
    if rows and theirs is None:
        raise error(MismatchError, f"`{rule}` goes on from Optax's {kind}, and the state has none; it has "
                    f"{', '.join(sorted({type(s).__name__ for s in _states(optax_state)})) or 'no state of Optax'}")
    _check_rest(tx, optax_state, kind if rows else "")
    if steps is None:
        steps = max((int(s.count) for s in _states(optax_state) if "count" in s._fields), default=1)
    names, leaves, tree = flatten(params)
    values: dict[tuple[str, str], Any] = {(MASTER, name): leaf for name, leaf in zip(names, leaves)}
    for slot, field in fields.items() if rows else ():
        found, structure = jax.tree_util.tree_flatten(getattr(theirs, field))
        if structure != tree:
            raise error(MismatchError, f"{kind}.{field} has the structure {structure}, the parameters {tree}")
        values.update({(f"{rule}.{slot}", name): x for name, x in zip(names, found)})
    numbers = np.zeros(layout.numbers)
    if steps > 0:
        numbers[:HEAD] = BEGUN, steps, 0, steps
        numbers[HEAD : HEAD + len(leaves)] = 2 * steps + 1
    tensors: dict[str, dict[str, jax.Array]] = {}
    packed = np.zeros(layout.packed, np.uint8)
    for row in layout.rows:
        value = _fitting(row, values[row.slot, row.name])
        if row.place < 0:
            tensors.setdefault(row.slot, {})[row.name] = jnp.asarray(value)
        else:
            packed[row.place : row.place + row.bytes] = np.frombuffer(value.tobytes(), np.uint8)
    return State(jnp.asarray(numbers.view(np.uint32)), tensors, {"bytes": jnp.asarray(packed)} if layout.packed else {})


def to_optax(tx: Transformation, state: State, params: Any, like: Any) -> Any:
    """The state for Optax's twin of `tx`, which goes on where this run stands.

    like  a state of that twin (optax.adamw(1e-3).init(params)), in which moments and counts are replaced; the rest
          (hyper-parameters of inject_hyperparams) stays

    MismatchError as for from_optax.
    """
    rule, layout = _twin(tx, params)
    kind, fields = TWINS[rule]
    names, _, tree = flatten(params)
    rows = {(row.slot, row.name): row for row in laid(layout, state).rows if row.slot != MASTER}
    if rows and _find(like, kind) is None:
        raise error(MismatchError, f"`{rule}` gives Optax's {kind}, and `like` has none")
    _check_rest(tx, like, kind if rows else "")
    steps = state.steps

    def replaced(x: Any) -> Any:
        if not _is_state(x):
            if type(x) in (tuple, list):
                return type(x)(replaced(part) for part in x)
            return {key: replaced(part) for key, part in x.items()} if type(x) is dict else x
        new = {field: replaced(getattr(x, field)) for field in x._fields}
        if "count" in new:
            new["count"] = jnp.asarray(steps, jnp.asarray(x.count).dtype)
        if type(x).__name__ == kind:
            for slot, field in fields.items() if rows else ():
                old = jax.tree_util.tree_leaves(getattr(x, field))
                ours = [of_state(state, rows[f"{rule}.{slot}", name]) for name in names]
                new[field] = jax.tree_util.tree_unflatten(tree, [a.astype(b.dtype) for a, b in zip(ours, old)])
        return type(x)(**new)

    return replaced(like)


def _twin(tx: Transformation, params: Any) -> tuple[str, Layout]:
    """The rule of the sentence, and how its state lies.  MismatchError where Optax has no twin of the sentence."""
    names, leaves, _ = flatten(params)
    if not leaves:
        raise error(ArgumentError, "there are no parameters, and so no state")
    _, layout = tx._step._layout(names, *forms(leaves))  # type: ignore[attr-defined]
    with bare(tx.sentence) as engine:
        stages = engine._stages()
    rules = [m.name for _, m in stages if m.kind == "optimizer"]
    if len(rules) != 1 or rules[0] not in TWINS:
        raise error(MismatchError, f"Optax has no twin of {tx.sentence!r} whose state is exchanged; there are "
                    f"{', '.join(TWINS)}")
    rule = rules[0]
    own = {f"{rule}.{slot}" for slot in TWINS[rule][1]}
    others = sorted({row.slot for row in layout.rows} - own - {MASTER})
    if others:
        raise error(MismatchError, f"{', '.join(others)} of {tx.sentence!r}: Optax's state has no place for it")
    if any(row.dtype == np.uint8 for row in layout.rows):
        raise error(MismatchError, "state in 8 bits is not exchanged: make the transformation with state_dtype 'f32'")
    measured = sum(_numbers_of(label) for label, m in stages if m.name in MEASURED)
    if layout.numbers != HEAD + len(leaves) + measured:
        raise error(MismatchError, f"{tx.sentence!r} remembers numbers that Optax's state does not have")
    return rule, layout


def _numbers_of(stage: str) -> int:
    """How many numbers a stage carries besides those of the tensors."""
    tensor = np.zeros(1, np.float32)
    made = optimizer(f"{stage.partition('#')[0]}(1) | sgd")._step  # type: ignore[attr-defined]
    return made._layout(("",), *forms([tensor]))[1].numbers - HEAD - 1


def _check_rest(tx: Transformation, state: Any, kind: str) -> None:
    """MismatchError where a state of Optax keeps more than counts, hyper-parameters and what the state `kind` has."""
    for s in _states(state):
        for field in s._fields if type(s).__name__ != kind else ():
            value = getattr(s, field)
            if field in ("count", "hyperparams") or next(_states(value), None) is not None:
                continue  # (states within a state are looked at themselves)
            if jax.tree_util.tree_leaves(value):
                raise error(MismatchError, f"{type(s).__name__}.{field} of Optax's state: {tx.sentence!r} has no place "
                            "for it")


def _fitting(row: Row, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != row.shape:
        raise error(MismatchError, f"{row.slot} of {row.name} has shape {array.shape} in Optax's state, {row.shape} "
                    "here")
    return array.astype(row.dtype, order="C")


def _is_state(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _states(x: Any) -> Iterator[Any]:
    """All states of Optax within a state."""
    if _is_state(x):
        yield x
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, (tuple, list)):
        return
    for part in x:
        yield from _states(part)


def _find(state: Any, kind: str) -> Any:
    """The one state of this name.  MismatchError where there are several: of which parameters each is, is not known."""
    found = [s for s in _states(state) if type(s).__name__ == kind]
    if len(found) > 1:
        raise error(MismatchError, f"the state has {len(found)} of {kind}: exchange the parts of a partition one by "
                    "one")
    return found[0] if found else None
