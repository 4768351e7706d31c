"""Fields that the pydantic classes for LlamaIndex have in common: those by which an encoder is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from m3_integrations.search import open_encoder
from m3_integrations.vectors import Encoder


class EncoderFields(BaseModel):
    """The fields by which an encoder is given.

    Once made, `encoder` is always there and `model` is its name. A dump leaves the encoder out: the key of an ingestion
    cache is made of a dump, and must depend on the model and not on the object that holds it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = ""
    """A checkpoint folder, or a repository of the hub such as "BAAI/bge-m3"; the process loads it once."""

    encoder: SkipValidation[Encoder] = Field(
        default=cast("Encoder", None),  # only until model_post_init
        exclude=True,
        repr=False,
    )
    """Instead of `model`: an encoder that exists already."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `M3Encoder`, such as device or max_length; only with `model`."""

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder: after all fields, so that a misspelt argument is refused before a network is loaded."""
        super().model_post_init(context)
        self.encoder = open_encoder(self.model, encoder=self.encoder, model_kwargs=self.model_kwargs)
        self.model = self.encoder.model

    def __reduce__(self) -> tuple[Any, ...]:
        # LlamaIndex's own way drops what cannot be pickled, such as a store, and writes only a log line. The callback
        # manager stays behind: its handlers report to listeners in this process.
        fields = {name: value for name, value in self if name != "callback_manager"}
        if self.model_kwargs:
            del fields["encoder"]  # it was opened with these, and will be again
        return _restore, (type(self), fields)


class NamedEncoderFields(EncoderFields):
    """The same, where LlamaIndex says `model_name` for `model`; either may be used."""

    model_name: str = ""
    """The same as `model`."""

    @model_validator(mode="before")
    @classmethod
    def _join_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):  # an instance, where another pydantic model has a field for one
            return values
        names = {name for name in (values.get("model"), values.get("model_name")) if name}
        if len(names) > 1:
            raise ValueError(f"model and model_name mean the same, got {sorted(map(str, names))}: leave one out")
        return {**values, "model": names.pop() if names else ""}

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder, and name it twice."""
        super().model_post_init(context)
        self.model_name = self.model


def _restore(made: type[EncoderFields], fields: dict[str, Any]) -> EncoderFields:
    return made(**fields)
