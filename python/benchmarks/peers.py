"""How each library takes a step.  Every builder allocates its own parameters and state and returns a step to time."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Shapes, Step, problem


def ours(sentence: str, shapes: Shapes, report: dict[str, Any] | None = None, **options: Any) -> Step:
    """thalweg, on NumPy arrays with bound gradients; puts the bytes of state into `report["state"]`."""
    import thalweg

    params, grads = problem(shapes)
    opt = thalweg.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    if report is not None:
        report["state"] = opt.memory_report().total
    try:
        opt.step()
        return opt.step
    except thalweg.NeedsError:  # more than one gradient a step: answered at once, so that only the optimizer is timed
        return lambda: opt.step(lambda: 1.0)


def torch(name: str, shapes: Shapes, **options: Any) -> Step:
    """torch.optim, on tensors over NumPy's memory."""
    import torch

    return _torch_step(getattr(torch.optim, name), shapes, options)


def pytorch_optimizer(name: str, shapes: Shapes, **options: Any) -> Step:
    """The package pytorch_optimizer."""
    from pytorch_optimizer import load_optimizer

    return _torch_step(load_optimizer(name), shapes, options)


def _torch_step(make: Any, shapes: Shapes, options: dict[str, Any]) -> Step:
    import torch

    params, grads = problem(shapes)
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, grad in zip(tensors, grads):
        tensor.grad = torch.from_numpy(grad)
    groups = [{"params": tensors, "use_muon": True}] if options.pop("use_muon", False) else tensors
    opt = make(groups, **options)
    if hasattr(opt, "train"):
        opt.train()
    return opt.step


def optax(name: str, shapes: Shapes, **options: Any) -> Step:
    """optax ("contrib.prodigy" is in optax.contrib): update and apply, jitted together, with donated buffers."""
    import jax
    import optax

    jax.clear_caches()
    home = optax.contrib if name.startswith("contrib.") else optax
    rule = optax.with_extra_args_support(getattr(home, name.removeprefix("contrib."))(**options))
    params, grads = ([jax.numpy.array(a) for a in group] for group in problem(shapes))

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    # Some states start as the parameters themselves, which cannot be donated twice.
    held = [params, jax.tree.map(jax.numpy.array, rule.init(params))]

    def step() -> None:
        held[:] = jax.block_until_ready(jitted(*held, grads))

    return step


def numpy_adamw(shapes: Shapes) -> Step:
    """AdamW in plain NumPy, in place, with two scratch arrays a tensor."""
    params, grads = problem(shapes)
    rows = [(p, g, *(np.zeros_like(p) for _ in range(4))) for p, g in zip(params, grads)]
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        c1, c2 = 1 - 0.9**count, 1 - 0.999**count
        for p, g, m, v, a, b in rows:
            p *= 1 - 1e-3 * 1e-2
            m *= 0.9
            m += np.multiply(g, 0.1, out=a)
            v *= 0.999
            np.multiply(g, g, out=a)
            a *= 0.001
            v += a
            np.sqrt(v, out=a)
            a *= c2**-0.5
            a += 1e-8
            np.divide(m, a, out=b)
            b *= 1e-3 / c1
            p -= b

    return step


# ---- the same methods elsewhere: name of the method -> (name there, options)

LR = 1e-3
TORCH = {
    "adadelta": ("Adadelta", {"lr": LR}),
    "adafactor": ("Adafactor", {"lr": LR}),
    "adagrad": ("Adagrad", {"lr": LR}),
    "adam": ("Adam", {"lr": LR}),
    "adamax": ("Adamax", {"lr": LR}),
    "adamw": ("AdamW", {"lr": LR}),
    "amsgrad": ("Adam", {"lr": LR, "amsgrad": True}),
    "asgd": ("ASGD", {"lr": LR}),
    "nadam": ("NAdam", {"lr": LR}),
    "radam": ("RAdam", {"lr": LR}),
    "rmsprop": ("RMSprop", {"lr": LR}),
    "rprop": ("Rprop", {"lr": LR}),
    "sgd": ("SGD", {"lr": LR, "momentum": 0.9}),
}
TORCH_FUSED = {"Adagrad", "Adam", "AdamW", "SGD"}

PYTORCH_OPTIMIZER = {  # but for those that it takes from torch.optim
    "adabelief": ("adabelief", {}),
    "adabound": ("adabound", {}),
    "adadelta": ("adadelta", {}),
    "adafactor": ("adafactor", {}),
    "adam_snsm": ("adamwsn", {}),
    "adamax": ("adamax", {}),
    "adan": ("adan", {}),
    "ademamix": ("ademamix", {}),
    "adopt": ("adopt", {}),
    "aggmo": ("aggmo", {}),
    "dadapt_adam": ("dadaptadam", {}),
    "dadapt_sgd": ("dadaptsgd", {}),
    "diffgrad": ("diffgrad", {}),
    "fromage": ("fromage", {}),
    "grams": ("grams", {}),
    "lamb": ("lamb", {}),
    "laprop": ("laprop", {}),
    "lars": ("lars", {}),
    "lion": ("lion", {}),
    "mars": ("mars", {}),
    "novograd": ("novograd", {}),
    "prodigy": ("prodigy", {}),
    "qhadam": ("qhadam", {}),
    "radam": ("radam", {}),
    "schedule_free_adamw": ("schedulefreeadamw", {}),
    "schedule_free_radam": ("schedulefreeradam", {}),
    "schedule_free_sgd": ("schedulefreesgd", {}),
    "signum": ("signsgd", {}),
    "simplified_ademamix": ("simplifiedademamix", {}),
    "stable_adamw": ("stableadamw", {}),
    "tiger": ("tiger", {}),
    "yogi": ("yogi", {}),
}

OPTAX = {
    "acprop": ("contrib.acprop", {"learning_rate": LR}),
    "adabelief": ("adabelief", {"learning_rate": LR}),
    "adadelta": ("adadelta", {"learning_rate": LR}),
    "adafactor": ("adafactor", {"learning_rate": LR}),
    "adagrad": ("adagrad", {"learning_rate": LR}),
    "adam": ("adam", {"learning_rate": LR}),
    "adamax": ("adamax", {"learning_rate": LR}),
    "adamw": ("adamw", {"learning_rate": LR}),
    "adan": ("adan", {"learning_rate": LR}),
    "ademamix": ("contrib.ademamix", {"learning_rate": LR}),
    "adopt": ("contrib.adopt", {"learning_rate": LR}),
    "amsgrad": ("amsgrad", {"learning_rate": LR}),
    "dadapt_adam": ("contrib.dadapt_adamw", {}),
    "dog": ("contrib.dog", {"learning_rate": 1.0}),
    "dowg": ("contrib.dowg", {"learning_rate": 1.0}),
    "fromage": ("fromage", {"learning_rate": LR}),
    "lamb": ("lamb", {"learning_rate": LR}),
    "lars": ("lars", {"learning_rate": LR}),
    "lion": ("lion", {"learning_rate": LR}),
    "nadam": ("nadam", {"learning_rate": LR}),
    "novograd": ("novograd", {"learning_rate": LR}),
    "optimistic_sgd": ("optimistic_gradient_descent", {"learning_rate": LR}),
    "prodigy": ("contrib.prodigy", {}),
    "radam": ("radam", {"learning_rate": LR}),
    "rmsprop": ("rmsprop", {"learning_rate": LR}),
    "rprop": ("rprop", {"learning_rate": LR}),
    "schedule_free_adamw": ("contrib.schedule_free_adamw", {"learning_rate": LR}),
    "schedule_free_sgd": ("contrib.schedule_free_sgd", {"learning_rate": LR}),
    "sgd": ("sgd", {"learning_rate": LR, "momentum": 0.9}),
    "signum": ("signum", {"learning_rate": LR}),
    "simplified_ademamix": ("contrib.simplified_ademamix", {"learning_rate": LR}),
    "yogi": ("yogi", {"learning_rate": LR}),
}


def torch_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The fastest form on the CPU: fused where there is one, else foreach."""
    return options | ({"fused": True} if name in TORCH_FUSED else {"foreach": True})
