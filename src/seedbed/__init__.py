"""Pretrain a language model on your own text."""
