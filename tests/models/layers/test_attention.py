from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seedbed.models.layers.attention import attend


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_agree_with_the_fused_kernel(groups: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(groups)
    q = torch.randn(2, 6, 9, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(2, groups, 13, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    bias = None
    if has_bias:
        bias = torch.zeros(2, 1, 9, 13, dtype=torch.float64)
        bias[torch.rand(bias.shape, generator=generator) < 0.4] = float("-inf")
        bias[..., 0] = 0
    ours, probabilities = attend(q, k, v, bias)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 6, 9, dtype=torch.float64))
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), (q, k, v)),
        torch.autograd.grad(theirs.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
