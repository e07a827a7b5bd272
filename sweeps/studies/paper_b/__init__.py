"""Less is More: Local Intrinsic Dimensions of Contextual Language Models (arXiv 2506.01034)."""
