"""The network on its device: token ids to vectors in one forward pass."""

from m3_integrations.model.devices import DTYPES, find_devices, find_dtype
from m3_integrations.model.forward_pass import ForwardPass
from m3_integrations.model.network import M3Network
from m3_integrations.model.threads import limit_threads

__all__ = ["DTYPES", "ForwardPass", "M3Network", "find_devices", "find_dtype", "limit_threads"]
