"""Warnings that name the user's own line."""

from __future__ import annotations

import sys
import warnings
from typing import Final

_PASSED: Final = ("m3_integrations", "pydantic", "langchain_core", "langchain_classic", "llama_index",
                  "llama_index_instrumentation")  # fmt: skip
"""Packages whose frames may stand between the user's line and `warn_caller`."""


def warn_caller(message: str) -> None:
    """Warn with the location of the nearest caller outside this package and the frameworks."""
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, stacklevel=stacklevel)
