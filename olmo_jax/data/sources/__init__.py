"""The corpora: one module per corpus, and what they share."""
