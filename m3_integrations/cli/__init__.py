"""The `m3` command."""

try:
    from m3_integrations.cli.commands import app
except ModuleNotFoundError as error:
    if error.name not in {"typer", "rich"}:
        raise
    raise ImportError("the m3 command needs typer and rich: pip install 'PATH_TO_THE_CLONE[cli]'") from error

__all__ = ["app"]
