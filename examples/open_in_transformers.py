"""Open a seedbed model in Hugging Face transformers. `docs/use.md` shows the marked region; the tests run it.

usage: python examples/open_in_transformers.py RUN
"""

from __future__ import annotations

import sys


def predict(run: str, text: str) -> list[str]:
    """Return the five tokens transformers proposes for the first mask."""
    # --8<-- [start:transformers]
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{run}/model")
    model = AutoModelForMaskedLM.from_pretrained(f"{run}/model")
    inputs = tokenizer(text, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = model(**inputs).logits[0, place].topk(5).indices
    print(tokenizer.convert_ids_to_tokens(best))
    # --8<-- [end:transformers]
    return tokenizer.convert_ids_to_tokens(best)


if __name__ == "__main__":
    predict(sys.argv[1], "Alice was not a bit [MASK].")
