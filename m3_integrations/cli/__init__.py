"""The `m3` command."""
