"""Which map from a number to a byte stores the moments of AdamW best: the engine's, the dynamic one, or an affine one?

Everything is NumPy in float32, so that nothing but the map differs.  A tensor is cut into blocks of 256 numbers; a
block keeps its largest magnitude in 32 bits, and for each number the byte whose value is nearest to number / largest;
in trainings the companded map rounds as the engine does, up or down at random so that the mean is right.  As in the
engine, tensors of fewer than 4,096 numbers keep 32 bits.

companded  the engine's: the byte is the logarithm of |x| + c, read off the bits of the float
dynamic    the dynamic tree map of Dettmers, Lewis, Shleifer and Zettlemoyer (arXiv:2110.02861): decades, each one
           halved in resolution below the one above it; signed for m, unsigned for v, where the bit of the sign goes to
           the fraction
affine     equal steps: the map of ordinary integer quantisation
"""

from __future__ import annotations

import ctypes
import functools
import math
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .common import measure, run_tasks, table
from .precision import RATES, TASKS, heading, training

BLOCK = 256
GROUP = 64  # numbers that share one random draw
SMALLEST = 4096  # smaller tensors keep 32 bits
OFFSET = {True: np.float32(1) / np.float32(240), False: np.float32(2.0**-15)}  # c of the companded map, by "signed"
BETA1, BETA2, EPS, DECAY = 0.9, 0.999, 1e-8, 0.01
HEADER = Path(__file__).resolve().parents[2] / "Sources" / "CThalweg" / "include"

# ---- the noise of the engine's rounding


def mix(key: int | np.ndarray, counter: int | np.ndarray) -> np.ndarray:
    """The engine's mixer: the finaliser of SplitMix64 of key + counter * 2^64 / golden ratio."""
    with np.errstate(over="ignore"):
        z = np.asarray(key, np.uint64) + np.asarray(counter, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def noise(seed: int, step: int, tensor: int, slot: int, count: int) -> np.ndarray:
    """32 random bits for every number of a buffer, at a step counted from 0; `slot`: its place among its tensor's."""
    stream = 0xFFFFFFFE  # that of narrow state
    key = mix(mix(mix(mix(seed ^ 0x7468616C77656721, stream + 1), step + 1), tensor + 1), slot)
    draws = mix(key, np.arange(-(-count // GROUP)))[:, None]
    base, stride = draws & np.uint64(0xFFFFFFFF), draws >> np.uint64(32)
    return (base + np.arange(GROUP, dtype=np.uint64) * stride).astype(np.uint32).reshape(-1)[:count]


# ---- the maps: blocks (rows, 256) to codes and scales, and back


class Coded(NamedTuple):
    codes: np.ndarray  # (rows, 256), uint8
    scales: np.ndarray  # (rows, 1), float32


def blocks(x: np.ndarray) -> np.ndarray:
    """The numbers of `x` in rows of 256, filled up with zeros."""
    rows = np.zeros((-(-x.size // BLOCK), BLOCK), np.float32)
    rows.reshape(-1)[: x.size] = x.reshape(-1)
    return rows


def largest(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale of every block and its reciprocal: 0 where the block is zero, too small to divide by, or not finite."""
    scales = np.abs(rows).max(1, keepdims=True)
    usable = (scales > 2.0**-120) & np.isfinite(scales)
    return scales, np.where(usable, np.float32(1) / np.where(usable, scales, np.float32(1)), np.float32(0))


def companded_encode(rows: np.ndarray, signed: bool, bits: np.ndarray | None = None) -> Coded:
    """The code above or below with the probability that random `bits` give it; without them the nearest."""
    c = OFFSET[signed]
    scales, inverse = largest(rows)
    steps = (np.abs(rows) * inverse + c).view(np.uint32) - c.view(np.uint32)
    below = np.uint32(1 << 18) if bits is None else bits >> np.uint32(13)
    codes = (steps + below) >> np.uint32(19)
    if signed:
        codes = codes | np.where(np.signbit(rows), 128, 0)
    else:
        codes = np.maximum(codes, rows > 0)
    return Coded(codes.astype(np.uint8), scales)


def companded_decode(coded: Coded, signed: bool) -> np.ndarray:
    c = OFFSET[signed]
    steps = coded.codes & np.uint8(127) if signed else coded.codes
    x = (((steps.astype(np.uint32) << np.uint32(19)) + c.view(np.uint32)).view(np.float32) - c) * coded.scales
    return np.where(coded.codes > 127, -x, x) if signed else x


@functools.cache
def dynamic_values(signed: bool) -> np.ndarray:
    """The 256 values of the dynamic map, ascending.

    Decade i of seven, from 10^(i - 7) to 10^(i - 6), is cut into 2^i equal parts (2^(i + 1) without a sign), whose
    middles are the values; 0 and 1 complete them.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1) * 10.0 ** (i - 6)
        middles = (edges[1:] + edges[:-1]) / 2
        values += [*middles, *(-middles if signed else [])]
    return np.sort(np.array(values)).astype(np.float32)


@functools.cache
def thresholds(signed: bool) -> np.ndarray:
    """The 255 numbers half-way between two values of the dynamic map."""
    values = dynamic_values(signed).astype(np.float64)
    return ((values[1:] + values[:-1]) / 2).astype(np.float32)


@functools.cache
def first_guess(signed: bool) -> np.ndarray:
    """The code of the least number with these upper sixteen bits.

    No two thresholds share them: the code is right, or one too low.
    """
    bits = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    least = np.where(bits >> 31 == 1, bits | np.uint32(0xFFFF), bits).view(np.float32)
    return np.searchsorted(thresholds(signed), least, side="right").clip(0, 255).astype(np.uint8)


def dynamic_encode(rows: np.ndarray, signed: bool) -> Coded:
    """The nearest value; two look-ups and a comparison, which NumPy does faster than a search."""
    scales, inverse = largest(rows)
    y = rows * inverse
    codes = first_guess(signed)[y.view(np.uint32) >> np.uint32(16)]
    beyond = np.append(thresholds(signed), np.float32(np.inf))
    return Coded(codes + (y >= beyond[codes]), scales)


def dynamic_decode(coded: Coded, signed: bool) -> np.ndarray:
    return dynamic_values(signed)[coded.codes] * coded.scales


def affine_encode(rows: np.ndarray, signed: bool) -> Coded:
    scales, inverse = largest(rows)
    y = rows * inverse
    codes = np.rint(y * np.float32(127)) + np.float32(128) if signed else np.rint(y * np.float32(255))
    return Coded(codes.astype(np.uint8), scales)


def affine_decode(coded: Coded, signed: bool) -> np.ndarray:
    x = coded.codes.astype(np.float32)
    return ((x - np.float32(128)) / np.float32(127) if signed else x / np.float32(255)) * coded.scales


CODES: dict[str, tuple[Callable[..., Coded], Callable[..., np.ndarray]]] = {
    "companded": (companded_encode, companded_decode),
    "dynamic": (dynamic_encode, dynamic_decode),
    "affine": (affine_encode, affine_decode),
}
MAPS = ("f32", *CODES)


def through(x: np.ndarray, kind: str, signed: bool, bits: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
    """What is left of `x` after it was stored with the map `kind`; "f32" and small tensors stay as they are.

    `bits` of a count are the random bits that the companded map rounds with.
    """
    if kind == "f32" or x.size < SMALLEST:
        return x
    encode, decode = CODES[kind]
    rows = blocks(x)
    noise = (bits(rows.size).reshape(rows.shape),) if bits and kind == "companded" else ()
    return decode(encode(rows, signed, *noise), signed).reshape(-1)[: x.size].reshape(x.shape)


# ---- AdamW


class AdamW:
    """AdamW in float32 with weight decay 0.01; the moments pass through the map after every step."""

    def __init__(self, params: list[np.ndarray], kind: str) -> None:
        self.params, self.kind, self.steps = params, kind, 0
        self.m = [np.zeros_like(p) for p in params]
        self.v = [np.zeros_like(p) for p in params]

    def step(self, grads: list[np.ndarray], lr: float) -> None:
        self.steps += 1
        for i, (p, g) in enumerate(zip(self.params, grads)):
            m = np.float32(BETA1) * self.m[i] + np.float32(1 - BETA1) * g
            v = np.float32(BETA2) * self.v[i] + np.float32(1 - BETA2) * (g * g)
            p *= np.float32(1 - lr * DECAY)
            p -= np.float32(lr) * update(m, v, self.steps)
            bits = [functools.partial(noise, 0, self.steps - 1, i, slot) for slot in (0, 1)]
            self.m[i], self.v[i] = through(m, self.kind, True, bits[0]), through(v, self.kind, False, bits[1])


def update(m: np.ndarray, v: np.ndarray, steps: int) -> np.ndarray:
    """The corrected first moment over the root of the corrected second one."""
    r1, r2 = np.float32(1 / (1 - BETA1**steps)), np.float32(1 / (1 - BETA2**steps))
    return m * r1 / (np.sqrt(v * r2) + np.float32(EPS))


def rate(k: int, total: int) -> float:
    """Linear to the peak over a twentieth of the steps, then half a cosine to 0."""
    peak, warmup = RATES["adamw"], total // 20
    return peak * k / warmup if k < warmup else peak * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) / 2


# ---- what is measured


def task(what: str, **arguments: Any) -> dict[str, Any]:
    """One measurement: "train", "errors", "check" or "cost"."""
    with np.errstate(all="ignore"):
        return {"train": train, "errors": errors, "check": check, "cost": cost}[what](**arguments)


def train(name: str, kind: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training; the test loss in nats and the test accuracy at its end."""
    model, test, steps, gradients = training(name, seed, epochs)
    opt = AdamW(model.params, kind)
    for k in range(steps):
        next(gradients)
        opt.step(model.grads, rate(k, steps))
    accuracy = model.accuracy(test)
    return {"loss": float(model.loss(test)), "accuracy": accuracy}


def errors(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """What the maps do to the moments of a float32 run at its middle, once."""
    model, _, steps, gradients = training(name, seed, epochs)
    opt = AdamW(model.params, "f32")
    for k in range(steps // 2):
        next(gradients)
        opt.step(model.grads, rate(k, steps))
    stored = [i for i, p in enumerate(model.params) if p.size >= SMALLEST]

    def flat(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([a.reshape(-1) for a in arrays])

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

    m, v = flat([opt.m[i] for i in stored]), flat([opt.v[i] for i in stored])
    u, alive = update(m, v, opt.steps), v > 0
    results = {}
    for kind in CODES:
        m8, v8 = (flat([through(a[i], kind, signed) for i in stored]) for a, signed in ((opt.m, True), (opt.v, False)))
        results[kind] = {
            "m": rms(m8 - m) / rms(m),
            "root": rms(np.sqrt(v8) - np.sqrt(v)) / rms(np.sqrt(v)),
            "each root": rms(np.sqrt(v8[alive].astype(np.float64) / v[alive]) - 1),
            "zeros": float(np.mean(v8[alive] == 0)),
            "update, m alone": rms(update(m8, v, opt.steps) - u) / rms(u),
            "update, v alone": rms(update(m, v8, opt.steps) - u) / rms(u),
            "update": rms(update(m8, v8, opt.steps) - u) / rms(u),
        }
    return results


def check(name: str, seed: int, steps: int) -> dict[str, Any]:
    """The engine and the NumPy AdamW with the companded map on the same gradients, step by step.

    The share of stored numbers that are bit for bit the same, and the largest distance of two parameters.
    """
    import thalweg

    model, _, _, gradients = training(name, seed, 1)
    params = [p.copy() for p in model.params]
    opt = thalweg.AdamW(params, lr=RATES["adamw"], weight_decay=DECAY, state_dtype="q8")
    ours = AdamW(model.params, "companded")
    same, distance = [], 0.0
    for _ in range(steps):
        next(gradients)
        opt.step(model.grads)
        ours.step(model.grads, RATES["adamw"])
        state = opt.state()
        for engine, numpy in ((state["adamw.exp_avg"], ours.m), (state["adamw.exp_avg_sq"], ours.v)):
            same += [(a.size, float(np.mean(a == b))) for a, b in zip(engine, numpy) if b.size >= SMALLEST]
        distance = max(distance, *(float(np.abs(a - b).max()) for a, b in zip(params, model.params)))
    return {"same": sum(n * s for n, s in same) / sum(n for n, _ in same), "distance": distance}


LOOPS = """
#include <stdint.h>
#include "Codecs.h"

static float largest(const float *x) {
  uint32_t top[16] = {0}, most = 0;
  for (int k = 0; k < 256; k += 64) twi_raise(x + k, top);
  for (int k = 0; k < 16; k++) most = top[k] > most ? top[k] : most;
  return twi_float(most);
}
#define COMPANDED(sign) \\
  void companded_encode_##sign(long n, const float *x, uint8_t *codes, float *scales, const float *table) { \\
    for (long i = 0; i < n; i += 256) { \\
      const float s = scales[i / 256] = largest(x + i), inverse = 1 / s; \\
      for (int k = 0; k < 256; k += 64) twi_encode_##sign(x + i + k, inverse, TWI_NEAREST, codes + i + k); \\
    } \\
  } \\
  void companded_decode_##sign(long n, float *x, const uint8_t *codes, const float *scales, const float *table) { \\
    for (long i = 0; i < n; i += 64) twi_decode_##sign(codes + i, scales[i / 256], x + i); \\
  }
COMPANDED(signed)
COMPANDED(positive)

/* Eight comparisons with the 255 numbers between the values: the number of them that are at most x. */
void dynamic_encode(long n, const float *restrict x, uint8_t *restrict codes, float *restrict scales,
                    const float *restrict table) {
  for (long i = 0; i < n; i += 256) {
    const float s = scales[i / 256] = largest(x + i), inverse = 1 / s;
    for (int k = 0; k < 256; k++) {
      const float y = x[i + k] * inverse;
      int q = 0;
      for (int step = 128; step; step >>= 1) q += step & -(y >= table[q + step - 1]);
      codes[i + k] = (uint8_t)q;
    }
  }
}
void dynamic_decode(long n, float *restrict x, const uint8_t *restrict codes, const float *restrict scales,
                    const float *restrict table) {
  for (long i = 0; i < n; i += 256)
    for (int k = 0; k < 256; k++) x[i + k] = table[codes[i + k]] * scales[i / 256];
}
"""


def cost(repetitions: int) -> dict[str, Any]:
    """Nanoseconds a number that C takes to encode (to nearest) and to decode 2^16 numbers, on one thread.

    They fit into the second cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "maps.c", Path(folder) / "maps.so"
        source.write_text(LOOPS)
        # the engine's compiler where it is there: gcc makes poor code of vectors that are wider than the processor's
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512", f"-I{HEADER}", "-shared", "-fPIC"]
        compiler = shutil.which("clang") or "gcc"
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True, capture_output=True)
        loops = ctypes.CDLL(str(library))
    numbers = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    times, keep = {}, []

    def loop(name: str, *arrays: np.ndarray) -> Callable[[], Callable[[], object]]:
        keep.append(arrays)
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in arrays)
        call = functools.partial(getattr(loops, name), ctypes.c_long(numbers.size), *pointers)
        return lambda: call

    for signed, sign in ((True, "signed"), (False, "positive")):
        x = numbers if signed else numbers * numbers
        for kind, suffix in (("companded", f"_{sign}"), ("dynamic", "")):
            encode, decode = CODES[kind]
            codes, scales, back = np.zeros(x.shape, np.uint8), np.zeros(x.size // BLOCK, np.float32), np.zeros_like(x)
            tables = thresholds(signed), dynamic_values(signed)
            loop(f"{kind}_encode{suffix}", x, codes, scales, tables[0])()()
            loop(f"{kind}_decode{suffix}", back, codes, scales, tables[1])()()
            expected = encode(blocks(x), signed)
            same = np.array_equal(codes, expected.codes.reshape(-1))
            if not (same and np.array_equal(back, decode(expected, signed).reshape(-1))):
                raise AssertionError(f"{kind}, {sign}: C and NumPy differ")
            times[kind, sign, "encode"] = loop(f"{kind}_encode{suffix}", x, codes, scales, tables[0])
            times[kind, sign, "decode"] = loop(f"{kind}_decode{suffix}", back, codes, scales, tables[1])
    return {" ".join(key): t / numbers.size * 1e9 for key, t in measure(times, repetitions).items()}


# ---- tables


def run(threads: list[int], quick: bool, repetitions: int) -> tuple[str, Any]:
    """(Markdown, raw results), always with one thread."""
    seeds, epochs = (2, 2) if quick else (5, 30)
    trainings = [dict(name=n, kind=k, seed=s) for n in TASKS for k in MAPS for s in range(seeds)]
    middles = [dict(name=n, seed=s) for n in TASKS for s in range(seeds)]
    tasks = [dict(what="check", name=n, seed=0, steps=20) for n in TASKS]
    tasks += [dict(what="cost", repetitions=repetitions)]
    tasks += [dict(what="errors", epochs=epochs, **t) for t in middles]
    tasks += [dict(what="train", epochs=epochs, **t) for t in trainings]
    print(f"maps: {len(tasks)} tasks", flush=True)
    raw = [t | r for t, r in zip(tasks, run_tasks("maps", tasks, 1))]
    failed = [r for r in raw if "error" in r]
    if failed:
        return f"failed: {failed[0]}", raw
    checks, (costs,) = raw[: len(TASKS)], raw[len(TASKS) : len(TASKS) + 1]
    same, distance = min(c["same"] for c in checks), max(c["distance"] for c in checks)
    parts = [
        f"The companded map in NumPy beside the engine's own 8-bit AdamW, {checks[0]['steps']} steps of both tasks: "
        f"{100 * same:.4f} % of the stored numbers are the same bits, and no two parameters are further apart than "
        f"{distance:.1e}."
    ]
    for name in TASKS:
        runs = {k: [r for r in raw if (r["what"], r.get("name"), r.get("kind")) == ("train", name, k)] for k in MAPS}
        header = ["AdamW, moments stored as", "test loss (nats)", "less that of f32, same seed", "test accuracy (%)"]
        rows = [quality(k, runs[k], runs["f32"]) for k in MAPS]
        parts.append(f"{heading(name, epochs, seeds)}\n\n{table(header, rows)}")
    for name in TASKS:
        runs = [r for r in raw if (r["what"], r.get("name")) == ("errors", name)]
        title = f"#### {name}: error of storing the moments of the middle of the f32 run once, mean of {seeds} seeds"
        header = ["relative rms error (%) of", *CODES]
        rows = [
            [label, *(figure(100 * statistics.mean(r[k][key] for r in runs)) for k in CODES)]
            for key, label in {
                "m": "m",
                "root": "√v",
                "each root": "√v, each relative to itself",
                "update, m alone": "the update, only m stored",
                "update, v alone": "the update, only v stored",
                "update": "the update",
                "zeros": "(share of v that becomes 0)",
            }.items()
        ]
        parts.append(f"{title}\n\n{table(header, rows)}")
    header = ["ns a number, one thread, medians", "encode m", "decode m", "encode v", "decode v"]
    columns = [(sign, way) for sign in ("signed", "positive") for way in ("encode", "decode")]
    rows = [[label, *(f"{costs[f'{k} {s} {w}']:.3f}" for s, w in columns)] for k, label in COSTS.items()]
    parts.append(f"#### Cost of the loops in C, numbers in the second cache\n\n{table(header, rows)}")
    return "\n\n".join(parts), raw


COSTS = {"companded": "companded: arithmetic on bits", "dynamic": "dynamic: 8 comparisons; a table"}


def figure(percent: float) -> str:
    return "0" if percent == 0 else f"{percent:.2f}" if 0.01 <= percent < 1000 else f"{percent:.1e}"


def quality(kind: str, runs: list[dict[str, Any]], exact: list[dict[str, Any]]) -> list[str]:
    """A row: loss, difference to the exact run of the same seed, accuracy."""

    def spread(values: list[float], form: str) -> str:
        if not all(map(math.isfinite, values)):
            return f"not finite in {sum(not math.isfinite(v) for v in values)} of {len(values)}"
        return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form.lstrip('+')}}"

    losses = [r["loss"] for r in runs]
    paired = [r["loss"] - e["loss"] for r, e in zip(runs, exact)]
    accuracy = spread([100 * r["accuracy"] for r in runs], ".2f")
    return [kind, spread(losses, ".4f"), "" if kind == "f32" else spread(paired, "+.4f"), accuracy]
