"""Peers' defects, each with the tests that show what this package does instead; prints them as the README's table.

python -m tests.peers
"""

from __future__ import annotations

import sys
from typing import Final

DEFECTS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("BGEM3Index 0.8.0", "loads a pickle: planted code runs",
     ("test_a_damaged_checkpoint_is_refused_with_the_reason", "test_code_in_a_checkpoint_is_never_run")),
    ("BGEM3Index 0.8.0", "accepts filters and ids and ignores them",
     ("test_random_filters_never_leak_and_never_lose_a_node", "test_every_mode_weight_and_filter_equals_float64_brute_force")),
    ("BGEM3Index 0.8.0", "cannot insert or delete",
     ("test_nodes_are_added_replaced_and_deleted", "test_nodes_are_deleted_by_filters_and_by_their_document")),
    ("BGEM3Index 0.8.0", "a new model for each index, none can be passed in",
     ("test_everything_in_the_process_holds_one_network", "test_handles_with_different_settings_hold_one_network")),
    ("BGEM3Index 0.8.0", "metadata are not encoded", ("test_what_is_encoded_is_the_embed_content",)),
    ("BGEM3Index 0.8.0", "blocks the event loop while it encodes", ("test_async_never_blocks_the_event_loop",)),
    ("BGEM3Index 0.8.0", "weights of 0 give NaN, two weights an IndexError",
     ("test_meaningless_weights_are_refused", "test_impossible_weights_are_refused")),
    ("BGEM3Index 0.8.0", "scores every document in a Python loop, no candidates",
     ("test_legs_and_scores_equal_brute_force_under_random_changes_and_filters",)),
    ("BGEM3Index 0.8.0", "show_progress does nothing", ("test_a_progress_bar_is_drawn_only_on_request",)),
    ("LlamaIndex rerankers", "change the nodes they are given", ("test_inputs_are_never_changed",)),
    ("LlamaIndex rerankers", "keep_retrieval_score leaks into later embeddings and prompts",
     ("test_a_kept_first_score_is_in_no_text",)),
    ("LlamaIndex rerankers", "a start event without an end on empty or failing input",
     ("test_events_are_balanced_on_no_nodes", "test_events_are_balanced_on_errors",
      "test_a_missing_query_is_an_error_before_any_event")),
    ("LlamaIndex rerankers", "top_n=0 is accepted", ("test_impossible_settings_are_refused",)),
    ("LlamaIndex rerankers", "no score of each mode, no threshold",
     ("test_scores_are_the_combined_ones_and_every_modes", "test_top_n_and_threshold_bound_the_result")),
    ("ColbertRerank 0.6.0", "one forward pass for each document", ("test_all_texts_share_forward_passes",)),
    ("ColbertRerank 0.6.0", "a long query is an index error", ("test_a_query_over_the_length_limit_is_cut",)),
    ("ColbertRerank 0.6.0", "the device is accepted and never used, gradients are kept",
     ("test_bad_settings_are_refused", "test_nothing_of_a_network_can_be_trained_by_accident")),
    ("LlamaIndex BM25 0.8.0", "filtered nodes come back with score 0", ("test_bm25_follows_changes_and_filters",)),
    ("LlamaIndex BM25 0.8.0", "finds nothing in Chinese", ("test_bm25_finds_words_of_languages_without_spaces",)),
    ("LlamaIndex HuggingFaceEmbedding", "a model cannot be shared",
     ("test_everything_in_the_process_holds_one_network",)),
    ("LlamaIndex embeddings", "texts reach the model in tens", ("test_whole_lists_reach_the_encoder_in_one_call",)),
    ("LlamaIndex Milvus 1.2.0", "any failure to load the sparse model ends the process",
     ("test_only_a_missing_llama_index_is_answered_with_how_to_install_it", "test_a_broken_framework_keeps_its_own_error")),
    ("LlamaIndex Qdrant 0.10.4", "dense and sparse are two passes", ("test_a_hybrid_qdrant_store_costs_one_pass",)),
    ("LlamaIndex's vector stores", "hold a document twice that is cut and added again",
     ("test_the_same_document_cut_again_leaves_the_same_nodes_and_encodes_nothing",)),
    ("LlamaIndex IngestionPipeline", "leaves old pieces beside new ones with duplicates_only",
     ("test_a_pipeline_keeps_the_store_in_step",)),
    ("LlamaIndex SimpleVectorStore", "MMR compares with the last one chosen only",
     ("test_mmr_prefers_what_is_unlike_what_was_chosen",)),
    ("langchain-qdrant 1.1.0", "dense and sparse are two passes", ("test_every_text_costs_one_pass_in_hybrid_mode",)),
    ("LangChain HuggingFaceEmbeddings", "every instance loads its own model, line breaks are replaced",
     ("test_everything_in_the_process_holds_one_network", "test_texts_reach_the_encoder_as_they_are")),
    ("HuggingFaceBgeEmbeddings", "puts an instruction before BGE-M3's queries",
     ("test_a_text_has_the_same_vector_as_query_and_as_document",)),
    ("community BM25Retriever", "invoke(k=1) is ignored", ("test_k_of_a_call_counts_sync_and_async",)),
    ("community BM25Retriever", "results are the index's own objects", ("test_results_are_independent_of_the_index_and_of_what_was_added",)),
    ("community BM25Retriever", "nothing from a generator, an error from an empty list",
     ("test_any_iterable_is_indexed_and_an_empty_one_too",)),
    ("community BM25Retriever", "k documents even where nothing matches", ("test_a_text_that_shares_no_token_is_no_lexical_hit",)),
    ("EnsembleRetriever", "merges different documents of the same text", ("test_documents_of_the_same_text_stay_apart",)),
    ("EnsembleRetriever", "returns no scores, passes no k on",
     ("test_results_carry_the_combined_score_and_the_raw_score_of_every_mode", "test_every_setting_of_a_call_or_of_the_constructor_is_honoured")),
    ("CrossEncoderReranker", "returns no scores", ("test_documents_are_ranked_by_the_combined_score_and_carry_it",)),
    ("any BaseRetriever", "drops misspelt constructor arguments",
     ("test_unknown_and_impossible_arguments_of_the_constructor_are_refused",)),
    ("FlagEmbedding 1.4.2", "one query is two forward passes", ("test_a_query_embedded_sparse_embedded_and_reranked_costs_one_pass",)),
    ("FlagEmbedding 1.4.2", "missing heads are random, with an INFO line",
     ("test_a_damaged_checkpoint_is_refused_with_the_reason", "test_a_checkpoint_without_heads_gives_dense_vectors_only")),
    ("FlagEmbedding 1.4.2", "compute_score encodes the query once for each document and scores all pairs",
     ("test_scoring_encodes_each_text_once",)),
    ("FlagEmbedding 1.4.2", "padding changes the multi-vector score of a pair",
     ("test_padding_does_not_change_max_sim_as_it_does_in_flagembedding",)),
    ("FlagEmbedding 1.4.2", "threads cut each other's texts, silently",
     ("test_requests_from_32_threads_with_different_settings_all_get_their_own_vectors",)),
    ("FlagEmbedding 1.4.2", "encode([]) is an AttributeError",
     ("test_encoding_nothing_gives_empty_results_of_the_right_shape",)),
    ("FlagEmbedding 1.4.2", "a small vector keeps its whole batch in memory", ("test_m3_vectors_hold_no_more_than_their_own_bytes",)),
    ("FlagEmbedding 1.4.2", "texts are cut at 512 tokens without a word", ("test_long_texts_are_cut_counted_and_warned_of_once_per_call",)),
    ("pymilvus-model 0.3.4", "one length limit for queries and documents", ("test_query_instruction_and_length_apply_to_queries_alone",)),
)  # fmt: skip
"""Peer, defect, tests of what ours does. Defects as seen in the named versions, or in those of November 2026."""


def peer_table() -> str:
    """Give the table in Markdown."""
    lines = ["| peer | its defect | shown not to be ours by |", "|---|---|---|"]
    for peer, defect, tests in DEFECTS:
        lines.append(f"| {peer} | {defect} | {', '.join(f'`{test}`' for test in tests)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(peer_table() + "\n")
