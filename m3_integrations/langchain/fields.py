"""Fields that several classes for LangChain share: the encoder, the weights of its modes, a store."""

from __future__ import annotations

import os
import pickle
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation

from m3_integrations.search import (
    CalibrationLike,
    changed_settings,
    check_store,
    checked_calibration,
    checked_weights,
    no_flag,
    open_encoder,
)
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder, WeightsLike


def snapshot(values: list[Any]) -> bytes:
    """Return bytes that are others after any change of the values, also of 1 to True or within a large array.

    They may be others for equal values too; for values that cannot be pickled they always are.
    """
    try:
        return pickle.dumps(values)
    except Exception:  # pickling raises what it likes
        return os.urandom(16)


Weights = Annotated[SkipValidation[WeightsLike | None], BeforeValidator(checked_weights)]
"""The weight of each mode: any `WeightsLike`, or None for equal weights."""


Calibrated = Annotated[SkipValidation[CalibrationLike | None], BeforeValidator(checked_calibration)]
"""A `Calibration`, or the path of its file, which is read when the field is set."""

Integer = Annotated[int, BeforeValidator(no_flag)]
"""A whole number of Python or numpy. Pydantic itself would accept True as 1."""

MaybeStore = Annotated[SkipValidation[Store | None], BeforeValidator(check_store)]
"""A store or None; anything else is refused."""


class EncoderFields(BaseModel):
    """The fields for a model or an encoder.

    After construction `encoder` is always set, `model` is its name and `model_kwargs` are its settings. So another
    instance can be made from the fields of the first, as LangChain does for configurable fields, or from its dump,
    which does not contain the encoder. Assigning `encoder` changes all three.
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

    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Further arguments of `M3Encoder`, such as device or max_length; only with `model`."""

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
            ValueError: For `model` and `model_kwargs` once an encoder is open.
        """
        if name in {"model", "model_kwargs"} and self.encoder is not None:
            raise ValueError(f"{name} cannot be changed, because the network is loaded: assign encoder=M3Encoder(...)")
        named = {"model": value.model, "model_kwargs": changed_settings(value)} if name == "encoder" else {}
        for field, each in {name: value, **named}.items():  # named first: what is no encoder changes nothing
            super().__setattr__(field, each)
