"""thalweg as a torch optimizer: `thalweg.torch.Optimizer` is a `torch.optim.Optimizer` for CPU tensors.

    from thalweg.torch import Optimizer
    opt = Optimizer(model.parameters(), "clip_global_norm(1.0) | adamw(lr=3e-4, weight_decay=0.1)")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 1000)
    loss.backward(); opt.step(); opt.zero_grad(); scheduler.step()

Parameters and gradients are used where they lie; nothing is copied.  float32, float64, float16 and bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch

from . import _optimizer
from ._errors import ArgumentError, CountError, error


class Optimizer(torch.optim.Optimizer):
    """A sentence at work on the parameters of a torch model, stepping with their `.grad`.

    params    as for torch.optim: tensors, (name, tensor) pairs, or dicts with "params" and overrides
    sentence  the pipeline, as for thalweg.Optimizer
    options   those of thalweg.Optimizer: state_dtype, master, nonfinite, maximize, seed, ...

    `param_groups` holds the hyper-parameters that may change ("lr", ...): torch's schedulers and your own code change
    them there, and the next step uses them.  A schedule in the sentence stays in force until its value is changed there.
    `engine` is the thalweg.Optimizer inside, for everything else.
    """

    engine: _optimizer.Optimizer

    def __init__(self, params: Iterable[Any], sentence: str, **options: Any) -> None:
        self._ready = False
        super().__init__(params, {})
        groups = [self._describe(index, group) for index, group in enumerate(self.param_groups)]
        if len(groups) == 1 and not (groups[0].keys() - {"params", "name"}):
            self.engine = _optimizer.Optimizer(groups[0]["params"], sentence, **options)
        else:
            self.engine = _optimizer.Optimizer(groups, sentence, **options)
        self._known: list[dict[str, Any]] = []
        self._ready = True
        self._pull()
        self.defaults.update(self._known[0])

    def _describe(self, index: int, group: dict[str, Any]) -> dict[str, Any]:
        """A parameter group of torch as one of thalweg."""
        described = {k: v for k, v in group.items() if k not in ("params", "param_names", "initial_lr")}
        names = group.get("param_names")
        described["params"] = list(zip(names, group["params"])) if names else list(group["params"])
        described.setdefault("name", f"group{index}")
        return described

    def _pull(self) -> None:
        """Shows the hyper-parameters of the engine in param_groups."""
        self._known = []
        for group, mirror in zip(self.param_groups, self.engine.param_groups):
            values = {key: mirror[key] for key in mirror if key != "params"}
            if "beta1" in values and "beta2" in values:  # as torch, whose schedulers look for it
                values["betas"] = mirror["betas"]
                values = {key: value for key, value in values.items() if key not in ("beta1", "beta2", "beta3")}
            group.update(values)
            self._known.append(values)

    def _push(self) -> None:
        """Passes on what was changed in param_groups."""
        for group, known, mirror in zip(self.param_groups, self._known, self.engine.param_groups):
            for key, old in known.items():
                new = group.get(key, old)
                if isinstance(new, torch.Tensor):
                    new = new.item()
                if new != old:
                    mirror[key] = new
                    known[key] = new

    def _gradients(self) -> list[torch.Tensor | None]:
        return [p.grad for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One step with the gradients in `.grad` (None: that tensor is left alone).

        closure  zeroes the gradients, computes the loss, calls backward, and returns the loss; methods that need more
                 than one gradient (sam, lbfgs, ...) call it as often as they like, at other parameters each time.  With
                 one required argument it is given the thalweg.Request, for a "hessian_vector" leaves the product in
                 `.grad`, and for "activations" and "logit_derivatives" calls request.answer_matrix (and may return None).

        Returns the first loss, or None.
        """
        self._push()
        first = None
        if closure is None:
            self.engine.step(self._gradients())
        else:
            takes_request = _optimizer._takes_request(closure)
            with contextlib.closing(self.engine.requests()) as requests:
                for request in requests:
                    with torch.enable_grad():
                        loss = closure(request) if takes_request else closure()
                    first = loss if first is None else first
                    request.answer(
                        self._gradients() if request.wants_gradient else None,
                        float(loss) if loss is not None and request.loss is None else None,
                    )
        for group in self.param_groups:  # autograd has to know that they changed
            for p in group["params"]:
                torch.autograd.graph.increment_version(p)
        return first

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.  With set_to_none the memory of the gradients can be freed before the next backward pass."""
        super().zero_grad(set_to_none)
        if set_to_none and self._ready:
            self.engine.release_gradients()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self._ready:
            index = len(self.param_groups) - 1
            try:
                self.engine.add_param_group(self._describe(index, self.param_groups[index]))
            except BaseException:
                self.param_groups.pop()
                raise
            self._push()
            self._pull()

    def observe(self, what: str, value: float) -> None:
        """Tells the pipeline a number that it watches: "loss", "metric"."""
        self.engine.observe(what, float(value))

    def train(self) -> None:
        """Puts the training weights back into the parameters."""
        self.engine.train()

    def eval(self) -> None:
        """Writes the evaluation weights (averages, schedule-free iterates) into the parameters."""
        self.engine.eval()

    @contextlib.contextmanager
    def averaged(self) -> Generator[Optimizer, None, None]:
        """Inside `with opt.averaged():` the parameters hold the evaluation weights."""
        with self.engine.averaged():
            yield self

    def state_dict(self) -> dict[str, Any]:
        """torch's param_groups, and the state under "thalweg" (as a uint8 tensor: torch.load(weights_only=True) reads it)."""
        self._push()
        whole = super().state_dict()
        inner = self.engine.state_dict()
        inner["state"] = torch.frombuffer(bytearray(inner["state"]), dtype=torch.uint8)
        whole["thalweg"] = inner
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what state_dict returned, for the same model; nothing changes when it does not fit."""
        if "thalweg" not in state_dict:
            raise error(ArgumentError, "not a state_dict of thalweg.torch: it has no 'thalweg'")
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise error(CountError, "the state_dict has other parameter groups")
        inner = dict(state_dict["thalweg"])
        if isinstance(inner.get("state"), torch.Tensor):
            inner["state"] = inner["state"].numpy().tobytes()
        self.engine.load_state_dict(inner)
        super().load_state_dict({"state": {}, "param_groups": groups})
        self._push()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "engine": self.engine, "_known": self._known, "_ready": True}

    def __repr__(self) -> str:
        return f"<thalweg.torch.Optimizer: {self.engine!r}>"
