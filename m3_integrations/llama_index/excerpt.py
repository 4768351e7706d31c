"""`M3Excerpt`: nodes cut down to the sentences that carry their match with the query."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, Node, NodeWithScore, QueryBundle, TextNode
from pydantic import BeforeValidator, Field, SkipValidation

from m3_integrations.llama_index.fields import EncoderFields, Integer
from m3_integrations.llama_index.nodes import with_results
from m3_integrations.search import Evidence, check_store, find_evidence
from m3_integrations.store import Store

_SPANS_KEY: Final = "m3_spans"


class M3Excerpt(EncoderFields, BaseNodePostprocessor):
    """Shortens each node to the sentences that match the query best, and the sentences after them.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    Token vectors and lexical weights show which sentences match, as `m3_integrations.search.Evidence` describes; no
    language model is called. A whole document may be one node, up to the model's length limit, so no splitter is
    needed. The match is computed on the node's text for embedding models, which includes its metadata; only sentences
    of the text itself are kept. Results are copies in the same order, with the same scores. Their metadata have
    "m3_spans": start and end (exclusive) of each kept span, as offsets into the node's text. This key is hidden from
    embedding models and LLMs.

    Args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        max_share: The largest length of the result as a share of the text's, over 0 and up to 1; separators count. The
            best sentence is always kept.
        max_characters: The most characters of a result, with its separators; None for no limit besides max_share.
        neighbours: How many sentences after a chosen one are preferred to the next best sentence.
        separator: Written in place of the text that was left out.
        store: Vectors are read from it for a node whose id and text equal a record's; only other nodes are encoded.
        callback_manager: A field of LlamaIndex's class; nothing is reported to it.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from llama_index.core.query_engine import RetrieverQueryEngine
        from m3_integrations.llama_index import M3Excerpt

        excerpt = M3Excerpt(model="BAAI/bge-m3", max_share=0.3)
        engine = RetrieverQueryEngine.from_args(retriever, node_postprocessors=[excerpt])
        response = engine.query("how often are the keys rotated?")
        response.source_nodes[0].text, response.source_nodes[0].metadata["m3_spans"]
        ```
    """

    max_share: float = Field(default=0.5, gt=0, le=1)
    max_characters: Integer | None = Field(default=None, ge=1)
    neighbours: Integer = Field(default=1, ge=0)
    separator: str = " … "
    store: Annotated[SkipValidation[Store | None], BeforeValidator(check_store)] = Field(
        default=None, exclude=True, repr=False
    )

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3Excerpt"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("an excerpt needs a query, got none: pass query_bundle or query_str")
        nodes = list(nodes)
        found = find_evidence(
            self.encoder,
            query_bundle.query_str,
            [each.node.get_content(MetadataMode.EMBED) for each in nodes],
            ids=[each.node.node_id for each in nodes],
            store=self.store,
        )
        return [self._shortened(each, evidence) for each, evidence in zip(nodes, found, strict=True)]

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._postprocess_nodes, nodes, query_bundle)

    def _shortened(self, found: NodeWithScore, evidence: Evidence) -> NodeWithScore:
        content = found.node.get_content(MetadataMode.NONE)
        start = evidence.text.rfind(content)
        if not content or start < 0:  # an image, or a template that changes the text
            return found
        own = evidence.within(start, start + len(content))
        kept = own.keep(
            max_share=self.max_share,
            max_characters=self.max_characters,
            neighbours=self.neighbours,
            separator_characters=len(self.separator),
        )
        node = with_results(found.node, {_SPANS_KEY: [list(span) for span in kept]})
        if isinstance(node, TextNode | Node):
            node.set_content(self.separator.join(content[a:b] for a, b in kept) or content)
        return found.model_copy(update={"node": node})
