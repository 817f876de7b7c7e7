"""The exceptions: one class for each status of the library.

Every one is an `Error` (a RuntimeError) with the number of the status in `.status`.  Most are a built-in exception
too, so that `except ValueError` catches a hyper-parameter out of its range.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ._hints import with_hint


class Error(RuntimeError):
    """What the library refuses or fails to do.  The message is the library's, with calls as they are spelt in Python.

    Before an exception is raised, parameters and state are put back as they were before the call.
    """

    status: int = -1


class InternalError(Error):
    """A defect in the library."""

    status = -1


class AllocationError(Error, MemoryError):
    """An allocation failed."""

    status = -2


class ArgumentError(Error, ValueError):
    """An unusable argument."""

    status = -3


class HandleError(Error):
    """The object is closed."""

    status = -4


class BusyError(Error):
    """The object is in use by another thread."""

    status = -5


class CountError(Error, ValueError):
    """A wrong number of arrays."""

    status = -6


class SentenceError(Error, ValueError):
    """The sentence cannot be read."""

    status = -10


class MethodError(Error, ValueError):
    """There is no such method, or it does not belong in this position."""

    status = -11


class UnknownNameError(Error, ValueError):
    """There is no such hyper-parameter, group, slot or command."""

    status = -12


class ValueTypeError(Error, TypeError):
    """A hyper-parameter of the wrong type."""

    status = -13


class RangeError(Error, ValueError):
    """A hyper-parameter out of its range, or a combination that makes no sense."""

    status = -14


class DtypeError(Error, TypeError):
    """Something that is no array, or an element type that is unknown or does not fit."""

    status = -20


class ShapeError(Error, ValueError):
    """A shape that does not fit."""

    status = -21


class LayoutError(Error, BufferError, ValueError):
    """Memory that is misaligned, read-only, overlapping itself, or not in reach of the CPU."""

    status = -22


class OverlapError(Error, BufferError, ValueError):
    """Two arrays share memory."""

    status = -23


class SequenceError(Error):
    """A call out of order: stepping before gradients are bound, or in evaluation mode."""

    status = -30


class NeedsError(Error):
    """The method needs something that was not given: a loss, a second gradient, a metric."""

    status = -31


class NonfiniteError(Error, FloatingPointError):
    """A NaN or Inf where the policy or the method refuses one."""

    status = -40


class NumericError(Error, ArithmeticError):
    """A factorisation failed."""

    status = -41


class FormatError(Error, ValueError):
    """A checkpoint that is damaged, truncated or foreign."""

    status = -50


class VersionError(Error, ValueError):
    """A checkpoint of a newer version."""

    status = -51


class MismatchError(Error, ValueError):
    """A checkpoint of another sentence or of other parameters."""

    status = -52


class FileError(Error, OSError):
    """A file cannot be read or written."""

    status = -53


class SpaceError(Error):
    """A buffer is too small."""

    status = -54


class UnsupportedError(Error, NotImplementedError):
    """Not available in this build, or for this method."""

    status = -60


ERRORS = [value for value in list(globals().values()) if isinstance(value, type) and issubclass(value, Error)]
__all__ = [value.__name__ for value in ERRORS]

# The library names calls as they are spelt in C.  In order: what stands first is more than what follows.
SPELLINGS = [
    (r"^(\w+): (?=\1: )", ""),  # a method that names itself, named again by what called it
    (r"call bind_gradients first, or pass them to the step",
     "call opt.step(grads), or opt.bind_gradients(grads) first"),
    (r"call next and answer its requests", "call opt.step(closure), or answer every request in opt.requests()"),
    (r"\bobserve \"loss\" before the step, or answer its requests with next",
     'call opt.observe("loss", loss) before the step, or opt.step(closure) with a closure that returns the loss'),
    (r"\bobserve \"(\w+)\" before the step", r'call opt.observe("\1", value) before the step'),
    (r"answer its requests, or cancel it\b", "answer the requests in opt.requests(), or call opt.cancel()"),
    (r"answer with answer_matrix\b(?!\()", "answer with request.answer_matrix(first, second)"),
    (r"answer with answer_samples\b(?!\()", "answer with request.answer_samples(gradients)"),
    (r"`(\w+)`: no schedule `(nan)`", r"`\1` must be a number, got \2"),
    (r"\bset_mode\(train\)", "opt.train()"),
    (r"\bset_mode\(eval\w*\)", "opt.eval()"),
    (r"\bpass NULL\b", "pass None"),
    (r"\bis NULL\b", "is a null pointer"),
    (r"\bTW_(F32|F64|F16|BF16)\b", lambda found: found[1].lower()),
]
# Single calls, where no phrase above had them.
CALLS = {
    "add_parameters": 'opt.add_param_group({"params": [...]})',
    "add_group": 'opt.add_param_group({"params": [...]})',
    "rebind_parameters": "opt.rebind_parameters(params)",
    "bind_gradients": "opt.bind_gradients(grads)",
    "bind_shadow": "opt.bind_shadow(shadows)",
    "step_with": "opt.step(grads)",
    "answer_matrix": "request.answer_matrix(first, second)",
    "set_mode": "opt.train() or opt.eval()",
    "get_number": "opt.get(path)",
    "get_text": "opt.get(path)",
    "set_number": "opt.set(path, value)",
    "set_text": "opt.set(path, value)",
    "set_texts": "opt.set(path, value)",
    "save_file": "opt.save(path)",
    "load_file": "opt.load(path)",
}
SPELLINGS.append(
    # Not what is quoted (it may be a name of the caller's), and not what is in Python's spelling already.
    (r"(?<![\w.`'\"])(?:tw_optimizer_)?(" + "|".join(CALLS) + r")\b(?![\w(])", lambda found: CALLS[found[1]])
)


def in_python(message: str) -> str:
    """A message of the library with the calls that it names as they are spelt in Python."""
    for pattern, replacement in SPELLINGS:
        message = re.sub(pattern, replacement, message)
    return with_hint(message)


def _maker(cls: type[Error]) -> Callable[[str], Error]:
    return lambda message: cls(in_python(message))


# What makes the exception of a status out of the library's message; the extension asks here.
BY_STATUS = {value.status: _maker(value) for value in ERRORS if value is not Error}

Method = TypeVar("Method", bound=Callable[..., Any])


def reworded(words: Callable[[Any, Error], str]) -> Callable[[Method], Method]:
    """For methods: the message of an error becomes words(self, error)."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Error as problem:
                if problem.args and isinstance(problem.args[0], str):
                    problem.args = (words(self, problem), *problem.args[1:])
                raise

        return call  # type: ignore[return-value]

    return decorate


def of_adapter(method: Method) -> Method:
    """For methods of a class with the optimizer in `engine`: errors say opt.engine.x for an x that only that has."""
    return reworded(lambda self, problem: _through_engine(problem.args[0], type(self)))(method)


def _through_engine(message: str, adapter: type) -> str:
    def spelt(found: re.Match[str]) -> str:
        return found[0] if found[1] == "engine" or hasattr(adapter, found[1]) else f"opt.engine.{found[1]}"

    return re.sub(r"\bopt\.(\w+)", spelt, message)


def error(cls: type[Error], message: str) -> Error:
    """An exception of `cls` as the library would raise it."""
    exception = cls(message)
    exception.status = cls.status
    return exception
