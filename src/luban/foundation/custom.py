"""The user's own code, named in a recipe as ``my_file.py:name``: an objective, a filter, a metric, a callback."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from luban.foundation.errors import ConfigError, nearest


def is_custom(value: object) -> bool:
    """True for ``path/to/file.py:name``."""
    return isinstance(value, str) and ".py:" in value


def load_custom(reference: str, folder: Path = Path(".")) -> Any:
    """The object ``name`` of ``my_file.py``; a relative file starts at ``folder`` (the recipe's).

    Raises ConfigError when the file or the name is missing, or the file itself fails, with its line.
    """
    file_text, _, name = reference.rpartition(":")
    path = (folder / file_text).resolve()
    if not path.is_file():
        raise ConfigError("{reference}: there is no file {path}", "", "a relative path starts at the recipe's folder", reference=reference, path=path)
    module_name = f"luban_custom_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # so that what it defines can be sent to worker processes
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", 0)
        raise ConfigError("{path}:{line}: {kind}: {error}", "the file failed while it was imported", path=path, line=line, kind=type(error).__name__, error=error) from error
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        guess = nearest(name, known)
        raise ConfigError("{path} has no {name!r}", "", "did you mean {guess}?" if guess else "it defines: {known}", path=path, name=name, guess=guess, known=", ".join(known))
    return getattr(module, name)
