"""ALI, BiGAN and hierarchical ALI: an encoder that is learned by the game itself."""

from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_not_negative, first_line
from flexgen.contracts import Batch, Objective, Posterior, in_context
from flexgen.distributions import drawn
from flexgen.models.adversarial import Adversarial
from flexgen.models.latent import in_parts
from flexgen.networks.conditioning import ConditionalGenerator
from flexgen.objectives import Played
from flexgen.training import EMA
from flexgen.training.loop import DataRange

_SEEN = 5000  # data whose mean a bias starts at


class ALI(Adversarial):
    r"""A game over pairs: data with codes of theirs, against codes with data of theirs.

    The critic is shown (x, z) of two joint distributions,

    .. math:: q(x, z) = q(x)\, q(z|x), \quad p(x, z) = p(z)\, p(x|z)

    and encoder and generator make them alike: with an optimal critic of the original game they
    minimise the Jensen-Shannon divergence between the two, which is 0 where q(z|x) is the posterior
    of p(z) p(x|z) and p(x) the data's distribution. A generator step minimises the generator's side
    of the objective for what is fake and the encoder's for what is real, see
    :meth:`flexgen.contracts.Objective.encoder`, by one optimizer for both.

    A BiGAN is the case of an encoder without noise, :class:`~flexgen.posteriors.Deterministic`.
    Hierarchical ALI is the case of a code of levels: :class:`~flexgen.priors.Hierarchical` as
    prior, :class:`~flexgen.posteriors.BottomUp` as posterior, and a generator of the lowest level.

    That x and z are independent, each by its own distribution, is an optimum of the game as well
    where q(z|x) and p(x|z) can have so much noise, so a Gaussian encoder starts with little of it.

    Args:
        generator: codes `(batch, latent_dim)` to data `(batch, *shape)`; with labels if there are.
        critic: data and codes to raw outputs `(batch,)`; with labels if there are.
        posterior: data to q(z|x), which need have draws alone; with labels if there are.
        prior: p(z), as :class:`~flexgen.models.Adversarial` takes it.
        objective: the game.
        cycle_weight: λ of the term λ E ½‖x − G(z)‖², z ~ q(z|x), in a generator step (ALICE).
        data_bias: whether the generator's last bias starts at the data's log-odds.
        **game: see :class:`~flexgen.models.Adversarial`; an average of weights is one of both
            generator and encoder.

    Raises:
        ValueError: if a size is out of range, the parts do not fit, or `data_bias` meets a
            generator that cannot start so.

    Source: Dumoulin et al., "Adversarially learned inference", 2017, Algorithm 1; Donahue et al.,
    "Adversarial feature learning", 2017, eq. 2; Li et al., "ALICE", 2017, eq. 7 (the cycle term, as
    half a squared error); Belghazi et al., "Hierarchical adversarially learned inference", 2018.
    """

    def __init__(
        self, generator: nn.Module, critic: nn.Module, posterior: Posterior, prior: nn.Module,
        objective: Objective, *, cycle_weight: float = 0.0, data_bias: bool = False,
        ema_decay: float | None = None, **game: Any,
    ) -> None:  # fmt: skip
        super().__init__(generator, critic, prior, objective, ema_decay=ema_decay, **game)
        self.cycle_weight = check_not_negative(
            "cycle_weight", cycle_weight, "set `model.cycle_weight=0`"
        )
        if data_bias and not isinstance(generator, ConditionalGenerator):
            raise ValueError(
                f"`data_bias` needs a generator that can start at the data's mean, and a "
                f"{type(generator).__name__} cannot; set `model.data_bias=false`"
            )
        if ema_decay is not None and posterior.shares_prior:
            raise ValueError(
                f"a {type(posterior).__name__} posterior walks the prior's networks, of which no "
                "average is kept; set `model.ema_decay=null`, or posterior=markov"
            )
        posterior.bind(prior=self.prior[0])
        self.posterior, self.data_bias = posterior, data_bias
        self.posterior_ema = None if ema_decay is None else EMA(posterior, ema_decay)

    @property
    def encoder(self) -> nn.Module:
        """Data to q(z|x); its average if there is one."""
        return self.posterior if self.posterior_ema is None else self.posterior_ema.module

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"encoder"}

    def learners(self) -> tuple[nn.Module, ...]:
        return nn.ModuleList([self.generator, self.prior, self.posterior]), self.critic

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None, batch_size: int = 1000) -> Tensor:
        """A draw from q(z|x) of each datum."""
        with self.evaluating():
            parts = in_parts(x, context, batch_size)
            return torch.cat([in_context(self.encoder, *part).sample() for part in parts])

    def bind_data(self, examples: Any) -> None:
        super().bind_data(examples)
        if self.data_bias:
            assert isinstance(self.generator, ConditionalGenerator)
            self.generator.start_at(examples(_SEEN).mean(0))
            if self.ema is not None:
                self.ema.module.load_state_dict(self.generator.state_dict())

    def try_out(self, shape: tuple[int, ...], data_range: DataRange = None) -> None:
        try:
            with torch.no_grad():
                x = torch.zeros(2, *shape, device=self.device)
                z = in_context(self.posterior, x, self.in_turn(2)).sample()
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"the encoder and data of shape {shape} do not fit: {first_line(error)}; give "
                "them one `data.shape`"
            ) from error
        if tuple(z.shape[1:]) != (self.latent_dim,):
            raise ValueError(
                f"the encoder's codes must be of the prior's shape ({self.latent_dim},), got "
                f"{tuple(z.shape[1:])}; set one `latent_dim` for both"
            )
        super().try_out(shape, data_range)

    @staticmethod
    def shown(x: Tensor, z: Tensor | None, context: Tensor | None) -> Played:
        assert z is not None
        return (x, z) if context is None else (x, z, context)

    def real(self, batch: Batch) -> Played:
        z = drawn(in_context(self.posterior, *batch))
        return self.shown(batch.x, z, batch.context)

    def generator_loss(self, batch: Batch) -> Tensor:
        real = self.real(batch)
        of_encoder = self.objective.encoder(self.critic(*real))
        self.record("loss/encoder", of_encoder)
        loss = super().generator_loss(batch) + of_encoder
        if self.cycle_weight:
            again = in_context(self.generator, real[1], batch.context)
            cycle = 0.5 * (batch.x - again).square().flatten(1).sum(1).mean()
            self.record("loss/cycle", cycle)
            loss = loss + self.cycle_weight * cycle
        return loss

    def finish_step(self) -> None:
        if self.posterior_ema is not None:
            self.posterior_ema.update(self.posterior)
        super().finish_step()

    def records_a_step(self, name: str) -> int:
        of_generator = name in ("loss/encoder", "loss/cycle")
        return self.accumulate if of_generator else super().records_a_step(name)
