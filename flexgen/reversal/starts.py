"""Starting codes that do not depend on which samples are reversed together."""

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024


def normal_codes(index: Tensor, latent_shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal codes, each a function of (seed, index) alone.

    A generator of its own for every sample would cost more than the draw, so samples share one by
    blocks of 1,024 indices: block b is drawn whole from a generator seeded by (seed, b).

    Args:
        index: the samples' indices, `(n,)`, not negative.
        latent_shape: shape of one code.
        seed: not negative.

    Returns:
        Codes, `(n, *latent_shape)`, float32 on the CPU. The global generator is not touched.
    """
    index = index.cpu()
    codes = torch.empty(len(index), *latent_shape)
    blocks = index // _BLOCK
    for block in blocks.unique().tolist():
        state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        drawn = torch.randn(_BLOCK, *latent_shape, generator=generator)
        inside = blocks == block
        codes[inside] = drawn[index[inside] % _BLOCK]
    return codes
