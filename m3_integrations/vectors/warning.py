"""Warnings that name the user's own line."""

from __future__ import annotations

import sys
import warnings
from typing import Final

_PASSED: Final = ("m3_integrations", "pydantic", "langchain_core", "langchain_classic", "llama_index",
                  "llama_index_instrumentation")  # fmt: skip
"""Packages between a user's line and ours."""


def warn_caller(message: str) -> None:
    """Warn, and name the line outside this package and the frameworks that asked for what the warning is about."""
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, stacklevel=stacklevel)
