"""Digits with wrong labels: SGD, SAM, ASAM, SAM-ON and Friendly SAM, and how sharp the minima are.

    python examples/sam_digits.py
    python examples/sam_digits.py --noise 0.6 --epochs 60

A share of the training labels is drawn at random.  A perceptron with layer normalisation can learn them by heart, and
plain SGD does.  The four others take their gradients at perturbed points: each is a word in front of the same rule.
SAM-ON perturbs the scales and shifts of the normalisation alone; which tensors these are, the parameter groups say.
After every epoch the solver `sam_sharpness` measures how much the loss of the training images rises at distance rho
along their gradient.  SGD's is the largest while it learns the wrong labels; once it knows them all, its loss is near
0, and so is what that rises by.  Ends with status 1 unless the way of SAM is flatter than SGD's where it is steepest,
and its end right on more of the test images.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from common import MLP, Data, canvas, load, minibatches, parser, progress, save, table, tidy, verdict

import numpy as np
import thalweg as tw

LAYERS = (64, 128, 64, 10)
BATCH = 64
RHO = 0.1  # where the sharpness is measured
RULE = "sgd(lr=cosine(lr=0.05, total={steps}), momentum=0.9)"
METHODS = {
    "SGD": RULE,
    "SAM": f"sam(0.3) | {RULE}",
    "ASAM": f"asam(2) | {RULE}",
    "SAM-ON": f"sam_on(2) | {RULE}",
    "Friendly SAM": f"friendly_sam(0.3) | {RULE}",
}


class Result(NamedTuple):
    method: str
    accuracy: np.ndarray  # of the test images after every epoch, 0 ... 1
    wrong: float  # share of the wrong training labels that the network says
    sharpness: np.ndarray  # rise of the training loss in nats at RHO, after every epoch
    sentence: str


def noisy(data: Data, share: float, seed: int) -> tuple[Data, np.ndarray]:
    """The data with that share of labels drawn at random, and where the label is wrong now."""
    rng = np.random.default_rng(seed + 2)
    labels = np.where(rng.random(len(data.y)) < share, rng.integers(0, 10, len(data.y)), data.y)
    return Data(data.x, labels), labels != data.y


def groups(model: MLP) -> list[dict[str, Any]]:
    """What SAM-ON has to know: it perturbs the normalisation alone, whose shifts not in units of their size."""
    parts = {"rest": ("weight", "bias"), "scales": ("scale",), "shifts": ("shift",)}
    says = {"rest": {"sam_on.perturb": False}, "scales": {}, "shifts": {"sam_on.normalize": False}}
    return [{"name": name, "params": [p for p, n in zip(model.params, model.names) if n.endswith(ends)], **says[name]}
            for name, ends in parts.items()]


def sharpness(model: MLP, data: Data) -> float:
    """How much the loss rises at distance RHO along its gradient; the parameters are left as they were."""
    start = [p.copy() for p in model.params]

    def value_gradient(point: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        for p, at in zip(model.params, point):
            p[...] = at
        return model.loss(data), model.grads

    def value(point: list[np.ndarray]) -> float:
        return value_gradient(point)[0]

    found = tw.solver(f"sam_sharpness(rho={RHO})").run(w=start, value_gradient=value_gradient, value=value)
    for p, at in zip(model.params, start):
        p[...] = at
    return found["sharpness"]


def run(method: str, noise: float, epochs: int, seed: int) -> Result:
    clean, test = load(seed)
    training, wrong = noisy(clean, noise, seed)
    rng = np.random.default_rng(seed + 1)
    model, batches = MLP(LAYERS, rng, norm=True), minibatches(training, BATCH, rng)
    per_epoch = len(training.y) // BATCH
    sentence = METHODS[method].replace("{steps}", str(epochs * per_epoch))
    opt = tw.Optimizer(groups(model) if method == "SAM-ON" else model.params, sentence, seed=seed)
    place = {id(p): g for p, g in zip(model.params, model.grads)}
    opt.bind_gradients([place[id(p)] for p in opt.params])
    accuracy, rises = [], []
    for _ in range(epochs):
        for _ in range(per_epoch):
            batch = next(batches)  # every request of a step is for the same minibatch
            opt.step(lambda: model.loss(batch))
        accuracy.append(model.accuracy(test))
        rises.append(sharpness(model, training))
    said = model.forward(training.x[wrong]).argmax(1) == training.y[wrong]
    return Result(method, np.array(accuracy), float(said.mean()), np.array(rises), sentence)


def plot(results: list[Result], noise: float, where: object) -> None:
    figure, (left, middle, right) = canvas(1, 3, (14, 4.8), width_ratios=(1, 1, 0.75))
    for i, r in enumerate(results):
        style = dict(color=f"C{i}", linewidth=1.8, label=r.method)
        epochs = np.arange(1, len(r.accuracy) + 1)
        left.plot(epochs, 100 * r.accuracy, **style)
        middle.plot(epochs, r.sharpness, **style)
    left.set(title="test images", xlabel="epoch", ylabel="right (%)")
    middle.set(title=f"sharpness at rho = {RHO:g}", xlabel="epoch", ylabel="rise of the training loss (nats)",
               ylim=(0, None))
    right.barh(range(len(results)), [100 * r.wrong for r in results], color=[f"C{i}" for i in range(len(results))])
    right.set_yticks(range(len(results)), [r.method for r in results])
    right.invert_yaxis()
    for i, r in enumerate(results):
        right.text(100 * r.wrong + 1, i, f"{r.wrong:.0%}", va="center")
    right.set(title="wrong labels learned by heart", xlabel="of all wrong labels (%)", xlim=(0, 118))
    tidy(left, middle, right)
    left.legend(frameon=False)
    figure.suptitle(f"Digits, {noise:.0%} of the training labels drawn at random")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "sam_digits.png")
    made.add_argument("--epochs", type=int, default=30, help="passes over the training images (default 30)")
    made.add_argument("--noise", type=float, default=0.4, help="share of labels that are drawn at random (default 0.4)")
    args = made.parse_args()
    if args.epochs < 1 or not 0 < args.noise <= 0.8:
        made.error("--epochs is at least 1, --noise is in (0, 0.8]")
    results = [run(m, args.noise, 8 if args.quick else args.epochs, args.seed) for m in progress(METHODS)]
    rows = [(f"{r.accuracy[-1]:.2%}", f"{r.accuracy.max():.2%}", f"{r.wrong:.1%}", f"{r.sharpness.max():.4f}",
             f"{r.sharpness[-1]:.4f}", r.method, r.sentence) for r in results]
    print(table(("accuracy", "best", "wrong learned", "sharpest", "at the end", "method", "sentence"), rows))
    plot(results, args.noise, args.out)
    sgd, sam = results[0], results[1]
    problems = ["SAM's way is no flatter than SGD's"] if not sam.sharpness.max() < sgd.sharpness.max() else []
    if not sam.accuracy[-1] > sgd.accuracy[-1]:
        problems.append("SAM is right on no more of the test images than SGD")
    return verdict(problems)


if __name__ == "__main__":
    sys.exit(main())
