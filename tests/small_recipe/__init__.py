"""The recipe of the small checkpoint: a multilingual model learns from text in 28 languages."""
