"""From documents to tokens: a sample for the vocabulary, then all of them as a stream, by several processes."""
