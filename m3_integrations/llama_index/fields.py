"""`EncoderFields`: the fields for model and encoder that the pydantic classes for LlamaIndex share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation, model_validator

from m3_integrations.search import (
    CalibrationLike,
    changed_settings,
    checked_calibration,
    checked_weights,
    no_flag,
    open_encoder,
)
from m3_integrations.vectors import Encoder, WeightsLike

Weights = Annotated[SkipValidation[WeightsLike | None], BeforeValidator(checked_weights)]
"""The weight of each mode: any `WeightsLike`, or None for equal weights."""

Calibrated = Annotated[SkipValidation[CalibrationLike | None], BeforeValidator(checked_calibration)]
"""A `Calibration`, or the path of its file, which is read when the field is set."""

Integer = Annotated[int, BeforeValidator(no_flag)]
"""A whole number of Python or numpy. Pydantic itself would accept True as 1."""


class EncoderFields(BaseModel):
    """The fields for a model or an encoder.

    After construction `encoder` is always set, `model` is its name and `model_kwargs` are its settings, so that an
    instance can be rebuilt from a dump. A dump leaves the encoder out: the key of an ingestion cache is made from a
    dump, and must depend on the model and not on the object. Assigning `encoder` changes all three.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = ""
    """A checkpoint folder, or a repository of the hub such as "BAAI/bge-m3"; the process loads it once."""

    encoder: SkipValidation[Encoder] = Field(
        default=cast("Encoder", None),  # only until model_post_init
        exclude=True,
        repr=False,
    )
    """An existing encoder, instead of `model`."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `M3Encoder`, such as device or max_length; only with `model`."""

    @model_validator(mode="before")
    @classmethod
    def _drop_class_name(cls, values: Any) -> Any:
        """Drop the class name that a dump contains, so that an instance can be rebuilt from a dump."""
        if isinstance(values, Mapping) and values.get("class_name") == cls.__name__:
            return {name: value for name, value in values.items() if name != "class_name"}
        return values

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder. All fields are checked before, so a misspelt argument is refused before a model loads."""
        super().model_post_init(context)
        given = self.model_kwargs
        self.encoder = open_encoder(self.model, encoder=self.encoder, model_kwargs=given)
        if given:
            super().__setattr__("model_kwargs", given)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, as pydantic does; with `encoder` the fields that describe it.

        Raises:
            ValueError: For the model's name and its settings once an encoder is open.
        """
        if name in {"model", "model_name", "model_kwargs"} and self.encoder is not None:
            raise ValueError(f"{name} cannot be changed, because the network is loaded: assign encoder=M3Encoder(...)")
        named = self._named(value) if name == "encoder" else {}
        for field, each in {name: value, **named}.items():  # named first: what is no encoder changes nothing
            super().__setattr__(field, each)

    def _named(self, encoder: Encoder) -> dict[str, Any]:
        """Return the other fields that an encoder determines."""
        return {"model": encoder.model, "model_kwargs": changed_settings(encoder)}

    def __reduce__(self) -> tuple[Any, ...]:
        # LlamaIndex's own __reduce__ drops a field that cannot be pickled, such as a store, and only logs it. The
        # callback manager is left out: its handlers report to listeners in this process.
        return _restore, (type(self), {name: value for name, value in self if name != "callback_manager"})

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Return the fields for the representation: without event managers, and with the model only once."""
        hidden = {"callback_manager", "model_name"}
        return [(name, each) for name, each in super().__repr_args__() if name not in hidden and each not in (None, {})]


class NamedEncoderFields(EncoderFields):
    """`EncoderFields` for classes where LlamaIndex calls the model `model_name`; `model` may be used too."""

    model_name: str = ""
    """The same as `model`."""

    @model_validator(mode="before")
    @classmethod
    def _join_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):  # an instance: another pydantic model may have a field of this class
            return values
        names = {name for name in (values.get("model"), values.get("model_name")) if name}
        if len(names) > 1:
            raise ValueError(f"model and model_name mean the same, got {sorted(map(str, names))}: leave one out")
        return {**values, "model": names.pop() if names else ""}

    def _named(self, encoder: Encoder) -> dict[str, Any]:
        return {**super()._named(encoder), "model_name": encoder.model}


def _restore(made: type[EncoderFields], fields: dict[str, Any]) -> EncoderFields:
    return made(**fields)
