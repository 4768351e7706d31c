"""`m3 demo`: one network, one index and two frameworks over real text that is on every machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, SimpleChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from llama_index.core import PromptTemplate
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.query_engine import RetrieverQueryEngine
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m3_integrations import llama_index as for_llama_index
from m3_integrations.cli.collection import Passage, read_collection
from m3_integrations.cli.explanation import print_explanation
from m3_integrations.encoder import M3Encoder
from m3_integrations.engine import EncoderStats
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.store import open_store

QUESTIONS: Final = (
    "copy a whole directory tree recursively",
    "generate a secure random token that is safe in a URL",
    "run a blocking function in a separate thread from asyncio",
)
"""Three that the bundled checkpoint answers. Of the 50 in tests/demo it finds 41 among the first three passages.

The collection is small, 856 passages under Python 3.11, and one of the 50 has no answer in it.
"""

_PROMPT: Final = "Answer from these passages alone.\n\nPassages:\n{context}\n\nQuestion: {question}"
_QUOTED_LENGTH: Final = 420


class QuotingChatModel(SimpleChatModel):
    """Stands in for a language model where none is connected: it quotes the best passage, and says so."""

    @property
    def _llm_type(self) -> str:
        return "quoting"

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - the interface's
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        passages = str(messages[-1].content).partition("Passages:\n")[2].rpartition("\n\nQuestion:")[0]
        if not passages.strip():
            return "(no language model is connected, and no passage was found)"
        return f"(no language model is connected; the best passage says:) {_shorten(passages)}"


class ChatModelLLM(CustomLLM):
    """Any chat model of LangChain in the place of a language model of LlamaIndex."""

    chat_model: Any

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(model_name=self.chat_model._llm_type)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """Answer a prompt."""
        return CompletionResponse(text=str(self.chat_model.invoke(prompt).content))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt in one piece."""
        yield self.complete(prompt, formatted, **kwargs)


def run_demo(
    questions: Sequence[str] | None, *, model: str, llm: str | None, device: str, k: int, console: Console
) -> None:
    """Index, ask both frameworks, and show why the best passage matched and what it cost.

    Args:
        questions: What to ask; `QUESTIONS` if None.
        model: As `M3Encoder` takes it.
        llm: A chat model as LangChain's `init_chat_model` takes it; without one the best passage is quoted.
        device: As `M3Encoder` takes it.
        k: Passages to find for each question.
        console: Where to print.

    Raises:
        ImportError: If llm is given and langchain is not installed.
        FileNotFoundError: If there is no such model.
    """
    chat_model = _chat_model(llm)
    start = time.perf_counter()
    encoder = M3Encoder(model, device=device)
    console.print(f"Loaded [bold]{escape(model)}[/bold] on {encoder.device} in {time.perf_counter() - start:.1f} s.")
    retriever = M3HybridRetriever(encoder=encoder, store=open_store(), k=k, show_progress=True)
    _index(retriever, read_collection(), encoder, console)
    for question in questions or QUESTIONS:
        before = encoder.stats
        console.rule(f"[bold]{escape(question)}")
        documents = retriever.invoke(question)
        console.print(_score_table(documents))
        if documents:
            console.print(f"Why [bold]{escape(str(documents[0].id))}[/bold]:")
            print_explanation(retriever.explain(question, str(documents[0].id)), console)
        console.print("[bold]LangChain[/bold]  ", escape(_ask_langchain(retriever, chat_model, question)))
        console.print("[bold]LlamaIndex[/bold] ", escape(_ask_llama_index(retriever, chat_model, question)))
        console.print(_cost(before, encoder.stats), style="dim")
    console.print("\nOne network was loaded, and both frameworks used it.")


def _chat_model(llm: str | None) -> BaseChatModel:
    if llm is None:
        return QuotingChatModel()
    try:
        from langchain.chat_models import init_chat_model  # noqa: PLC0415 - only for --llm
    except ModuleNotFoundError as error:
        if error.name != "langchain":
            raise
        raise ImportError("--llm needs langchain and the provider's package: pip install langchain") from error
    chat_model: BaseChatModel = init_chat_model(llm)
    return chat_model


def _index(retriever: M3HybridRetriever, passages: Sequence[Passage], encoder: M3Encoder, console: Console) -> None:
    start = time.perf_counter()
    retriever.add_documents(
        [Document(id=p.id, page_content=p.text, metadata={"kind": p.kind, "module": p.module}) for p in passages]
    )
    seconds, stats = time.perf_counter() - start, encoder.stats
    console.print(
        f"Indexed {len(passages):,} docstrings of Python's library ({stats.encoded_tokens:,} tokens, "
        f"{stats.forward_passes:,} forward passes, three views each) in {seconds:.1f} s."
    )


def _ask_langchain(retriever: M3HybridRetriever, chat_model: BaseChatModel, question: str) -> str:
    prompt = ChatPromptTemplate.from_template(_PROMPT)
    found = {"context": retriever | RunnableLambda(_join), "question": RunnableLambda(str)}
    answer: str = (found | prompt | chat_model | StrOutputParser()).invoke(question)
    return answer


def _join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def _ask_llama_index(retriever: M3HybridRetriever, chat_model: BaseChatModel, question: str) -> str:
    """Over the same store: what LangChain indexed, LlamaIndex finds, and reranks from the stored vectors."""
    nodes = for_llama_index.M3HybridRetriever(
        encoder=retriever.encoder, store=retriever.store, similarity_top_k=20, mode="dense+lexical"
    )
    rerank = for_llama_index.M3Rerank(encoder=retriever.encoder, store=retriever.store, top_n=3)
    engine = RetrieverQueryEngine.from_args(
        nodes,
        node_postprocessors=[rerank],
        llm=ChatModelLLM(chat_model=chat_model),
        text_qa_template=PromptTemplate(
            _PROMPT.replace("{context}", "{context_str}").replace("{question}", "{query_str}")
        ),
    )
    return str(engine.query(question))


def _score_table(documents: Sequence[Document]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("score", "dense", "lexical", "multi-vector"):
        table.add_column(column, justify="right")
    table.add_column("passage")
    for document in documents:
        scores = document.metadata["m3_scores"]
        values = [document.metadata["relevance_score"], *(scores.get(m) for m in ("dense", "lexical", "multi_vector"))]
        table.add_row(*("" if v is None else f"{v:.3f}" for v in values), escape(str(document.id)))
    return table


def _cost(before: EncoderStats, after: EncoderStats) -> str:
    return (
        "cost of both answers, reranking and explanation included: "
        f"{after.encoded_texts - before.encoded_texts} text encoded (the question) in "
        f"{after.forward_passes - before.forward_passes} forward pass"
    )


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _QUOTED_LENGTH else f"{flat[:_QUOTED_LENGTH].rpartition(' ')[0]} …"
