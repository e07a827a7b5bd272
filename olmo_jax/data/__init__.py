"""From corpora to token windows: TFDS builders, tokenizer, token shards, grain."""
