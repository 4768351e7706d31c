"""Opening and checking the arguments that every adapter takes: an encoder or the name of a model, and a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from typing import Any, Final

from m3_integrations.store import Store
from m3_integrations.vectors import MODES, Encoder, absent_heads, warn_caller

_METHODS: Final = ("encode", "aencode", "encode_batches", "score_pairs", "tokenize")


def open_encoder(
    model: str | os.PathLike[str] | None = None,
    *,
    encoder: Encoder | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Encoder:
    """Return the encoder that was passed, or open one for a model.

    A model in this process is an `M3Encoder`; all of them with the same model and settings share one network. A URL
    opens a `RemoteEncoder`.

    Args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`. Together with an encoder it
            may only repeat the encoder's own name, so that an adapter can be built again from its fields.
        encoder: Any encoder.
        model_kwargs: Further arguments of `M3Encoder`, or of `RemoteEncoder` for a URL. Together with an encoder they
            may only repeat the encoder's own settings.

    Raises:
        TypeError: If encoder is not an encoder, or the class that is opened does not know one of model_kwargs.
        ValueError: If neither model nor encoder is given, or an encoder with another model or other model_kwargs.
        FileNotFoundError: If the model does not exist.
        ConnectionError: If nothing answers at the URL. `RemoteEncoder` lists further errors for a URL.
    """
    if encoder is None:
        if not model:
            raise ValueError("pass model= (a folder or a repository such as 'BAAI/bge-m3') or encoder=, got neither")
        if isinstance(model, str) and model.startswith(("http://", "https://")):
            from m3_integrations.remote import RemoteEncoder  # noqa: PLC0415 - loads h11 and ssl, which few need

            return RemoteEncoder(model, **(model_kwargs or {}))
        from m3_integrations.encoder import M3Encoder  # noqa: PLC0415 - loads torch, which an encoder= may not need

        return M3Encoder(model, **(model_kwargs or {}))
    # Not isinstance with the protocol: it would read every property, and a fingerprint takes seconds.
    if absent := [name for name in _METHODS if not callable(getattr(encoder, name, None))]:
        raise TypeError(f"encoder must be an encoder such as M3Encoder, got {encoder!r}, which has no {absent[0]}()")
    own = getattr(encoder, "settings", {})
    is_repeated = all(
        name in own and _plain(own[name]) == _plain(value) for name, value in (model_kwargs or {}).items()
    )
    if not is_repeated or (model and os.fspath(model) != encoder.model):
        raise ValueError(
            f"encoder= ({encoder.model}) already has a model and settings, so model={model!r} and "
            f"model_kwargs={model_kwargs!r} cannot change them: leave them out, or leave encoder= out"
        )
    return encoder


def changed_settings(encoder: Encoder) -> dict[str, Any]:
    """Return the model_kwargs that open an encoder like this one.

    Those with their default value are left out. An API key is left out too, because dumps contain these model_kwargs.
    """
    settings: Mapping[str, Any] = getattr(encoder, "settings", {})
    defaults = signature(type(encoder)).parameters
    return {
        name: _plain(value) for name, value in settings.items() if name != "api_key" and value != defaults[name].default
    }


def _plain(setting: Any) -> Any:
    """Return a setting as a value for JSON: devices and dtypes of torch become their names."""
    return str(setting).removeprefix("torch.") if type(setting).__module__ == "torch" else setting


def check_store(store: Store | None) -> Store | None:
    """Return a store or None unchanged.

    Raises:
        TypeError: For anything else, such as a store's folder or URL.
    """
    # Not isinstance with the protocol: it would read every property, and some of them ask a server.
    if store is not None and not callable(getattr(store, "candidates", None)):
        raise TypeError(f"store must be a store, got {store!r}: open one with open_store")
    return store


def warn_of_absent_heads(encoder: Encoder) -> None:
    """Warn if the checkpoint lacks heads, so that "all" modes are fewer than three."""
    if absent := [mode for mode in MODES if mode not in encoder.modes]:
        warn_caller(
            f"{absent_heads(encoder.model, encoder.modes, absent)}. So mode='all' means {'+'.join(encoder.modes)} "
            f"here: pass mode={'+'.join(encoder.modes)!r} to turn this warning off"
        )
