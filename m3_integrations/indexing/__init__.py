"""Indexes files: reads them, splits them by the model's tokens, and encodes the parts that are new."""

_PACKAGES = {"bs4", "docutils", "markdown_it", "markdownify", "semantic_text_splitter"}

try:
    from m3_integrations.indexing.indexing import IndexReport, index_files
    from m3_integrations.indexing.splitting import Part, Splitter, Splitting
except ModuleNotFoundError as error:
    if error.name not in _PACKAGES:
        raise
    raise ImportError(f"indexing files needs {error.name}: pip install 'PATH_TO_THE_CLONE[indexing]'") from error

__all__ = ["IndexReport", "Part", "Splitter", "Splitting", "index_files"]
