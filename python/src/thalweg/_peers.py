"""What the adapters are for has to be there, and new enough."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def check(adapter: str, package: str, newer: Callable[[Any], Any]) -> None:
    """ModuleNotFoundError or ImportError, with what to install, where the package that an adapter is for cannot be
    imported, or is too old.

    newer  looks at what an old one does not have
    """
    try:
        module = importlib.import_module(package)
    except ImportError as problem:
        text = f"{adapter} needs {package}, which cannot be imported ({problem}): pip install {package}"
        raise ModuleNotFoundError(text, name=package) from problem
    try:
        newer(module)
    except (AttributeError, TypeError) as problem:
        version = getattr(module, "__version__", "of an unknown version")
        text = f"{adapter} needs a newer {package} than {version}: pip install --upgrade {package}"
        raise ImportError(text, name=package) from problem
