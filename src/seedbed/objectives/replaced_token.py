"""Replaced-token detection: a small generator fills masked places, the trunk says which tokens are not the text's.

Source: ELECTRA, Clark et al. 2020, arXiv 2003.10555; the gradient-disentangled embedding of DeBERTaV3, He et al. 2021,
arXiv 2111.09543, section 3.2.
The generator is derived from the trunk's description (narrower, perhaps shallower) and shares its embedding tables.
It learns by masked language modelling; a token is sampled from it at every masked place; the trunk reads the row with
the samples in it and answers at every token that is not padding, [CLS] and separators included. Nothing flows back
through the sampling. A sample that happens to be the original token counts as original.
Differs from the released code: masked places are distinct and their number exact (there they are drawn with replacement);
samples are drawn by inverting the distribution function at a counter-hash draw of (row, position), so that no generator
of random numbers is involved and evaluation repeats exactly; the generator's heads are as wide as the trunk's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.views import Rows
from seedbed.hashing import fold, key_from
from seedbed.models.config import TransformerConfig
from seedbed.models.language_model import LanguageModel, build_model
from seedbed.models.layers.embedding import detach_tables, share_tables
from seedbed.models.pretraining_heads import ReplacedTokenHead, init_head
from seedbed.models.transformer import Transformer
from seedbed.models.trunks import make_trunk
from seedbed.objectives.base import (
    Answer,
    Objective,
    ObjectiveConfig,
    Prediction,
    Term,
    Vocabulary,
    count_targets,
    cross_entropy,
)
from seedbed.objectives.masking import Masking, MaskingConfig
from seedbed.objectives.rows import dense_batch, places_behind

__all__ = ["ReplacedToken", "ReplacedTokenConfig", "copy_loss", "generator_config", "sample_tokens"]

Task = Literal["detect", "detect_masked", "replace_mlm", "all_tokens_mlm"]

_TERMS: dict[Task, str] = {
    "detect": "replaced_token",
    "detect_masked": "replaced_token",
    "replace_mlm": "replace_mlm",
    "all_tokens_mlm": "all_tokens_mlm",
}
_DRAWS = "sampling"
"""Key among the targets of the draws that choose the samples; no term of the loss."""


class ReplacedTokenConfig(MaskingConfig, ObjectiveConfig):
    """Replaced-token detection (ELECTRA)."""

    source: ClassVar = "ELECTRA (Clark et al., 2020, 2003.10555); DeBERTaV3 (He et al., 2021, 2111.09543)"
    fits: ClassVar = ("encoder",)
    needs: ClassVar = "windows of text, a mask token; word marks for whole words"
    default_model: ClassVar = "modernbert"
    use: ClassVar = "understanding at a given compute: every token is a target; the model fills no masks"

    name: Literal["replaced_token"] = Field("replaced_token", description="Replaced-token detection.")
    initial_mask_rate: float | None = Field(
        None, gt=0.0, lt=1.0, description="Rate at the start, falling linearly to mask_rate. null: constant."
    )
    mask_share: float = Field(
        0.85,
        ge=0.0,
        le=1.0,
        description="Share of the chosen tokens the generator sees as [MASK]. The paper's text says all; its code hides 0.85.",
    )
    random_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share the generator sees as a random token; the rest it sees as they are.",
    )
    task: Task = Field(
        "detect",
        description="What the trunk learns: `detect` every token, ELECTRA; `detect_masked` at the masked places only;"
        " `replace_mlm` the originals at the masked places; `all_tokens_mlm` the originals everywhere, with a copy gate"
        " (table 5 of the paper; the last costs logits at every place).",
    )
    generator_size: float = Field(
        0.25,
        gt=0.0,
        le=1.0,
        description="Width, heads and feed-forward width of the generator, relative to the trunk.",
    )
    generator_layers: float = Field(
        1.0, gt=0.0, le=1.0, description="Depth of the generator, relative to the trunk."
    )
    embedding_sharing: Literal["shared", "gradient_disentangled", "none"] = Field(
        "shared",
        description="`shared`: one set of tables trained by both losses (ELECTRA). `gradient_disentangled`: the trunk's are"
        " the generator's, kept from its gradient, plus a difference of its own that starts at 0 (DeBERTaV3)."
        " `none`: two sets.",
    )
    temperature: float = Field(
        1.0, gt=0.0, description="Divides the generator's logits where samples are drawn."
    )
    generator_weight: float = Field(1.0, ge=0.0, description="Weight of the generator's loss.")
    trunk_weight: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the trunk's loss. null: 50 for detection (ELECTRA), 1 for the MLM tasks.",
    )

    @model_validator(mode="after")
    def _tables_fit_the_task(self) -> ReplacedTokenConfig:
        if self.embedding_sharing == "gradient_disentangled" and self.task.endswith("mlm"):
            raise ValueError(
                f"embedding_sharing gradient_disentangled goes with detection, not with task {self.task},"
                " whose head is tied to the table; use shared or none"
            )
        return self

    @property
    def stands_alone(self) -> str:
        """Say that a table made of a difference is no use to a head that is tied to it."""
        if self.embedding_sharing != "gradient_disentangled":
            return ""
        return "its tables are differences, which a tied head cannot read; choose embedding_sharing shared or none"

    @property
    def loss_weight(self) -> float:
        """Return the weight of the trunk's loss."""
        if self.trunk_weight is not None:
            return self.trunk_weight
        return 50.0 if self.task.startswith("detect") else 1.0

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> ReplacedToken:
        """Make the objective; see `ObjectiveConfig.build`."""
        return ReplacedToken(self, vocabulary, row_length=row_length, is_segmented=is_segmented)


class ReplacedToken(Objective):
    """Train a generator and a discriminator; terms "generator" and, by the task, "replaced_token" or the name of an MLM.

    The targets of the trunk's term hold the original tokens of all its places: how many there are is known before any
    forward pass, which of them were replaced only after the generator has answered.
    """

    can_compare: ClassVar = False
    is_stationary: ClassVar = False  # the better the generator, the harder what the trunk is asked
    answers: Mapping[str, Answer] = {"replaced_token": "other"}
    config: ReplacedTokenConfig

    def __init__(
        self, config: ReplacedTokenConfig, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        self.term = _TERMS[config.task]
        self.terms = ("generator", self.term)
        self._num_prefix = 0 if vocabulary.cls_id is None else 1
        self.masking = Masking(config, vocabulary, row_length=self.raw_row_length, name=config.name)

    @property
    def raw_row_length(self) -> int:
        """T less the [CLS] that begins a row."""
        return self.row_length - self._num_prefix

    def check(self, model: Any) -> None:
        """Refuse what is no encoder, and shapes no generator can be derived from."""
        super().check(model)
        generator_config(model, self.config)

    def for_evaluation(self) -> ReplacedToken:
        """Return the same task with a constant rate and without smoothing or z-loss."""
        fixed = self.config.updated(initial_mask_rate=None, label_smoothing=0.0, z_loss=0.0)
        return ReplacedToken(
            fixed, self.vocabulary, row_length=self.row_length, is_segmented=self.is_segmented
        )

    def weights(self, progress: float) -> dict[str, float]:
        """Return 1 for the generator and 50 for detection, unless the config says otherwise."""
        return {"generator": self.config.generator_weight, self.term: self.config.loss_weight}

    def chance(self, term: str) -> float | None:
        """Return the entropy of "replaced" under a generator that is never right: the most detection can cost a constant answer.

        What it costs under the generator at hand is lower, and reported as `entropy` beside the share replaced.
        """
        if self.config.task == "detect":
            length = self.raw_row_length
            return _entropy(
                torch.tensor(max(1, round(self.config.mask_rate * length)) / self.row_length)
            ).item()
        return None

    def modules(self, trunk: nn.Module, head: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
        """Return the trunk, the generator with its head, and the head of the task."""
        assert isinstance(trunk, Transformer)
        config = generator_config(trunk.config, self.config)
        model = build_model(config, seed=_derived(seed, "generator"))
        assert model.head is not None
        if self.config.embedding_sharing == "shared":
            share_tables(model.trunk.embedding, trunk.embedding)
        elif self.config.embedding_sharing == "gradient_disentangled":
            detach_tables(trunk.embedding, base=model.trunk.embedding)
        if config.tie_embeddings:
            model.head.weight = model.trunk.embedding.token.weight
        modules: dict[str, nn.Module] = {
            "trunk": trunk,
            "generator": model.trunk,
            "generator_head": model.head,
        }
        if self.config.task.startswith("detect"):
            detector = ReplacedTokenHead(trunk.config)
            init_head(detector, trunk.config, _derived(seed, "replaced_token head"))
            return {**modules, "replaced_token": detector}
        modules["head"] = head
        if self.config.task == "all_tokens_mlm":
            gate = nn.Linear(trunk.config.hidden_size, 1)
            init_head(gate, trunk.config, _derived(seed, "copy gate"))
            modules["copy_gate"] = gate
        return modules

    def exported(self, model: LanguageModel, modules: Mapping[str, nn.Module]) -> LanguageModel:
        """Return the trunk with its replaced-token head, tables summed; for the MLM tasks with its language-model head."""
        if "replaced_token" not in modules:
            return model
        trunk = make_trunk(model.config)
        with torch.no_grad():
            for name, parameter in trunk.named_parameters():
                path, _, leaf = name.rpartition(".")
                parameter.copy_(getattr(model.trunk.get_submodule(path), leaf))
        return LanguageModel(trunk, None, {"replaced_token": modules["replaced_token"]})

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Mask rows for the generator; remember all originals, and a draw for each sample."""
        num_rows, length = rows.shape
        masked = self.masking(rows, draws, progress=progress)
        batch = dense_batch(
            masked.ids,
            rows,
            prefix_id=self.vocabulary.cls_id,
            pad_id=self.vocabulary.pad_id,
            is_segmented=self.is_segmented,
        )
        places = places_behind(rows, self._num_prefix)
        generator = masked.targets(places)
        samples = draws.positions("replaced_token sample", length).gather(1, masked.column)
        unsigned = samples.reshape(-1).to(torch.int64) & 0xFFFFFFFF
        targets = {"generator": generator, _DRAWS: Targets(generator.at, unsigned)}
        if self.config.task in ("detect_masked", "replace_mlm"):
            targets[self.term] = generator
        else:
            original = batch.input_ids.flatten().scatter(0, generator.at, generator.values)
            weights = None
            if not rows.is_full:
                column = torch.arange(batch.input_ids.shape[1])
                weights = (column < rows.lengths[:, None] + self._num_prefix).float().flatten()
            at = torch.arange(num_rows * batch.input_ids.shape[1])
            targets[self.term] = Targets(at, original, weights)
        return batch, targets

    def counts(self, targets: Mapping[str, Targets]) -> dict[str, float]:
        """Return the masked places, and those the trunk answers at."""
        return {term: count_targets(targets[term]) for term in self.terms if term in targets}

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
        """Ask the generator, put its samples into the rows, ask the trunk.

        With details "generator" also sums `sampled_correct` (samples that are the original token), and detection
        `replaced`, `flagged` (answers "replaced"), `found` (both) and `entropy` (of the share replaced, times the
        targets): recall is found / replaced, precision found / flagged.
        """
        generator, own = targets["generator"], targets[self.term]
        key = None if dropout_key is None else fold(dropout_key, 1)
        hidden = modules["generator"](batch, dropout_key=key, at=generator.at)
        logits = modules["generator_head"](hidden.last).float()
        samples = sample_tokens(
            logits.detach()[:, : self.vocabulary.vocab_size],
            targets[_DRAWS].values,
            temperature=self.config.temperature,
        )
        if generator.weights is not None:
            samples = torch.where(generator.weights > 0, samples, generator.values)
        ids = batch.input_ids.flatten().scatter(0, generator.at, samples)

        is_everywhere = own.at.shape[0] == ids.shape[0]
        hidden = modules["trunk"](
            replace(batch, input_ids=ids.view_as(batch.input_ids)),
            dropout_key=dropout_key,
            embedding_delta=embedding_delta,
            at=None if is_everywhere else own.at,
        )
        features = hidden.last.flatten(0, 1) if is_everywhere else hidden.last
        seen = ids if is_everywhere else ids[own.at]
        term = self._cross_entropy(Prediction(logits, nn.Identity(), generator), with_details)
        if with_details:
            weight = _weights(generator)
            hits = (weight * (samples == generator.values)).sum()
            term = replace(term, sums={**term.sums, "sampled_correct": hits})
        return {"generator": term, self.term: self._answer(modules, features, seen, own, with_details)}

    def _answer(
        self,
        modules: Mapping[str, nn.Module],
        features: Tensor,
        seen: Tensor,
        own: Targets,
        with_details: bool,
    ) -> Term:
        """Return the trunk's term at its places, where it saw the tokens `seen`."""
        if self.config.task == "replace_mlm":
            return self._cross_entropy(Prediction(features, modules["head"], own), with_details)
        if self.config.task == "all_tokens_mlm":
            return copy_loss(
                modules["head"], modules["copy_gate"], features, seen, own, with_details=with_details
            )
        logits = modules["replaced_token"](features).float().squeeze(1)
        is_replaced = (seen != own.values).float()
        weight = _weights(own)
        per_target = F.binary_cross_entropy_with_logits(logits, is_replaced, reduction="none")
        loss = (weight * per_target).sum()
        if not with_details:
            return Term(loss, {})
        flagged = (logits > 0).float()
        num_replaced = (weight * is_replaced).sum()
        sums = {
            "correct": (weight * (flagged == is_replaced)).sum(),
            "replaced": num_replaced,
            "flagged": (weight * flagged).sum(),
            "found": (weight * flagged * is_replaced).sum(),
            # BIAS: of each batch's own share, so below the whole set's by about 1 / (2 targets of a batch): 1e-4.
            "entropy": _entropy(num_replaced / weight.sum()) * weight.sum(),
        }
        return Term(loss, sums, per_target)

    def _cross_entropy(self, prediction: Prediction, with_details: bool) -> Term:
        config = self.config
        return cross_entropy(
            prediction,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
            with_details=with_details,
        )


def generator_config(trunk: TransformerConfig, config: ReplacedTokenConfig) -> TransformerConfig:
    """Return the generator's description: the trunk's, with fewer heads of the same width, and tables as wide as the trunk's.

    Heads are rounded to the nearest number and at least one; width and feed-forward width follow them.
    """
    heads = max(1, round(trunk.num_heads * config.generator_size))
    groups = next(g for g in range(min(trunk.num_kv_heads, heads), 0, -1) if heads % g == 0)
    width = trunk.hidden_size * heads // trunk.num_heads
    width += width % 2
    changes: dict[str, Any] = {
        "family": "native",
        "num_heads": heads,
        "num_kv_heads": groups,
        "hidden_size": width,
        "ffn_size": max(1, round(trunk.ffn_size * heads / trunk.num_heads)),
        "embedding_size": trunk.embedding_width if trunk.embedding_width != width else 0,
        "head_transform": True,
        "query_stream": False,
        "initialisation_std": trunk.initialisation_std,
    }
    layers = max(1, round(trunk.num_layers * config.generator_layers))
    if layers != trunk.num_layers:
        changes |= {"num_layers": layers, "num_layer_groups": 0, "layers_per_group": 1}
    return trunk.updated(**changes)


def sample_tokens(logits: Tensor, draws: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Draw a token from each row of logits by inverting its distribution function.

    Args:
        logits: (N, V) float32.
        draws: (N,) int64, uniform in [0, 2^32).
        temperature: divides the logits.

    Returns:
        (N,) int64 ids. The same logits and draws give the same ids; a probability below 6e-8 (float32) counts as 0.
    """
    probabilities = torch.softmax(logits / temperature, dim=1)
    if logits.device.type != "cpu":
        return _invert_exactly(probabilities, draws)
    function = probabilities.cumsum(dim=1)
    total = function[:, -1:]
    uniform = (draws.double() / 2**32).to(function.dtype)[:, None] * total
    uniform = torch.minimum(
        uniform, torch.nextafter(total, torch.zeros_like(total))
    )  # rounding may reach the total
    return torch.searchsorted(function, uniform, right=True).squeeze(1)


def _invert_exactly(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Do the same with integers of 2^-30: CUDA adds floats up in no fixed order, which the deterministic mode refuses.

    CPUs keep the sums of floats that published runs were drawn with.
    """
    function = (probabilities * 2**30).long().cumsum(dim=1)
    below = (draws[:, None] * function[:, -1:]) >> 32
    return torch.searchsorted(function, below, right=True).squeeze(1)


def copy_loss(
    head: nn.Module,
    gate: nn.Module,
    features: Tensor,
    seen: Tensor,
    targets: Targets,
    *,
    with_details: bool = False,
) -> Term:
    """Return the loss of "copy what is there with probability g, else predict": -log(g [seen = y] + (1 - g) p(y)).

    Args:
        head: (N, D) -> (N, V) logits.
        gate: (N, D) -> (N, 1) logit of g.
        features: (N, D).
        seen: (N,) ids the model read.
        targets: the original ids.
        with_details: also sum `correct` (the likelier of copy and best prediction is right) and keep losses.
    """
    logits = head(features).float()
    copies = gate(features).float().squeeze(1)
    log_probabilities = logits.log_softmax(dim=1)
    own = log_probabilities.gather(1, targets.values[:, None]).squeeze(1) + F.logsigmoid(-copies)
    copied = F.logsigmoid(copies).masked_fill(seen != targets.values, float("-inf"))
    per_target = -torch.logaddexp(own, copied)
    weight = _weights(targets)
    loss = (weight * per_target).sum()
    if not with_details:
        return Term(loss, {})
    mixed = (log_probabilities + F.logsigmoid(-copies)[:, None]).exp()
    mixed = mixed.scatter_add(1, seen[:, None], torch.sigmoid(copies)[:, None])
    correct = (weight * (mixed.argmax(dim=1) == targets.values)).sum()
    return Term(loss, {"correct": correct}, per_target)


def _weights(targets: Targets) -> Tensor:
    if targets.weights is not None:
        return targets.weights
    return torch.ones(targets.at.shape, device=targets.at.device)


def _entropy(share: Tensor) -> Tensor:
    """Return the entropy of a yes with this probability, nats."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))


def _derived(seed: int, name: str) -> int:
    return int(key_from(seed, name)) & 0x7FFFFFFF
