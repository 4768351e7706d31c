"""An explanation as the terminal shows it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from m3_integrations.search import Explanation


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print which tokens are shared, and which token of the document each one of the query found."""
    shared = ", ".join(f"{m.token.strip('▁') or m.token} {m.score:.3f}" for m in explanation.lexical[:6])
    console.print(f"  shared tokens: {escape(shared) or 'none'}")
    pairs = sorted(explanation.multi_vector, key=lambda pair: -pair.similarity)[:6]
    found = ", ".join(f"{p.query_token.strip('▁')}→{p.document_token.strip('▁')} {p.similarity:.2f}" for p in pairs)
    console.print(f"  query tokens and what they found: {escape(found) or 'nothing'}")
