"""The optimizer: a sentence at work on arrays that the caller owns."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Never

import numpy as np

from . import _arrays, _notices, _options, _sentence, _thalweg
from ._errors import (
    ArgumentError,
    Error,
    LayoutError,
    NeedsError,
    NonfiniteError,
    SequenceError,
    ValueTypeError,
    error,
)
from ._groups import ROLES, Group, ParamGroup, fresh_name, read_group, read_groups
from ._requests import Request, ask, exchanged, number_of, say_list, takes_request
from ._saved import Saved


@contextlib.contextmanager
def evaluating(host: Any) -> Generator[Any, None, None]:
    """The evaluation weights are in the parameters of an optimizer, of whatever host, until the block ends."""
    before = host.training
    host.eval()
    try:
        yield host
    finally:
        if before:
            host.train()


def _one_of_several(array: Any, count: int) -> TypeError:
    return TypeError("gradients are given as a list, one array for each parameter, not as "
                     f"{type(array)}: a closure returns (loss, [g, ...]), with {count} here")


class Optimizer(Saved):
    """An optimizer, made of a sentence: Optimizer([w, b], "clip_global_norm(1.0) | adamw(lr=3e-4) | ema(0.999)").

    params             arrays that are changed in place: an iterable of them, of (name, array), or of dicts with
                       "params" and overrides ({"params": [...], "lr": 0.1, "name": "head"}).  NumPy arrays, CPU torch
                       tensors and everything else with the buffer protocol or DLPack, of float32, float64, float16 or
                       bfloat16, strided as they like; never copied.  A dict of arrays is taken too: its keys are their
                       names, and gradients may come as such dicts then, in any order.  A group may say what its arrays
                       are, where a method or route(bias=(...), norm=(...), embedding=(...), head=(...)) goes by that:
                       "role" is one of "weight", "bias", "norm", "embedding", "head", and cannot be changed later
    sentence           the pipeline; `python -m thalweg methods` lists what there is
    state_dtype        how element-wise moments are stored: "f32"; "bf16", half the memory, which trains like "f32"; or
                       "q8", 8 bits in tensors of 4,096 elements and more (smaller ones keep float32), good for averages
                       of squares, and at rates up to 0.99 for signed ones.  Both round up or down at random, keyed by
                       `seed`, so that slow averages follow their gradients.  float64 parameters keep float64
    master             for 16-bit parameters: None, "f32" (a float32 copy) or "stochastic" (stochastic rounding)
    nonfinite          what a NaN or Inf in a gradient does: "propagate", "skip" (the step; see `skipped`) or "error"
    max_skips          with "skip": so many skipped steps in a row are a NonfiniteError (the last of them is skipped,
                       too).  None: any number.  The logger "thalweg" tells of the first, second, 4th, 8th, ... of all
    maximize           ascend
    zero_gradients     set the gradients to zero in the same pass
    consume_gradients  the gradients may be used as scratch, and hold rubbish afterwards
    gradient_scale     gradients are multiplied by it: 1 / loss scale
    seed               of every random draw, 0 ... 2**64 - 1
    names              names of the parameters, for messages, routing and checkpoints

    The arrays stay referenced, and NumPy refuses to resize them, until the optimizer is closed or deleted.  An
    optimizer is used by one thread at a time; a second one gets BusyError.  See thalweg.Error for what is raised.
    """

    # Whether a closure was told that it needs the request.
    _told_of_tags = False
    # What a loop over requests waits to be answered.
    _asked: Request | None = None

    def __init__(
        self,
        params: Iterable[Any],
        sentence: str,
        *,
        state_dtype: str = "f32",
        master: str | None = None,
        nonfinite: str = "propagate",
        max_skips: int | None = None,
        maximize: bool = False,
        zero_gradients: bool = False,
        consume_gradients: bool = False,
        gradient_scale: float = 1.0,
        seed: int = 0,
        names: Sequence[str] | None = None,
        **settings: Never,
    ) -> None:
        if settings:
            from ._keywords import refusal  # (which needs the registry of all methods)

            raise refusal(sentence, settings, (*Optimizer.__init__.__kwdefaults__, "params", "sentence"))
        restored = isinstance(params, list) and bool(params) and isinstance(params[0], Group)
        groups = read_groups(params, names)
        self._text = _sentence.check_text(sentence)
        self._options = dict(
            state_dtype=state_dtype,
            master=master,
            nonfinite=nonfinite,
            max_skips=_options.max_skips(max_skips, nonfinite),
            maximize=bool(maximize),
            zero_gradients=bool(zero_gradients),
            consume_gradients=bool(consume_gradients),
            gradient_scale=_options.number("gradient_scale", gradient_scale),
            seed=_options.seed(seed),
        )
        self._create(
            sentence,
            _options.choice("state_dtype", state_dtype, _options.STATE_DTYPES),
            _options.choice("master", master, _options.MASTERS),
            _options.choice("nonfinite", nonfinite, _options.NONFINITE),
            int(self._options["maximize"]),
            int(self._options["zero_gradients"]),
            int(self._options["consume_gradients"]),
            self._options["gradient_scale"],
            self._options["seed"],
        )
        self._layout: list[tuple[str, int, int]] = []
        self._roles: list[str | None] = []
        self._staged = self._parameters = None
        self._pending: object | None = None
        # Within a step: which parameters had a gradient in the first answer.
        self._present: list[bool] | None = None
        # Where a gradient that is no number spreads to all weights: the norms to look at, until it was said.
        norms = nonfinite == "propagate" and "clip_global_norm" in self._text
        self._norms = [f"{s}.norm" for s, m in self._stages() if m.name == "clip_global_norm"] if norms else []
        # Under "skip": how many steps were skipped in a row.
        self._skips = 0 if nonfinite == "skip" else None
        self._closure: tuple[Any, bool] = (None, False)
        # Whether the bound gradients are arrays that the caller said it would fill.
        self._bound_to_fill = False
        try:
            for group in groups:
                if not restored:
                    self._need_names(group)
                self._bind_group(group)
        except BaseException:
            self.close()
            raise
        if not restored:
            _notices.say_hardly_meant(sentence)
            if not self._options["seed"] and "dp_sgd" in sentence:
                _notices.say_known_seed(sentence)
        if "route" in sentence and not restored:
            _notices.say_idle(self.sentence, _notices.tensors_of(self))

    # ---- parameters

    def _need_names(self, group: Group) -> None:
        """Refuses arrays without names where route(...) goes by names: its pattern would fit none of them, silently."""
        patterns = [] if group.names or "route" not in self._text else _sentence.name_patterns(self.sentence)
        if patterns:
            near = filter(None, map(_notices.nearest_selector, patterns))
            meant = [f"; for the selector write {selector}=(...)" for selector in near]
            raise error(
                ArgumentError, f"route goes by names ({', '.join(patterns)}), and the parameters have none: pass "
                "(name, array) pairs, as named_parameters() of a torch module gives them, or names=[...]"
                + "".join(meant[:1]))

    def _bind_group(self, group: Group) -> None:
        start = self._layout[-1][2] if self._layout else 0
        with self._explaining(group.overrides, f"parameter group {group.name!r}"):
            try:
                self._add(group.arrays, group.names, group.name, *self._written(group.overrides), ROLES[group.role])
            except LayoutError as problem:
                if not any(type(a).__module__.partition(".")[0] in ("jax", "jaxlib") for a in group.arrays):
                    raise
                raise error(LayoutError, f"{problem}; arrays of JAX are, and thalweg.jax.Optimizer(params, sentence) "
                            "steps copies of them") from None
        self._layout.append((group.name, start, start + len(group.arrays)))
        self._roles.append(group.role)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters: {"params": [...], "lr": 0.1, "name": "head", "role": "head"}.

        Gradients have to be bound anew.

        The group has the values and schedules of the sentence, and what was set for all groups since, unless it says
        otherwise.  When a tensor or a value is refused, nothing is bound and nothing changes: UnknownNameError for a
        key that is no hyper-parameter, ValueTypeError, RangeError, MethodError or SentenceError for a value that does
        not fit.
        """
        used = {name for name, _, _ in self._layout}
        parsed = read_group(group, fresh_name(used, len(self._layout)))
        if parsed.name in used:
            raise error(ArgumentError, f"there is a parameter group {parsed.name!r} already")
        self._need_names(parsed)
        self._bind_group(parsed)

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The parameter groups: dict-like, reading and writing the running pipeline (group["lr"] *= 0.5)."""
        return [ParamGroup(self, *row, role) for row, role in zip(self._layout, self._roles)]

    # ---- stepping

    def step(self, grads: Any = None, /, **named: Any) -> Any:
        if named and (stray := sorted(named.keys() - {"grads", "closure"})):
            meant = ("gradients are given as step([...]), or as grads=[...]" if stray[0].startswith("grad") else
                     f"numbers that a sentence watches are told before, opt.observe({stray[0]!r}, value)")
            raise TypeError(f"step() takes grads or a closure, not {', '.join(stray)}=...: {meant}")
        before = None if self._skips is None else self.skipped
        if named or type(grads) is dict or (type(grads) is not list and isinstance(grads, Mapping)):
            grads = named.get("grads", grads)
            if isinstance(grads, Mapping):
                named, grads = {key: value for key, value in named.items() if key != "grads"}, self._by_name(grads)
            result = _step(self, **named) if "closure" in named or grads is None else self._step_with(grads)
        elif not self._bound_to_fill:
            try:
                result = _step(self, grads)
            except TypeError as problem:
                say_list(problem, grads, "opt.step([g])")
                raise
        else:
            result = self._step_with(grads)
        if self._norms or before is not None:
            self._look_back(before)
        return result

    step.__doc__ = (_thalweg.Optimizer.step.__doc__ or "").replace(
        "(None where there", "(or a mapping from their names; None where there", 1)

    def _step_with(self, grads: Any) -> Any:
        if grads is not None and not callable(grads):
            self._bound_to_fill = False
        return _step(self, grads)

    def bind_gradients(self, grads: Iterable[Any] | Mapping[str, Any], /) -> None:
        try:
            super().bind_gradients(self._by_name(grads) if isinstance(grads, Mapping) else grads)
        except TypeError as problem:
            say_list(problem, grads, "opt.bind_gradients([g])")
            raise
        self._bound_to_fill = True

    bind_gradients.__doc__ = _thalweg.Optimizer.bind_gradients.__doc__

    def _by_name(self, grads: Mapping[str, Any]) -> list[Any]:
        """Gradients in the order of the parameters.  ArgumentError for other names than theirs."""
        names = self.names
        if None in names:
            raise error(ArgumentError, "gradients come by name, and the parameters have none: pass a dict of arrays, "
                        "(name, array) pairs, or names=[...]")
        if grads.keys() != {*names}:
            missing = [name for name in names if name not in grads]
            other = [name for name in grads if name not in names]
            said = [f"there is none of {', '.join(map(repr, missing[:3]))} (None says that it has none this time)"
                    ] if missing else []
            said += [f"no parameter is called {', '.join(map(repr, other[:3]))}"] if other else []
            raise error(ArgumentError, f"gradients by name: {'; '.join(said)}")
        return [grads[name] for name in names]

    def _look_back(self, before: int | None) -> None:
        """Says once that a gradient which is no number has become weights, and now and then that steps are skipped.

        before  under "skip": how many steps were skipped before this one
        """
        if self._norms and not all(math.isfinite(self._get_number(None, path)) for path in self._norms):
            self._norms = []
            _notices.say_nonfinite(self)
        if before is None or self._skips is None:
            return
        skipped = self.skipped
        self._skips = self._skips + 1 if skipped > before else 0
        if skipped > before:
            self._say_skipped(skipped)

    def _say_skipped(self, skipped: int) -> None:
        why = "NaN or Inf in a gradient; nonfinite='error' says in which"
        if skipped & (skipped - 1) == 0:
            _notices.log(f"{self._text!r}: {skipped} of {skipped + self.steps} steps skipped so far: {why}")
        most = self._options["max_skips"]
        if most is not None and self._skips >= most:
            raise error(NonfiniteError, f"{self._text!r}: {self._skips} steps skipped in a row (max_skips): {why}")

    def requests(self) -> Generator[Request, None, None]:
        """One step as a loop over what the method asks for.

            for request in opt.requests():
                loss = compute(...)            # the parameters stand where the answer is wanted
                request.answer(grads, loss)    # or fill what opt.bind_gradients has bound, and set request.loss

        How many requests come depends on the sentence and may depend on the answers: two for SAM, eight for
        "gradient_accumulate(4) | sam(0.05) | adamw".  Minibatches are told apart by their tags:

            for request in opt.requests():
                if request.pass_ == 0:
                    batches = {}
                if request.tag not in batches:
                    batches[request.tag] = next(data)
                request.answer(*gradients_and_loss(batches[request.tag]))

        The step is done when the loop ends.  Leaving the loop early (break, an exception) cancels the step, at the
        latest when the next one starts: parameters and state are those from before it.  So does a request that the
        body does not answer, which is a SequenceError that names it.  Where a state was loaded that
        had been saved inside a step, the loop goes on with the request that was waiting then.
        """
        yield from self._loop(Request)

    def cancel(self) -> None:
        super().cancel()
        self._pending = self._asked = None  # a loop over its requests is over

    cancel.__doc__ = _thalweg.Optimizer.cancel.__doc__

    def _loop(self, made: Callable[..., Any]) -> Generator[Any, None, None]:
        """The loop of `requests`; made(optimizer, row) makes what it yields."""
        before = None if self._skips is None else self.skipped
        yield from self._requests(made)
        if self._norms or before is not None:
            self._look_back(before)

    def _requests(self, made: Callable[..., Any] = Request) -> Generator[Any, None, None]:
        if self._pending is not None:
            self._pending = None
            self.cancel()
        self._present = None
        row = self._waiting()
        token = self._pending = object()
        loss: float | None = None
        stays = False
        try:
            while True:
                row = row or self._next(loss, stays)
                if row is None:
                    self._pending = None
                    return
                request = self._asked = made(self, row)
                yield request
                self._asked = None
                if self._pending is not token:
                    raise error(SequenceError, "the step was cancelled, or another one started, inside the loop over it")
                request._check_answered()
                if request.wants_loss and request.loss is None:
                    raise error(NeedsError, f"{self._text}: the method asked for the loss, and none was given: "
                                "call request.answer(grads, loss), or set request.loss")
                loss, row = None if request.loss is None else number_of(request.loss, "request.loss"), None
                stays = request._stays
        except BaseException:
            if self._pending is token:
                self._pending = self._asked = None
                with contextlib.suppress(Error):
                    self.cancel()
            raise

    def _note_tag(self, tags: list[int], tag: int) -> None:
        """Counts a tag among those of this step, for a closure that is not told of it."""
        if not tags or tags[-1] != tag:
            if tag in tags and not self._told_of_tags:  # it comes back after another one
                _notices.say_minibatch(self)
            tags.append(tag)

    def _step_closure(self, closure: Callable[..., Any]) -> Any:
        if self._closure[0] is not closure:
            self._closure = (closure, takes_request(closure))
        told = self._closure[1]
        first = None
        tags: list[int] = []
        with contextlib.closing(self._requests()) as requests:
            for request in requests:
                if not told:
                    self._note_tag(tags, request.tag)
                answer = closure(request) if told else ask(closure, request)
                loss, grads = self._read_answer(answer)
                if grads is not None and request.wants_gradient:
                    request.answer(grads)
                elif request.wants_gradient and not (request._answered or self._bound_to_fill):
                    if getattr(loss, "ndim", 0):
                        raise _one_of_several(loss, self._layout[-1][2])
                    raise error(SequenceError, f"{self._text}: the closure gave no gradients for {request!r}, and none "
                                "are bound: it must return (loss, grads), or fill those of an "
                                "opt.bind_gradients(grads) before")
                if loss is not None:
                    if first is None:
                        first = loss
                    if request.loss is None:
                        request.loss = number_of(loss)
                if request.wants_loss and request.loss is None:
                    raise error(NeedsError, f"{self._text}: the method asked for the loss: the closure must return "
                                "(loss, grads), or the loss alone where it fills the bound gradients")
        return first

    def _read_answer(self, answer: Any) -> tuple[Any, Any]:
        """(loss, grads) of what a closure returned; see `step`."""
        count = self._layout[-1][2]
        if answer is None:
            return None, None
        if isinstance(answer, tuple) and len(answer) == 2:
            loss, grads = answer
            if grads is None or isinstance(grads, (list, tuple, Mapping)):
                return loss, grads
            if count == 1 and _arrays.is_array(grads):
                return loss, [grads]
            if isinstance(loss, (int, float)) and _arrays.is_array(grads) and getattr(grads, "ndim", 0):
                raise _one_of_several(grads, count)
            if exchanged(grads, loss):
                raise error(ValueTypeError, "a closure returns (loss, grads), and this one (grads, loss)")
        if isinstance(answer, (list, tuple, Mapping)):
            return None, answer
        if count == 1 and getattr(answer, "ndim", 0):
            return None, [answer]
        return answer, None

    # ---- modes

    def train(self) -> None:
        """Puts the training weights back into the parameters, bit for bit."""
        self._set_mode(0)

    def set_reducer(
        self, reduce: Callable[[np.ndarray, np.ndarray], Any] | None, shards: str = "tensors", rank: int = 0
    ) -> None:
        """Spreads a model over processes: norms, dot products and counts are then those of the whole model.

        reduce   called as reduce(sums, maxima) during steps, on the thread that steps and in the same order on every
                 rank: it adds `sums` over all ranks and takes the largest of `maxima`, in place.  Both are float64
                 arrays that are valid during the call.  None: the model is on this process alone.
                 With torch.distributed:  dist.all_reduce(torch.from_numpy(sums)), and
                 dist.all_reduce(torch.from_numpy(maxima), op=dist.ReduceOp.MAX)
        shards   "tensors": each rank has some of the tensors, each of them whole.  "elements": each rank has a part of
                 every tensor, bound in the same order on all of them; stages that need whole tensors are refused
                 (UnsupportedError).
        rank     the number of this process, from 0 to 16383: its tensors draw other random numbers (noise, probes) than
                 those of the others

        Ranks step together, with the same sentence and settings, and gradients of the same tensors; all of them skip a
        step, or none does.  An exception of `reduce` ends the step with nothing changed; steps that change something
        before the last sum keep copies for that.
        Copies of the optimizer have no reducer.
        """
        if shards not in _options.SHARDS:
            raise ValueError(f"shards must be one of {', '.join(_options.SHARDS)}, got {shards!r}")
        if reduce is None:
            return self._set_reducer(None, _options.SHARDS[shards])
        if not callable(reduce):
            raise TypeError(f"reduce must be callable, or None, got {type(reduce).__name__}")

        def call(sums: memoryview, maxima: memoryview) -> None:
            reduce(np.frombuffer(sums, np.float64), np.frombuffer(maxima, np.float64))

        rank = operator.index(rank)
        if not 0 <= rank < 1 << 14:
            raise ValueError(f"rank must be in [0, {1 << 14}), got {rank}")
        self._set_reducer(call, _options.SHARDS[shards] | rank << 8)

    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters.

        What you write into the parameters until `train()` is lost then: it puts the training weights back.
        """
        self._set_mode(1)

    @property
    def training(self) -> bool:
        """False while the parameters hold the evaluation weights: after eval(), or a state of that mode was loaded."""
        return self._get_number(None, "training") == 1

    def averaged(self) -> contextlib.AbstractContextManager[Optimizer]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights."""
        return evaluating(self)

    def __reduce__(self) -> tuple[Any, ...]:
        params, names = self.params, self.names
        groups = [
            (name, params[start:stop], names[start:stop] if names[start] is not None else None, role)
            for (name, start, stop), role in zip(self._layout, self._roles)
        ]
        return _restore, (type(self), groups, self._text, self._options, self._save())

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<{type(self).__name__}: closed>"
        return f"<{type(self).__name__}: {self._text}; {len(self.params)} parameters, {self.steps} steps>"


_step = _thalweg.Optimizer.step


def bare(sentence: str) -> Optimizer:
    """The sentence without parameters, which knows what hyper-parameters there are, and what belongs to a whole run."""
    optimizer = Optimizer.__new__(Optimizer)
    optimizer._create(_sentence.check_text(sentence), 1, 0, 0, 0, 0, 0, 1.0, 0)
    optimizer._layout = []
    return optimizer


def _restore(
    cls: type[Optimizer],
    groups: list[tuple[Any, ...]],
    sentence: str,
    options: dict[str, Any],
    state: bytes,
) -> Optimizer:
    """Rebuilds a pickled or copied optimizer: the state holds all that was set since."""
    optimizer = cls.__new__(cls)
    # Earlier versions wrote no role.
    first, *others = [Group(name, arrays, names, {}, *role) for name, arrays, names, *role in groups]
    Optimizer.__init__(optimizer, [first], sentence, **options)
    for group in others:
        optimizer._bind_group(group)
    optimizer._load(state)
    return optimizer
