"""Distillation: a small model learns a base objective and what a frozen teacher makes of the same rows.

Sources: DistilBERT, Sanh et al. 2019, 1910.01108 (soft targets, the base objective, cosine of hidden states); TinyBERT, Jiao et
al. 2019, 1909.10351 (hidden states, embedding, attention scores, layer by layer); MiniLM, Wang et al. 2020, 2002.10957
(relations of the last layer's queries and keys, and of its values).
The base objective makes the batch and its targets, and its loss is computed from the same forward pass of the student.
The teacher runs without dropout or gradients and is never saved: path and content hash stand in the recipe.
Differs from the papers: every mean is over tokens of the whole step (TinyBERT's and MiniLM's are over a batch, padding
included); states are projected only where widths differ (TinyBERT always does); scores and relations are compared at the
pairs that may attend each other. Queries and keys are compared as they meet (rotated); biases of position are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.config import one_of
from seedbed.data.draws import Draws
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.hashing import key_from
from seedbed.models.config import TransformerConfig
from seedbed.models.folder import holds_model, read_model
from seedbed.models.language_model import LanguageModel
from seedbed.models.pretraining_heads import init_head
from seedbed.models.shrink import spread_layers, take_layers
from seedbed.models.transformer import Transformer
from seedbed.objectives.base import (
    Answer,
    Objective,
    ObjectiveConfig,
    Term,
    Vocabulary,
    count_targets,
    features_at,
)
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.denoising import DenoisingConfig
from seedbed.objectives.lexicon import check_digest, path_digest
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masked_next_token import MaskedNextTokenConfig
from seedbed.objectives.matching import cosine_distance, soft_targets
from seedbed.objectives.observation import INSIDE, Observed, Pair, captures
from seedbed.objectives.prefix_lm import PrefixLMConfig
from seedbed.objectives.span_corruption import SpanCorruptionConfig
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["BASES", "Distillation", "DistillationConfig"]

BASES: dict[str, type[ObjectiveConfig]] = {
    "causal_lm": CausalLMConfig,
    "denoising": DenoisingConfig,
    "masked_lm": MaskedLMConfig,
    "masked_next_token": MaskedNextTokenConfig,
    "prefix_lm": PrefixLMConfig,
    "span_corruption": SpanCorruptionConfig,
}
"""Objectives whose rows a teacher can answer too: those that predict tokens."""

if TYPE_CHECKING:
    Base = ObjectiveConfig
else:
    Base = one_of(BASES, default="masked_lm")

_METHODS: dict[str, dict[str, float]] = {
    "distilbert": {"labels": 2.0, "soft_targets": 5.0, "cosine": 1.0},
    "tinybert": {"hidden": 1.0, "embedding": 1.0, "attention": 1.0},
    "minilm": {"relations": 1.0},
}
"""Weights of the terms: DistilBERT's are those of its released code."""

_REAL = "real_tokens"
"""Key among the targets of the places that are not padding; no term of the loss."""


class DistillationConfig(ObjectiveConfig):
    """Distillation from a teacher (DistilBERT, TinyBERT, MiniLM)."""

    source: ClassVar = "DistilBERT (1910.01108); TinyBERT (1909.10351); MiniLM (2002.10957)"
    fits: ClassVar = ("encoder", "decoder", "encoder_decoder")
    needs: ClassVar = "a teacher of the same tokenizer; what the base objective needs"
    default_model: ClassVar = "distilbert"
    use: ClassVar = "a small model where a good large one exists"
    speaks: ClassVar[Literal["fill_mask"]] = "fill_mask"

    name: Literal["distillation"] = Field("distillation", description="Distillation from a teacher.")
    teacher: str = Field("", description="Folder of the teacher: a run, its model, or a Hugging Face folder.")
    teacher_digest: str | None = Field(
        None, description="Content hash of the teacher's folder; filled in, so that another one is refused."
    )
    of: Base = Field(
        default_factory=MaskedLMConfig,
        description="Base objective: makes the rows both read, and the labels. masked_lm, causal_lm, prefix_lm,"
        " masked_next_token, span_corruption or denoising.",
    )
    method: Literal["distilbert", "tinybert", "minilm"] = Field(
        "distilbert",
        description="Which weights stand where none is given. distilbert: labels 2, soft targets 5, cosine 1. tinybert: hidden,"
        " embedding and attention 1. minilm: relations 1. All others 0.",
    )
    label_weight: float | None = Field(None, ge=0.0, description="Weight of the base objective's own loss.")
    soft_target_weight: float | None = Field(
        None, ge=0.0, description="Weight of the teacher's distribution at the base objective's targets."
    )
    cosine_weight: float | None = Field(
        None, ge=0.0, description="Weight of 1 - cos of the last hidden states; same width needed."
    )
    hidden_weight: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the squared difference of hidden states, summed over matched layers.",
    )
    embedding_weight: float | None = Field(None, ge=0.0, description="The same, behind the embedding.")
    attention_weight: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the squared difference of attention scores; as many heads needed.",
    )
    relation_weight: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the divergence of last-layer relations: queries with keys, values with values.",
    )
    temperature: float = Field(2.0, gt=0.0, description="Softens both distributions of the soft targets.")
    layer_map: Literal["uniform", "last"] | list[int] = Field(
        "uniform",
        description="Which teacher layer each student layer matches: evenly (TinyBERT: every third of 12 for 4), the `last` ones,"
        " or a list of numbers from 1.",
    )
    relation_heads: int | None = Field(
        None,
        ge=1,
        description="Cut both models' heads anew into this many before relations are taken (MiniLMv2's way), so that"
        " their numbers may differ. null: heads as they are.",
    )
    initialise: Literal["random", "teacher"] = Field(
        "random",
        description="`teacher`: the student starts from evenly chosen layers of the teacher, its embeddings and head;"
        " all but the depth must be the teacher's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _pin_teacher(cls, data: Any) -> Any:
        """Fill in what the teacher's folder holds now, so that a run resumed with another is refused."""
        if isinstance(data, Mapping) and data.get("teacher") and data.get("teacher_digest") is None:
            return {**data, "teacher_digest": path_digest(str(_model_folder(str(data["teacher"]))))}
        return data

    @model_validator(mode="after")
    def _some_weight(self) -> DistillationConfig:
        if not any(self.term_weights().get(term) for term in ("soft_targets", "cosine", *INSIDE)):
            raise ValueError("every weight that asks the teacher is 0; train the base objective instead")
        return self

    def term_weights(self) -> dict[str, float]:
        """Return the weight of the labels and of each term that asks the teacher; those of 0 are left out."""
        given = {
            "labels": self.label_weight,
            "soft_targets": self.soft_target_weight,
            "cosine": self.cosine_weight,
            "hidden": self.hidden_weight,
            "embedding": self.embedding_weight,
            "attention": self.attention_weight,
            "relations": self.relation_weight,
        }
        usual = _METHODS[self.method]
        weights = {term: usual.get(term, 0.0) if weight is None else weight for term, weight in given.items()}
        return {term: weight for term, weight in weights.items() if weight}

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> Distillation:
        """Make the objective and read the teacher; see `ObjectiveConfig.build`.

        Raises:
            ConfigError: no teacher is named.
            DataError, IntegrityError: there is none, or its files are not those the recipe was resolved with.
            IncompatibleError: its tokenizer is another.
        """
        if not self.teacher:
            raise ConfigError(
                "objective distillation has no teacher.",
                hint="objective.teacher=runs/large, or a model folder",
            )
        folder = _model_folder(self.teacher)
        check_digest(str(folder), self.teacher_digest, "teacher")
        model, _ = read_model(folder)
        if vocabulary.digest is not None:
            found = Tokenizer.load(folder).digest
            if found != vocabulary.digest:
                raise IncompatibleError(
                    f"the teacher {folder} has another tokenizer ({found[:12]}, here {vocabulary.digest[:12]}).",
                    hint=f"tokenizer.path={folder}, so that both read the same ids",
                )
        base = self.of.build(vocabulary, row_length=row_length, is_segmented=is_segmented)
        return Distillation(self, base, model)


class Distillation(Objective):
    """Train a student beside a frozen teacher; terms of the base objective, then those of the teacher that have a weight."""

    can_compare: ClassVar = False
    config: DistillationConfig

    def __init__(self, config: DistillationConfig, base: Objective, teacher: LanguageModel) -> None:
        super().__init__(config, base.vocabulary, row_length=base.row_length, is_segmented=base.is_segmented)
        self.base = base
        self.teacher = teacher.requires_grad_(False).eval()
        self.view, self.group_rows = base.view, base.group_rows
        given = config.term_weights()
        self.uses_head = bool(given.keys() & {"labels", "soft_targets"})
        asked = {term: weight for term, weight in given.items() if term != "labels"}
        own = base.weights(1.0) if self.uses_head else {}
        self.terms = (*own, *asked)
        self._label_weight, self._asked = given.get("labels", 0.0), asked
        self.answers: Mapping[str, Answer] = {**base.answers, **dict.fromkeys(asked, "other")}

    @property
    def raw_row_length(self) -> int:
        """As of the base objective."""
        return self.base.raw_row_length

    def make_view(self, source: RowSource) -> View:
        """Return the base objective's view."""
        return self.base.make_view(source)

    def check(self, model: Any) -> None:
        """Refuse students the base objective does not fit, and pairs of student and teacher that cannot be compared."""
        super().check(model)
        self.base.check(model)
        teacher, asked = self.teacher.config, self._asked
        if teacher.stack != model.stack:
            self._refuse(
                f"the teacher is of kind {teacher.stack}, the student {model.stack}", "choose alike ones"
            )
        if teacher.vocab_size < self.vocabulary.vocab_size or teacher.max_length < self.row_length:
            self._refuse(
                f"the teacher has {teacher.vocab_size} tokens and reads {teacher.max_length} of them, the rows need"
                f" {self.vocabulary.vocab_size} and {self.row_length}",
                "lower data.row_length, or use another teacher",
            )
        if model.stack == "encoder_decoder" and (inside := [term for term in INSIDE if term in asked]):
            self._refuse(
                f"{', '.join(inside)} compare the layers of one stack, an encoder-decoder has two",
                "objective.method=distilbert with these weights 0",
            )
        if "soft_targets" in asked and self.teacher.head is None:
            self._refuse("the teacher has no language-model head", "objective.soft_target_weight=0")
        if "cosine" in asked and teacher.hidden_size != model.hidden_size:
            self._refuse(
                f"cosine compares states of one width, not {model.hidden_size} and {teacher.hidden_size}",
                "objective.cosine_weight=0 objective.hidden_weight=1, which projects",
            )
        if "attention" in asked and teacher.num_heads != model.num_heads:
            self._refuse(
                f"attention compares head with head, not {model.num_heads} with {teacher.num_heads}",
                f"model.num_heads={teacher.num_heads}, or objective.attention_weight=0",
            )
        if "relations" in asked:
            self._check_relations(model)
        if asked.keys() & {"hidden", "attention"}:
            self.matched_layers(model.num_layers)

    def matched_layers(self, num_layers: int) -> list[int]:
        """Return the teacher's layer, from 1, for each of the student's.

        Raises:
            IncompatibleError: the map does not fit the two depths.
        """
        deep, chosen = self.teacher.config.num_layers, self.config.layer_map
        if isinstance(chosen, list):
            if len(chosen) != num_layers or not all(1 <= layer <= deep for layer in chosen):
                self._refuse(
                    f"layer_map {chosen} does not name a layer of 1 to {deep} for each of {num_layers}",
                    "objective.layer_map=uniform",
                )
            return chosen
        if num_layers > deep:
            self._refuse(
                f"the student has {num_layers} layers, the teacher {deep}",
                "name a list as objective.layer_map",
            )
        if chosen == "last":
            return list(range(deep - num_layers + 1, deep + 1))
        return [round((layer + 1) * deep / num_layers) for layer in range(num_layers)]

    def layout_nats(self, term: str, targets: Targets) -> float:
        """Return the base objective's."""
        return self.base.layout_nats(term, targets) if term in self.base.terms else 0.0

    def for_evaluation(self) -> Distillation:
        """Return the same terms over the base objective's evaluation."""
        return Distillation(self.config, self.base.for_evaluation(), self.teacher)

    def weights(self, progress: float) -> dict[str, float]:
        """Return the base objective's weights times the labels', and those of the teacher's terms."""
        own = self.base.weights(progress) if self.uses_head else {}
        return {**{term: self._label_weight * weight for term, weight in own.items()}, **self._asked}

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return what the base objective trains, and projections where the teacher is wider."""
        if self.config.initialise == "teacher":
            self._start(trunk, head)
        modules = self.base.modules(trunk, head, seed=seed)
        if not self.uses_head:
            modules.pop("head", None)
        student: TransformerConfig = trunk.config  # type: ignore[assignment]
        width, wanted = student.hidden_size, self.teacher.config.hidden_size
        if width != wanted:
            for term in ("hidden", "embedding"):
                if term in self._asked:
                    projection = nn.Linear(width, wanted, bias=False)
                    init_head(projection, student, int(key_from(seed, term)) & 0x7FFFFFFF)
                    modules[f"{term}_projection"] = projection
        return modules

    def frozen(self) -> dict[str, nn.Module]:
        """Return the teacher, trunk and head."""
        return {"teacher": self.teacher}

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return the student; without its head where nothing trained that."""
        exported = self.base.exported(model, modules)
        return exported if self.uses_head else LanguageModel(exported.trunk, None)

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Return the base objective's batch and targets, and the places that are not padding."""
        batch, targets = self.base.make_batch(rows, draws, progress=progress)
        ids, segments = batch.input_ids, batch.segment_ids
        if batch.decoder_input_ids is not None:
            ids, segments = batch.decoder_input_ids, batch.decoder_segment_ids
        at = torch.arange(ids.numel()) if segments is None else segments.flatten().nonzero().squeeze(1)
        return batch, {**targets, _REAL: Targets(at, torch.zeros_like(at))}

    def counts(self, targets: Mapping[str, Targets]) -> dict[str, float]:
        """Return the base objective's counts; soft targets have as many as its first term, all else a token each."""
        own = {term: target for term, target in targets.items() if term != _REAL}
        counts = self.base.counts(own)
        real = count_targets(targets[_REAL])
        asked = {term: counts[self.base.terms[0]] if term == "soft_targets" else real for term in self._asked}
        return {term: count for term, count in {**counts, **asked}.items() if term in self.terms}

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
        """Run the student once and the teacher once; with details soft targets also sum `agreed` (same best token)."""
        teacher = modules["teacher"]
        assert isinstance(teacher, LanguageModel)
        trunk: Any = modules["trunk"]
        num_layers = trunk.config.num_layers
        matched = self.matched_layers(num_layers) if self._asked.keys() & {"hidden", "attention"} else []
        needed = captures(self._asked, range(1, len(matched) + 1), num_layers)
        needs_last = "cosine" in self._asked
        student = Observed(trunk, needed, is_whole=needs_last or f"hidden.{num_layers}" in needed)
        names = {name: module for name, module in modules.items() if name != "teacher"}
        own = {term: target for term, target in targets.items() if term != _REAL}
        nowhere = torch.zeros(0, dtype=torch.int64, device=batch.input_ids.device)
        terms: dict[str, Term] = {}
        if self.uses_head:
            terms = self.base.losses(
                {**names, "trunk": student},
                batch,
                own,
                dropout_key=dropout_key,
                embedding_delta=embedding_delta,
                with_details=with_details,
            )
        else:
            student(batch, at=nowhere, dropout_key=dropout_key, embedding_delta=embedding_delta)
        assert student.hidden is not None
        needed = captures(self._asked, matched, teacher.config.num_layers)
        at = None
        if not needs_last and f"hidden.{teacher.config.num_layers}" not in needed:
            at = targets[self.base.terms[0]].at if "soft_targets" in self._asked else nowhere
        with torch.no_grad():
            asked = teacher.trunk(batch, capture=needed, at=at)
        seen = Pair(student.hidden, asked, trunk.config, teacher.config)

        real = targets[_REAL]
        for term in self._asked:
            if term == "soft_targets":
                target = targets[self.base.terms[0]]
                terms[term] = self._soft(modules["head"], teacher, seen, target, with_details)
            elif term == "cosine":
                states = (features_at(hidden, real) for hidden in (seen.student, seen.teacher))
                terms[term] = Term(cosine_distance(*states).sum(), {})
            elif term == "embedding":
                error = seen.state_error(modules.get("embedding_projection"), 0, 0, real.at)
                terms[term] = Term(error.sum(), {})
            elif term == "hidden":
                projection = modules.get("hidden_projection")
                errors = [
                    seen.state_error(projection, layer, other, real.at).sum()
                    for layer, other in enumerate(matched, start=1)
                ]
                terms[term] = Term(torch.stack(errors).sum(), {})
            else:
                each = (
                    seen.relation_error(batch, self.config.relation_heads)
                    if term == "relations"
                    else seen.attention_error(batch, matched)
                )
                terms[term] = Term(each.flatten()[real.at].sum(), {})
        return terms

    def _soft(
        self, head: nn.Module, teacher: LanguageModel, seen: Pair, target: Targets, with_details: bool
    ) -> Term:
        size = self.vocabulary.vocab_size
        own = head(features_at(seen.student, target))[:, :size]
        with torch.no_grad():
            other = teacher.logits(features_at(seen.teacher, target))[:, :size]
        per_target = soft_targets(own, other, temperature=self.config.temperature)
        weight = torch.ones_like(per_target) if target.weights is None else target.weights
        loss = (weight * per_target).sum()
        if not with_details:
            return Term(loss, {})
        agreed = (weight * (own.argmax(dim=1) == other.argmax(dim=1))).sum()
        return Term(loss, {"agreed": agreed}, per_target)

    def _check_relations(self, model: Any) -> None:
        teacher, heads = self.teacher.config, self.config.relation_heads
        widths = [config.num_heads * config.head_dim for config in (teacher, model)]
        if heads is None and teacher.num_heads != model.num_heads:
            self._refuse(
                f"relations compare head with head, not {model.num_heads} with {teacher.num_heads}",
                f"objective.relation_heads={math.gcd(*widths)} cuts both anew, or model.num_heads={teacher.num_heads}",
            )
        if heads is not None and any(width % heads for width in widths):
            self._refuse(
                f"heads of width {widths[0]} and {widths[1]} cannot be cut into {heads}",
                f"objective.relation_heads={math.gcd(*widths)} or a divisor of it",
            )

    def _start(self, student: nn.Module, head: nn.Module) -> None:
        """Give the student evenly chosen layers of the teacher, its embeddings and its head."""
        teacher = self.teacher
        if not isinstance(student, Transformer) or not isinstance(teacher.trunk, Transformer):
            self._refuse(
                "a student of two stacks cannot start from a teacher's layers", "objective.initialise=random"
            )
        take_layers(
            student, teacher.trunk, spread_layers(teacher.config.num_layers, student.config.num_layers)
        )
        if teacher.head is None:
            return
        sources = dict(teacher.head.named_parameters())
        tied = student.embedding.token.weight
        for name, parameter in head.named_parameters():
            if parameter is tied:
                continue
            if name not in sources or sources[name].shape != parameter.shape:
                self._refuse(
                    f"the teacher's head has no {name} {tuple(parameter.shape)}",
                    "objective.initialise=random",
                )
            with torch.no_grad():
                parameter.copy_(sources[name])

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise IncompatibleError(f"objective distillation: {what}.", hint=hint)


def _model_folder(path: str) -> Path:
    """Return the folder of the model meant by a run folder or a model folder."""
    folder = Path(path).expanduser()
    return folder / "model" if holds_model(folder / "model") else folder
