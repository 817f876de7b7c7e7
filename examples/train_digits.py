"""Trains a NumPy multilayer perceptron on scikit-learn's handwritten digits with any sentence.

    python examples/train_digits.py --demo
    python examples/train_digits.py --sentence "clip_global_norm(1.0) | adamw(lr=3e-3) | ema(0.99)"
    python examples/train_digits.py --sentence "lion(lr=cosine(lr=1e-3, total={steps}))" --state-dtype bf16

The network and its gradient are plain NumPy, in common.py.  thalweg changes the weights in place.  `{steps}` in a
sentence stands for the number of steps of the run, `{tenth}` for a tenth of it.  Ends with status 1 when a run ends at
or below 95 % test accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

# first: it sets the threads of BLAS
from common import MLP, OUT, Data, canvas, load, minibatches, save, table, tidy, verdict

import numpy as np
import thalweg as tw
from tqdm import tqdm

LAYERS = (64, 128, 64, 10)
FLOOR = 0.95  # a run must end above this test accuracy
DEMO = [  # (sentence, storage of the state)
    ("sgd(lr=0.05, momentum=0.9, nesterov=true, weight_decay=1e-4)", "f32"),
    ("clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=3e-3, warmup={tenth}, total={steps}), weight_decay=0.01)", "f32"),
    ("sam(0.05) | sgd(lr=0.05, momentum=0.9)", "f32"),
    ("route(matrix=(muon(lr=cosine(lr=5e-3, total={steps}))), other=(adamw(lr=3e-3)))", "f32"),
    ("sgd(lr=0.05, momentum=0.9) | prox(l1(3e-3))", "f32"),
    ("schedule_free_adamw(lr=5e-3, warmup_steps=50)", "f32"),
    ("adamw(lr=3e-3, weight_decay=0.01)", "q8"),
]


def curvature(model: MLP, data: Data, probe: list[np.ndarray], h: float = 1e-3) -> None:
    """The Hessian times `probe`, by a central difference of gradients, goes into `model.grads`."""
    saved = [p.copy() for p in model.params]
    sides = []
    for sign in (h, -h):
        for p, start, v in zip(model.params, saved, probe):
            p[...] = start + np.float32(sign) * v
        model.loss(data)
        sides.append([g.copy() for g in model.grads])
    for p, start, g, plus, minus in zip(model.params, saved, model.grads, *sides):
        p[...] = start
        np.subtract(plus, minus, out=g)
        g /= 2 * h


class Result(NamedTuple):
    sentence: str
    state_dtype: str
    losses: list[float]  # mean training loss of every epoch, nats
    errors: list[float]  # test error after every epoch, 0 ... 1
    accuracy: float  # test accuracy at the end, 0 ... 1
    micros: float  # median time of the optimizer in a step, microseconds
    state: int  # bytes of optimizer state
    zeros: float  # share of parameters that are exactly 0


def of_length(sentence: str, steps: int) -> str:
    return sentence.replace("{steps}", str(steps)).replace("{tenth}", str(steps // 10))


def train(sentence: str, state_dtype: str, args: argparse.Namespace) -> Result:
    """One run.  Only the time that `step` spends outside the gradient evaluations counts as the optimizer's."""
    training, test = load(args.seed)
    rng = np.random.default_rng(args.seed + 1)
    model, batches = MLP(LAYERS, rng), minibatches(training, args.batch, rng)
    steps_per_epoch = len(training.y) // args.batch
    sentence = of_length(sentence, args.epochs * steps_per_epoch)
    opt = tw.Optimizer(model.params, sentence, names=model.names, state_dtype=state_dtype, seed=args.seed)
    opt.bind_gradients(model.grads)

    seen: dict[int, Data] = {}  # the minibatches of the step
    inside = 0.0

    def closure(request: Any) -> float | None:
        """Answers what the method asks for; equal tags mean the same minibatch."""
        nonlocal inside
        start = time.perf_counter()
        if request.pass_ == 0:
            seen.clear()
        if request.tag not in seen:
            seen[request.tag] = next(batches)
        batch, loss = seen[request.tag], None
        if request.kind == "task_gradient":  # the tasks are shares of the minibatch
            loss = model.loss(Data(batch.x[request.index :: request.count], batch.y[request.index :: request.count]))
        elif request.kind == "hessian_vector":
            curvature(model, batch, request.probe)
        elif request.kind in ("logit_derivatives", "activations"):
            sys.exit(f"{sentence}: this example cannot answer {request.kind}")
        else:
            loss = model.loss(batch)
        inside += time.perf_counter() - start
        return loss

    losses, errors, micros = [], [], []
    with tqdm(total=args.epochs, unit="epoch", desc=sentence[:40].ljust(40), leave=False, disable=None) as bar:
        for _ in range(args.epochs):
            total = 0.0
            for _ in range(steps_per_epoch):
                inside, start = 0.0, time.perf_counter()
                total += opt.step(closure)
                micros.append((time.perf_counter() - start - inside) * 1e6)
            losses.append(total / steps_per_epoch)
            with opt.averaged():  # the weights to use: averaged ones where the sentence has them
                errors.append(1 - model.accuracy(test))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", accuracy=f"{1 - errors[-1]:.2%}")
            bar.update()
    opt.eval()
    zeros = sum(int((p == 0).sum()) for p in model.params) / sum(p.size for p in model.params)
    state = opt.memory_report().total
    return Result(sentence, state_dtype, losses, errors, model.accuracy(test), float(np.median(micros)), state, zeros)


def shown(results: list[Result]) -> str:
    rows = []
    for r in results:
        stored = "" if r.state_dtype == "f32" else f"   [state in {r.state_dtype}]"
        zeros = f"{r.zeros:.1%}" if r.zeros >= 0.01 else "-"
        rows.append((f"{r.accuracy:.2%}", f"{r.micros:.1f}", f"{r.state:,}", zeros, r.sentence + stored))
    return table(("accuracy", "us/step", "state bytes", "zeros", "sentence"), rows)


def plot(results: list[Result], path: Path) -> None:
    """Training loss and test error by epoch, on logarithmic scales."""
    figure, (left, right) = canvas(1, 2, (11, 4.55 + 0.17 * len(results)))
    for i, r in enumerate(results):
        epochs = np.arange(1, len(r.losses) + 1)
        label = r.sentence if r.state_dtype == "f32" else f"{r.sentence}  [state in {r.state_dtype}]"
        style = dict(color=f"C{i % 10}", linewidth=1.8, linestyle="-" if i < 10 else "--")
        left.plot(epochs, r.losses, label=f"{r.accuracy:6.1%}  {label}", **style)
        right.plot(epochs, 100 * np.maximum(r.errors, 1e-3), **style)
    left.set(title="training loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    right.set(title="test error", xlabel="epoch", ylabel="wrong (%)", yscale="log")
    right.axhline(100 * (1 - FLOOR), color="grey", linewidth=1, linestyle=":")
    right.text(len(results[0].losses), 100 * (1 - FLOOR), "every run has to end below", ha="right", va="bottom",
               color="grey", fontsize=8)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    right.set_yticks(ticks, [f"{t:g}" for t in ticks])
    right.minorticks_off()
    tidy(left, right)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"Digits, {'-'.join(map(str, LAYERS))} perceptron in NumPy, float32")
    figure.legend(loc="outside lower left", frameon=False, title="test accuracy and sentence", alignment="left",
                  prop={"family": "monospace", "size": 8})
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentence", action="append", metavar="TEXT", help="what to train with; may be repeated")
    parser.add_argument("--demo", action="store_true",
                        help=f"train with {len(DEMO)} sentences that show the kinds of method")
    parser.add_argument("--state-dtype", choices=("f32", "bf16", "q8"), default="f32",
                        help="storage of the state of --sentence")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default 30)")
    parser.add_argument("--batch", type=int, default=64, help="images in a minibatch (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the minibatches (default 0)")
    parser.add_argument("--out", type=Path, default=OUT / "digits.png", help="where the picture goes")
    args = parser.parse_args()
    if args.epochs < 1 or not 1 <= args.batch <= 1437:
        parser.error("--epochs is at least 1, --batch is in 1 ... 1437")
    runs = [(s, args.state_dtype) for s in args.sentence or []]
    if args.demo or not runs:
        runs = DEMO + runs
    try:
        for sentence, dtype in runs:  # a mistake shows before the first run
            tw.Optimizer([np.zeros((2, 2), np.float32)], of_length(sentence, 1000), state_dtype=dtype).close()
        results = [train(sentence, dtype, args) for sentence, dtype in runs]
    except tw.Error as problem:
        print(problem, file=sys.stderr)
        return 2
    print(shown(results))
    plot(results, args.out)
    return verdict([f"at or below {FLOOR:.0%} test accuracy: {r.sentence}"
                    for r in results if not r.accuracy > FLOOR])


if __name__ == "__main__":
    sys.exit(main())
