"""TVM without what it loads beside itself."""

from __future__ import annotations

import sys


def import_tvm() -> None:
    """Import TVM without torch, in a process that hands it no torch tensors: 0.7 s, not 2.

    TVM's FFI imports torch where it is installed, to take its tensors; torch itself can still be
    imported afterwards.
    """
    if "torch" in sys.modules or "tvm" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment] # an import of it fails
    try:
        import tvm  # noqa: F401
    finally:
        del sys.modules["torch"]
