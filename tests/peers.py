"""Features of this package, the tests that show each, and what comparable packages do; prints COMPARISON.md.

python -m tests.peers > tests/COMPARISON.md

Others are as seen in November 2026, in these versions: FlagEmbedding 1.4.2, pymilvus-model 0.3.4; LlamaIndex's BGEM3Index
0.8.0, ColbertRerank 0.6.0, BM25 retriever 0.8.0, Milvus 1.2.0 and Qdrant 0.10.4 stores; langchain-qdrant 1.1.0.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple


class Feature(NamedTuple):
    """What this package does, the tests that show it, and what others do there."""

    name: str
    tests: tuple[str, ...]
    elsewhere: str


FEATURES: Final[dict[str, tuple[Feature, ...]]] = {
    "Loading and sharing a model": (
        Feature("One network for all of a process",
                ("test_everything_in_the_process_holds_one_network", "test_handles_with_different_settings_hold_one_network"),
                "BGEM3Index, LlamaIndex's HuggingFaceEmbedding, LangChain's HuggingFaceEmbeddings: each instance loads its own"),
        Feature("No code in a checkpoint runs",
                ("test_a_damaged_checkpoint_is_refused_with_the_reason", "test_code_in_a_checkpoint_is_never_run"),
                "BGEM3Index: its index is a pickle"),
        Feature("A missing head is an error, or dense alone",
                ("test_a_damaged_checkpoint_is_refused_with_the_reason", "test_a_checkpoint_without_heads_gives_dense_vectors_only"),
                "FlagEmbedding: random weights, with an INFO line"),
        Feature("A failed import says what to install, and a broken one keeps its error",
                ("test_only_a_missing_llama_index_is_answered_with_how_to_install_it", "test_a_broken_framework_keeps_its_own_error"),
                "LlamaIndex Milvus: a sparse model that fails to load ends the process"),
        Feature("Device and settings are honoured, and no gradients are kept",
                ("test_bad_settings_are_refused", "test_nothing_of_a_network_can_be_trained_by_accident"),
                "ColbertRerank: the device is not used, gradients are kept"),
        Feature("A misspelt argument is refused",
                ("test_unknown_and_impossible_arguments_of_the_constructor_are_refused",),
                "LangChain's BaseRetriever: dropped"),
    ),
    "Encoding": (
        Feature("One pass for a query that is embedded, sparse-embedded and reranked",
                ("test_a_query_embedded_sparse_embedded_and_reranked_costs_one_pass", "test_a_hybrid_qdrant_store_costs_one_pass",
                 "test_every_text_costs_one_pass_in_hybrid_mode"),
                "FlagEmbedding, LlamaIndex Qdrant, langchain-qdrant: two or more"),
        Feature("Texts reach the model in one call, as they are",
                ("test_whole_lists_reach_the_encoder_in_one_call", "test_texts_reach_the_encoder_as_they_are"),
                "LlamaIndex: in tens; HuggingFaceEmbeddings: line breaks are replaced"),
        Feature("BGE-M3's queries have no instruction",
                ("test_a_text_has_the_same_vector_as_query_and_as_document",),
                "HuggingFaceBgeEmbeddings: puts one before them"),
        Feature("Queries have a length limit of their own",
                ("test_query_instruction_and_length_apply_to_queries_alone",),
                "pymilvus-model: one limit for both"),
        Feature("A text that is cut is counted and warned of",
                ("test_long_texts_are_cut_counted_and_warned_of_once_per_call",),
                "FlagEmbedding: cut at 512 tokens without a word"),
        Feature("Threads with different settings do not meet",
                ("test_requests_from_32_threads_with_different_settings_all_get_their_own_vectors",),
                "FlagEmbedding: threads cut each other's texts"),
        Feature("No text in, empty arrays out",
                ("test_encoding_nothing_gives_empty_results_of_the_right_shape",),
                "FlagEmbedding: an AttributeError"),
        Feature("A vector holds its own bytes alone",
                ("test_m3_vectors_hold_no_more_than_their_own_bytes",),
                "FlagEmbedding: keeps its batch in memory"),
        Feature("The event loop goes on while texts are encoded",
                ("test_async_never_blocks_the_event_loop",),
                "BGEM3Index: blocks it"),
    ),
    "Scoring and reranking": (
        Feature("Scoring encodes each text once",
                ("test_scoring_encodes_each_text_once", "test_all_texts_share_forward_passes"),
                "FlagEmbedding: the query once for each document; ColbertRerank: a pass for each document"),
        Feature("Padding does not change a score",
                ("test_padding_does_not_change_max_sim_as_it_does_in_flagembedding",),
                "FlagEmbedding: changes the multi-vector score of a pair"),
        Feature("Every mode's score, and a threshold",
                ("test_scores_are_the_combined_ones_and_every_modes", "test_top_n_and_threshold_bound_the_result",
                 "test_documents_are_ranked_by_the_combined_score_and_carry_it"),
                "LlamaIndex's rerankers: one score, no threshold; LangChain's CrossEncoderReranker: none"),
        Feature("Inputs are never changed",
                ("test_inputs_are_never_changed",),
                "LlamaIndex's rerankers: change the nodes they are given"),
        Feature("A kept first score is in no text",
                ("test_a_kept_first_score_is_in_no_text",),
                "LlamaIndex's rerankers: it gets into embeddings and prompts"),
        Feature("Every start event has its end",
                ("test_events_are_balanced_on_no_nodes", "test_events_are_balanced_on_errors",
                 "test_a_missing_query_is_an_error_before_any_event"),
                "LlamaIndex's rerankers: not on empty or failing input"),
        Feature("Impossible settings are refused",
                ("test_impossible_settings_are_refused", "test_meaningless_weights_are_refused", "test_impossible_weights_are_refused"),
                "LlamaIndex's rerankers: top_n=0 is accepted; BGEM3Index: weights of 0 give NaN"),
        Feature("A long query is cut",
                ("test_a_query_over_the_length_limit_is_cut",),
                "ColbertRerank: an index error"),
    ),
    "Retrieval": (
        Feature("Candidates first, then exact scores equal to brute force",
                ("test_legs_and_scores_equal_brute_force_under_random_changes_and_filters",
                 "test_every_mode_weight_and_filter_equals_float64_brute_force"),
                "BGEM3Index: scores every document in a Python loop"),
        Feature("Filters are exact in every mode",
                ("test_random_filters_never_leak_and_never_lose_a_node", "test_bm25_follows_changes_and_filters"),
                "BGEM3Index: ignores filters and ids; LlamaIndex BM25: filtered nodes come back with score 0"),
        Feature("Scores of every mode in the results",
                ("test_results_carry_the_combined_score_and_the_raw_score_of_every_mode",),
                "LangChain's EnsembleRetriever: no scores"),
        Feature("Settings of a call are honoured, k among them",
                ("test_every_setting_of_a_call_or_of_the_constructor_is_honoured", "test_k_of_a_call_counts_sync_and_async"),
                "EnsembleRetriever: passes no k on; community BM25Retriever: ignores invoke(k=1)"),
        Feature("Different documents of the same text stay apart",
                ("test_documents_of_the_same_text_stay_apart",),
                "EnsembleRetriever: merges them"),
        Feature("Results are copies",
                ("test_results_are_independent_of_the_index_and_of_what_was_added",),
                "community BM25Retriever: the index's own objects"),
        Feature("BM25 returns what matches, in languages without spaces too",
                ("test_a_text_that_shares_no_token_is_no_lexical_hit", "test_bm25_finds_words_of_languages_without_spaces"),
                "community BM25Retriever: k documents even where nothing matches; LlamaIndex BM25: nothing in Chinese"),
        Feature("MMR compares with all that was chosen",
                ("test_mmr_prefers_what_is_unlike_what_was_chosen",),
                "LlamaIndex's SimpleVectorStore: with the last one chosen"),
    ),
    "Stores and ingestion": (
        Feature("Records are added, replaced and deleted",
                ("test_nodes_are_added_replaced_and_deleted", "test_nodes_are_deleted_by_filters_and_by_their_document"),
                "BGEM3Index: neither insert nor delete"),
        Feature("A document that is cut and added again is there once",
                ("test_the_same_document_cut_again_leaves_the_same_nodes_and_encodes_nothing", "test_a_pipeline_keeps_the_store_in_step"),
                "LlamaIndex's vector stores: twice; its IngestionPipeline with duplicates_only: old pieces stay"),
        Feature("Metadata are encoded as the framework has it",
                ("test_what_is_encoded_is_the_embed_content",),
                "BGEM3Index: not encoded"),
        Feature("Any iterable is indexed, and an empty one too",
                ("test_any_iterable_is_indexed_and_an_empty_one_too",),
                "community BM25Retriever: nothing from a generator, an error from an empty list"),
        Feature("A progress bar on request",
                ("test_a_progress_bar_is_drawn_only_on_request",),
                "BGEM3Index: show_progress does nothing"),
    ),
}  # fmt: skip


def comparison() -> str:
    """Return the page in Markdown."""
    lines = [
        "# Comparison",
        "",
        "What this package does, with the test that shows it, and what comparable packages do there. They were read in",
        "November 2026; `tests/peers.py` has their versions and prints this page.",
    ]
    for subject, features in FEATURES.items():
        lines += ["", f"## {subject}", "", "| feature | tests | elsewhere |", "|---|---|---|"]
        lines += [
            f"| {name} | {', '.join(f'`{test}`' for test in tests)} | {other} |" for name, tests, other in features
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(comparison())
