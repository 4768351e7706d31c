"""Readers of the formats in which Debian packages hold prose."""
