"""Networks that turn prompts, classes and layouts into embeddings."""
