"""Write with a model: the decode loop, samplers, and filling masks. Ids in, ids out; text is the caller's."""

from __future__ import annotations

from seedbed.generation.decode import generate
from seedbed.generation.diffusion import diffuse
from seedbed.generation.fill import Filling, fill_mask
from seedbed.generation.samplers import Sampler

__all__ = ["Filling", "Sampler", "diffuse", "fill_mask", "generate"]
