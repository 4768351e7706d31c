"""An encoder over HTTP, and a store if one is given: one loaded model answers every client that can post JSON."""

try:
    from m3_integrations.serve.app import create_app
    from m3_integrations.serve.keys import read_keys
    from m3_integrations.serve.limits import Limits
    from m3_integrations.serve.running import check_host, listening, run_server
except ModuleNotFoundError as error:
    if error.name not in {"fastapi", "uvicorn", "prometheus_client"}:
        raise
    raise ImportError(
        "m3_integrations.serve needs fastapi, uvicorn and prometheus-client: pip install 'PATH_TO_THE_CLONE[serve]'"
    ) from error

__all__ = ["Limits", "check_host", "create_app", "listening", "read_keys", "run_server"]
