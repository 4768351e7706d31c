"""How the bundled checkpoint `tiny` is made: text, tokenizer, start, training."""
