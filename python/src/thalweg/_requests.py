"""Requests: what a method needs now, and what a closure that is not told can answer."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays, _options
from ._errors import ArgumentError, NeedsError, SequenceError, UnknownNameError, ValueTypeError, error
from ._registry import RequestKind, request_kinds

if TYPE_CHECKING:
    from ._optimizer import Optimizer

REQUESTS = {number: kind for number, kind in enumerate(request_kinds(), 1)}
# Whose answers have to be of the same parameters: a product with the Hessian may have zeros where there is no gradient.
GRADIENTS = ("gradient", "loss_and_gradient", "task_gradient", "previous_gradient")
# What a loss and a gradient are no answer to.
BEYOND_GRADIENTS = ("hessian_vector", "logit_derivatives", "activations", "sample_gradients", "participant")


class Request:
    """What a method needs now.  The parameters stand where the answer is wanted.

    kind     "gradient", "loss", "loss_and_gradient", "hessian_vector", "task_gradient" (task `index` of `count`),
             "previous_gradient" (of this minibatch, at the previous parameters); and those that `answer_matrix`
             answers: "logit_derivatives" (along `probe`), "activations" (of the layer whose weight is parameter
             `index`); and the one that `answer_samples` answers: "sample_gradients" (of part `index` of `count` of the
             minibatch); and "participant" (the parameters of participant `index` of `count`, in place of gradients)
    pass_    0, 1, ... within one step
    tag      equal tags mean: the same minibatch and the same dropout.  Tags of one step may come back after others (a
             SAM behind an accumulation of two: A B A B), never in a later step: keep a dict by tag, emptied at pass 0
    loss     write the loss here when it is asked for
    """

    __slots__ = ("kind", "pass_", "tag", "index", "count", "loss", "_optimizer", "_probe", "_answered", "_stays")

    def __init__(self, optimizer: Optimizer, row: tuple[int, int, int, int, int, int]) -> None:
        kind, self.pass_, self.tag, self.index, self.count, _ = row
        self.kind: str = REQUESTS[kind].name if kind in REQUESTS else f"kind {kind}"
        self.loss: float | None = None
        self._optimizer = optimizer
        self._probe: list[np.ndarray] | None = None
        self._answered = self._stays = False

    @property
    def declared(self) -> RequestKind:
        """What it shows and wants, by name and shape: request.declared.wanted[0].name is "gradients"."""
        return next(kind for kind in REQUESTS.values() if kind.name == self.kind)

    @property
    def wants_loss(self) -> bool:
        """True when the answer needs a loss."""
        return self.kind in ("loss", "loss_and_gradient")

    @property
    def wants_gradient(self) -> bool:
        """True when the answer goes into the gradients."""
        return self.kind not in ("loss", "logit_derivatives", "activations", "sample_gradients")

    @property
    def probe(self) -> list[np.ndarray]:
        """The vector of a Hessian-vector product, or the direction of derivatives.

        A read-only array for each parameter.  They are copies, made at the first look and valid for ever; look while
        the request is pending.
        """
        if self._probe is None:
            self._probe = [_arrays.from_bytes(*row) for row in self._optimizer._probe()]
        return self._probe

    def answer(
        self, grads: Sequence[Any] | Mapping[str, Any] | None = None, loss: float | None = None, *, stay: bool = False,
        **named: Any,
    ) -> None:
        """Binds the arrays that hold the answer (they may be others at every request) and sets the loss.

        The answer may go by the names that `declared.wanted` has: answer(gradients=[g], loss=l), answer(products=[Hv]),
        answer(inputs=x, output_gradients=d), answer(samples=[...]).  UnknownNameError for another name, NeedsError for
        one that is missing.

        grads  one array for each parameter, None where there is none; or a mapping from their names
        stay   nobody writes to these arrays before the step has ended: what combines several gradients (pcgrad, upgrad,
               trimmed_mean), or asks for more than one (adahessian, sophia), reads them where they lie and copies none.
               Every request then needs arrays of its own

        A second call before the loop goes on takes the place of the first.  SequenceError when it has gone on, or was
        left: nobody would read that answer.

        The first answer of a step says which parameters take part in it.  ArgumentError where a later one has a
        gradient that the first had not: it would be lost.  Between the calls of gradient_accumulate gradients may come
        and go, and count as zeros where they are absent (before a source that asks for more, as in
        gradient_accumulate(4) | sam, a tensor without one at the last call is not moved in that window).
        """
        if self._optimizer._asked is not self:
            raise error(SequenceError, f"{self._optimizer._text}: {self!r} is over: the loop that asked for it has "
                        "gone on, or was left, which cancels its step")
        number = None if loss is None else number_of(loss, "the loss of an answer", grads)
        if named:
            grads = self._by_name(grads, named)
        if grads is not None:
            if isinstance(grads, Mapping):
                grads = self._optimizer._by_name(grads)
            if self.kind in GRADIENTS and isinstance(grads, (list, tuple)):
                self._check_presence([g is not None for g in grads])
            try:
                self._optimizer._answer(grads)
            except TypeError as problem:
                say_list(problem, grads, "request.answer([g])")
                raise
            self._optimizer._bound_to_fill = False
            self._answered, self._stays = True, stay
        if number is not None:
            self.loss = number

    def _by_name(self, grads: Any, named: Mapping[str, Any]) -> Any:
        """Gives what goes by name where it belongs; returns what lies in the gradients."""
        tensors = [i for i in self.declared.wanted if i.name != "loss"]
        for name in named:
            if grads is not None or name not in {i.name for i in tensors}:
                wants = " and ".join(f"`{i.name}` {i.shape}" for i in self.declared.wanted)
                raise error(UnknownNameError, f"{self.kind} wants {wants}, not `{name}`" + (
                    " beside grads" if grads is not None else ""))
        missing = [i for i in tensors if named.get(i.name) is None and not i.optional]
        if missing:
            raise error(NeedsError, f"{self.kind} wants `{missing[0].name}` {missing[0].shape}, too: {missing[0].meaning}")
        values = [named.get(i.name) for i in tensors]
        if len(values) == 2:
            self._optimizer._answer_matrix(*values, *(i.name for i in tensors))
        elif self.wants_gradient:
            return values[0]
        else:
            self.answer_samples(values[0])
        return None

    def _check_answered(self) -> None:
        """After a body that may have filled the bound gradients.  SequenceError where it could not: what lies in those
        of an earlier answer is no answer to this request."""
        if not self.wants_gradient or self._answered:
            return
        grads = self._optimizer.grads
        if grads is None or not self._optimizer._bound_to_fill:
            raise error(SequenceError, f"{self._optimizer._text}: {self!r} was not answered: call "
                        "request.answer(grads), or fill the arrays of an opt.bind_gradients(grads) before")
        if self.kind in GRADIENTS:
            self._check_presence([g is not None for g in grads])

    def _check_presence(self, now: list[bool]) -> None:
        """Compares what has a gradient with the first answer of this step."""
        first = self._optimizer._present
        if first is None:
            self._optimizer._present = now
        elif now != first and len(now) == len(first):
            names = self._optimizer.names
            for index, (new, old) in enumerate(zip(now, first)):
                which = f"parameter {index}" + (f" ({names[index]!r})" if names[index] else "")
                if new and not old:
                    who = f"task {self.index} of {self.count}" if self.kind == "task_gradient" else "this answer"
                    raise error(ArgumentError, f"{who} has a gradient of {which}, and the first answer of this step "
                                "had none: leave zeros where there is none, else the parameter is left out of the step")
                if old and not new and self.kind in ("gradient", "loss_and_gradient"):
                    raise error(SequenceError, f"the gradient of {which} is absent, but was there at the first request "
                                "of this step; pass zeros")

    def answer_matrix(self, first: Any = None, second: Any = None) -> None:
        """Answers a request for matrices, which are read before this returns.

        "logit_derivatives"  first (samples, classes): the derivatives of the logits along `probe`, without dropout and
                             with fixed batch statistics; second (samples, classes): the logits, where they are known.
                             One column is the logit of a sigmoid.  Without forward-mode derivatives give the logits
                             alone, answer_matrix(second=logits): the request comes once more, with the parameters a
                             little along the probe, and takes the logits of the same samples there
        "activations"        first (rows, in): the inputs of the layer; second (rows, out): the gradient of the loss at
                             its pre-activations.  A kernel (out, in, kh, kw) counts as (out, in*kh*kw), the rows are
                             patches

        SequenceError when no such request waits.  ShapeError and ArgumentError leave the request waiting.
        """
        self._optimizer._answer_matrix(first, second)

    def answer_samples(self, gradients: Iterable[Any] | Mapping[str, Any]) -> None:
        """Answers "sample_gradients": one array for each parameter, (samples, shape of the parameter...), None for one
        that is marked absent; or a mapping from their names.  They are read before this returns, and scaled as other gradients are; there may be no
        samples.

        SequenceError when no such request waits.  ShapeError and ArgumentError leave the request waiting.
        """
        if isinstance(gradients, Mapping):
            gradients = self._optimizer._by_name(gradients)
        if _arrays.is_array(gradients) or isinstance(gradients, str) or not isinstance(gradients, Iterable):
            raise TypeError(f"samples are given as a list, one array for each parameter, not as {type(gradients)}")
        arrays = tuple(gradients)
        self._optimizer._answer_samples(tuple(f"samples[{i}]" for i in range(len(arrays))), arrays)

    def __repr__(self) -> str:
        task = f", task {self.index} of {self.count}" if self.kind == "task_gradient" else ""
        task = f", parameter {self.index}" if self.kind == "activations" else task
        return f"Request({self.kind}, pass {self.pass_}, tag {self.tag}{task})"


def say_list(problem: TypeError, grads: Any, written: str) -> None:
    """Lets a refusal of gradients say how that of one parameter is given, where it came as a bare array."""
    if _arrays.is_array(grads) and "s are given as a list" in str(problem):
        problem.args = (f"{problem}: write {written}",)


def needs_request(request: Request) -> bool:
    """True for what only somebody who sees the request can answer: one task of several is another for each of them."""
    return request.kind in BEYOND_GRADIENTS or (request.kind == "task_gradient" and request.count > 1)


def asked_for(request: Request) -> str:
    """What a request asks for, in words."""
    of = f" (task {request.index} of {request.count})" if request.kind == "task_gradient" else ""
    return f"{request.kind}{of}"


def ask(closure: Callable[[], Any], request: Request) -> Any:
    """Calls a closure that is not told what is asked for, where a loss and a gradient are an answer."""
    if needs_request(request):
        raise error(
            NeedsError,
            f"the method asks for {asked_for(request)}, which a closure without arguments cannot know: give one that "
            "takes the Request (thalweg.torch.Answers is one for a torch model), or answer every request in "
            "opt.requests()",
        )
    return closure()


def takes_request(closure: Callable[..., Any]) -> bool:
    """True when the closure has a required positional argument."""
    try:
        parameters = inspect.signature(closure).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters
    )


def number_of(loss: Any, what: str = "the loss that the closure returns", grads: Any = None) -> float:
    """The loss that somebody gave, as `what`; where it came beside a number in the place of gradients, the two were
    exchanged."""
    try:
        if _options.is_complex(loss) or isinstance(loss, (str, bytes)):
            raise TypeError
        return float(loss)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        if exchanged(grads.item() if getattr(grads, "ndim", 1) == 0 else grads, loss):
            raise error(ValueTypeError, "request.answer takes (grads, loss), and was given (loss, grads)") from None
        raise error(ValueTypeError, f"{what} is one number, not {reprlib.repr(loss)}") from None


def exchanged(number: Any, arrays: Any) -> bool:
    """Whether the one is a number and the other is made of arrays."""
    many = isinstance(arrays, (list, tuple, Mapping)) or _arrays.is_array(arrays)
    return many and isinstance(number, (int, float))
