"""A character-level transformer, trained with AdamW and with seven methods that know what a matrix is.

    python examples/matrix_methods.py
    python examples/matrix_methods.py --only muon --only adamw --steps 1000 --seconds 60

The text is the reference of the language that CPython brings along for help() (pydoc_data.topics).  Every method has
the same network, the same minibatches and the same budget: a number of steps, and of seconds of the processor on one
thread, whichever ends first.  Muon, SOAP, Shampoo, PSGD, Scion, Dion and GaLore take the matrices inside the blocks;
embeddings, the head, scales and biases go to AdamW, as `route` says.  The rates are usual ones of each method and not
tuned: the picture shows how to try a method, not which of them is best.  Ends with status 1 when a method does not
get below the entropy of single characters.
"""

from __future__ import annotations

import sys
import time
from pydoc_data import topics
from typing import NamedTuple

from common import canvas, parser, progress, save, table, tidy, verdict

import numpy as np
import thalweg as tw
import torch
from thalweg.torch import Optimizer
from torch import nn

CONTEXT, BATCH, WIDTH, HEADS, BLOCKS = 48, 16, 64, 4, 2


def rate(peak: float) -> str:
    return f"warmup_cosine(peak={peak:g}, warmup={{warmup}}, total={{steps}})"


ADAMW = f"adamw(lr={rate(3e-3)}, weight_decay=0.01)"


def whole(rule: str) -> str:
    """The sentence: the rule for the matrices of the blocks, AdamW for the rest."""
    return rule if rule == ADAMW else f'route("embed*"=({ADAMW}), "head*"=({ADAMW}), matrix=({rule}), other=({ADAMW}))'


METHODS = {  # what the matrices have
    "adamw": ADAMW,
    "muon": f"muon(lr={rate(0.02)}, weight_decay=0.01)",
    "soap": f"soap(lr={rate(3e-3)}, precondition_frequency=10)",
    "shampoo": f"shampoo(lr={rate(3e-3)}, beta1=0.9, beta2=0.99, eps=1e-8, grafting=adam, precondition_frequency=10)",
    "psgd_kron": f"psgd_kron(lr={rate(3e-4)})",
    "scion": f"scion(lr={rate(0.02)}, unconstrained=true)",
    "dion": f"dion(lr={rate(0.02)}, rank_fraction=0.25)",
    "galore": f"galore(lr={rate(3e-3)}, rank=16, scale=1, update_proj_gap=50)",
}


def filled(sentence: str, steps: int) -> str:
    return sentence.format(steps=steps, warmup=min(20, steps))


class Result(NamedTuple):
    method: str
    losses: np.ndarray  # training loss of every step, nats a character
    seconds: np.ndarray  # of the processor, since the start, after every step
    final: float  # loss of the text that was held out
    micros: float  # median time of the optimizer in a step
    state: int  # bytes of optimizer state

class Block(nn.Module):
    """Attention to what came before, then two layers; both beside a straight way."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        split = (*y.shape[:2], HEADS, WIDTH // HEADS)
        parts = [layer(y).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        y = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.embed_place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy in nats of the characters y that follow x; both (rows, CONTEXT)."""
        z = self.head(self.norm(self.blocks(self.embed(x) + self.embed_place.weight)))
        return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten())


def text() -> tuple[torch.Tensor, int, float]:
    """The text as numbers, how many characters there are, and the entropy of single ones in nats."""
    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    plain = [c if 31 < ord(c) < 127 or c == "\n" else "?" for c in whole]
    known, numbers, counts = np.unique(plain, return_inverse=True, return_counts=True)
    p = counts / counts.sum()
    return torch.from_numpy(numbers), len(known), float(-(p * np.log(p)).sum())


def pairs(numbers: torch.Tensor, rows: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of CONTEXT characters at random places, and the characters that follow each."""
    starts = torch.from_numpy(rng.integers(0, len(numbers) - CONTEXT - 1, rows))
    whole = numbers[starts[:, None] + torch.arange(CONTEXT + 1)]
    return whole[:, :-1], whole[:, 1:]


def run(method: str, numbers: torch.Tensor, characters: int, steps: int, seconds: float, seed: int) -> Result:
    torch.manual_seed(seed)
    cut = int(0.9 * len(numbers))
    model, rng = Transformer(characters), np.random.default_rng(seed)
    sentence = filled(whole(METHODS[method]), steps)
    opt = Optimizer(model.named_parameters(), sentence, seed=seed)
    losses, times, micros = [], [], []
    begin = time.process_time()
    for _ in range(steps):
        loss = model(*pairs(numbers[:cut], BATCH, rng))
        opt.zero_grad()
        loss.backward()
        start = time.process_time()
        opt.step()
        end = time.process_time()
        losses.append(loss.item())
        micros.append((end - start) * 1e6)
        times.append(end - begin)
        if times[-1] > seconds:
            break
    with torch.no_grad():
        final = model(*pairs(numbers[cut:], 128, np.random.default_rng(seed + 1))).item()
    state = opt.engine.memory_report().total
    return Result(method, np.array(losses), np.array(times), final, float(np.median(micros)), state)


def plot(results: list[Result], entropy: float, where: object) -> None:
    figure, (left, right) = canvas(1, 2, (13, 5.4), sharey=True)
    for i, r in enumerate(results):
        window = max(1, len(r.losses) // 12)
        smooth = np.convolve(r.losses, np.ones(window) / window, "valid")
        style = dict(color=f"C{i}", linewidth=1.8, label=f"{r.final:.3f}  {r.method}")
        left.plot(np.arange(window, len(r.losses) + 1), smooth, **style)
        right.plot(r.seconds[window - 1 :], smooth, **style)
    low = min(r.losses[-max(1, len(r.losses) // 25) :].mean() for r in results)
    left.set(title="by step", xlabel="step", ylabel="training loss (nats a character)",
             ylim=(0.97 * low, 1.02 * max([entropy, *(r.losses[len(r.losses) // 5] for r in results)])))
    right.set(title="by second", xlabel="seconds of one processor, network and optimizer", xlim=(0, None))
    tidy(left, right)
    left.legend(frameon=False, title="held-out loss, method", alignment="left", prop={"family": "monospace", "size": 9})
    figure.suptitle(f"A character-level transformer ({BLOCKS} blocks of width {WIDTH}) on Python's own reference")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "matrix_methods.png")
    made.add_argument("--only", action="append", choices=list(METHODS), help="train with this method; may be repeated")
    made.add_argument("--steps", type=int, default=200, help="steps of a run (default 200)")
    made.add_argument("--seconds", type=float, default=6.0, help="of the processor, of a run (default 6)")
    args = made.parse_args()
    if args.steps < 1 or not args.seconds > 0:
        made.error("--steps is at least 1, --seconds is above 0")
    torch.set_num_threads(1)
    tw.set_num_threads(1)
    numbers, characters, entropy = text()
    steps = 25 if args.quick else args.steps
    names = args.only or (["adamw", "muon", "galore"] if args.quick else list(METHODS))
    results = [run(m, numbers, characters, steps, args.seconds, args.seed) for m in progress(names)]
    rows = [(f"{r.final:.3f}", len(r.losses), f"{r.seconds[-1]:.1f}", f"{r.micros:.0f}", f"{r.state:,}", r.method,
             filled(METHODS[r.method], steps)) for r in results]
    print(f"{len(numbers):,} characters, {characters} different ones, entropy of single ones {entropy:.3f} nats\n")
    head = ("held-out loss", "steps", "seconds", "optimizer us", "state bytes", "method", "rule of the matrices")
    print(table(head, rows))
    plot(results, entropy, args.out)
    return verdict([f"{r.method} does not get below the entropy of single characters"
                    for r in results if not r.final < entropy])


if __name__ == "__main__":
    sys.exit(main())
