"""The encoder of an `m3 serve`, for all processes of a host: one model load between them."""

from m3_integrations.remote.encoder import RemoteEncoder

__all__ = ["RemoteEncoder"]
