"""What all classes for LangChain have in common: the encoder they were given, or the shared one of a model."""

from __future__ import annotations

from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, SkipValidation, field_validator, model_validator

from m3_integrations.search import open_encoder, resolve_weights
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder, ModeWeights


def check_store(store: Store | None) -> Store | None:
    """Give back a store, or None.

    Raises:
        TypeError: For anything else, such as the folder or URL of one.
    """
    if store is not None and not callable(getattr(store, "candidates", None)):
        raise TypeError(f"store must be a store, got {store!r}: open one with open_store")
    return store


class EncoderFields(BaseModel):
    """The fields by which an encoder is given.

    Once made, `encoder` is always there, `model` is its name and `model_kwargs` is empty, so that another instance can
    be made from the fields of the first, as LangChain does for configurable fields.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = ""
    """A checkpoint folder, or a repository of the hub such as "BAAI/bge-m3"; the process loads it once."""

    encoder: SkipValidation[Encoder] = Field(
        default=cast("Encoder", None),  # only until the validator below
        exclude=True,
        repr=False,
    )
    """In the place of `model`: an encoder that is there already."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Further arguments of `M3Encoder`, such as device or max_length; only with `model`."""

    @model_validator(mode="after")
    def _open_encoder(self) -> Self:
        # After all fields, so that a misspelt argument is refused before a network is loaded.
        self.encoder = open_encoder(self.model, encoder=self.encoder, model_kwargs=self.model_kwargs)
        self.model, self.model_kwargs = self.encoder.model, {}
        return self


class WeightsFields(EncoderFields):
    """The fields by which an encoder and the weights of its modes are given."""

    weights: InstanceOf[ModeWeights] | str | None = None
    """How the modes count: `ModeWeights`, the name of a preset such as "miracl", or None for equal weights."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: ModeWeights | str | None) -> ModeWeights | str | None:
        resolve_weights(weights)
        return weights
