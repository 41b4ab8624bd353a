"""Named mixtures: what a recipe may write in place of one objective, when the field knows it by one name.

`mixture` is spelled out by the user; `hybrid` and `ul2` are mixtures with a name and a few settings. All are trained by the
same code: `entries_of` says which objectives they stand for.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seedbed.objectives.base import ObjectiveConfig
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_next_token import MaskedNextTokenConfig
from seedbed.objectives.mixture import CombinationConfig, EntryConfig, MixtureConfig
from seedbed.objectives.span_corruption import SpanCorruptionConfig

__all__ = ["COMBINATIONS", "HybridConfig", "UL2Config", "entries_of"]


class HybridConfig(CombinationConfig):
    """The masked-causal hybrid: one stack and one head that then serve as a decoder and as an encoder.

    Source: L. Charpentier, D. Samuel, "GPT or BERT: why not both?", BabyLM 2024, arXiv 2410.24159: one dense model trained on
    both kinds of rows; with 1 causal row in 8 it scored best on BLiMP, and a few causal rows suffice for generation.
    Differs from it: the share of causal rows may fall over the run, since causal prediction learns faster early.
    """

    source: ClassVar = "GPT-BERT (Charpentier and Samuel, 2024, 2410.24159)"
    fits: ClassVar = ("decoder",)
    needs: ClassVar = "windows of text, a mask token"
    default_model: ClassVar = "llama"
    use: ClassVar = "little text, and a model that is to generate and to understand"

    name: Literal["hybrid"] = Field("hybrid", description="Masked-causal hybrid.")
    causal_share: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of rows read causally at the start of the run."
    )
    final_causal_share: float = Field(
        0.25,
        ge=0.0,
        le=1.0,
        description="Share at its end, reached linearly. The paper's best: 0.125 throughout.",
    )
    masked: MaskedNextTokenConfig = Field(
        default_factory=MaskedNextTokenConfig, description="How the other rows are masked."
    )

    def parts(self) -> list[EntryConfig]:
        """Return the causal and the masked entry."""
        causal, final = self.causal_share, self.final_causal_share
        return [
            EntryConfig(objective=CausalLMConfig(), label="causal_lm", weight=causal, final_weight=final),
            EntryConfig(
                objective=self.masked, label="masked_next_token", weight=1 - causal, final_weight=1 - final
            ),
        ]


class UL2Config(CombinationConfig):
    """The mixture of denoisers: short spans, long spans, and the end of a row, each marked for the encoder.

    Source: UL2 (Y. Tay et al., arXiv 2205.05131, table 1): seven denoisers in equal shares.
    Differs from it: rows of the encoder are filled exactly, so that raw rows differ in length between denoisers, and extreme
    denoising at half the tokens in short spans is bounded by the vocabulary's sentinels.
    """

    source: ClassVar = "UL2 (Tay et al., 2022, 2205.05131)"
    fits: ClassVar = ("encoder_decoder",)
    needs: ClassVar = "windows of text, reserved tokens as sentinels and marks"
    default_model: ClassVar = "t5"
    use: ClassVar = "one encoder-decoder for short answers, long texts and continuation"

    name: Literal["ul2"] = Field("ul2", description="Mixture of denoisers.")

    def parts(self) -> list[EntryConfig]:
        """Return the seven denoisers."""
        kinds: list[tuple[str, Literal["ul2_short", "ul2_extreme"], float, float]] = [
            ("short_3", "ul2_short", 3, 0.15),
            ("short_8", "ul2_short", 8, 0.15),
            ("extreme_3", "ul2_extreme", 3, 0.5),
            ("extreme_8", "ul2_extreme", 8, 0.5),
            ("extreme_64_sparse", "ul2_extreme", 64, 0.15),
            ("extreme_64", "ul2_extreme", 64, 0.5),
        ]
        entries = [
            EntryConfig(
                objective=SpanCorruptionConfig(mean_span_length=length, noise_density=density, mark=mark),
                label=label,
            )
            for label, mark, length, density in kinds
        ]
        sequential = SpanCorruptionConfig(layout="suffix", noise_density=0.25, mark="ul2_sequential")
        return [*entries, EntryConfig(objective=sequential, label="sequential")]


COMBINATIONS: dict[str, type[CombinationConfig]] = {
    "hybrid": HybridConfig,
    "mixture": MixtureConfig,
    "ul2": UL2Config,
}


def entries_of(section: ObjectiveConfig | CombinationConfig) -> list[EntryConfig]:
    """Return the entries of an `objective` section; a single objective is a mixture of one."""
    if isinstance(section, CombinationConfig):
        return section.parts()
    return [EntryConfig(objective=section, label=section.name)]
