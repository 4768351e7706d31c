"""Where records live: one protocol, several engines."""

from m3_integrations.store.copying import copy_store
from m3_integrations.store.filters import Filter, FilterLike, matches, parse_filter
from m3_integrations.store.opening import open_store
from m3_integrations.store.protocol import Hits, Record, Store

__all__ = ["Filter", "FilterLike", "Hits", "Record", "Store", "copy_store", "matches", "open_store", "parse_filter"]
