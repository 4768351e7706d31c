"""Encoded records in Parquet files: a job on many machines writes them, and `load_parquet` puts them into a store."""

try:
    from m3_integrations.parquet.folder import Done, ParquetFolder, find_files
    from m3_integrations.parquet.loading import LoadReport, load_parquet, missing_rows, open_files
    from m3_integrations.parquet.tables import EncodedBy, Rows, as_table, check_same, record_key
except ModuleNotFoundError as error:
    if error.name != "pyarrow":
        raise
    raise ImportError("m3_integrations.parquet needs pyarrow: pip install 'PATH_TO_THE_CLONE[parquet]'") from error

__all__ = [
    "Done",
    "EncodedBy",
    "LoadReport",
    "ParquetFolder",
    "Rows",
    "as_table",
    "check_same",
    "find_files",
    "load_parquet",
    "missing_rows",
    "open_files",
    "record_key",
]
