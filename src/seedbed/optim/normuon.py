"""NorMuon: Muon with a second moment for every row, so that all neurons move alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seedbed.optim.muon import Muon, MuonConfig

__all__ = ["NorMuon", "NorMuonConfig"]


class NorMuonConfig(MuonConfig):
    """NorMuon (arXiv 2510.05491), over Muon as `MuonConfig` describes it.

    Follows the authors' code: the rows are evened out without changing the norm of the whole matrix, which then gets
    Muon's factor. The paper's text scales it to a root mean square of 0.2 instead: `update_scale: rms` is close to that.
    """

    name: Literal["normuon"] = Field("normuon", description="Muon with a second moment for every row.")  # type: ignore[assignment]
    row_beta: float = Field(0.95, ge=0.0, lt=1.0, description="Decay of the rows' mean squares.")

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters."""
        groups = self._groups(named_parameters)
        return NorMuon([{**group, "row_beta": self.row_beta} for group in groups])


class NorMuon(Muon):
    """Divide every row of the orthogonalised momentum by the root of its running mean square."""

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return zero moments."""
        state = super().new_state(parameter, group)
        if group["kind"] == "muon":
            state["row_square"] = torch.zeros_like(parameter[:, :1])
        return state

    def finish(self, stacked: Tensor, rows: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Even out the rows of (n, R, C), keeping each matrix's norm."""
        torch._foreach_lerp_(rows, list(stacked.square().mean(dim=-1, keepdim=True)), 1.0 - group["row_beta"])
        size = stacked.norm(dim=(-2, -1), keepdim=True)
        even: Tensor = stacked / torch.stack(rows).sqrt().add_(1e-10)
        return even.mul_(size / even.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-10))
