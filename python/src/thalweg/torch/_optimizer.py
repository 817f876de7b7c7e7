"""A sentence as a torch.optim.Optimizer: parameter groups, steps, modes, state."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from typing import Any

import torch

from .. import _notices, _optimizer, _options, _requests, distributed
from .._errors import ArgumentError, HandleError, NeedsError, SequenceError, error, of_adapter
from .._optimizer import bare
from ._tasks import Tasks
from ._view import Keys

# The rules that torch.optim steps with sparse gradients (embeddings).
SPARSE = {"sgd", "adagrad", "sparse_adam"}
# Parameters with the `.grad` that they had, and how often it had been written to.
Written = list[tuple[torch.Tensor, Any, int]]


class Optimizer(Tasks):
    """A sentence at work on the parameters of a torch model, stepping with their `.grad`.

    params    as for torch.optim: tensors, (name, tensor) pairs, or dicts with "params" and overrides; or a dict of
              tensors by name.  What route(...) goes by is given here: named_parameters() for patterns of names, and
              {"params": [...], "role": "bias"} for roles ("weight", "bias", "norm", "embedding", "head"), in a group
              of their own
    sentence  the pipeline, as for thalweg.Optimizer
    ranks     a thalweg.distributed.Ranks: how the model is spread over the processes of a group.  Parameters that are
              DTensors (FSDP2) need none: their local shards are stepped, and norms are those of the whole model
    options   those of thalweg.Optimizer: state_dtype, master, nonfinite, maximize, seed, ...  And what param_groups shows,
              for all groups that do not say otherwise: lr=0.01, as Hugging Face's optimizer_cls_and_kwargs gives it

    `param_groups` shows the hyper-parameters that may change, and the next step uses what it shows ("lr", "betas", or
    "muon.lr" where two stages have an lr): torch's schedulers and your own code change them there.  A schedule in the
    sentence shows the value of the next step, as torch's schedulers do behind opt.step() and scheduler.step(): what
    stands there before a step (Lightning's LearningRateMonitor looks then) is what the step uses.  It stays in force
    until that value is changed there; SentenceLR is the scheduler for tools that want one.  A group that is added later
    has the sentence's values and schedules unless it says otherwise.

    A group may be empty, and have its parameters later (opt.param_groups[1]["params"].append(p)): its values are kept
    until then.

    Where several rules have a rate (route(matrix=(muon), other=(adamw))), "lr" is that of the first, and changing it,
    or giving it in a group, changes all of them by the same factor: torch's schedulers look for "lr".  "weight_decay"
    is that of the first as well, and a value given there goes to all of them.

    Under the default policy (nonfinite="propagate") a NaN or Inf in a gradient becomes weights.  That is said once, as
    a RuntimeWarning and through the logger "thalweg": at once where clip_global_norm spreads it, else when the weights
    are looked at, after steps 1, 2, 4, ... and every 128th.  nonfinite="skip" and "error" leave such steps out.

    Keys of your own in a group ("lr_scale", "my_note") stay there, are saved and loaded, and change nothing.  Refused
    (UnknownNameError) is what looks like a hyper-parameter that is misspelt ("lrr", "learning_rate"), or is one of
    torch's that the sentence does not have, where the group is given; and so is a value that does not fit.

    A hyper-parameter that needs state which the sentence did not ask for (the momentum of sgd, which OneCycleLR and
    CyclicLR cycle) may be changed until the first step is taken.

    Parameters may move to other memory between steps (p.data = ...).  The storages that they have when they are given
    are held as NumPy would hold them: torch does not resize these (storage.resize_) from then on.

    `state` shows copies, made when it is looked at: `state[p]["exp_avg"]`.  What you write there, replace or delete
    counts in the next step; what you put beside it is kept and saved.  `engine` is the thalweg.Optimizer inside.
    """

    # Of a step over several tasks: the tags of the minibatches for which one of them had a gradient.
    _with_tasks: Set[int] = frozenset()
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
        self._ahead = {}
        self._unbound, self._standing_in = {}, {}
        self._tasks, self._asking = {}, None
        # What `state` was filled at, and with what, by index of the parameter.
        self._filled: tuple[Any, ...] | None = None
        self._filling: list[tuple[torch.Tensor, list[str]]] = []
        self._members = set()
        with distributed.placing(ranks):
            super().__init__(listed(params), {})
            self._ranks = distributed.place(ranks, self.param_groups, sentence)
        del self._members
        names: set[str] = set()
        with self._joining(options):
            with contextlib.closing(bare(sentence)) as empty:
                self._keys = Keys(empty, self._viewed)
                self._rates = _shared(empty, "lr") if self._viewed is None else []
                self._decays = _shared(empty, "weight_decay") if self._viewed is None else []
                values, scheduled = self._read(empty, "")
                own = {p.name for _, m in empty._stages() for p in m.parameters}
                shown = {*values, *empty._live_paths(), *(["betas"] if empty._betas() else [])} - _options.OF_ALL
                self._settings = frozenset({*values, *empty._live_paths(), *self._keys.fixed, *own, "betas", "role"})
            self._sentence_values = {key: value for key, value in values.items() if key not in scheduled}
            self._standards = {key: options.pop(key) for key in shown & options.keys() if self._viewed is None}
            for group in self.param_groups:
                group.update({key: value for key, value in self._standards.items() if key not in group})
            groups = [self._spread_given(self._describe(group, set(group), names)) for group in self.param_groups]
            alone = len(groups) == 1 and not (groups[0].keys() - {"params", "name"})
            bound = [group for group in groups if group["params"]]
            if not bound:
                raise error(ArgumentError, "every parameter group is empty: there is nothing to optimize")
            with _notices.quiet():  # its tensors may be those of this rank
                self.engine = _optimizer.Optimizer(bound[0]["params"] if alone else bound, sentence, **options)
            self._places = []
            for index, group in enumerate(groups):
                if group["params"]:
                    self._places.append(index - len(self._unbound))
                else:
                    self._bind(index, group)
        if self._ranks is None:
            distributed.look_alone(self, self.engine.params)
        self._watching = self.engine._options["nonfinite"] == "propagate"
        self._norms, self.engine._norms = self.engine._norms, []  # looked at here
        self._sparse = {m.name for _, m in self.engine._stages() if m.kind == "optimizer"} <= SPARSE
        self.defaults.update({**self._sentence_values, **self._keys.fixed, **self._keys.notes, **self._standards})
        self._pull()
        self._note(self.param_groups)
        if "route" in sentence and not self._unbound and (self._ranks is None or self._ranks.whole):
            _notices.say_idle(self.engine.sentence, self._routed())

    def _routed(self) -> list[_notices.Tensor]:
        """What route(...) looks at, of all parameters."""
        tensors = []
        for group in self.__dict__["param_groups"]:
            names = group.get("param_names", [""] * len(group["params"]))
            tensors += [_notices.Tensor(n, tuple(p.shape), group.get("role")) for n, p in zip(names, group["params"])]
        return tensors

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
            _notices.say_nonfinite(self.engine)

    def _parameters(self) -> list[torch.Tensor]:
        """The tensors of all groups in the engine's order; they have to be those that it works on."""
        if self.engine.closed:
            raise error(HandleError, "this Optimizer is closed")
        if self._unbound:
            self._bind_late()
        tensors = [p for group in self._bound() for p in group["params"]]
        bound = self.engine.params if self._ranks is None else self._ranks.given
        alike = len(self._places) == len(self.__dict__["param_groups"]) and len(tensors) == len(bound)
        if not alike or any(map(operator.is_not, tensors, bound)):
            raise error(
                ArgumentError,
                "the tensors in param_groups are others than were given: add_param_group adds some; to go on with "
                'other ones of the same shapes, call engine.rebind_parameters and put them into group["params"]',
            )
        return tensors

    def _gradients(self, parameters: list[torch.Tensor], where: str = "its start") -> list[torch.Tensor | None]:
        """What lies in `.grad`, for each tensor that the engine has.

        where  the place in the step, which is that of all ranks
        """
        if self._ranks is not None:
            return self._ranks.gradients(self, parameters, where)
        if self._sparse:
            return [p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in parameters]
        return [p.grad for p in parameters]

    def _answer(self, request: _requests.Request, parameters: list[torch.Tensor], stay: bool = False) -> None:
        """Answers a request with what lies in `.grad`; stay: as for Request.answer."""
        if request.wants_gradient and not request._answered:
            grads = self._gradients(parameters, distributed.place_of(request) if self._ranks is not None else "")
            request.answer(grads, stay=stay)

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
            self._ranks.switched()

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch puts the hooks of a step around it with this; on a rank where one of them raises, the step fails."""
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(hooked)
        def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            with self._together("step"):
                return hooked(self, *args, **kwargs)

        return step

    @torch.no_grad()
    @of_adapter
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One step with the gradients in `.grad` (None: that tensor is left alone).  SGD, Adagrad and SparseAdam
        take sparse ones, as torch's do; each is made dense for the step.

        closure  zeroes the gradients, computes the loss, calls backward, and returns the loss; methods that need more
                 than one gradient (sam, ...) call it as often as they like, at other parameters each time.  Without
                 arguments it does not know which minibatch is meant: behind gradient_accumulate, the calls of one step
                 want several, each of them again for SAM's second gradient (request.tag says which).  It may
                 return None where the method does not ask for the loss; NeedsError where it does.  For several tasks it
                 calls opt.backward(losses) instead.  thalweg.torch.Answers is a closure for every method.  With one
                 required argument it is given the thalweg.Request, and answers by its kind: for a "hessian_vector" it
                 leaves the product in `.grad`; for a "task_gradient" the gradient of task request.index; for a
                 "participant" the parameters of that participant; for "activations" and "logit_derivatives" it calls
                 request.answer_matrix; for "sample_gradients" request.answer_samples.

        Returns the first loss (of this rank), or None.  SequenceError where the closure forgets backward: `.grad` is as
        it answered an earlier call of this step, or None in all parameters though a loss was returned.  After an
        exception, of the closure too, parameters and state are as before; where it comes on one rank, the others get an
        ArgumentError (with ranks= or DTensors).
        Between steps the gradients are yours alone: what you let go of is freed.
        """
        if not (closure is None or callable(closure)):
            raise error(ArgumentError, f"the closure of a step is a function, not a {type(closure).__name__}; "
                        "gradients lie in .grad, and several minibatches go through thalweg.torch.Answers")
        if closure is not None and _in_scaler():
            raise error(ArgumentError, "GradScaler.step takes no closure, as torch says of closure=...: it has "
                        "unscaled the gradients that are there, and would not those that the closure makes.  Call "
                        'opt.step(closure), with opt.engine.set("gradient_scale", 1 / scaler.get_scale()) before it; a '
                        'loss alone is told by opt.observe("loss", loss)')
        with self._stepping(closure is not None) as parameters:
            if closure is not None:
                return self._step_closure(closure, parameters)
            self.engine.step(self._gradients(parameters))
        return None

    @contextlib.contextmanager
    def _stepping(self, asking: bool) -> Generator[list[torch.Tensor], None, None]:
        """What stands around every step: torch's values go to the engine before it, and back behind it.

        asking  the step answers requests
        """
        with self._together("step"):
            parameters = self._parameters()
            self._push()
            if self._filling:
                self._empty()
            with contextlib.nullcontext() if self._ranks is None else self._ranks.stepping(self, asking):
                try:
                    yield parameters
                finally:
                    if not self.engine.closed:
                        self.engine._loosen()
                torch.autograd.graph.increment_version(parameters)
            if self._ranks is not None:
                self._ranks.done()
        if self._watching:
            self._watch(parameters if self._ranks is None else self._ranks.held)
        if self._scheduled or self.engine._edits != self._seen:
            self._refresh()

    def _step_closure(self, closure: Callable[..., Any], parameters: list[torch.Tensor]) -> Any:
        takes_request = _requests.takes_request(closure)
        first = None
        earlier: Written = []
        tags: list[int] = []
        with contextlib.closing(self._asked()) as requests, contextlib.ExitStack() as leaving:
            leaving.callback(self._forget_tasks)
            for request in requests:
                of_tasks = not takes_request and request.kind == "task_gradient" and request.count > 1
                with torch.enable_grad():
                    if of_tasks:
                        loss = self._ask_tasks(closure, request, parameters)
                    else:
                        self._let_go(parameters)
                        if not takes_request:
                            self.engine._note_tag(tags, request.tag)
                        loss = closure(request) if takes_request else _requests.ask(closure, request)
                first = loss if first is None else first
                if loss is not None and request.loss is None and request.kind != "sample_gradients":  # (private)
                    request.loss = _requests.number_of(loss)
                if request.wants_loss and request.loss is None:
                    raise error(NeedsError, f"{self.engine._text}: the method asked for the loss: the closure must "
                                "return it, and returned None")
                if not of_tasks:
                    # (Lightning's closure returns None where there is no batch to learn from, and is not told)
                    nothing = loss is None and not takes_request
                    earlier = self._look_for_answer(request, parameters, earlier, "closure", nothing)
                # the gradients that `backward` made are tensors of their own
                self._answer(request, parameters, stay=of_tasks and self._ranks is None)
        return first

    def requests(self) -> Generator[_requests.Request, None, None]:
        """One step as a loop over what the method asks for, as of thalweg.Optimizer.requests.

            for request in opt.requests():
                opt.zero_grad()
                loss = criterion(model(x), y)    # equal request.tag: the same minibatch
                loss.backward()
                request.loss = loss.item()       # where request.wants_loss

        What lies in `.grad` when the loop goes on is the answer, unless request.answer gave another.  SequenceError
        where that is what answered an earlier request of this step, and nothing was written to it since, or where no
        parameter has any.
        """
        earlier: Written = []
        with self._stepping(True) as parameters, contextlib.closing(self._asked()) as requests:
            for request in requests:
                yield request
                earlier = self._look_for_answer(request, parameters, earlier, "loop")
                self._answer(request, parameters)
            self._opt_called = True  # what schedulers look for, which watch `step`

    def _look_for_answer(
        self, request: _requests.Request, parameters: list[torch.Tensor], earlier: Written, where: str,
        nothing: bool = False
    ) -> Written:
        """What is in `.grad`, for the next request.  SequenceError where it answered an `earlier` one of this step, or
        where there is none at all though a parameter takes part in differentiation.

        nothing  there may be none
        """
        if request.kind == "task_gradient" and request.count > 1:
            if request.pass_ == 0:
                self._with_tasks = set()
            if request._answered or any(p.grad is not None for p in parameters):
                self._with_tasks |= {request.tag}
            last = request.index == request.count - 1
            if last and request.tag not in self._with_tasks and self._takes_part(parameters):
                raise error(SequenceError, f"{self.engine._text}: the {where} gave no gradients for any of the "
                            f"{request.count} tasks: `.grad` is None in all parameters at each of them; call "
                            f"backward() in the {where}, or request.answer(grads)")
        if not request.wants_gradient or request._answered:
            return earlier
        if earlier and all(p.grad is not None and ref() is p.grad and n == p.grad._version for p, ref, n in earlier):
            raise error(SequenceError, f"{self.engine._text}: {request!r} was not answered: `.grad` is what answered "
                        f"an earlier one; call backward() in the {where}, or request.answer(grads)")
        written = [(p, weakref.ref(p.grad), p.grad._version) for p in parameters if p.grad is not None]
        if not written and not nothing and self._wants_some(request, parameters):
            raise error(SequenceError, f"{self.engine._text}: the {where} gave no gradients for {request!r}: `.grad` "
                        f"is None in all parameters; call backward() in the {where}, or request.answer(grads)")
        return written

    def _wants_some(self, request: _requests.Request, parameters: list[torch.Tensor]) -> bool:
        """Whether an answer has a gradient of one parameter at least.  One task of several may have none, a rank that
        has some of the tensors too, and where all of them are frozen there is none."""
        if request.kind not in ("gradient", "loss_and_gradient", "previous_gradient"):
            return False
        return self._takes_part(parameters)

    def _takes_part(self, parameters: list[torch.Tensor]) -> bool:
        """Whether a gradient has to come for one of the parameters at least; a rank that has some of the tensors may
        have none."""
        some = self._ranks is not None and self._ranks.layout == "tensors"
        return not some and any(p.requires_grad for p in parameters)

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
    def observe(self, what: str, value: float) -> None:
        """Tells the pipeline a number that it watches: "loss", "metric" (of reduce_on_plateau, after each validation:
        what scheduler.step(metric) is to torch's).  With `ranks` all of them tell theirs, and the mean counts."""
        with self._together("observe"):
            number = _options.number(f"observe: {what!r}", value.detach() if isinstance(value, torch.Tensor) else value)
            self.engine.observe(what, number if self._ranks is None else self._ranks.mean(number))
        self._refresh()

    # ---- modes

    @of_adapter
    def train(self) -> None:
        """Puts the training weights back into the parameters.  With Ranks("owners") all ranks call it."""
        self._switch("train", self.engine.train, self.engine.eval)

    @of_adapter
    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters.  With Ranks("owners")
        all ranks call it."""
        self._switch("eval", self.engine.eval, self.engine.train)

    def _switch(self, call: str, there: Callable[[], None], back: Callable[[], None]) -> None:
        """Changes the mode; with Ranks("owners"), where the parameters come from others, on all ranks or on none."""
        with self._together(call, self._ranks is not None and self._ranks.gathers):
            before = self.engine.training
            there()
            try:
                self._touch()
            except BaseException:
                if before != self.engine.training:
                    back()
                raise

    @contextlib.contextmanager
    def averaged(self) -> Generator[Optimizer, None, None]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights."""
        before = self.engine.training
        self.eval()
        try:
            yield self
        finally:
            if before:
                self.train()

    def __repr__(self) -> str:
        """As torch's optimizers; with the sentence where it is more than the class says."""
        if self.engine.closed:
            return f"<thalweg.torch.{type(self).__name__}: closed>"
        text = super().__repr__()
        if self._viewed is not None and len(self.engine._stages()) == 1:
            return text
        head, rest = text.split("\n", 1)
        return f"{head}\nSentence: {self.engine._text}\n{rest}"


def _in_scaler() -> bool:
    """Whether it is torch's GradScaler, at work, that has called `step`."""
    frame = sys._getframe(2)
    for _ in range(16):  # decorators, those of wrappers and schedulers among them
        if frame is None:
            return False
        if frame.f_code.co_name == "_maybe_opt_step" and frame.f_globals.get("__name__") == "torch.amp.grad_scaler":
            return True
        frame = frame.f_back
    return False


def _shared(engine: _optimizer.Optimizer, name: str) -> list[str]:
    """The paths of a hyper-parameter of the update rules, where `name` alone is not the path of one of them."""
    live = engine._live_paths()
    if name in live:
        return []
    return [path for stage, m in engine._stages() if m.kind == "optimizer" and (path := f"{stage}.{name}") in live]


def listed(params: Any) -> Any:
    """What torch.optim takes, of what is given: a mapping from names to tensors is made pairs."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params has tensors, and this is the model {type(params).__name__}: pass model.parameters(), "
                        "or model.named_parameters()")
    if isinstance(params, str):
        raise TypeError(f"params has tensors, and this is the text {params!r}: they come first, the sentence second")
    if isinstance(params, Mapping) and all(isinstance(p, torch.Tensor) for p in params.values()):
        return list(params.items())
    return params


def tensors_of(params: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among what torch.optim takes: tensors, (name, tensor) pairs, dicts of a group."""
    for item in params:
        if isinstance(item, dict):
            inner = item["params"]
            yield from tensors_of([inner] if isinstance(inner, torch.Tensor) else inner)
        else:
            yield item[1] if isinstance(item, tuple) else item
