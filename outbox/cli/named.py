"""The Outbox that `--app module:attribute` names, without what only settings need."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from outbox.app import Outbox
from outbox.errors import ConfigurationError


def from_app(reference: str) -> Outbox:
    """The Outbox at `module:attribute`, imported with the working directory on the path. Raises ConfigurationError."""
    module, _, attribute = reference.partition(":")
    if not module or not attribute or module.startswith("."):
        raise ConfigurationError(f"expected module:attribute, such as shop.outbox:outbox, got {reference!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"cannot import {module}: {error}") from error
    if not hasattr(imported, attribute):
        raise ConfigurationError(f"{module} has no {attribute!r}; expected the name of an Outbox in it")
    found = getattr(imported, attribute)
    if not isinstance(found, Outbox):
        raise ConfigurationError(f"{reference} is not an Outbox but {type(found).__name__}")
    return found
