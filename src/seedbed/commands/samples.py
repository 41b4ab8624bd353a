"""Take samples of a model on the validation text: what it fills in or goes on with, before and after training."""

from __future__ import annotations


def take_samples(*args, **kwargs):
    return []
