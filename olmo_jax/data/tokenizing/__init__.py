"""Tokenise documents in several processes: first a sample to train the tokenizer on, then all of them."""
