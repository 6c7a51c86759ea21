"""The vectors that a VQ-VAE's codes name."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flexgen.checks import check_integer, check_not_negative


class Codebook(nn.Module):
    r"""K vectors $e_k$, each the moving average of what was found nearest to it.

    .. math:: N_k ← γ N_k + (1 − γ) n_k, \quad m_k ← γ m_k + (1 − γ) \sum_{i: k_i = k} z_i,
        \quad e_k = m_k / N_k

    with n_k how many of a batch's vectors z are nearest to e_k. At first N_k = 1 and m_k = e_k, so
    that a vector which nothing is near stays where it is. One whose N_k falls below `restart` is
    put on a vector of the batch, drawn at random, with N_k = 1.

    Vectors are buffers: no optimizer moves them. Several processes update by the sums over all, and
    restart from process zero's.

    Args:
        num_vectors: K, at least 2.
        dim: D, of a vector.
        decay: γ, in [0, 1).
        restart: uses a batch, on average, below which a vector is moved; 0: none is.

    Raises:
        ValueError: if a size is out of range.

    Source: van den Oord et al., "Neural discrete representation learning", 2017, appendix A.1;
    restarts, Dhariwal et al., "Jukebox", 2020, section 3.1.
    """

    vectors: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(
        self, num_vectors: int, dim: int, decay: float = 0.99, restart: float = 0.1
    ) -> None:
        super().__init__()
        check_integer("num_vectors", num_vectors, 2)
        check_integer("dim", dim)
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}; 0.99 is usual")
        self.num_vectors, self.dim, self.decay = num_vectors, dim, decay
        self.restart = check_not_negative("restart", restart)
        self.register_buffer("vectors", torch.randn(num_vectors, dim))
        self.register_buffer("uses", torch.ones(num_vectors))
        self.register_buffer("sums", self.vectors.clone())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Which vector is nearest to each `(n, D)`: `(n,)` long."""
        e = self.vectors
        with torch.autocast(z.device.type, enabled=False):
            # |z|² is the same for all of them.
            return torch.addmm(e.square().sum(1), z.to(e.dtype), e.mT, alpha=-2).argmin(1)

    def forward(self, index: Tensor) -> Tensor:
        """The vectors of indices `(*batch,)`: `(*batch, D)`."""
        return self.vectors[index.long()]

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor) -> None:
        """Move the vectors by those `(n, D)` of a batch, whose nearest are known, `(n,)`."""
        z = z.detach().to(self.vectors.dtype)
        # By a product: adding by index has no fixed order on a GPU.
        chosen = nn.functional.one_hot(index, self.num_vectors).to(z.dtype)
        with torch.autocast(z.device.type, enabled=False):
            count, total = chosen.sum(0), chosen.mT @ z
        together = dist.is_available() and dist.is_initialized()
        if together:
            dist.all_reduce(count)
            dist.all_reduce(total)
        self.uses.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        # N of one that is not used falls to 0, and the quotient would be lost.
        used = (count > 0)[:, None]
        self.vectors.copy_(torch.where(used, self.sums / self.uses[:, None], self.vectors))
        if not self.restart:
            return
        fresh = z[torch.randint(len(z), (self.num_vectors,), device=z.device)]
        if together:
            dist.broadcast(fresh, 0)
        dead = self.uses < self.restart
        self.uses.masked_fill_(dead, 1.0)
        for vectors in (self.vectors, self.sums):
            vectors.copy_(torch.where(dead[:, None], fresh, vectors))


def perplexity(index: Tensor, num_values: int) -> tuple[Tensor, Tensor]:
    r"""$\exp(−\sum_k p_k \log p_k)$ of how often each index occurs, and the share that does.

    Args:
        index: whole numbers 0 … `num_values` − 1, of any shape.
        num_values: K.

    Returns:
        A number from 1 to K, and one in (0, 1].
    """
    count = index.long().flatten().bincount(minlength=num_values)
    share = count.double() / count.sum()
    return torch.special.entr(share).sum().exp(), (count > 0).double().mean()
