"""How much of the order of sentences can be told from words alone? A logistic regression on a run's own pairs.

Features are which tokens stand in the first part and not in the second, or the other way round, and the same for the first two
tokens of each. What it reaches on the validation split is there for any model to find; what is at chance here will be hard
for a small one. Next sentences are a matter of both parts together, which such features cannot see: their row is a control.

    seedbed tokens recipes/sentence_order.yaml run=runs/order 'corpus.inputs=[path/to/text]' corpus.documents=line
    python benchmarks/pair_words.py runs/order
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from seedbed.data.pairs import PairKind, SentencePairView
from seedbed.data.store import TokenStore
from seedbed.data.views import RowReader

KINDS: tuple[PairKind, ...] = ("sentence_order", "next_sentence")
ROWS_AT_ONCE = 500


def main() -> None:
    """Fit one classifier for each task and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder with a token store")
    parser.add_argument("--row-length", type=int, default=125, help="tokens of both parts together")
    parser.add_argument("--train-pairs", type=int, default=30_000)
    parser.add_argument("--valid-pairs", type=int, default=4_000)
    options = parser.parse_args()
    store = TokenStore.open(options.run / "tokens")
    print("| task | training pairs | right | validation pairs | right | standard error |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        train = features(store, kind, "train", options.row_length, options.train_pairs)
        valid = features(store, kind, "validation", options.row_length, options.valid_pairs)
        model = LogisticRegression(C=0.05, max_iter=200).fit(*train)
        right, count = model.score(*valid), len(valid[1])
        error = math.sqrt(right * (1 - right) / count)
        print(
            f"| {kind} | {len(train[1]):,} | {model.score(*train):.1%} | {count:,} | {right:.1%} | {error:.1%} |"
        )


def features(
    store: TokenStore, kind: PairKind, split: str, length: int, most: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return signed word counts (pairs, 2 V) and labels (pairs,) of a split."""
    view = SentencePairView(store.split(split), length=length, kind=kind, seed=1)
    reader = RowReader(view, name="pair words", seed=0)
    count, size = min(most, view.num_rows), store.vocab_size
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for start in range(0, count, ROWS_AT_ONCE):
        rows, _ = reader.read(start, min(ROWS_AT_ONCE, count - start))
        assert rows.first_lengths is not None
        assert rows.labels is not None
        for ids, end, first in zip(rows.ids, rows.lengths.tolist(), rows.first_lengths.tolist(), strict=True):
            number = len(labels)
            for part, sign in ((ids[:first].tolist(), 1), (ids[first:end].tolist(), -1)):
                places += [(number, token, sign) for token in set(part)]
                places += [(number, token + size, sign) for token in part[:2]]
            labels.append(int(rows.labels[number - start]))
    row, column, value = zip(*places, strict=True)
    return sp.csr_matrix((value, (row, column)), shape=(count, 2 * size)), np.array(labels)


if __name__ == "__main__":
    main()
