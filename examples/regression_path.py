"""The lasso, elastic-net and MCP paths of scikit-learn's diabetes data, by proximal gradients.

    python examples/regression_path.py
    python examples/regression_path.py --gamma 1.5 --alphas 200

Each path starts where no coefficient is free of zero and lowers the penalty step by step; every solution starts the
next one.  `fista` is given the squared error and its gradient, and takes the prox of the penalty itself: a path of
another penalty is another word in the sentence.  The lasso and the elastic net must be scikit-learn's; the MCP, which
scikit-learn has not, must be a fixed point of its own prox.  Ends with status 1 where they are not.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from common import canvas, parser, save, table, tidy, verdict

import numpy as np
import thalweg as tw
from sklearn.datasets import load_diabetes
from sklearn.linear_model import enet_path

CLOSE = 1e-6  # largest difference from scikit-learn, and largest residual, over the largest coefficient
RATIO = 0.5  # share of the L1 norm in the elastic net


class Path(NamedTuple):
    name: str
    sentence: str  # at the last alpha
    coefficients: np.ndarray  # (alphas, features), in the units of the target a standard deviation
    iterations: int
    error: float  # largest difference from scikit-learn's, or residual of the fixed point, over the largest coefficient
    against: str


def data() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """442 patients: ten standardised features, the centred progression of the disease, and the features' names."""
    bunch = load_diabetes()
    x = bunch.data - bunch.data.mean(0)
    return x / x.std(0), bunch.target - bunch.target.mean(), list(bunch.feature_names)


def path(name: str, penalty: str, x: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> Path:
    """The minimisers of |y - x w|^2/(2 n) + penalty at each alpha; `{alpha}` stands for it in the penalty."""
    n, total, found = len(y), 0, []
    # The largest eigenvalue of the Hessian, rounded up: no step has to be tried twice.
    curvature = float(f"{1.001 * np.linalg.norm(x, 2) ** 2 / n:.4g}")

    def value_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        r = x @ w - y
        return r @ r / (2 * n), x.T @ r / n

    result, residual, sentence = {"x": np.zeros(x.shape[1])}, 0.0, ""
    for alpha in alphas:
        part = penalty.format(alpha=float(alpha))
        sentence = f"fista(regularizer={part}, curvature={curvature}, backtrack=false, max_iter=20000, tol=1e-11)"
        result = tw.solver(sentence).run(result, value_gradient=value_gradient)
        w = np.array(result["x"])
        again = tw.regularizer(part).prox(w - value_gradient(w)[1] / curvature, 1 / curvature)
        residual = max(residual, np.abs(again - w).max())
        total += int(result["iterations"])
        found.append(w)
    coefficients = np.array(found)
    return Path(name, sentence, coefficients, total, residual / np.abs(coefficients).max(), "its own prox")


def beside(mine: Path, x: np.ndarray, y: np.ndarray, alphas: np.ndarray, ratio: float) -> Path:
    """The same with the distance from scikit-learn's path in place of the residual."""
    theirs = enet_path(x, y, l1_ratio=ratio, alphas=alphas, tol=1e-14, max_iter=100000)[1].T
    error = np.abs(theirs - mine.coefficients).max() / np.abs(theirs).max()
    return mine._replace(error=error, against="scikit-learn's")


def plot(paths: list[Path], alphas: np.ndarray, names: list[str], where: object) -> None:
    figure, axes = canvas(1, len(paths), (12.5, 5.2), sharey=True)
    tidy(*axes)
    for a, p in zip(axes, paths):
        for j, feature in enumerate(names):
            a.plot(alphas, p.coefficients[:, j], color=f"C{j}", linewidth=2, label=feature)
        if "scikit" in p.against:
            some = slice(None, None, max(1, len(alphas) // 12))
            labels = [*["_"] * (len(names) - 1), "scikit-learn"]
            a.plot(alphas[some], p.coefficients[some], "k.", markersize=4, zorder=3, label=labels)
        what = "equal to" if "scikit" in p.against else "fixed point of"
        a.set(title=f"{p.name}\n{what} {p.against} to {p.error:.0e}", xlabel="alpha", xscale="log")
        a.invert_xaxis()
        a.axhline(0, color="black", linewidth=0.8)
    axes[0].set_ylabel("coefficient (progression a standard deviation)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle("Diabetes: the penalty falls from left to right, and features enter")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "regression_path.png")
    made.add_argument("--alphas", type=int, default=100, help="points of a path (default 100)")
    made.add_argument("--gamma", type=float, default=3.0, help="how far the MCP's concave part reaches (default 3)")
    args = made.parse_args()
    if args.alphas < 2 or not args.gamma > 1:
        made.error("--alphas is at least 2, --gamma is above 1")
    x, y, names = data()
    largest = np.abs(x.T @ y).max() / len(y)  # above it every coefficient is 0
    alphas = np.geomspace(largest, largest / 1000, 5 if args.quick else args.alphas)
    alphas = np.array([float(f"{a:.6g}") for a in alphas])  # as the sentences say
    paths = [
        beside(path("lasso", "l1({alpha})", x, y, alphas), x, y, alphas, 1.0),
        beside(path("elastic net", f"elastic_net({{alpha}}, l1_ratio={RATIO})", x, y, alphas), x, y, alphas, RATIO),
        path("MCP", f"mcp({{alpha}}, gamma={args.gamma})", x, y, alphas),
    ]
    half = len(alphas) // 3
    rows = []
    for p in paths:
        share = [1 - np.mean((y - x @ w) ** 2) / np.mean(y**2) for w in (p.coefficients[half], p.coefficients[-1])]
        rows.append((p.name, p.iterations, f"{p.error:.1e}", p.against, int((p.coefficients[half] != 0).sum()),
                     f"{share[0]:.3f}", f"{share[1]:.3f}", p.sentence))
    print(f"alpha from {alphas[0]:.2f} to {alphas[-1]:.3f}, {len(alphas)} points; "
          f"features and R2 at alpha {alphas[half]:.2f}, R2 at the end\n")
    print(table(("path", "iterations", "error", "against", "features", "R2", "R2 end", "sentence at the end"), rows))
    plot(paths, alphas, names, args.out)
    return verdict([f"the {p.name} path is off by more than {CLOSE:g}" for p in paths if not p.error < CLOSE])


if __name__ == "__main__":
    sys.exit(main())
