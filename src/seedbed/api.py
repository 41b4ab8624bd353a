"""The short door: load a model, fill masks, generate.

import seedbed
model = seedbed.load("runs/demo-en")
model.fill_mask("The Queen of [MASK] made some tarts.")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from seedbed.artifact import verify_if_artifact
from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.generation.decode import generate
from seedbed.generation.diffusion import diffuse
from seedbed.generation.fill import fill_mask
from seedbed.generation.samplers import Sampler
from seedbed.models.encoder_decoder import EncoderDecoder
from seedbed.models.folder import holds_model, read_model, read_objectives
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.sentinels import mark_id
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = ["Candidate", "LoadedModel", "load", "model_folder"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One proposal for a hidden place.

    Attributes:
        token: as the vocabulary writes it.
        probability: in [0, 1].
        text: the whole text with the proposal in its place.
    """

    token: str
    probability: float
    text: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer, ready for use.

    Attributes:
        model: trunk and head, in evaluation use (no dropout).
        tokenizer: the one it was trained with.
        path: the folder it was read from.
        objectives: what it was trained by, where the folder says so: a decoder trained with masked next-token prediction
            fills masks too, a masked model trained by diffusion writes, a prefix language model reads prompts from both sides.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    path: Path
    objectives: tuple[str, ...] = ()

    @property
    def is_causal(self) -> bool:
        """Say whether it is a decoder, which continues texts."""
        return self.model.config.is_causal

    @property
    def is_encoder_decoder(self) -> bool:
        """Say whether it reads one text and writes another."""
        return self.model.config.stack == "encoder_decoder"

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
        """Propose tokens for every mask in a text.

        Args:
            text: holds one or more mask tokens, written as the vocabulary does ("[MASK]").
            top_k: proposals for each mask.

        Returns:
            For each mask in order, its proposals, best first. Masks are filled independently of each other.

        Raises:
            DataError: no mask in the text, or more tokens than the model has positions.
            IncompatibleError: the model writes from left to right, or has no head.
        """
        mask_id = self.tokenizer.mask_id
        if mask_id is None or (self.model.config.stack != "encoder" and not self.is_shifted):
            raise IncompatibleError(
                f"{self.path} writes from left to right; it cannot fill masks.", hint="seedbed generate"
            )
        mask = self.tokenizer.token(mask_id)
        ids = self.tokenizer.encode(text, allow_special=True)
        if mask_id not in ids:
            raise DataError(f"the text has no {mask}.", hint=f"write {mask} where a word is missing")
        return self.fill_ids(ids, top_k=top_k)

    def fill_ids(self, ids: list[int], *, top_k: int = 5) -> list[list[Candidate]]:
        """Propose tokens for every mask among token ids; see `fill_mask`."""
        ids = self._framed(ids)
        self._check_length(len(ids))
        mask_id = self.tokenizer.mask_id
        places = [place for place, token in enumerate(ids) if token == mask_id]
        found: list[list[Candidate]] = []
        filling = fill_mask(self.model, ids, places, top_k=top_k, is_shifted=self.is_shifted)
        for place, proposals in zip(places, filling, strict=True):
            candidates: list[Candidate] = []
            for proposal in proposals:
                filled = [*ids[:place], proposal.token_id, *ids[place + 1 :]]
                text = self.tokenizer.decode(
                    [t for t in filled if t not in self._frame_ids()], skip_special=False
                )
                candidates.append(
                    Candidate(self.tokenizer.token(proposal.token_id), proposal.probability, text)
                )
            found.append(candidates)
        return found

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """Continue a text, or write what an encoder-decoder makes of it.

        Args:
            prompt: the beginning, which may be empty; what an encoder-decoder reads, with its special tokens (sentinels,
                masks) written as the vocabulary does.
            max_new_tokens: tokens to add at most; the end of a document ends it earlier.
            temperature: 0 takes the most probable token each time.
            top_k: draw from so many most probable tokens; 0: all.
            top_p: draw from the most probable tokens that hold this share of the probability.
            seed: the same seed gives the same text.

        Returns:
            The prompt and its continuation; of an encoder-decoder what it wrote, sentinels included.

        Raises:
            DataError: the prompt leaves no room within the model's positions.
            IncompatibleError: the model is masked, not causal.
        """
        if self.is_encoder_decoder:
            ids = self._framed(self.tokenizer.encode(prompt, allow_special=True))
            self._check_length(len(ids))
            sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
            stop_id = self.model.config.special_ids.get("eos", self.tokenizer.separator_id)
            (out,) = generate(
                self.model, [ids], max_new_tokens=max_new_tokens, sampler=sampler, stop_id=stop_id
            )
            # Sentinels belong to the answer; what stands around texts does not.
            own = self.tokenizer
            frame = {own.pad_id, own.bos_id, own.eos_id, own.cls_id, own.sep_id}
            return own.decode([i for i in out if i not in frame], skip_special=False)
        if not self.is_causal:
            if "masked_diffusion" in self.objectives:
                sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
                return self._diffuse(prompt, max_new_tokens, sampler)
            raise IncompatibleError(
                f"{self.path} is a masked model; it cannot continue texts.", hint="seedbed fill-mask"
            )
        ids = [self.tokenizer.separator_id, *self.tokenizer.encode(prompt)]
        room = self.model.config.max_length - len(ids)
        if room < 1:
            raise DataError(
                f"the prompt has {len(ids)} tokens, the model {self.model.config.max_length} positions.",
                hint="shorten the prompt",
            )
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        (out,) = generate(
            self.model,
            [ids],
            max_new_tokens=min(max_new_tokens, room),
            sampler=sampler,
            stop_id=self.tokenizer.separator_id,
            reads_both_sides=self.objectives == ("prefix_lm",),
        )
        return self.tokenizer.decode([*ids[1:], *out])

    def fill_in(
        self,
        before: str,
        after: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """Write what belongs between two texts, with a decoder trained to fill in the middle.

        Args:
            before: the text in front of the gap.
            after: the text behind it.
            max_new_tokens: tokens to write at most.
            temperature: as in `generate`, like the three that follow.
            top_k: tokens drawn from; 0: all.
            top_p: share of the probability drawn from.
            seed: of the draws.

        Returns:
            The middle alone.

        Raises:
            DataError: the texts leave no room within the model's positions.
            IncompatibleError: the model was not trained to fill in the middle.
        """
        if "fill_in_middle" not in self.objectives:
            raise IncompatibleError(
                f"{self.path} was not trained to fill in the middle.",
                hint="objective.name=fill_in_middle trains it",
            )
        own, vocabulary = self.tokenizer, Vocabulary.of(self.tokenizer)
        prefix, suffix, middle = (
            mark_id(vocabulary, f"fim_{part}") for part in ("prefix", "suffix", "middle")
        )
        ids = [own.separator_id, prefix, *own.encode(before), suffix, *own.encode(after), middle]
        self._check_length(len(ids) + 1)
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        (out,) = generate(
            self.model, [ids], max_new_tokens=max_new_tokens, sampler=sampler, stop_id=own.separator_id
        )
        return own.decode(out)

    @property
    def is_shifted(self) -> bool:
        """Say whether it names hidden tokens from the place before them, as masked next-token prediction and hybrids do."""
        return "masked_next_token" in self.objectives

    def _diffuse(self, prompt: str, max_new_tokens: int, sampler: Sampler) -> str:
        """Write behind a prompt in one row, a token a pass."""
        mask_id = self.tokenizer.mask_id
        assert mask_id is not None
        ids = self.tokenizer.encode(prompt)
        frame = [] if self.tokenizer.cls_id is None else [self.tokenizer.cls_id]
        room = self.model.config.max_length - len(frame) - len(ids)
        self._check_length(len(frame) + len(ids) + 1)
        count = min(max_new_tokens, room)
        row = diffuse(
            self.model, [*frame, *ids, *[mask_id] * count], mask_id=mask_id, num_steps=count, sampler=sampler
        )
        return self.tokenizer.decode(row)

    def embed(self, text: str) -> torch.Tensor:
        """Return the mean of the last hidden states of a text, (D,) float32; the encoder's where there are two stacks."""
        ids = self._framed(self.tokenizer.encode(text))
        self._check_length(len(ids))
        device = next(self.model.parameters()).device
        with torch.no_grad():
            batch = Batch(
                torch.tensor([ids], device=device), attention="causal" if self.is_causal else "full"
            )
            trunk = self.model.trunk
            hidden = trunk.encode(batch) if isinstance(trunk, EncoderDecoder) else trunk(batch)
        mean: torch.Tensor = hidden.last[0].float().mean(dim=0)
        return mean

    def _framed(self, ids: list[int]) -> list[int]:
        """Put around a text what rows of training have around theirs."""
        if self.is_causal:
            return [self.tokenizer.separator_id, *ids]
        if self.is_encoder_decoder:
            roles = self.model.config.special_ids
            end = roles.get("eos", self.tokenizer.separator_id)
            begin = roles.get("bos", end)  # BART's own vocabulary has one, T5's and ours have not.
            return [*([] if begin == end else [begin]), *ids, end]
        cls_id, sep_id = self.tokenizer.cls_id, self.tokenizer.sep_id
        return [*([] if cls_id is None else [cls_id]), *ids, *([] if sep_id is None else [sep_id])]

    def _frame_ids(self) -> set[int | None]:
        return {self.tokenizer.cls_id, self.tokenizer.sep_id}

    def _check_length(self, length: int) -> None:
        if length > self.model.config.max_length:
            raise DataError(
                f"the text has {length} tokens, the model {self.model.config.max_length} positions.",
                hint="give it in shorter pieces",
            )


def load(path: Path | str, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model for use: a run folder, its `model` folder, or any Hugging Face folder of a known family.

    Files of our own artifacts are verified against their manifest first; nothing in a folder is ever executed.

    Raises:
        DataError: there is no model.
        IncompatibleError: a family or option seedbed does not have; names it.
        IntegrityError: a file of an artifact was changed.
    """
    folder = model_folder(Path(path))
    verify_if_artifact(folder)
    model, _ = read_model(folder)
    return LoadedModel(model.to(device).eval(), Tokenizer.load(folder), folder, read_objectives(folder))


def model_folder(path: Path) -> Path:
    """Return the folder of the model meant by a run folder or a model folder.

    Raises:
        DataError: there is none; says what is there instead.
    """
    for candidate in (path / "model", path):
        if holds_model(candidate):
            return candidate
    if (path / "pretrain").is_dir():
        raise DataError(
            f"{path} is a run that has not finished training.", hint="go on with the command that started it"
        )
    what = "does not exist" if not path.exists() else "holds no model"
    raise DataError(f"{path} {what}.", hint="give a run folder, its model folder, or a Hugging Face folder")
