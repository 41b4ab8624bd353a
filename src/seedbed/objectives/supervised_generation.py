"""Learn answers: read a prompt, write what the example says; only the answer is predicted.

Source: multi-task text-to-text training, T5, arXiv 1910.10683, section 2.4; on a decoder whose prompt is read from both
sides, UniLM, arXiv 1905.03197, section 2.4.
Differs from them: nothing but a separator parts prompt and answer; the words that name a task belong into the prompt's text.
BIAS: an answer that was cut to the row length is taught to end where it was cut; the view counts how many were.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from seedbed.batch import Batch, Targets
from seedbed.data.draws import Draws
from seedbed.data.examples import ExampleTokens, ExampleView
from seedbed.data.views import Rows, RowSource, View
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.objectives.base import Objective, ObjectiveConfig, Vocabulary
from seedbed.objectives.task_rows import frame_of, frame_rows
from seedbed.tasks import TaskConfig, TaskData, read_task

__all__ = ["SupervisedGeneration", "SupervisedGenerationConfig"]


class SupervisedGenerationConfig(ObjectiveConfig):
    """Prompts and answers."""

    source: ClassVar = "T5 (Raffel et al., 2019, 1910.10683); UniLM (Dong et al., 2019, 1905.03197)"
    fits: ClassVar = ("decoder", "encoder_decoder")
    needs: ClassVar = "prompts with answers of yours (objective.task)"
    default_model: ClassVar = "llama"
    use: ClassVar = (
        "answer in words: translation, summaries, questions; in a mixture, beside language modelling"
    )
    speaks: ClassVar = "generate"

    name: Literal["supervised_generation"] = Field(
        "supervised_generation", description="Prompts and answers."
    )
    task: TaskConfig = Field(
        default_factory=lambda: TaskConfig(kind="generation"),
        description="Where the examples are; kind generation, its text the prompt and its label the answer.",
    )
    prompt: Literal["causal", "prefix"] = Field(
        "causal",
        description="How a decoder reads the prompt: from the left, or from both sides. Encoder-decoders always read both.",
    )

    def files(self) -> list[str]:
        """Return the labelled files it trains and validates with."""
        return [*self.task.train, *self.task.dev]

    def build(self, vocabulary: Vocabulary, *, row_length: int, is_segmented: bool) -> SupervisedGeneration:
        """Make the objective; see `ObjectiveConfig.build`. Reads the task's files.

        Raises:
            TaskError: the files do not fit.
        """
        return SupervisedGeneration(
            self, vocabulary, row_length=row_length, is_segmented=is_segmented, data=read_task(self.task)
        )


class SupervisedGeneration(Objective):
    """Predict answers; one term, "answer".

    A decoder reads `[SEP] prompt [SEP] answer` and predicts the answer and the [SEP] that ends it. An encoder reads
    `prompt [SEP]`, its decoder begins with the token its family begins with and predicts the same.

    Args:
        data: the examples that were read.
    """

    view = "examples"
    terms = ("answer",)
    config: SupervisedGenerationConfig

    def __init__(
        self,
        config: SupervisedGenerationConfig,
        vocabulary: Vocabulary,
        *,
        row_length: int,
        is_segmented: bool,
        data: TaskData,
    ) -> None:
        super().__init__(config, vocabulary, row_length=row_length, is_segmented=is_segmented)
        if data.config.kind != "generation" or data.config.text_pair is not None:
            raise ConfigError(
                f"the task {data.config.name} is no task of prompts and answers.",
                hint="task.kind=generation, with one column for the prompt (task.text) and one for the answer (task.label)",
            )
        self.data = data
        self._decoder_start: int | None = None

    @property
    def raw_row_length(self) -> int:
        """T less the two separators of a decoder's row; of each side of an encoder-decoder, T less one."""
        return self.row_length - (2 if self._decoder_start is None else 1)

    def check(self, model: Any) -> None:
        """Refuse encoders and models too short, and learn with which token this one's decoder begins."""
        super().check(model)
        self._decoder_start = None
        if model.stack == "encoder_decoder":
            self._decoder_start = model.special_ids.get("decoder_start")
            if self._decoder_start is None:
                raise IncompatibleError(
                    "this encoder-decoder names no token its decoder begins with.",
                    hint="set decoder_start_token_id in its config.json",
                )

    def make_view(self, source: RowSource) -> View:
        """Return the view of the training examples, or of the dev examples for validation."""
        if source.tokenizer is None:
            raise ConfigError("prompts and answers need the tokenizer.", hint="train from a recipe")
        examples = self.data.splits["train" if source.split == "train" else "dev"]
        tokens = ExampleTokens.encode(
            source.tokenizer, [example.text for example in examples], [str(e.label) for e in examples]
        )
        is_apart = self._decoder_start is not None
        return ExampleView(tokens, max_tokens=self.raw_row_length, is_apart=is_apart)

    def make_batch(
        self, rows: Rows, draws: Draws, *, progress: float = 1.0
    ) -> tuple[Batch, dict[str, Targets]]:
        """Put prompt and answer where the model reads them; every answer ends with the separator."""
        assert rows.first_lengths is not None, "rows without answers"
        if self._decoder_start is not None:
            return self._two_sides(rows, rows.first_lengths, self._decoder_start)
        batch, total = frame_rows(rows, frame_of(self.vocabulary, is_causal=True))
        width = batch.input_ids.shape[1]
        position = torch.arange(width)[None, :]
        cut = rows.first_lengths[:, None] + 1  # where the separator before the answer stands
        predicted = (position >= cut) & (position < total[:, None])
        following = torch.cat([batch.input_ids[:, 1:], batch.input_ids[:, :1]], dim=1)
        is_last = position == total[:, None] - 1
        values = torch.where(is_last, self.vocabulary.separator_id, following)[predicted]
        if self.config.prompt == "prefix":
            order = (position - cut).clamp(min=0).to(torch.int32)
            batch = replace(batch, attention="order", attend_order=order)
        return batch, {"answer": Targets(at=predicted.reshape(-1).nonzero()[:, 0], values=values)}

    def _two_sides(self, rows: Rows, first: Tensor, start: int) -> tuple[Batch, dict[str, Targets]]:
        """Return the batch of an encoder-decoder."""
        end, pad = self.vocabulary.separator_id, self.vocabulary.pad_id or 0
        second = rows.lengths - first
        prompt, answer = _slice(rows.ids, 0 * first, first, pad), _slice(rows.ids, first, second, pad)
        inputs, segments = _closed(prompt, first, end, pad)
        values, decoder_segments = _closed(answer, second, end, pad)
        begin = torch.full_like(values[:, :1], start)
        batch = Batch(
            input_ids=inputs,
            segment_ids=segments,
            row_ids=rows.row_ids,
            has_padding=True,
            decoder_input_ids=torch.cat([begin, values[:, :-1]], dim=1),
            decoder_segment_ids=decoder_segments,
        )
        places = (decoder_segments > 0).reshape(-1).nonzero()[:, 0]
        return batch, {"answer": Targets(at=places, values=values.reshape(-1)[places], stream="decoder")}


def _slice(ids: Tensor, starts: Tensor, lengths: Tensor, pad: int) -> Tensor:
    """Return (B, longest) tokens from `starts` on, `lengths` of each row, padded."""
    column = torch.arange(int(lengths.max()))[None, :]
    index = (starts[:, None] + column).clamp(max=ids.shape[1] - 1)
    return torch.where(column < lengths[:, None], ids.gather(1, index), pad)


def _closed(ids: Tensor, lengths: Tensor, end: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return rows (B, longest + 1) with `end` behind each, and their segments (1, and 0 for padding)."""
    wide = (
        torch.cat([ids, torch.full_like(ids[:, :1], pad)], dim=1)
        if ids.shape[1]
        else ids.new_full((len(ids), 1), pad)
    )
    wide = wide.scatter(1, lengths[:, None], end)
    segments = (torch.arange(wide.shape[1])[None, :] <= lengths[:, None]).to(torch.int32)
    return wide, segments
