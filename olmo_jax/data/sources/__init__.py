"""Where text comes from: one file per corpus, and what they share."""
