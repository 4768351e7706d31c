"""One network and what its handles share: queue, workers, cache and counters; and the networks of this process."""

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
