"""Documents to vocabulary: learn or load a tokenizer, and use it."""
