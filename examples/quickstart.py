"""Fill masks and continue texts from Python. `docs/use.md` shows the marked regions; the tests run them.

usage: python examples/quickstart.py MASKED_RUN CAUSAL_RUN
"""

from __future__ import annotations

import sys


def fill(run: str, text: str) -> None:
    """Print what a masked model proposes."""
    # --8<-- [start:fill]
    import seedbed

    model = seedbed.load(run)  # a run folder, its model folder, or a Hugging Face folder
    (candidates,) = model.fill_mask(text, top_k=3)  # one list for each [MASK]
    for candidate in candidates:
        print(f"{candidate.probability:.3f}  {candidate.token}  {candidate.text}")
    # --8<-- [end:fill]


def write(run: str, prompt: str) -> None:
    """Print how a causal model goes on."""
    # --8<-- [start:generate]
    import seedbed

    model = seedbed.load(run)
    print(model.generate(prompt, max_new_tokens=20, temperature=0.8, top_p=0.95, seed=1))
    print(model.generate(prompt, max_new_tokens=20, temperature=0))  # greedy
    # --8<-- [end:generate]


def compare(run: str, one: str, other: str) -> None:
    """Print how alike two texts are to a model."""
    # --8<-- [start:embed]
    import torch

    import seedbed

    model = seedbed.load(run)
    print(torch.cosine_similarity(model.embed(one), model.embed(other), dim=0).item())
    # --8<-- [end:embed]


if __name__ == "__main__":
    fill(sys.argv[1], "Alice was not a bit [MASK].")
    compare(sys.argv[1], "Alice was tired.", "The Queen was angry.")
    write(sys.argv[2], "Alice was")
