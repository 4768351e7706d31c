"""`serve_encoder`: replicas of an encoder on Ray Serve, with the routes of `m3 serve`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ray import serve

if TYPE_CHECKING:
    from m3_integrations.serve import Limits
    from m3_integrations.serve.gate import Gate


def serve_encoder(
    model: str = "BAAI/bge-m3",
    *,
    n_replicas: int = 1,
    cpus_per_replica: float = 1,
    gpus_per_replica: float = 0,
    api_keys: Iterable[str] = (),
    limits: Limits | None = None,
    name: str | None = None,
    local_only: bool | None = None,
    encoder_settings: Mapping[str, Any] | None = None,
) -> serve.Application:
    """Return an application for Ray's `serve.run`: replicas of an encoder with the routes of `m3 serve`.

    Each replica loads one model. `RemoteEncoder`, `m3 index --model URL` and every other client of `m3 serve` use the
    URL of Ray Serve's proxy. Ray replaces a replica that dies. Meanwhile the other replicas answer, and `RemoteEncoder`
    repeats the requests that the dead one was working on. `/metrics` shows the metrics of one replica.

    Args:
        model: A folder that every machine has, a repository of the hub, or the name of a bundled checkpoint.
        n_replicas: The number of replicas.
        cpus_per_replica: CPUs that a replica takes.
        gpus_per_replica: GPUs that a replica takes: 1, or 0 to run on the CPU.
        api_keys: As for `create_app`. Ray stores them in the application's settings.
        limits: As for `create_app`, for each replica. Ray sends at most `max_running` requests at a time to a replica.
        name: As for `create_app`.
        local_only: As for `create_app`.
        encoder_settings: Further arguments of `M3Encoder`.

    Raises:
        TypeError: If api_keys is one string.
        ValueError: If n_replicas is below 1.
    """
    if isinstance(api_keys, str):
        raise TypeError("api_keys must be a list of keys, got one string: pass [key]")
    if n_replicas < 1:
        raise ValueError(f"n_replicas must be at least 1, got {n_replicas}")
    from m3_integrations.encoder import M3Encoder  # noqa: PLC0415 - reading processes need no torch
    from m3_integrations.serve import Limits, create_app  # noqa: PLC0415 - likewise

    keys, chosen, settings = list(api_keys), limits or Limits(), dict(encoder_settings or {})

    def build() -> Gate:
        encoder = M3Encoder(model, **settings)
        return create_app(encoder, api_keys=keys, limits=chosen, name=name, local_only=local_only)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="m3",
        num_replicas=n_replicas,
        max_ongoing_requests=chosen.max_running,
        ray_actor_options={"num_cpus": cpus_per_replica, "num_gpus": gpus_per_replica},
    )
    application: serve.Application = deployment.bind()
    return application
