"""One network and all who share it: queue, workers, cache, counters, and which networks this process holds."""

from m3_integrations.engine.engine import Call, EncodeOptions, EncoderStats, Engine, aencode, encode_ahead
from m3_integrations.engine.opening import check_not_forked, open_engine

__all__ = [
    "Call",
    "EncodeOptions",
    "EncoderStats",
    "Engine",
    "aencode",
    "check_not_forked",
    "encode_ahead",
    "open_engine",
]
