"""Published models, really trained: the measurements of both papers on each."""
