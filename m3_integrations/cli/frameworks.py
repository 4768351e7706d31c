"""The demo's two answers: a LangChain chain and a LlamaIndex query engine over one retriever and one language model."""

from __future__ import annotations

from typing import Any, Final

try:
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
except ModuleNotFoundError as error:
    if error.name not in {"langchain_core", "llama_index", "llama_index.core"}:
        raise
    raise ImportError(
        "m3 demo shows LangChain and LlamaIndex, and one is missing: pip install 'PATH_TO_THE_CLONE[all]'"
    ) from error

from m3_integrations import llama_index as for_llama_index
from m3_integrations.cli.shared import open_llm
from m3_integrations.langchain import M3HybridRetriever

_PROMPT: Final = "Answer from these passages alone.\n\nPassages:\n{context}\n\nQuestion: {question}"
_QUOTED_LENGTH: Final = 420


class QuotingChatModel(SimpleChatModel):
    """A chat model that quotes the best passage instead of answering, for a demo without a language model."""

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
    """A language model of LlamaIndex that asks a chat model of LangChain."""

    chat_model: Any

    @property
    def metadata(self) -> LLMMetadata:
        """The properties of the model for LlamaIndex."""
        return LLMMetadata(model_name=self.chat_model._llm_type)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """Answer a prompt."""
        return CompletionResponse(text=str(self.chat_model.invoke(prompt).content))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt in one piece."""
        yield self.complete(prompt, formatted, **kwargs)


def open_chat_model(llm: str | None) -> BaseChatModel:
    """Open a chat model by its name for LangChain's `init_chat_model`; without a name, one that quotes a passage.

    Raises:
        ImportError: If a model is named and langchain is not installed.
    """
    return QuotingChatModel() if llm is None else open_llm(llm)


def answer_with_langchain(retriever: M3HybridRetriever, chat_model: BaseChatModel, question: str) -> str:
    """Return the answer to a question by a chain of retriever, prompt and model."""
    prompt = ChatPromptTemplate.from_template(_PROMPT)
    found = {"context": retriever | RunnableLambda(_join), "question": RunnableLambda(str)}
    answer: str = (found | prompt | chat_model | StrOutputParser()).invoke(question)
    return answer


def _join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def answer_with_llama_index(retriever: M3HybridRetriever, chat_model: BaseChatModel, question: str) -> str:
    """Return the answer to a question by a query engine over the same store, which reranks by stored vectors."""
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


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _QUOTED_LENGTH else f"{flat[:_QUOTED_LENGTH].rpartition(' ')[0]} …"
