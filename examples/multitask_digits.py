"""Three tasks on one trunk: equal weights, PCGrad, UPGrad, CAGrad and GradNorm beside each other.

    python examples/multitask_digits.py
    python examples/multitask_digits.py --width 12 --epochs 60

A perceptron with a narrow last hidden layer says of each digit its class, whether it is odd, and its 64 pixels.  The
three losses pull at the same trunk, and the squared error of the pixels is by far the largest: the sum of the
gradients is nearly its gradient alone.  PCGrad, UPGrad and CAGrad are words in front of the rule, which ask for the
gradient of each task.  GradNorm is a weighting: it is given losses and norms, and the program adds the gradients with
its weights.  "Against a task" is the share of steps whose combined gradient points against the gradient of one task
at least; it is looked at on every fifth step.  UPGrad promises that there are none, as far as `reg_eps` is small
beside the smallest task's share of the squared norms.  Ends with status 1 when that is broken, or when UPGrad
classifies worse than equal weights.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from common import MLP, Data, canvas, cross_entropy, load, minibatches, parser, progress, save, table, tidy, verdict

import numpy as np
import thalweg as tw

TASKS = ("class", "parity", "pixels")
BATCH = 64
EVERY = 5  # steps between looks at the combined gradient
RULE = "adam(lr=cosine(lr=5e-3, total={steps}))"
METHODS = {  # how the gradients of the tasks become one; all of them are means, or close to means
    "equal weights": "",
    "PCGrad": "pcgrad(tasks=3, reduction=mean)",
    "UPGrad": "upgrad(tasks=3, reg_eps=1e-7)",
    "CAGrad": "cagrad(tasks=3, c=0.5)",
    "GradNorm": "",
}


class Result(NamedTuple):
    method: str
    curves: np.ndarray  # (epochs, 3), shares on the test images: wrong class, wrong parity, unexplained variance
    against: float  # share of the looks at which the combined gradient was against a task
    sentence: str


def outputs(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The outputs (rows, 75) of the last layer, by task: logits of the classes, the logit of odd, the pixels."""
    return z[:, :10], z[:, 10], z[:, 11:]


def losses(model: MLP, data: Data) -> tuple[list[float], list[np.ndarray]]:
    """The mean loss of each task, and its gradient (rows, 75) by the outputs."""
    z = model.forward(data.x)
    logits, odd, pixels = outputs(z)
    rows, target = len(data.y), (data.y % 2).astype(z.dtype)
    by_z = [np.zeros_like(z) for _ in TASKS]
    first, by_z[0][:, :10] = cross_entropy(logits, data.y)
    second = float((np.logaddexp(0, odd) - target * odd).mean())
    by_z[1][:, 10] = (1 / (1 + np.exp(-odd)) - target) / rows
    third = float(0.5 * ((pixels - data.x) ** 2).sum(1).mean())  # summed over the pixels: a Gaussian likelihood
    by_z[2][:, 11:] = (pixels - data.x) / rows
    return [first, second, third], by_z


def measure(model: MLP, test: Data) -> tuple[float, float, float]:
    """Wrong class, wrong parity, unexplained variance of the pixels."""
    logits, odd, pixels = outputs(model.forward(test.x))
    return (float((logits.argmax(1) != test.y).mean()), float(((odd > 0) != test.y % 2).mean()),
            float(((pixels - test.x) ** 2).sum() / ((test.x - test.x.mean(0)) ** 2).sum()))


def combined(stage: str, weights: np.ndarray, gradients: list[list[np.ndarray]]) -> list[np.ndarray]:
    """What becomes of the gradients of the tasks."""
    jacobian = [np.stack(same) for same in zip(*gradients)]
    return tw.aggregate(stage)(jacobian) if stage else [np.tensordot(weights, part, 1) for part in jacobian]


def run(method: str, width: int, epochs: int, seed: int) -> Result:
    training, test = load(seed)
    rng = np.random.default_rng(seed + 1)
    model, batches = MLP((64, 64, width, 75), rng, norm=True), minibatches(training, BATCH, rng)
    model.params[-2] *= 0.1  # all heads start small
    steps = epochs * (len(training.y) // BATCH)
    stage, weights = METHODS[method], np.full(3, 1 / 3)
    sentence = (f"{stage} | " if stage else "") + RULE.replace("{steps}", str(steps))
    opt = tw.Optimizer(model.params, sentence, names=model.names, seed=seed)
    balance = tw.weighting("gradnorm(lr=0.02, alpha=0.5)") if method == "GradNorm" else None
    trunk = slice(0, model.starts[-1])  # the parameters that the tasks share
    looks, against, curves = 0, 0, []
    for step in range(steps):
        values, by_z = losses(model, next(batches))
        gradients = []
        for d in by_z:
            model.backward(d)
            gradients.append([g.copy() for g in model.grads])
        if balance is not None:
            norms = np.array([np.sqrt(sum(float((g * g).sum()) for g in gs[trunk])) for gs in gradients])
            weights = balance(losses=np.array(values), norms=norms) / 3
        if step % EVERY == 0:
            whole = combined(stage, weights, gradients)
            dots = [sum(float((a * b).sum()) for a, b in zip(whole, gs)) for gs in gradients]
            sizes = [np.sqrt(sum(float((a * a).sum()) for a in gs)) for gs in (whole, *gradients)]
            looks += 1
            against += any(dot < -1e-3 * sizes[0] * size for dot, size in zip(dots, sizes[1:]))
        if stage:

            def answer(request: Any) -> tuple[float, list[np.ndarray]]:
                return values[request.index], gradients[request.index]

            opt.step(answer)
        else:
            opt.step([sum(np.float32(w) * g for w, g in zip(weights, same)) for same in zip(*gradients)])
        if (step + 1) % (steps // epochs) == 0:
            curves.append(measure(model, test))
    prefix = "gradnorm, then " if balance is not None else ""
    return Result(method, np.array(curves), against / looks, prefix + sentence)


def plot(results: list[Result], width: int, where: object) -> None:
    figure, axes = canvas(1, 4, (15, 4.6), width_ratios=(1, 1, 1, 0.8))
    for k, a in enumerate(axes[:3]):
        for i, r in enumerate(results):
            a.plot(np.arange(1, len(r.curves) + 1), 100 * np.maximum(r.curves[:, k], 1e-3), color=f"C{i}",
                   linewidth=1.8, label=r.method)
        a.set(title=TASKS[k], xlabel="epoch", ylabel=("wrong (%)", "wrong (%)", "unexplained variance (%)")[k])
        if k == 2:
            break
        a.set_yscale("log")
        low, high = a.get_ylim()
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        if len(ticks) < 2:  # of a short run: less than the logarithm is for
            a.set_yscale("linear")
            continue
        a.set_yticks(ticks, [str(t) for t in ticks])
        a.minorticks_off()
    axes[3].barh(range(len(results)), [100 * r.against for r in results], color=[f"C{i}" for i in range(len(results))])
    axes[3].set_yticks(range(len(results)), [r.method for r in results])
    axes[3].invert_yaxis()
    for i, r in enumerate(results):
        axes[3].text(100 * r.against + 1, i, f"{r.against:.0%}", va="center")
    axes[3].set(title="against a task", xlabel="steps (%)", xlim=(0, max(10, 118 * max(r.against for r in results))))
    tidy(*axes)
    axes[0].legend(frameon=False)
    figure.suptitle(f"Three tasks on one trunk of width {width}: test images")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "multitask_digits.png")
    made.add_argument("--epochs", type=int, default=40, help="passes over the training images (default 40)")
    made.add_argument("--width", type=int, default=6,
                      help="of the last hidden layer, which the tasks share (default 6)")
    args = made.parse_args()
    if args.epochs < 1 or args.width < 1:
        made.error("--epochs and --width are at least 1")
    results = [run(m, args.width, 5 if args.quick else args.epochs, args.seed) for m in progress(METHODS)]
    rows = [(*(f"{v:.2%}" for v in r.curves[-1]), f"{r.against:.0%}", r.method, r.sentence) for r in results]
    print(table(("wrong class", "wrong parity", "pixels left", "against a task", "method", "sentence"), rows))
    plot(results, args.width, args.out)
    by_name = {r.method: r for r in results}
    problems = ["UPGrad went against a task"] if by_name["UPGrad"].against > 0 else []
    if by_name["UPGrad"].curves[-1, 0] > by_name["equal weights"].curves[-1, 0]:
        problems.append("UPGrad classifies worse than equal weights")
    return verdict(problems)


if __name__ == "__main__":
    sys.exit(main())
