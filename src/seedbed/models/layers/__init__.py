"""Parts of a Transformer, each usable alone."""
