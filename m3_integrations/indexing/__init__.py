"""Files into a store and up to date there: read, cut by the model's tokens, encoded where they are new."""

try:
    from m3_integrations.indexing.indexing import IndexReport, index_files
    from m3_integrations.indexing.splitting import Part, Splitter, Splitting
except ModuleNotFoundError as error:
    if error.name not in {"semantic_text_splitter", "markdown_it"}:
        raise
    raise ImportError("indexing files needs two packages more: pip install 'm3-integrations[indexing]'") from error

__all__ = ["IndexReport", "Part", "Splitter", "Splitting", "index_files"]
