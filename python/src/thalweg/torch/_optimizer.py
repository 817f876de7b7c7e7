"""A sentence as a torch.optim.Optimizer: parameter groups, steps, modes, state."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch

from .. import _groups, _optimizer, _registry, _requests, _sentence, distributed
from .._errors import ArgumentError, CountError, MismatchError, NeedsError, error, of_adapter
from . import _state
from ._view import Keys, View, differences, plain, same, show

# What torch's own code and its schedulers keep in a group beside the hyper-parameters of the optimizer.  A group may be
# given with these (a copy of another group has them); of other keys that are no hyper-parameters it may not.
NOT_OURS = frozenset(
    ("params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_lr", "max_momentum", "base_momentum")
    + ("swa_lr", "differentiable", "foreach", "fused", "capturable")
)
# The rules that torch.optim steps with sparse gradients (embeddings).
SPARSE = {"sgd", "adagrad", "sparse_adam"}
LOG = logging.getLogger("thalweg")
LOG.addHandler(logging.NullHandler())


class Optimizer(torch.optim.Optimizer):
    """A sentence at work on the parameters of a torch model, stepping with their `.grad`.

    params    as for torch.optim: tensors, (name, tensor) pairs, or dicts with "params" and overrides.  What route(...)
              goes by is given here: named_parameters() for patterns of names, and {"params": [...], "role": "bias"} for
              roles ("weight", "bias", "norm", "embedding", "head"), in a group of their own
    sentence  the pipeline, as for thalweg.Optimizer
    ranks     a thalweg.distributed.Ranks: how the model is spread over the processes of a group.  Parameters that are
              DTensors (FSDP2) need none: their local shards are stepped, and norms are those of the whole model
    options   those of thalweg.Optimizer: state_dtype, master, nonfinite, maximize, seed, ...

    `param_groups` shows the hyper-parameters that may change, and the next step uses what it shows ("lr", "betas", or
    "muon.lr" where two stages have an lr): torch's schedulers and your own code change them there.  A schedule in the
    sentence shows its present value, and stays in force until that value is changed there.  A group that is added later
    has the sentence's values and schedules unless it says otherwise.

    Where several rules have a rate (route(matrix=(muon), other=(adamw))), "lr" is that of the first, and changing it,
    or giving it in a group, changes all of them by the same factor: torch's schedulers look for "lr".  "weight_decay"
    is that of the first as well, and a value given there goes to all of them.

    Under the default policy (nonfinite="propagate") a NaN or Inf in a gradient becomes weights.  That is said once, as
    a RuntimeWarning and through the logger "thalweg": at once where clip_global_norm spreads it, else when the weights
    are looked at, after steps 1, 2, 4, ... and every 128th.  nonfinite="skip" and "error" leave such steps out.

    A group that is given with a key that is no hyper-parameter of the sentence is refused (UnknownNameError), and so is
    a value that does not fit.  What is put into a group later is the caller's, as in torch.

    A hyper-parameter that needs state which the sentence did not ask for (the momentum of sgd, which OneCycleLR and
    CyclicLR cycle) may be changed until the first step is taken.

    `state` shows copies, made when it is looked at: `state[p]["exp_avg"]`; what you put beside them is kept and saved.
    load_state_dict changes the state.  `engine` is the thalweg.Optimizer inside.
    """

    engine: _optimizer.Optimizer
    _ranks: distributed.Place | None = None
    # What a class with torch's signature says otherwise than the sentence; see _view.
    _viewed: View | None = None
    # Whether torch's optimizer of that rule takes sparse gradients.
    _sparse = False

    def __init__(
        self, params: Iterable[Any], sentence: str, *, ranks: distributed.Ranks | None = None, **options: Any
    ) -> None:
        # What param_groups showed last, a dict a group; and what in it changes by itself, as (group, key).
        self._shown: list[dict[str, Any]] = []
        self._scheduled: list[tuple[int, str]] = []
        self._seen = -1
        # By group: the rates of the rules before they were changed together through "lr", and since.
        self._scaled: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
        # Within a step of an aggregator: the gradients and losses of all tasks, and how many are wanted.
        self._tasks: tuple[list[list[torch.Tensor | None]], list[torch.Tensor]] | None = None
        self._task_count: int | None = None
        # What `state` was filled at, and with what, by index of the parameter.
        self._filled: tuple[Any, ...] | None = None
        self._filling: list[tuple[torch.Tensor, list[str]]] = []
        super().__init__(params, {})
        self._ranks = distributed.place(ranks, self.param_groups, sentence)
        names: list[str] = []
        with self._joining(options):
            with contextlib.closing(bare(sentence)) as empty:
                self._keys = Keys(empty, self._viewed)
                self._rates = _shared(empty, "lr") if self._viewed is None else []
                self._decays = _shared(empty, "weight_decay") if self._viewed is None else []
                self._norms = [f"{name}.norm" for name, m in empty._stages() if m.name == "clip_global_norm"]
                values, scheduled = self._read(empty, "")
            self._sentence_values = {key: value for key, value in values.items() if key not in scheduled}
            groups = [self._spread_given(self._describe(group, set(group), names)) for group in self.param_groups]
            alone = len(groups) == 1 and not (groups[0].keys() - {"params", "name"})
            self.engine = _optimizer.Optimizer(groups[0]["params"] if alone else groups, sentence, **options)
        self._watching = self.engine._options["nonfinite"] == "propagate"
        self._sparse = {m.name for _, m in self.engine._stages() if m.kind == "optimizer"} <= SPARSE
        self.defaults.update({**self._sentence_values, **self._keys.fixed, **self._keys.notes})
        self._pull()
        self._note(self.param_groups)

    # ---- param_groups and the engine

    def _joining(self, options: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Around what has to go well on all ranks, or on none."""
        return contextlib.nullcontext() if self._ranks is None else self._ranks.joining(self, options)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, as for torch.optim; they show what the next step uses."""
        if "param_groups" not in self.__dict__:  # a wrapper (Lightning's) that asks the optimizer inside it
            raise AttributeError("param_groups")
        groups: list[dict[str, Any]] = self.__dict__["param_groups"]
        if "engine" in self.__dict__ and self.engine._edits != self._seen and not self.engine.closed:
            self._pull()
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    @property
    def state(self) -> Any:
        """By parameter: its state as tensors, copies as of now, under the names of the library, and "step"."""
        if "state" not in self.__dict__:
            raise AttributeError("state")
        whole = self.__dict__["state"]
        if "engine" not in self.__dict__ or self.engine.closed:
            return whole
        now = (self.engine.steps, self.engine.skipped, self.engine._edits, self.engine.training)
        if self._filled != now or self.engine._pending is not None:
            self._empty()
            rows = _state.take_apart(self.engine, self._notes())
            held = self.engine.params if self._ranks is None else self._ranks.shown(rows)
            for p, row in zip(held, rows):
                if p is None:  # it stands for a group without tensors
                    continue
                whole[p].update(row)
                self._filling.append((p, [*row]))
            self._filled = now
        return whole

    @state.setter
    def state(self, state: Any) -> None:
        self.__dict__["state"] = state
        self._filled, self._filling = None, []

    def _empty(self) -> None:
        """Lets go of the copies in `state`."""
        whole = self.__dict__["state"]
        for p, keys in self._filling:
            if p in whole:
                for key in keys:
                    whole[p].pop(key, None)
                if not whole[p]:
                    del whole[p]
        self._filled, self._filling = None, []

    def _notes(self) -> dict[str, Any]:
        """What a state dict holds beside the engine: what is different in param_groups when it is loaded, somebody has
        changed."""
        return {"shown": [dict(shown) for shown in self._shown],
                "scaled": {str(index): list(pair) for index, pair in self._scaled.items()}}

    def _describe(self, group: dict[str, Any], given: Iterable[str], names: list[str]) -> dict[str, Any]:
        """A parameter group of torch as one of thalweg, with the values given; its name goes to `names`."""
        described = {key: plain(group[key]) for key in group if key in given and key not in NOT_OURS}
        called = group.get("param_names")
        if self._ranks is not None:
            described["params"] = self._ranks.hold(called, group["params"])
        else:
            described["params"] = list(zip(called, group["params"])) if called else list(group["params"])
        name = group.get("name")
        if not isinstance(name, str) or not name or name in names:  # in torch a name is any note of the caller's
            name = _groups.fresh_name(names, len(names))
        names.append(name)
        described["name"] = name
        return self._keys.spread(described)

    def _note(self, groups: list[dict[str, Any]]) -> None:
        """Shows what torch shows and no step changes."""
        for group in groups:
            for key, value in {**self._keys.fixed, **self._keys.notes}.items():
                group.setdefault(key, value)

    def _read(self, engine: _optimizer.Optimizer, name: str) -> tuple[dict[str, Any], set[str]]:
        """What a group of the engine has, as param_groups shows it; and the keys of what a schedule changes."""
        values: dict[str, Any] = {}
        scheduled: set[str] = set()
        for path, parameter in engine._live().items():
            values[path] = engine.get(path, name)
            if parameter.type == "number" and isinstance(_registry.read_value(engine._get_text(name, path)), str):
                scheduled.add(path)
        self._keys.show(values, scheduled)
        if self._rates and (values[self._rates[0]] or not any(values[path] for path in self._rates)):
            values["lr"] = values[self._rates[0]]
            if scheduled & set(self._rates):
                scheduled.add("lr")
        if self._decays:
            values["weight_decay"] = values[self._decays[0]]
        return values, scheduled & values.keys()

    def _pull(self) -> None:
        """Shows what the engine has, but for what the caller has changed and no step has used yet."""
        self._scheduled = []
        for index, (group, (name, _, _)) in enumerate(zip(self.__dict__["param_groups"], self.engine._layout)):
            values, scheduled = self._read(self.engine, name)
            old = self._shown[index] if index < len(self._shown) else {}
            for key, value in values.items():
                current = group.get(key)
                if key not in group or key not in old or same(current, old[key]):
                    values[key] = show(group, key, value)
                elif same(current, value):
                    values[key] = plain(current)
            self._shown[index : index + 1] = [values]
            self._scheduled += [(index, key) for key in scheduled]
        self._seen = self.engine._edits

    def _refresh(self) -> None:
        """Shows the present values of schedules."""
        if self.engine._edits != self._seen:
            self._pull()
            return
        mirrors = self.engine.param_groups
        for index, key in self._scheduled:
            group, shown = self.__dict__["param_groups"][index], self._shown[index]
            mirror = mirrors[index]
            value = mirror[self._rates[0]] if key == "lr" and self._rates else self._keys.value(mirror, key)
            untouched = same(group.get(key, shown[key]), shown[key])
            shown[key] = show(group, key, value) if untouched else value

    def _push(self) -> None:
        """Passes on what was changed in param_groups."""
        if self.engine._edits != self._seen:
            self._pull()
        changes: dict[int, dict[str, Any]] = {}
        for index, shown in enumerate(self._shown):
            group = self.__dict__["param_groups"][index]
            for key, old in shown.items():
                new = group.get(key, old)
                if new is not old and not same(new, old):
                    changes.setdefault(index, {})[key] = plain(new)
        if self._keys.fixed:
            self._check_fixed(self.__dict__["param_groups"])
        if not changes:
            return
        self._set(changes)
        for index, changed in changes.items():
            self._shown[index].update(changed)
        rates = {"lr", *self._rates} if self._rates else set()
        linked = rates | ({"weight_decay", *self._decays} if self._decays else set())
        if any(isinstance(value, str) or key in linked for c in changes.values() for key, value in c.items()):
            self._pull()
            return
        self._scheduled = [(index, key) for index, key in self._scheduled if key not in changes.get(index, ())]
        self._seen = self.engine._edits

    def _set(self, changes: dict[int, dict[str, Any]]) -> None:
        """Changes hyper-parameters in the engine: of each group (by index) all, or none when one is refused."""
        changes = {index: self._keys.spread(self._spread_rate(index, c)) for index, c in changes.items()}
        together: dict[str, Any] = {}
        if len(changes) == len(self.engine._layout) > 1:
            first, *others = changes.values()
            together = {k: v for k, v in first.items() if all(k in c and same(c[k], v) for c in others)}
        for index, changed in changes.items():
            name = self.engine._layout[index][0]
            try:
                self.engine._set_together(changed, name)
            except ArgumentError:
                if not together:
                    raise
                # What is one value for all groups, a loop over the groups has given to each of them.
                self.engine._set_together(together, None)
                self.engine._set_together(changed, name)

    def _spread_rate(self, index: int, changed: dict[str, Any]) -> dict[str, Any]:
        """`changed` with the rates of all rules in place of the "lr" that stands for them."""
        changed = self._spread_decay(changed)
        if "lr" not in changed or not self._rates:
            return changed
        new, now = changed["lr"], {path: self._shown[index][path] for path in self._rates}
        # Shares are those before the first scaling: a scheduler that passes 0 must not lose them.
        base, scaled = self._scaled.get(index, (now, None))
        if scaled != now:
            base = now
        first = base[self._rates[0]]
        if isinstance(new, str) or not first:
            rates = dict.fromkeys(self._rates, new)
        else:
            rates = {path: rate * (new / first) for path, rate in base.items()}
        self._scaled[index] = base, rates
        return {**rates, **{key: value for key, value in changed.items() if key != "lr"}}

    def _spread_decay(self, changed: dict[str, Any]) -> dict[str, Any]:
        """`changed` with the weight decays of all rules in place of the "weight_decay" that stands for them."""
        if "weight_decay" not in changed or not self._decays:
            return changed
        rest = {key: value for key, value in changed.items() if key != "weight_decay"}
        return {**dict.fromkeys(self._decays, changed["weight_decay"]), **rest}

    # ---- stepping

    def _watch(self, parameters: list[torch.Tensor]) -> None:
        """Says once that a gradient which is no number has become weights."""
        steps = self.engine.steps
        norms = [self.engine._get_number(None, path) for path in self._norms]
        bad = any(not math.isfinite(norm) for norm in norms)
        if not bad and (steps & (steps - 1) == 0 or steps % 128 == 0):
            bad = not all(bool(torch.isfinite(p).all()) for p in parameters)
        if bad:
            self._watching = False
            text = (f"step {steps} of {self.engine._text!r}: NaN or Inf in a gradient has become weights; "
                    "nonfinite='skip' leaves such steps out, nonfinite='error' raises")
            LOG.warning(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _parameters(self) -> list[torch.Tensor]:
        """The tensors of all groups, which have to be those that the engine works on."""
        tensors = [p for group in self.__dict__["param_groups"] for p in group["params"]]
        bound = self.engine.params if self._ranks is None else self._ranks.given
        if len(tensors) != len(bound) or any(map(operator.is_not, tensors, bound)):
            raise error(
                ArgumentError,
                "the tensors in param_groups are others than were given: add_param_group adds some; to go on with "
                'other ones of the same shapes, call engine.rebind_parameters and put them into group["params"]',
            )
        return tensors

    def _gradients(self, parameters: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """What lies in `.grad`, for each tensor that the engine has."""
        if self._ranks is not None:
            return self._ranks.gradients(self, parameters)
        if self._sparse:
            return [p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in parameters]
        return [p.grad for p in parameters]

    def _answer(self, request: _requests.Request, parameters: list[torch.Tensor], there: list[bool]) -> None:
        """Answers a request with what lies in `.grad`.

        there  by parameter: whether the first answer of this step had its gradient; filled in at the first

        The method goes by the tensors of the first answer.  ArgumentError where a later task has more: the head of that
        task would never move.
        """
        if not request.wants_gradient or request._answered:
            return
        now = [p.grad is not None for p in parameters]
        if not there:
            there += now
        elif request.kind == "task_gradient" and any(new and not old for new, old in zip(now, there)):
            index = next(i for i, (new, old) in enumerate(zip(now, there)) if new and not old)
            raise error(ArgumentError, f"task {request.index} of {request.count} has a gradient of parameter {index}, "
                        "and the first task had none: leave zeros in .grad where a task does not reach a parameter")
        request.answer(self._gradients(parameters))

    def _asked(self) -> Iterator[_requests.Request]:
        """The requests of a step; at each the parameters of this rank are those that the method asks about."""
        with contextlib.closing(self.engine.requests()) as requests:
            if self._ranks is None:
                yield from requests
            else:
                yield from self._ranks.asked(self, requests)

    def _touch(self) -> None:
        """Lets autograd know that the parameters have changed."""
        torch.autograd.graph.increment_version(tuple(p for g in self.__dict__["param_groups"] for p in g["params"]))
        if self._ranks is not None:
            self._ranks.deliver()

    @torch.no_grad()
    @of_adapter
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One step with the gradients in `.grad` (None: that tensor is left alone).  SGD, Adagrad and SparseAdam
        take sparse ones, as torch's do; each is made dense for the step.

        closure  zeroes the gradients, computes the loss, calls backward, and returns the loss; methods that need more
                 than one gradient (sam, ...) call it as often as they like, at other parameters each time.  It may
                 return None where the method does not ask for the loss; NeedsError where it does.  For several tasks it
                 calls opt.backward(losses) instead.  thalweg.torch.Answers is a closure for every method.  With one
                 required argument it is given the thalweg.Request, and answers by its kind: for a "hessian_vector" it
                 leaves the product in `.grad`; for a "task_gradient" the gradient of task request.index; for a
                 "participant" the parameters of that participant; for "activations" and "logit_derivatives" it calls
                 request.answer_matrix; for "sample_gradients" request.answer_samples.

        Returns the first loss, or None.  After an exception, of the closure too, parameters and state are as before.
        Between steps the gradients are yours alone: what you let go of is freed.
        """
        with self._stepping() as parameters:
            if closure is not None:
                return self._step_closure(closure, parameters)
            self.engine.step(self._gradients(parameters))
        return None

    @contextlib.contextmanager
    def _stepping(self) -> Generator[list[torch.Tensor], None, None]:
        """What stands around every step: torch's values go to the engine before it, and back behind it."""
        parameters = self._parameters()
        self._push()
        if self._filled is not None:
            self._empty()
        with contextlib.nullcontext() if self._ranks is None else self._ranks.stepping(self):
            try:
                yield parameters
            finally:
                if not self.engine.closed:
                    self.engine._loosen()
            torch.autograd.graph.increment_version(parameters)
        if self._watching:
            self._watch(parameters if self._ranks is None else self._ranks.held)
        if self._scheduled or self.engine._edits != self._seen:
            self._refresh()

    def _step_closure(self, closure: Callable[..., Any], parameters: list[torch.Tensor]) -> Any:
        takes_request = _requests.takes_request(closure)
        first, there = None, []
        with contextlib.closing(self._asked()) as requests, contextlib.ExitStack() as leaving:
            leaving.callback(self._forget_tasks)
            for request in requests:
                with torch.enable_grad():
                    if takes_request:
                        loss = closure(request)
                    elif request.kind == "task_gradient" and request.count > 1:
                        loss = self._ask_tasks(closure, request, parameters)
                    else:
                        loss = _requests.ask(closure, request)
                first = loss if first is None else first
                if loss is not None and request.loss is None:
                    request.loss = _requests.number_of(loss)
                if request.wants_loss and request.loss is None:
                    raise error(NeedsError, f"{self.engine._text}: the method asked for the loss: the closure must "
                                "return it, and returned None")
                self._answer(request, parameters, there)
        return first

    def backward(self, losses: Sequence[torch.Tensor]) -> None:
        """In a closure without arguments, in place of loss.backward(): the gradients of several tasks from one graph.

            def closure():
                opt.zero_grad()
                losses = [criterion(head(features), y) for head, y in zip(heads, targets)]
                opt.backward(losses)
                return sum(losses)

            opt.step(closure)             # with "pcgrad(tasks=2) | adamw", and every other aggregator

        The method is given the gradient of each loss; where it asks for one gradient alone, that of their sum.
        CountError where it has another number of tasks.
        """
        losses = list(losses)
        if self._task_count is None:
            torch.autograd.backward(torch.stack([loss.reshape(()) for loss in losses]).sum())
            return
        if len(losses) != self._task_count:
            raise error(CountError, f"the method has {self._task_count} tasks, and backward was given {len(losses)} "
                        "losses")
        from ._answers import task_gradients, with_zeros

        parameters = self._parameters()
        grads = with_zeros(task_gradients(losses, parameters), parameters)
        self._tasks = grads, [loss.detach() for loss in losses]

    def _ask_tasks(
        self, closure: Callable[[], Any], request: _requests.Request, parameters: list[torch.Tensor]
    ) -> Any:
        """Calls a closure without arguments at the first task; what it gave to `backward` answers for the others."""
        if request.index == 0 or self._tasks is None:
            self._tasks, self._task_count = None, request.count
            closure()
            self._task_count = None
        if self._tasks is None:
            raise error(
                NeedsError,
                f"the method asks for {_requests.asked_for(request)}, which a closure without arguments cannot know: "
                "call opt.backward(losses) in it, give one that takes the Request, or answer every request in "
                "opt.requests()",
            )
        grads, losses = self._tasks
        for p, g in zip(parameters, grads[request.index]):
            p.grad = g
        return losses[request.index]

    def _forget_tasks(self) -> None:
        self._tasks = self._task_count = None

    def requests(self) -> Generator[_requests.Request, None, None]:
        """One step as a loop over what the method asks for, as of thalweg.Optimizer.requests.

            for request in opt.requests():
                opt.zero_grad()
                loss = criterion(model(x), y)    # equal request.tag: the same minibatch
                loss.backward()
                request.loss = loss.item()       # where request.wants_loss

        What lies in `.grad` when the loop goes on is the answer, unless request.answer gave another.
        """
        with self._stepping() as parameters, contextlib.closing(self._asked()) as requests:
            there: list[bool] = []
            for request in requests:
                yield request
                self._answer(request, parameters, there)
            self._opt_called = True  # what schedulers look for, which watch `step`

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.  With set_to_none the memory of the gradients can be freed before the next backward pass."""
        super().zero_grad(set_to_none)
        if set_to_none and "engine" in self.__dict__ and not self.engine.closed:
            # Within a step (a closure calls this) the engine may still look at them.
            if self.engine._pending is None:
                self.engine._loosen()
            else:
                self.engine.release_gradients()

    @of_adapter
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch: {"params": [...], "lr": 0.1, "role": "bias"}.

        What the group does not say is as in the sentence, schedules included.

        UnknownNameError for a key that is no hyper-parameter.  When a key, a tensor or a value is refused, nothing
        changes.
        """
        if "engine" not in self.__dict__:
            return super().add_param_group(param_group)
        self._push()
        before = dict(param_group)
        count = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            # torch fills in `defaults`; what counts is what the caller gave, here or by changing them.
            given = {key for key in param_group if key in before or self._is_new_default(key)}
            with self._joining({}):
                described = self._describe(param_group, given, [name for name, _, _ in self.engine._layout])
                self.engine.add_param_group(self._spread_given(described))
            self._note([param_group])
        except BaseException:
            del self.__dict__["param_groups"][count:]
            param_group.clear()
            param_group.update(before)
            raise
        self._pull()
        return None

    def _is_new_default(self, key: str) -> bool:
        missing = object()
        old = self._sentence_values.get(key, missing)
        return key in self.defaults and old is not missing and not same(self.defaults[key], old)

    def _spread_given(self, described: dict[str, Any]) -> dict[str, Any]:
        """A new group's values with the rates of all rules in place of the "lr" that stands for them."""
        described = self._spread_decay(described)
        if "lr" not in described or not self._rates:
            return described
        new, first = described.pop("lr"), self._sentence_values.get(self._rates[0])
        if isinstance(new, str) or not first or any(path not in self._sentence_values for path in self._rates):
            rates = dict.fromkeys(self._rates, new)
        else:
            rates = {path: self._sentence_values[path] * (new / first) for path in self._rates}
        return {**rates, **described}

    @of_adapter
    def observe(self, what: str, value: float) -> None:
        """Tells the pipeline a number that it watches: "loss", "metric"."""
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        self.engine.observe(what, number if self._ranks is None else self._ranks.mean(number))
        self._refresh()

    # ---- modes

    @of_adapter
    def train(self) -> None:
        """Puts the training weights back into the parameters."""
        self.engine.train()
        self._touch()

    @of_adapter
    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters."""
        self.engine.eval()
        self._touch()

    @contextlib.contextmanager
    def averaged(self) -> Generator[Optimizer, None, None]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights."""
        with self.engine.averaged():
            self._touch()
            yield self
        self._touch()

    # ---- state

    @contextlib.contextmanager
    def _without_hooks(self, *kinds: str) -> Iterator[None]:
        """Inside, torch finds no hooks of these kinds: they are called where all of the state can be seen."""
        hooks = {kind: getattr(self, kind) for kind in kinds}
        for kind in kinds:
            setattr(self, kind, {})
        try:
            yield
        finally:
            for kind in kinds:
                setattr(self, kind, hooks[kind])

    @of_adapter
    def state_dict(self) -> dict[str, Any]:
        """The state in torch's shape, {"state": {index: {name: tensor}}, "param_groups": [...]}: tensors and plain
        values, which torch.load(weights_only=True) and torch.distributed.checkpoint read.

        As in torch it does not hold the parameters: save model.state_dict() beside it.  torch.optim's own optimizers
        read what to_torch_state_dict() gives.
        """
        for hook in tuple(self._optimizer_state_dict_pre_hooks.values()):
            hook(self)
        self._push()
        with self._without_hooks("_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks"):
            whole = super().state_dict()
        whole["state"] = {key: dict(row) if isinstance(row, dict) else row for key, row in whole["state"].items()}
        self._empty()
        for hook in tuple(self._optimizer_state_dict_post_hooks.values()):
            whole = hook(self, whole) or whole
        return whole

    @of_adapter
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what state_dict returned, for the same model, whose parameters you load yourself, and the values
        in its param_groups that were changed since.  Nothing changes when it does not fit.

        It also takes the state dict of torch.optim's SGD, Adam, AdamW, Adagrad, RMSprop, Adamax, NAdam, RAdam,
        Adadelta and Muon, for the same rule here: the run goes on where that one stood.  (SGD and Muon count no steps;
        schedules in the sentence then begin at the first.)  Load the model before, where there are master copies.
        """
        if not isinstance(state_dict, dict):
            raise error(ArgumentError, f"not a state_dict of an optimizer, but a {type(state_dict).__name__}")
        whole = state_dict.copy()
        for hook in tuple(self._optimizer_load_state_dict_pre_hooks.values()):
            whole = hook(self, whole) or whole
        if not isinstance(whole.get("param_groups"), list) or not isinstance(whole.get("state"), dict):
            raise error(ArgumentError, "not a state_dict of an optimizer: it has no 'state' and 'param_groups'")
        groups, old = whole["param_groups"], whole.get("thalweg")
        _state.check_groups(groups, self.param_groups)
        # What the groups call the parameters, torch calls their state: numbers; torch.distributed.checkpoint: names.
        called = {key: index for index, key in enumerate(key for group in groups for key in group["params"])}
        rows = {called[key]: row for key, row in whole["state"].items() if key in called}
        for row in rows.values():
            if not isinstance(row, dict):
                raise error(ArgumentError, f"not a state_dict: the state of a parameter is a dict, not {row!r}")
        self._check_fixed(groups)
        if self._ranks is not None:
            rows = self._ranks.held_rows(rows, lambda: _state.take_apart(self.engine, {}))
        head = None if old is not None else _state.find_head(rows)
        own = head is not None or old is not None
        if old is not None:  # an earlier version kept everything in one tensor
            data = dict(old)
            if isinstance(data.get("state"), torch.Tensor):
                data["state"] = data["state"].numpy().tobytes()
            notes: dict[str, Any] = data
        elif head is not None:
            data, notes = _state.put_together(self.engine, rows, head), head["notes"]
        else:
            data, notes = _state.from_torch(self.engine, rows, self.engine.params), {}
        if own and notes.get("shown") is None:
            changes = None
        else:
            shown = notes["shown"] if own else self._shown_of()
            changes = differences(groups, shown)
        scaled = {int(index): (pair[0], pair[1]) for index, pair in notes.get("scaled", {}).items()}
        before = self.engine._save() if changes is None or any(changes) else b""
        kept = self.__dict__["param_groups"], self.__dict__["state"], self._shown, self._scaled
        self._empty()
        stages = () if head is None else head["stages"]
        theirs: dict[Any, Any] = {}  # what the caller kept beside our state
        for key, row in whole["state"].items() if own else ():
            if isinstance(row, dict):
                row = {name: v for name, v in row.items() if not (_state.is_ours(name) or name in stages)}
            if row != {}:
                theirs[key] = row
        try:
            with self._without_hooks("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks"):
                super().load_state_dict({"state": theirs, "param_groups": groups})
            self._shown = []
            if old is not None:
                self.engine.load_state_dict(data)
            else:
                self.engine._load(data)
            self._scaled = scaled
            if before:
                self._set_differences(groups, changes)
        except BaseException:
            self.__dict__["param_groups"], self.state, self._shown, self._scaled = kept
            if before:
                self.engine._load(before)
            raise
        self._pull()
        for hook in tuple(self._optimizer_load_state_dict_post_hooks.values()):
            hook(self)

    def _check_fixed(self, groups: list[dict[str, Any]]) -> None:
        """ArgumentError where a group says otherwise than what was settled when the optimizer was made."""
        for group in groups:
            self._keys.spread({key: group[key] for key in self._keys.fixed if key in group})

    def _shown_of(self) -> list[dict[str, Any]]:
        """What the engine has now, as param_groups shows it."""
        return [values for values, _ in (self._read(self.engine, name) for name, _, _ in self.engine._layout)]

    @of_adapter
    def to_torch_state_dict(self) -> dict[str, Any]:
        """The state dict for the optimizer of torch.optim that this is: SGD, Adam, AdamW, Adagrad, RMSprop, Adamax,
        NAdam, RAdam, Adadelta or Muon, which its load_state_dict takes.

        MismatchError where torch has no such optimizer, or another stage of the sentence keeps state.
        """
        from ._classes import groups_of_torch, name_in_torch

        self._push()
        name = name_in_torch(self.engine)
        if name not in _state.CONVERTS:
            raise error(MismatchError, f"torch.optim has no optimizer that goes on from {self.engine._text!r}; "
                        f"there are {', '.join(_state.CONVERTS)}")
        return {"state": _state.to_torch(self.engine, name, self.engine.params),
                "param_groups": groups_of_torch(self, name)}

    def _set_differences(self, groups: list[dict[str, Any]], changes: list[dict[str, Any]] | None) -> None:
        """Changes what somebody has changed in the groups of a state_dict; None: an earlier version saved it without a
        note of what it showed, and what schedules change is left to them."""
        reads = [self._read(self.engine, name) for name, _, _ in self.engine._layout]
        if changes is None:
            changes = differences(groups, [{k: v for k, v in values.items() if k not in by} for values, by in reads])
        self._shown = [values for values, _ in reads]
        wanted = {i: {k: v for k, v in c.items() if k in self._shown[i]} for i, c in enumerate(changes)}
        self._set({index: changed for index, changed in wanted.items() if changed})
        self._shown = []

    def __getstate__(self) -> dict[str, Any]:
        self._push()
        self._empty()
        own = ("engine", "_shown", "_scheduled", "_seen", "_rates", "_scaled", "_sentence_values", "_keys", "_decays",
               "_norms", "_watching", "_sparse")
        return {"defaults": self.defaults, **{key: self.__dict__[key] for key in ("state", "param_groups", *own)},
                "_seen": -1, "_filled": None, "_filling": [], "_tasks": None, "_task_count": None}

    def __repr__(self) -> str:
        return f"<thalweg.torch.{type(self).__name__}: {self.engine!r}>"


def bare(sentence: str) -> _optimizer.Optimizer:
    """The sentence without parameters, which knows what hyper-parameters there are."""
    engine = _optimizer.Optimizer.__new__(_optimizer.Optimizer)
    engine._create(_sentence.check_text(sentence), 1, 0, 0, 0, 0, 0, 1.0, 0)
    engine._layout, engine._parameters = [], None
    return engine


def _shared(engine: _optimizer.Optimizer, name: str) -> list[str]:
    """The paths of a hyper-parameter of the update rules, where `name` alone is not the path of one of them."""
    live = engine._live_paths()
    if name in live:
        return []
    return [path for stage, m in engine._stages() if m.kind == "optimizer" and (path := f"{stage}.{name}") in live]


def tensors_of(params: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among what torch.optim takes: tensors, (name, tensor) pairs, dicts of a group."""
    for item in params:
        if isinstance(item, dict):
            inner = item["params"]
            yield from tensors_of([inner] if isinstance(inner, torch.Tensor) else inner)
        else:
            yield item[1] if isinstance(item, tuple) else item
