"""Contrastive sentence vectors: a sentence lies near itself, or near its paraphrase, and far from the others of its group.

Source: SimCSE, T. Gao et al., arXiv 2104.08821: unsupervised (equation 4: the same sentence twice, with different dropout) and
supervised (equation 5: pairs, with hard negatives where there are some). Alignment and uniformity: T. Wang and P. Isola,
arXiv 2005.10242 (alpha 2, t 2).
Differs from SimCSE: negatives come from a group of fixed size that no micro-batch and no number of workers cuts, so that the loss
is the same however a step is spread; the hidden layer after [CLS], where there is one, serves while training only, for
supervised pairs too; masked LM, where asked for, hides tokens of the same batch instead of in a third pass; sentences come from
the store, cut at the row's length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.config import Config
from seedbed.data.draws import Draws
from seedbed.data.examples import Texts
from seedbed.data.sentences import SentenceView, TextGroupView
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import key_from
from seedbed.models.heads import LMHead
from seedbed.models.language_model import LanguageModel
from seedbed.models.pretraining_heads import Pooler, init_head
from seedbed.models.transformer import Transformer
from seedbed.objectives.base import (
    Answer,
    Objective,
    ObjectiveConfig,
    Prediction,
    Term,
    Vocabulary,
    cross_entropy,
)
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masking import Masking
from seedbed.objectives.task_rows import Frame, frame_of, frame_rows, mean_features
from seedbed.tasks import TaskConfig, TaskData, read_task

__all__ = ["Contrastive", "ContrastiveConfig", "PairFilesConfig", "contrastive_logits"]

Pooling = Literal["cls", "cls_mlp", "mean", "last"]


class PairFilesConfig(Config):
    """Say where pairs of sentences are that mean the same, and which column is which."""

    train: list[str] = Field(
        default_factory=list, description="Training files: TSV, CSV or JSON lines; .gz and .zst too."
    )
    dev: list[str] = Field(
        default_factory=list, description="Files to validate with. Empty: see dev_fraction."
    )
    dev_fraction: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Without dev files: share of the training pairs kept out, chosen by hash of the text.",
    )
    format: Literal["auto", "tsv", "csv", "jsonl"] = Field("auto", description="auto: by the file's ending.")
    has_header: bool = Field(True, description="TSV and CSV: the first line names the columns.")
    anchor: str | int = Field("sent0", description="Column of the sentence: its name, or its number from 0.")
    positive: str | int = Field("sent1", description="Column of a sentence that means the same.")
    negative: str | int | None = Field(
        None,
        description="Column of a sentence that looks alike and means something else (hard negative), or null.",
    )

    def task(self) -> TaskConfig:
        """Return the same as a task whose answer is the last of the columns."""
        columns: dict[str, Any] = {"text": self.anchor, "label": self.positive}
        if self.negative is not None:
            columns = {"text": self.anchor, "text_pair": self.positive, "label": self.negative}
        kept = self.model_dump(include={"train", "dev", "dev_fraction", "format", "has_header"})
        return TaskConfig(name="pairs", kind="generation", **kept, **columns)


class ContrastiveConfig(ObjectiveConfig):
    """Contrastive sentence vectors (SimCSE)."""

    source: ClassVar = "SimCSE (Gao et al., 2021, 2104.08821)"
    fits: ClassVar = ("encoder", "decoder")
    needs: ClassVar = (
        "sentence marks and model.hidden_dropout, or pairs of sentences of yours (objective.pairs)"
    )
    default_model: ClassVar = "modernbert"
    use: ClassVar = "sentence vectors for search and similarity, from a model that already knows the language"
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["contrastive"] = Field("contrastive", description="Contrastive sentence vectors.")
    group_rows: int = Field(
        64,
        ge=2,
        description="Sentences whose others are the negatives of each; never cut. SimCSE 64 (base), 512 for pairs.",
    )
    temperature: float = Field(0.05, gt=0.0, description="Cosines are divided by it (SimCSE 0.05).")
    pooling: Literal["auto", "cls", "cls_mlp", "mean", "last"] = Field(
        "auto",
        description="The vector of a sentence: its first token's state (cls), the same through a hidden layer that is thrown away"
        " after training (cls_mlp), the mean, or the last token's (decoders). auto: cls_mlp, or last for decoders.",
    )
    min_tokens: int = Field(
        4,
        ge=1,
        description="Shorter sentences are left out. Longer ones than data.row_length are cut: 32 is SimCSE's.",
    )
    pairs: PairFilesConfig | None = Field(
        None,
        description="Pairs that mean the same, from files (supervised). null: each sentence of the store with itself.",
    )
    masked_lm: MaskedLMConfig | None = Field(
        None,
        description="Also hide tokens of the sentences and predict them, so that the model keeps what it knows.",
    )
    masked_lm_weight: float = Field(0.1, gt=0.0, description="Weight of that loss (SimCSE 0.1).")

    @field_validator("masked_lm")
    @classmethod
    def _no_boundary(cls, nested: MaskedLMConfig | None) -> MaskedLMConfig | None:
        if nested is not None and nested.span_boundary:
            raise ValueError("span_boundary belongs to objective.name=masked_lm alone")
        return nested

    def files(self) -> list[str]:
        """Return the files of pairs."""
        return [] if self.pairs is None else [*self.pairs.train, *self.pairs.dev]

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> Contrastive:
        """Make the objective; see `ObjectiveConfig.build`. Reads the files of pairs, where there are some.

        Raises:
            TaskError: the files do not fit.
        """
        data = None if self.pairs is None else read_task(self.pairs.task())
        return Contrastive(self, vocabulary, row_length=row_length, is_segmented=is_segmented, data=data)


class Contrastive(Objective):
    """Term "contrastive": which of the group's sentences is the other view of this one. Also "masked_lm" where asked for.

    A batch of B rows holds all first views, then all second ones (then hard negatives, then rows with hidden tokens): K * B rows
    of the model, each with a row id of its own. So the two views of a sentence drop other values, in one pass.

    Args:
        data: pairs that were read, or None.
        is_fixed: without a dropout key one fixed key serves, so that the two views differ in evaluation too.
    """

    can_compare: ClassVar = False
    config: ContrastiveConfig

    def __init__(
        self,
        config: ContrastiveConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
        data: TaskData | None,
        is_fixed: bool = False,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self.data = data
        self.view = "sentences" if data is None else "sentence_groups"
        self.group_rows = config.group_rows
        self.terms = ("contrastive",) if config.masked_lm is None else ("contrastive", "masked_lm")
        self.answers: dict[str, Answer] = {"contrastive": "other"}
        self.is_fixed = is_fixed
        has_negatives = config.pairs is not None and config.pairs.negative is not None
        self.num_views = 3 if has_negatives else 2
        self._settle(is_causal=vocabulary.cls_id is None or vocabulary.sep_id is None)
        self.masking: Masking | None = None
        if config.masked_lm is not None:
            self.masking = Masking(
                config.masked_lm, vocabulary, row_length=self.raw_row_length, name=config.name
            )

    def _settle(self, *, is_causal: bool) -> None:
        """Learn how this model reads and what its vector of a sentence is."""
        self._frame: Frame = frame_of(self.vocabulary, is_causal=is_causal)
        pooling = self.config.pooling
        self._pooling: Pooling = ("last" if is_causal else "cls_mlp") if pooling == "auto" else pooling

    @property
    def speaks(self) -> Literal["fill_mask", "generate", "nothing"]:
        """Return that nothing is said where no masked LM trains the vocabulary's head."""
        return "nothing" if self.masking is None else super().speaks

    @property
    def pooling(self) -> Pooling:
        """Which vector of a sentence is trained; known once `check` has seen the model."""
        return self._pooling

    @property
    def raw_row_length(self) -> int:
        """T less the special tokens around a sentence."""
        return self.row_length - self._frame.num_special(is_pair=False)

    def check(self, model: Any) -> None:
        """Refuse what cannot be learned; learn how this model reads.

        Raises:
            ConfigError: no dropout to tell two views of a sentence apart, or a pooling that sees nothing.
        """
        super().check(model)
        self._settle(is_causal=model.is_causal)
        if self.data is None and not (model.hidden_dropout or model.attention_dropout):
            raise ConfigError(
                "without dropout the two views of a sentence are the same, and there is nothing to learn.",
                hint="model.hidden_dropout=0.1, or pairs of sentences: objective.pairs.train=[pairs.csv]",
            )
        if model.is_causal and self._pooling in ("cls", "cls_mlp"):
            raise ConfigError(
                f"a decoder's first token has seen nothing of the sentence; pooling={self._pooling} cannot work.",
                hint="objective.pooling=last or mean",
            )
        if model.is_causal and self.masking is not None:
            raise IncompatibleError(
                "masked LM needs a model that looks to both sides.",
                hint="objective.masked_lm=null, or an encoder",
            )

    def make_view(self, source: RowSource) -> View:
        """Return the sentences of a split, or the pairs of the files for it."""
        if self.data is None:
            return SentenceView(source.tokens, length=self.raw_row_length, min_tokens=self.config.min_tokens)
        if source.tokenizer is None:
            raise ConfigError("pairs of sentences need the tokenizer.", hint="train from a recipe")
        examples = self.data.splits["train" if source.split == "train" else "dev"]
        columns = [[e.text for e in examples], [str(e.label) for e in examples]]
        if self.num_views == 3:
            columns.insert(1, [e.text_pair or "" for e in examples])
        encoded = [Texts.encode(source.tokenizer, column) for column in columns]
        return TextGroupView(encoded, length=self.raw_row_length)

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return the trunk, the hidden layer of cls_mlp, and the vocabulary's head where masked LM trains it."""
        assert isinstance(trunk, Transformer)
        own: dict[str, nn.Module] = {"trunk": trunk}
        if self._pooling == "cls_mlp":
            own["projection"] = Pooler(trunk.config)
            init_head(own["projection"], trunk.config, seed)
        return own if self.masking is None else {**own, "head": head}

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return the trunk; with the vocabulary's head only where masked LM trained it on."""
        return LanguageModel(model.trunk, None if self.masking is None else cast(LMHead, model.head))

    def chance(self, term: str) -> float | None:
        """Return ln of the candidates: the group's second views, and its hard negatives."""
        return math.log(self.group_rows * (self.num_views - 1))

    def weights(self, progress: float) -> dict[str, float]:
        """Return 1, and the weight of masked LM."""
        return {term: self.config.masked_lm_weight if term == "masked_lm" else 1.0 for term in self.terms}

    def for_evaluation(self) -> Contrastive:
        """Return the same task with fixed dropout and standard masks, plain losses."""
        nested = None if self.masking is None else MaskedLMConfig(initial_mask_rate=None)
        fixed = Contrastive(
            self.config.updated(masked_lm=nested, label_smoothing=0.0, z_loss=0.0),
            self.vocabulary,
            row_length=self.row_length,
            is_segmented=self.is_segmented,
            data=self.data,
            is_fixed=True,
        )
        fixed._settle(is_causal=self._frame.is_causal)
        return fixed

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Stack the views of all sentences; a target's value is the place of its other view within its group."""
        if rows.part_lengths is None:
            views = [(rows.ids, rows.lengths)] * 2
        else:
            views = _parts(rows)
        masked = None
        if self.masking is not None:
            first = replace(
                rows, ids=views[0][0], marks=rows.marks[:, : views[0][0].shape[1]], lengths=views[0][1]
            )
            masked = self.masking(first, draws, progress=progress)
            views = [*views, (masked.ids, views[0][1])]
        count, width = len(rows.ids), max(ids.shape[1] for ids, _ in views)
        lengths = torch.cat([size for _, size in views])
        stacked = Rows(
            ids=torch.cat([F.pad(ids, (0, width - ids.shape[1])) for ids, _ in views]),
            marks=torch.zeros(len(lengths), width, dtype=torch.uint8),
            lengths=lengths,
            row_ids=torch.cat([rows.row_ids * len(views) + number for number in range(len(views))]),
            epochs=rows.epochs.repeat(len(views)),
            is_full=bool((lengths == width).all()),
        )
        batch, totals = frame_rows(stacked, self._frame)
        start = torch.arange(len(lengths)) * batch.input_ids.shape[1]
        at = (start + totals - 1 if self._pooling == "last" else start)[: count * self.num_views]
        targets = {
            "contrastive": Targets(at=at[:count], values=torch.arange(count) % self.group_rows),
            "contrastive.others": Targets(at=at[count:], values=torch.zeros_like(at[count:])),
        }
        if masked is not None:
            begin = 0 if self._frame.begin is None else 1
            places = start[-count:, None] + begin + torch.arange(masked.ids.shape[1])
            targets["masked_lm"] = masked.targets(places)
        return batch, targets

    def predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
    ) -> dict[str, Prediction]:
        """Return cosines over temperature as features, which the identity as head passes on as logits; and masked LM."""
        predictions, _ = self._predict(modules, batch, targets, dropout_key, embedding_delta)
        return predictions

    def losses(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        *,
        dropout_key: Tensor | None = None,
        embedding_delta: Tensor | None = None,
        with_details: bool = False,
    ) -> dict[str, Term]:
        """Return the summed losses; with details also alignment and uniformity, each summed over sentences."""
        predictions, vectors = self._predict(modules, batch, targets, dropout_key, embedding_delta)
        sections: dict[str, ObjectiveConfig] = {"contrastive": self.config}
        if self.config.masked_lm is not None:
            sections["masked_lm"] = self.config.masked_lm
        terms = {
            term: cross_entropy(
                prediction,
                label_smoothing=sections[term].label_smoothing,
                z_loss=sections[term].z_loss,
                with_details=with_details,
            )
            for term, prediction in predictions.items()
        }
        if with_details and "contrastive" in terms:
            term = terms["contrastive"]
            terms["contrastive"] = replace(term, sums={**term.sums, **_geometry(vectors)})
        return terms

    def _predict(
        self,
        modules: Mapping[str, nn.Module],
        batch: Batch,
        targets: Mapping[str, Targets],
        dropout_key: Tensor | None,
        embedding_delta: Tensor | None,
    ) -> tuple[dict[str, Prediction], Tensor]:
        """Return predictions, and unit vectors (views, groups, G, D)."""
        if dropout_key is None and self.is_fixed:
            dropout_key = key_from("contrastive, evaluation", device=batch.input_ids.device)
        trunk = modules["trunk"]
        options = {"dropout_key": dropout_key, "embedding_delta": embedding_delta}
        at = torch.cat([targets["contrastive"].at, targets["contrastive.others"].at])
        hidden_places = targets["masked_lm"].at if "masked_lm" in targets else at[:0]
        if self._pooling == "mean":
            states = trunk(batch, **options).last
            vectors = mean_features(states, batch)[: len(at)]
            masked = states.flatten(0, 1)[hidden_places]
        else:
            states = trunk(batch, **options, at=torch.cat([at, hidden_places])).last
            vectors, masked = states.split([len(at), len(hidden_places)])
        if "projection" in modules:
            vectors = modules["projection"](vectors)
        # In float32 whatever the rest runs in: a cosine of 1 in bfloat16 is off by 0.004, a logit by 0.08.
        with torch.autocast(vectors.device.type, enabled=False):
            unit = F.normalize(vectors.float(), dim=-1).view(
                self.num_views, -1, self.group_rows, vectors.shape[-1]
            )
            logits = contrastive_logits(unit, self.config.temperature)
        predictions = {"contrastive": Prediction(logits, nn.Identity(), targets["contrastive"])}
        if "masked_lm" in targets:
            predictions["masked_lm"] = Prediction(masked, modules["head"], targets["masked_lm"])
        return predictions, unit


def contrastive_logits(unit: Tensor, temperature: float) -> Tensor:
    """Return (groups * G, (views - 1) * G): the cosine of each first view with the other views of its group, over temperature.

    Args:
        unit: (views, groups, G, D) vectors of length 1.
        temperature: tau.
    """
    others = unit[1:].transpose(0, 1).flatten(1, 2)  # (groups, (views - 1) * G, D): second views first
    return (unit[0] @ others.transpose(1, 2) / temperature).flatten(0, 1)


def _geometry(unit: Tensor) -> dict[str, Tensor]:
    """Return alignment and uniformity, times the number of sentences.

    Alignment is the mean squared distance of a sentence's two views (0 to 4, lower is better). Uniformity is the log of the mean
    of exp(-2 d^2) over all pairs of different sentences of a group, mean over groups (0 to -4 or so, lower is better).
    BIAS: the log of a mean over few pairs is too low; a group of 64 has 2,016.
    """
    first, second = unit[0], unit[1]
    size = first.shape[1]
    pairs = torch.ones(size, size, dtype=torch.bool, device=first.device).triu(1)
    squares = (2 - 2 * first @ first.transpose(1, 2))[:, pairs]  # (groups, pairs)
    uniformity = (-2 * squares).logsumexp(dim=1) - math.log(squares.shape[1])
    return {
        "alignment": (first - second).square().sum(),
        "uniformity": uniformity.sum() * size,
    }


def _parts(rows: Rows) -> list[tuple[Tensor, Tensor]]:
    """Return ids (B, W) and lengths (B,) of each of the texts in rows."""
    assert rows.part_lengths is not None
    found = []
    starts = rows.part_lengths.cumsum(dim=1) - rows.part_lengths
    for start, lengths in zip(starts.unbind(1), rows.part_lengths.unbind(1), strict=True):
        column = torch.arange(max(1, int(lengths.max())))[None, :]
        inside = column < lengths[:, None]
        ids = rows.ids.gather(1, (start[:, None] + column).clamp(max=rows.shape[1] - 1))
        found.append((torch.where(inside, ids, 0), lengths))
    return found
