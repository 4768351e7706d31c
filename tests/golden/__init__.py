"""Reference values computed by FlagEmbedding, and what is needed to compute them again."""
