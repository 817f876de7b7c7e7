"""Steps inside the backward pass: each parameter moves as soon as its gradient is there, and the gradient is freed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from .. import _groups, _notices
from .._errors import ArgumentError, CountError, UnsupportedError, error
from . import _state
from ._optimizer import Optimizer, listed


class InBackward(torch.optim.Optimizer):
    """`InBackward(model.named_parameters(), "adamw(lr=1e-3)")`: loss.backward() is the whole step.

    params    tensors, (name, tensor) pairs, or groups of those with values of their own, as get_parameter_groups makes
              them; those that need no gradient are left out
    make      a sentence, or a class or function that makes an optimizer of thalweg.torch of a list of parameters
    options   for `make`

    A gradient lives from when it is complete until its parameter has moved: at no time are there gradients of the whole
    model.  What needs all of them is refused (UnsupportedError): norms of the whole model (clip_global_norm,
    prodigy), and methods that ask for more than one gradient.  Accumulating over several backward passes is not
    possible either, since each of them is a step; nor is a loss that is scaled (torch's GradScaler).

    Schedulers and training loops take it as any optimizer: opt.step() is there, and does nothing, or calls its closure.

    optimizers  one for each parameter; their groups are `param_groups`: `for g in opt.param_groups: g["lr"] = 0.01`
    """

    def __init__(self, params: Iterable[Any], make: str | Callable[..., Optimizer], **options: Any) -> None:
        self.optimizers: list[Optimizer] = []
        self._handles: list[Any] = []
        seed = int(options.pop("seed", 0))
        members: list[torch.Tensor] = []
        given: set[int] = set()
        for index, (item, p) in enumerate(_each(listed(params))):
            if not isinstance(p, torch.Tensor):
                raise TypeError("params has tensors, (name, tensor) pairs or groups of them, and "
                                f"number {index} is a {type(p).__name__}")
            if not p.requires_grad:
                continue
            if id(p) in given:
                raise error(ArgumentError, f"parameter {index} is given twice: a backward pass would step it twice")
            # Each has draws of its own: rounding at random must not be the same in all of them.
            own = {**options, "seed": seed + index}
            with _notices.quiet():
                opt = Optimizer([item], make, **own) if isinstance(make, str) else make([item], **own)
            if not self.optimizers:
                _refuse(opt)
            self.optimizers.append(opt)
            members.append(p)
            given.add(id(p))
        super().__setstate__({"defaults": dict(self.optimizers[0].defaults) if self.optimizers else {}})
        if self.optimizers:
            tensors = [tensor for opt in self.optimizers for tensor in opt._routed()]
            _notices.say_idle(self.optimizers[0].engine.sentence, tensors)
        # When all are made: a parameter that is refused must not leave the others stepping.
        self._attach(members)

    def _attach(self, members: list[torch.Tensor]) -> None:
        pairs = zip(members, self.optimizers)
        self._handles = [p.register_post_accumulate_grad_hook(self._step_of(opt)) for p, opt in pairs]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles step their own parameters, unless `remove` was called."""
        return {"optimizers": self.optimizers, "attached": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.optimizers, self._handles = state["optimizers"], []
        super().__setstate__({"defaults": dict(self.optimizers[0].defaults) if self.optimizers else {}})
        if state["attached"]:
            self._attach([p for opt in self.optimizers for group in opt.param_groups for p in group["params"]])

    @staticmethod
    def _step_of(opt: Optimizer) -> Callable[[torch.Tensor], None]:
        def step(p: torch.Tensor) -> None:
            opt.step()
            p.grad = None

        return step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers, one a parameter."""
        return [group for opt in self.optimizers for group in opt.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, Any]:  # type: ignore[override]
        """By parameter: its state, copies as of now; what is written into a row counts in the next step."""
        return {p: row for opt in self.optimizers for p, row in opt.state.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """UnsupportedError: make another InBackward for other parameters."""
        raise error(UnsupportedError, "InBackward has an optimizer for each parameter: make another InBackward for "
                    "those that come later")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Nothing, since backward() has stepped; a closure, which calls backward(), is called, and its loss given."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def remove(self) -> None:
        """Takes the hooks away: backward passes leave gradients again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """{"optimizers": [the state_dict of each]}."""
        return {"optimizers": [opt.state_dict() for opt in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what state_dict returned.  ArgumentError for what is none, CountError where it has another number
        of parameters; nothing changes when one of them does not fit."""
        saved = state_dict.get("optimizers") if isinstance(state_dict, Mapping) else None
        if not isinstance(saved, list):
            raise error(ArgumentError, "what state_dict() of an InBackward gave is expected, {'optimizers': [...]}, "
                        f"got {reprlib.repr(state_dict)}")
        if len(saved) != len(self.optimizers):
            raise error(CountError, f"the state_dict has {len(saved)} parameters, and there are {len(self.optimizers)}")
        before: list[dict[str, Any]] = []
        try:
            for opt, state in zip(self.optimizers, saved):
                before.append(opt.state_dict())
                opt.load_state_dict(state)
        except BaseException:
            for opt, state in zip(self.optimizers, before):
                opt.load_state_dict(state)
            raise


def _each(params: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Every parameter, as an optimizer of its own is given it and as it is."""
    for index, item in enumerate(params):
        if isinstance(item, dict):
            _groups.check_group(item, f"parameter group {index}")
            members = item["params"]
            for member, p in _each([members] if isinstance(members, torch.Tensor) else members):
                yield {**item, "params": [member]}, p
        else:
            yield item, item[1] if isinstance(item, tuple) and len(item) == 2 else item


def _look_around(engine: Any) -> list[str]:
    """The methods of a sentence whose numbers of a tensor go by the others, though they keep none of the whole model."""
    names = [m.name for _, m in engine._stages()]
    found = [name for name in names if name == "grokadamw"]  # rates by the place in the group
    shares = "magnitude_pruning" in names and engine.get("magnitude_pruning.scope") == "global"
    return found + ["magnitude_pruning(scope=global)"] * shares


def _refuse(opt: Optimizer) -> None:
    """Refuses a sentence whose steps look at more than one parameter, or ask for more than its gradient."""
    engine = opt.engine
    kinds = ("perturbation", "aggregator", "weighting")
    asking = [m.name for _, m in engine._stages() if m.requests or m.kind in kinds]
    asking += [name for name, m in engine._stages() if m.name == "gradient_accumulate"]
    whole = _state.scalars_of_the_run(engine) + _look_around(engine)
    if asking or whole:
        why = f"{asking[0]} asks for more than one gradient" if asking else f"{whole[0]} needs all gradients at once"
        raise error(UnsupportedError, f"{engine._text!r} cannot step within the backward pass: {why}")
