"""Matrix methods beside pytorch_optimizer's, and manifolds beside geoopt's and pymanopt's.

Both sides work in float64, where a formula gives the same numbers up to 1e-12 after some ten steps; the Newton-Schulz
iteration of the peers, which is in bfloat16, is asked for in float64.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from test_second_order import draws, library, peer

Array = np.ndarray


def wide_newton_schulz(monkeypatch: pytest.MonkeyPatch, module: str) -> Any:
    """Their module, whose polar factors are taken in float64."""
    torch = pytest.importorskip("torch")
    where = pytest.importorskip(module)
    narrow = getattr(where, "zero_power_via_newton_schulz_5", None)
    if narrow is None:
        pytest.skip("another release, whose iteration has another name")
    monkeypatch.setattr(where, "zero_power_via_newton_schulz_5", functools.partial(narrow, dtype=torch.float64))
    return where


@pytest.mark.parametrize("shape, moonlight", [  # Moonlight's factor of a kernel is another one there
    ((6, 4), False), ((4, 6), False), ((5, 5), False), ((4, 3, 2, 2), False), ((6, 4), True), ((4, 6), True),
])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_pytorch_optimizer(
    shape: tuple[int, ...], moonlight: bool, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    wide_newton_schulz(monkeypatch, "pytorch_optimizer.optimizer.muon.base")
    start, gradients = draws(shape, 8)
    group = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "use_muon": True,
             "use_adjusted_lr": moonlight}
    theirs = peer(lambda p: po.Muon([{"params": p, **group}]), start, gradients)
    factor = "match_rms_adamw" if moonlight else "original"
    ours = library(f"muon(lr=0.05, momentum=0.9, nesterov={str(nesterov).lower()}, weight_decay=0.1, momentum_form=ema,"
                   f" adjust_lr={factor})", start, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# Their norms by number, the options of theirs, and ours.
NORMS = [
    ("spectral", 2, {}), ("spectral_unnormalized", 2, {"normalize": False}), ("spectral_max", 2, {"max_scale": True}),
    ("sign", 4, {}), ("sign_unnormalized", 4, {"normalize": False}), ("col", 6, {}),
    ("col_normalized", 6, {"normalized": True}), ("embed_row", 6, {"transpose": True}), ("row", 7, {}),
    ("row_unnormalized", 7, {"normalized": False}), ("auto", 1, {}),
]  # fmt: skip


@pytest.mark.parametrize("norm, number, options", NORMS, ids=[n for n, _, _ in NORMS])
@pytest.mark.parametrize("constrained", [True, False])
def test_scion_is_that_of_pytorch_optimizer(
    norm: str, number: int, options: dict[str, Any], constrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    wide_newton_schulz(monkeypatch, "pytorch_optimizer.optimizer.scion")
    # the norm before their iteration has a floor, to ours `eps` is added
    free = "false" if constrained else "true"
    sentence = f"scion(lr=0.05, momentum=0.3, scale=2, norm={norm}, eps=1e-300, unconstrained={free})"
    for shape in [(6, 4), (3, 5)] + ([(7,), (4, 3, 2, 2)] if norm == "auto" else []):
        start, gradients = draws(shape, 8)
        theirs = peer(lambda p: po.SCION(p, lr=0.05, momentum=0.3, scale=2.0, norm_type=number, norm_kwargs=options,
                                         constraint=constrained), start, gradients)
        np.testing.assert_allclose(library(sentence, start, gradients), theirs, rtol=0, atol=1e-12, err_msg=str(shape))


@pytest.mark.parametrize("name, blocks", [("q_proj", "head, heads=4"), ("mlp", "tensor"), ("embed", "adam")])
def test_adam_mini_is_that_of_pytorch_optimizer(name: str, blocks: str) -> None:
    """They work in float32, and choose blocks by names.  Eight steps of 0.05 round by some 1e-7 each."""
    torch, po = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    start, gradients = draws((8, 8), 8)
    start, gradients = start.astype(np.float32), [g.astype(np.float32) for g in gradients]
    model = torch.nn.Module()
    inner = torch.nn.Linear(8, 8, bias=False)
    model.add_module(name, inner)
    with torch.no_grad():
        inner.weight[...] = torch.from_numpy(start)
    opt = po.AdamMini(model, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, num_embeds=8, num_heads=4)
    for g in gradients:
        inner.weight.grad = torch.from_numpy(g.copy())
        opt.step()
    ours = library(f"adam_mini(lr=0.05, beta1=0.8, beta2=0.9, weight_decay=0.1, blocks={blocks})", start, gradients)
    np.testing.assert_allclose(ours, inner.weight.detach().numpy(), rtol=0, atol=2e-6)
    others = [b for b in ("row", "tensor", "adam") if b not in blocks]
    for other in others:  # the blocks tell in the result
        away = library(f"adam_mini(lr=0.05, beta1=0.8, beta2=0.9, weight_decay=0.1, blocks={other})", start, gradients)
        assert np.abs(away - ours).max() > 1e-3


# ---- manifolds


def test_geoopts_matrices() -> None:
    geoopt, torch = pytest.importorskip("geoopt"), pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    pairs = [
        (geoopt.EuclideanStiefel(), "stiefel", (6, 3), "retr"), (geoopt.EuclideanStiefel(), "stiefel", (5, 5), "retr"),
        (geoopt.SymmetricPositiveDefinite(), "spd(eps=0.1)", (4, 4), "expmap"),
    ]
    for theirs, text, shape, step in pairs:
        mine = tw.constraint(text)
        x, e = mine.project(rng.standard_normal(shape)), rng.standard_normal(shape)
        g = mine.tangent(x, e.copy())
        want = theirs.egrad2rgrad(torch.from_numpy(x), torch.from_numpy(e)).numpy()
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-12)
        y = getattr(theirs, step)(torch.from_numpy(x), torch.from_numpy(0.2 * g)).numpy()
        # roots and exponentials of a matrix of condition some ten
        np.testing.assert_allclose(mine.retract(x.copy(), 0.2 * g), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("text, name, arguments, way", [
    ("stiefel(retraction=qr)", "Stiefel", (7, 3), "retraction"),
    ("stiefel(retraction=polar)", "Stiefel", (7, 3), "retraction"),
    ("grassmann(retraction=exp)", "Grassmann", (7, 3), "exp"),
    ("grassmann(retraction=polar)", "Grassmann", (7, 3), "retraction"),
    ("sphere", "Sphere", (5, 3), "exp"), ("sphere(retraction=project)", "Sphere", (5, 3), "retraction"),
    ("oblique", "Oblique", (3, 5), "exp"), ("oblique(retraction=project)", "Oblique", (3, 5), "retraction"),
    ("spd(eps=0.1)", "SymmetricPositiveDefinite", (4,), "exp"),
    ("spd(retraction=second, eps=0.1)", "SymmetricPositiveDefinite", (4,), "retraction"),
])
def test_pymanopts_manifolds(text: str, name: str, arguments: tuple[int, ...], way: str) -> None:
    """Subspaces are compared by their projectors; their oblique manifold has unit columns.  Roots and exponentials of
    matrices of condition some ten are good to 1e-13."""
    manifolds = pytest.importorskip("pymanopt.manifolds")
    options = {"retraction": "polar" if "polar" in text else "qr"} if name == "Stiefel" else {}
    theirs, mine = getattr(manifolds, name)(*arguments, **options), tw.constraint(text)
    rng = np.random.default_rng(2)
    turn = (lambda a: a.T.copy()) if name == "Oblique" else (lambda a: a)
    shape = {"Oblique": (5, 3), "SymmetricPositiveDefinite": (4, 4)}.get(name, arguments)
    for _ in range(3):
        x, e = mine.project(rng.standard_normal(shape)), rng.standard_normal(shape)
        g = mine.tangent(x, e.copy())
        want = turn(theirs.euclidean_to_riemannian_gradient(turn(x), turn(e)))
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-12)
        u = 0.3 / np.linalg.norm(g) * g
        y, want = mine.retract(x.copy(), u.copy()), turn(getattr(theirs, way)(turn(x), turn(u)))
        assert np.abs(y - x).max() > 1e-2
        if name == "Grassmann":
            y, want = y @ y.T, want @ want.T
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


# ---- Kronecker factors


@pytest.mark.parametrize("ours, theirs", [
    ("grafting=sgd", {"graft_type": 1}), ("grafting=none", {"graft_type": 0}),
    ("grafting=sgd, momentum=0.8, nesterov=true", {"graft_type": 1, "betas": (0.8, 0.9), "nesterov": True}),
    ("grafting=sgd, momentum=0.5, weight_decay=0.1", {"graft_type": 1, "betas": (0.5, 0.9), "weight_decay": 0.1}),
    ("grafting=none, exponent=2, block_size=3", {"graft_type": 0, "inverse_exponent_override": 2, "block_size": 3}),
])
def test_shampoo_is_the_scalable_shampoo_of_pytorch_optimizer(ours: str, theirs: dict[str, Any]) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    start, gradients = draws((6, 6), 6)
    common = {"betas": (0.0, 0.9), "nesterov": False, "matrix_eps": 0.01, "start_preconditioning_step": 1,
              "preconditioning_compute_steps": 1, "shape_interpretation": False, "use_svd": True}
    want = peer(lambda p: po.ScalableShampoo(p, lr=0.05, **(common | theirs)), start, gradients)
    # roots of matrices of condition 1e3
    got = library(f"shampoo(lr=0.05, eps=0.01, beta2=0.9, {ours})", start, gradients)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("setting, options", [
    ("", {}), ("memory_save_mode=one_diag, ", {"memory_save_mode": "one_diag"}),
    ("memory_save_mode=all_diag, weight_decay=0.1, ", {"memory_save_mode": "all_diag", "weight_decay": 0.1}),
    ("max_size_triangular=5, momentum_into_precond_update=false, ",
     {"max_size_triangular": 5, "momentum_into_precondition_update": False}),
])
def test_psgd_kron_is_that_of_pytorch_optimizer(
    setting: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fit without the little noise that ours adds to what is fitted: it is added for them, of our draws."""
    torch, po = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    module = pytest.importorskip("pytorch_optimizer.optimizer.psgd")
    start, gradients = draws((6, 4), 8)
    noise = iter(torch.from_numpy(tw.random_normal(11, 0, k, 0, start.size).reshape(start.shape)) for k in range(8))
    fit = getattr(module, "update_precondition", None)
    if fit is None:
        pytest.skip("another release, whose fit has another name")

    def noisy(qs: Any, expressions: Any, v: Any, g: Any, step: Any, eps: Any) -> None:
        drawn = next(noise)
        fit(qs, expressions, drawn, g + 2**-11.5 * g.abs().mean() * drawn, step, eps)

    monkeypatch.setattr(module, "update_precondition", noisy)
    common = {"lr": 0.05, "momentum": 0.8, "balance_prob": 0.0, "precondition_dtype": torch.float64}
    want = peer(lambda p: po.Kron(p, **common, **options), start, gradients)
    got = library(f"psgd_kron(lr=0.05, b1=0.8, {setting}balance_prob=0)", start, gradients, seed=11)
    # the bound on the direction has 1e-6 beside its norm, ours 1e-12: eight steps of 0.05 times that
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
