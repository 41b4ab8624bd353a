"""Scores of a model on text: losses at fixed targets, bits per byte, and what the corpus alone makes possible."""
