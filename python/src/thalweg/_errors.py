"""The exceptions: one class for each status of the library.

Every one is an `Error` (a RuntimeError) with the number of the status in `.status`.  Most are a built-in exception
too, so that `except ValueError` catches a hyper-parameter out of its range.
"""

from __future__ import annotations


class Error(RuntimeError):
    """What the library refuses or fails to do.  The message is the library's.

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
BY_STATUS = {value.status: value for value in ERRORS if value is not Error}


def error(cls: type[Error], message: str) -> Error:
    """An exception of `cls` as the library would raise it."""
    exception = cls(message)
    exception.status = cls.status
    return exception
