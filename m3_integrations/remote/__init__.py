"""The encoder of an `m3 serve`: all processes of a host share one loaded model."""

from m3_integrations.remote.encoder import RemoteEncoder

__all__ = ["RemoteEncoder"]
