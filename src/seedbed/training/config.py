"""Configure a training run: its budget, its batches, when it validates, saves and stops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from seedbed.config import Config

__all__ = ["USUAL_BATCH_TOKENS", "DataConfig", "TrainingConfig"]

USUAL_BATCH_TOKENS = 2048
"""Of a step where neither the recipe nor the length of its run says more."""


class DataConfig(Config):
    """From what rows a model learns."""

    row_length: int = Field(128, ge=8, description="Tokens of a row, special tokens included.")
    is_segmented: bool = Field(
        False,
        description="Keep attention inside documents. Off: a row's documents see each other, separated by a special"
        " token, which is faster; measured gains of separating them are near zero.",
    )
    reorder_documents: bool = Field(
        True,
        description="String documents together in another order each epoch; off: the same windows each epoch.",
    )
    draw_epochs: int = Field(
        0,
        ge=0,
        description="Draw masks, and all else that is drawn for a row, anew in so many epochs only, then use them again: 1 is"
        " static masking, 10 is BERT's way (RoBERTa, 1907.11692, section 4.1). Needs reorder_documents=false. 0: anew always.",
    )

    @model_validator(mode="after")
    def _same_rows(self) -> DataConfig:
        if self.draw_epochs and self.reorder_documents:
            raise ValueError("draw_epochs uses masks again on the same rows: set reorder_documents=false")
        return self


class TrainingConfig(Config):
    """How long, in which portions, with which stops."""

    budget_minutes: float | None = Field(
        None, gt=0.0, description="Train about this long; a probe before step one turns it into steps."
    )
    budget_tokens: int | None = Field(None, gt=0, description="Train on this many tokens, in whole steps.")
    budget_steps: int | None = Field(None, gt=0, description="Train this many steps.")
    max_minutes: float | None = Field(
        None,
        gt=0.0,
        description="With budget_tokens or budget_steps: cut them when the probe forecasts longer than this.",
    )
    batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens of one optimizer step, in whole rows, over all workers. null: 2,048 for a run of 8 M tokens"
        " and more for longer ones, as the 0.38th power of them (docs/recipes.md has the measurements); with budget_steps 2,048.",
    )
    micro_batch_rows: int = Field(
        0,
        ge=0,
        description="Rows of one forward pass. 0: as many as fit the memory (runtime.memory_gib), 64 at most (on a GPU 65,536"
        " tokens).",
    )
    exact: bool = Field(
        False,
        description="Add up gradients in a fixed order, on one thread a worker, so that 1, 2, 4, ... workers give the same bits."
        " Slower: no overlap, and at least eight micro-batches a step where micro_batch_rows is 0.",
    )
    gradient_compression: Literal["none", "fp16", "powersgd"] = Field(
        "none",
        description="How gradients travel between workers. fp16: half the bytes. powersgd: rank 4 with error feedback, a few"
        " percent of them, for slow networks; a resume is exact with the same number of workers.",
    )
    seed: int = Field(0, ge=0, description="Keys initial weights, order of rows, masks and dropout.")
    validation_steps: int = Field(
        0,
        ge=0,
        description="Steps between validations. 0: about twenty in a run, fewer where they would take over a fifth of the time.",
    )
    validation_rows: int = Field(
        128, gt=0, description="Rows of the validation split that are scored, evenly spaced."
    )
    early_stopping_patience: int = Field(
        0, ge=0, description="Stop after this many validations without a better loss. 0: never."
    )
    keep_best: bool = Field(
        True,
        description="Export the weights with the lowest validation loss; off, and for replaced_token, whose task grows harder"
        " with its generator: those of the last step.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Keep a moving average of the weights, and validate and export it: the share kept at an update, as"
        " 0.99 or 0.999. 0: none. Helps over many passes; nothing to gain in one.",
    )
    ema_start_fraction: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the run before the average begins, from a copy of the weights.",
    )
    ema_steps: int = Field(1, gt=0, description="Steps from one update of the average to the next.")
    average_checkpoints: int = Field(
        0,
        ge=0,
        description="Export the mean of the weights at the last so many validations, in the place of the best ones."
        " 0: off.",
    )
    max_rollbacks: int = Field(
        3,
        ge=0,
        description="After three steps in a row whose gradient was not finite, or a spike, go back to the weights of a validation"
        " before and skip the rows since, at most so often; then stop. 0: stop at once.",
    )
    spike_guard: bool = Field(
        False,
        description="Pass over steps whose gradient is far larger than those before: more than 6 robust standard deviations above"
        " the median of the last 128 norms on a logarithmic scale, 8 times the median at least. Off: clipping alone bounds them.",
    )
    checkpoint_minutes: float = Field(2.0, gt=0.0, description="Minutes between checkpoints.")
    checkpoint_steps: int = Field(0, ge=0, description="Also save every so many steps. 0: by minutes only.")
    keep_weights: int = Field(
        3, ge=0, description="Older checkpoints kept as weights only, besides the two newest full ones."
    )
    model_form: Literal["auto", "huggingface", "seedbed"] = Field(
        "auto",
        description="Form of the model folder. auto: Hugging Face's, but seedbed's own for the native families. huggingface:"
        " what has no such form is refused before training. seedbed: any model; opens in seedbed only.",
    )
    record_rows: bool = Field(
        False,
        description="Write which rows each step read, with a hash of each, to pretrain/rows-<worker>.jsonl.",
    )
    tensorboard: bool = Field(False, description="Also write metrics for TensorBoard (extra: track).")

    @model_validator(mode="after")
    def _exact_gradients(self) -> TrainingConfig:
        if self.exact and self.gradient_compression != "none":
            raise ValueError("exact sums and gradient_compression exclude each other")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingConfig:
        given = [
            n for n in ("budget_minutes", "budget_tokens", "budget_steps") if getattr(self, n) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        return self

    def rows_per_step(self, row_length: int) -> int:
        """Return B, the rows of one optimizer step."""
        return max(1, (self.batch_tokens or USUAL_BATCH_TOKENS) // row_length)
