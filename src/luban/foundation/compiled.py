"""Code in C++ that lies beside its module: compiled for this processor at the first use on a machine, and kept."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from luban.foundation.environment import cache_folder, cxx

SHARED = Path(__file__).with_name("vectors.h")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-march=native")
_begun: dict[Path, threading.Thread] = {}


def begin(*sources: Path) -> None:
    """Compile sources that are not in the user's cache while this process goes on; :func:`compiled` waits for them. What goes wrong shows there."""
    if (compiler := shutil.which(cxx())) is None:
        return
    for source in sources:
        file = cache_folder() / _name(source, compiler)
        if source not in _begun and not file.exists():
            _begun[source] = threading.Thread(target=_try, args=(compiler, source, file), daemon=True)
            _begun[source].start()


def _try(compiler: str, source: Path, file: Path) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _compile(compiler, source, file)


def compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a source, made at the first call on a machine and kept in the user's cache, or where that cannot be written to, made for this process; None without a compiler that can make it."""
    compiler = shutil.which(cxx())
    if compiler is None or not source.exists():
        return None
    if source in _begun:
        _begun[source].join()
    for folder in (cache_folder(), None):
        try:
            folder = folder or Path(tempfile.mkdtemp())  # of this process alone: nobody else may put code there
            file = folder / _name(source, compiler)
            if not file.exists():
                _compile(compiler, source, file)
            return ctypes.CDLL(str(file))
        except subprocess.SubprocessError:
            return None
        except OSError:
            continue
    return None


def _name(source: Path, compiler: str) -> str:
    """Of the library: another for another text, compiler or processor."""
    read = [source.read_bytes(), SHARED.read_bytes()]
    told = [text.encode() for text in (*FLAGS, compiler, _processor())]
    return f"{source.stem}-{hashlib.sha256(bytes(1).join([*read, *told])).hexdigest()[:16]}.so"


def _compile(compiler: str, source: Path, file: Path) -> None:
    """Beside its place, and then into it: another process may do the same."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, made = tempfile.mkstemp(suffix=".so", dir=file.parent)
    os.close(handle)
    try:
        subprocess.run([compiler, *FLAGS, f"-I{SHARED.parent}", str(source), "-o", made], check=True, capture_output=True, timeout=120)
        os.replace(made, file)
    finally:
        Path(made).unlink(missing_ok=True)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags", "Features"))
