"""One network and all who share it: queue, workers, cache, counters, and which networks this process holds."""

from m3_integrations.engine.call import EncodeOptions
from m3_integrations.engine.core import EncoderStats, Engine
from m3_integrations.engine.opening import check_not_forked, open_engine

__all__ = ["EncodeOptions", "EncoderStats", "Engine", "check_not_forked", "open_engine"]
