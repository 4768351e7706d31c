"""BGE-M3 on many machines with Ray: encode a corpus on all of them, or run replicas of `m3 serve`."""

try:
    from m3_integrations.ray.encoding import EncodeReport, encode_corpus
    from m3_integrations.ray.reading import read_jsonl
    from m3_integrations.ray.serving import serve_encoder
except ModuleNotFoundError as error:
    if error.name not in {"ray", "pyarrow"}:
        raise
    raise ImportError("m3_integrations.ray needs ray: pip install 'PATH_TO_THE_CLONE[ray]'") from error

__all__ = ["EncodeReport", "encode_corpus", "read_jsonl", "serve_encoder"]
