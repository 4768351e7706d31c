"""Fields that several classes for LangChain have: the encoder, the weights of its modes, a store."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, SkipValidation

from m3_integrations.search import check_store, open_encoder, resolve_weights
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder, ModeWeights


def _checked(weights: ModeWeights | str | None) -> ModeWeights | str | None:
    resolve_weights(weights)
    return weights


Weights = Annotated[InstanceOf[ModeWeights] | str | None, AfterValidator(_checked)]
"""How much each mode counts: `ModeWeights`, the name of a preset such as "miracl", or None for equal weights."""

MaybeStore = Annotated[SkipValidation[Store | None], BeforeValidator(check_store)]
"""A store or None; anything else is refused."""


class EncoderFields(BaseModel):
    """The fields by which an encoder is given.

    Once made, `encoder` is always there, `model` is its name and `model_kwargs` is empty, so that another instance can
    be made from the fields of the first, as LangChain does for configurable fields.
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

    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Further arguments of `M3Encoder`, such as device or max_length; only with `model`."""

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder: after all fields, so that a misspelt argument is refused before a network is loaded."""
        super().model_post_init(context)
        self.encoder = open_encoder(self.model, encoder=self.encoder, model_kwargs=self.model_kwargs)
        self.model, self.model_kwargs = self.encoder.model, {}
