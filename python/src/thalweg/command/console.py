"""What the commands print: tables, progress, and the words for a package that is missing."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any


class Refusal(Exception):
    """What a command cannot do, in words for the one who typed it; the command ends with status 1."""


def need(module: str, purpose: str, package: str | None = None) -> ModuleType:
    """The module, for what `purpose` says ("race draws its progress").

    Refusal says what to install where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        wanted = package or module.partition(".")[0]
        raise Refusal(f"{purpose} with {wanted}, which cannot be imported ({problem}): "
                      f"pip install 'thalweg[command]', or pip install {wanted}") from None


def one_thread() -> contextlib.AbstractContextManager[object]:
    """Inside, NumPy's products take one thread, where threadpoolctl is there: small matrices gain nothing by more."""
    try:
        import threadpoolctl
    except ImportError:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(1, "blas")


def rich_terminal() -> Any:
    """A console of rich where standard output is a terminal and rich is there, else None."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *,
    right: Iterable[int] = (), title: str = "", best: int | None = None,
) -> None:
    """A table.  On a terminal, where rich is there, drawn; else aligned text with one row a line, as pipes want it.

    right   the columns that are aligned to the right
    best    the row to mark
    """
    rows, right = [list(map(str, row)) for row in rows], set(right)
    console = rich_terminal()
    if console is not None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title or None, box=box.SIMPLE_HEAD, header_style="bold", title_justify="left", pad_edge=False
        )
        for i, name in enumerate(columns):
            table.add_column(name, justify="right" if i in right else "left", overflow="fold")
        for i, row in enumerate(rows):
            table.add_row(*map(Text, row), style="bold green" if i == best else None)
        console.print(table)
        return
    if title:
        print(title)
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows)]
    for i, row in enumerate([list(columns), *rows]):
        cells = [c.rjust(w) if j in right else c.ljust(w) for j, (c, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip() + (" *" if best is not None and i == best + 1 else ""))


class Progress:
    """Progress over pieces of work: live bars where standard error is a terminal, else a line for each piece that ends.

        with Progress("race") as progress:
            bar = progress.start("adamw", total=500)
            bar.advance(); bar.note("loss 0.1"); bar.end("loss 0.05")
    """

    def __init__(self, purpose: str) -> None:
        need("rich", f"{purpose} shows its progress")
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        self.live = console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console, disable=not self.live, transient=True,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, name: str, total: int) -> Bar:
        """A bar of `total` pieces."""
        return Bar(self, name, total)


class Bar:
    """One bar of a Progress."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress, self._name = progress, name
        self._task = progress._bars.add_task(shortened(name, 46), total=total, note="")
        self.done = 0

    def advance(self, pieces: int = 1) -> None:
        self.done += pieces
        self._progress._bars.advance(self._task, pieces)

    def note(self, text: str) -> None:
        """What stands behind the bar."""
        self._progress._bars.update(self._task, note=text)

    def end(self, text: str) -> None:
        """The last word on this piece."""
        self.note(text)
        if not self._progress.live:
            print(f"{self._name}: {text}", file=sys.stderr)


def shortened(text: str, most: int) -> str:
    """The text, with dots in place of what is beyond `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def number(value: float) -> str:
    """A number in four digits, for tables; "diverged" for what is none."""
    return f"{value:.4g}" if abs(value) < float("inf") else "diverged"


def counted(seeds: int) -> str:
    """The number of seeds, for titles and notes."""
    return f"{seeds} seed{'s' * (seeds != 1)}"
