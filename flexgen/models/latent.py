"""What all models with codes share: the prior's stages, data of codes, codes of data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.contracts import Prior, in_context
from flexgen.priors import Staged, as_prior
from flexgen.training.loop import Loop

_WITHOUT = {
    "score": "draws by a critic's score, and this model has no critic; use it on an adversarial "
    "run, or another prior",
    "critic": "calibrates a critic on data without labels, and this model has no such critic; use "
    "it on an adversarial run without classes, or another prior",
    "decoder": "weighs codes by the slope of a decoder, and this model has none, only draws; use "
    "another prior",
    "ladder": "is that of a decoder that draws its levels itself, and this model has none; use "
    "prior=hierarchical, or model=vae with network=resnet_vae",
    "posterior": "is made of a VAE's posteriors, which this model does not have; use "
    "prior=mixture or kernel_density, or model=vae",
}


Part = tuple[Tensor, Tensor | None]


def in_parts(x: Tensor, context: Tensor | None, size: int) -> Iterator[Part]:
    """Data or codes `(n, …)` and the context of each, `size` at a time."""
    for rows in torch.arange(len(x), device=x.device).split(size):
        yield x[rows], None if context is None else context[rows]


def _name(prior: Prior) -> str:
    return type(prior.current if isinstance(prior, Staged) else prior).__name__


def _kind(num_values: int | None) -> str:
    return "real numbers" if num_values is None else f"names, whole numbers below {num_values}"


class Latent(Loop):
    """A prior over codes z, and data made of them.

    Args:
        prior: p(z); it becomes stage 0 of a :class:`~flexgen.priors.Staged`.
        **loop: see :class:`~flexgen.training.Loop`.

    Raises:
        ValueError: if a size is out of range.

    Attributes:
        num_values: K, where codes are whole numbers 0 … K − 1 that are names; None: they are real
            numbers. Its prior is over the same.
    """

    num_values: int | None = None

    def __init__(self, prior: nn.Module, **loop: Any) -> None:
        super().__init__(**loop)
        self.prior = prior if isinstance(prior, Staged) else Staged([prior])
        self.latent_dim = self.prior.latent_dim

    @property
    def decoder(self) -> nn.Module | None:
        """Codes to data, and a context where it takes one, differentiable: what reversal inverts.

        None where a code has no picture but draws.
        """
        raise NotImplementedError

    @property
    def capabilities(self) -> frozenset[str]:
        own = {"prior"} | ({"decoder"} if self.decoder is not None else set())
        return super().capabilities | own

    def offers(self) -> dict[str, Any]:
        """What a prior can be bound to here, as arguments of its `bind`."""
        if self.decoder is None:
            return {}
        return {"decoder": self.decoder}

    def bind(self, prior: nn.Module) -> Prior:
        """Give a prior what it needs of this model: a critic's score, or a posterior.

        Raises:
            ValueError: if it needs what this model does not have, or this model could not train
                with it.
        """
        prior, offers = as_prior(prior), self.offers()
        for need in sorted(prior.needs - {"data"} - offers.keys()):
            raise ValueError(f"a {_name(prior)} prior {_WITHOUT[need]}")
        if prior.num_values != self.num_values:
            remedy = "prior=normal" if self.num_values is None else "prior=categorical or pixelcnn"
            raise ValueError(
                f"the codes of a {type(self).__name__} are {_kind(self.num_values)}, and a "
                f"{_name(prior)} prior is over {_kind(prior.num_values)}; use {remedy}"
            )
        prior.bind(**{name: offers[name] for name in prior.needs & offers.keys()})
        return prior

    def points(self, z: Tensor) -> Tensor:
        """Codes `(n, latent_dim)` as points whose distances mean something, `(n, features)`.

        Codes of real numbers are that themselves.
        """
        return z

    def bind_data(self, examples: Callable[[int], Tensor]) -> None:
        self.prior.bind(data=examples)

    def check_prior(self, prior: Prior) -> None:
        """Refuse a prior that this model could not train with; a family that needs more says so.

        Raises:
            ValueError: if it could not.
        """

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """A code of each datum, `(n, latent_dim)`, by an encoder of this model's own.

        None where it has none: then codes are found by reversal.
        """
        return None

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        context = self.in_turn(n) if context is None else context
        with self.evaluating():
            return self.decode(self.prior.draw(n, context), context)

    @torch.no_grad()
    def decode(self, z: Tensor, context: Tensor | None = None, batch_size: int = 1000) -> Tensor:
        """Data `(n, *shape)` of codes `(n, latent_dim)` without gradient, everything in eval mode.

        They are the decoder's; where there is none, a draw from p(x|z) of each code.

        Args:
            z: codes.
            context: of each, `(n,)`; of a conditional model without one, its classes in turn.
            batch_size: codes a pass.
        """
        context = self.in_turn(len(z)) if context is None else context
        with self.evaluating():
            return torch.cat([self._picture(*part) for part in in_parts(z, context, batch_size)])

    def _picture(self, z: Tensor, context: Tensor | None) -> Tensor:
        decoder = self.decoder
        assert decoder is not None
        x: Tensor = in_context(decoder, z, context)
        return x.float()

    def weights_in(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """A checkpoint's weights, with the prior's stages that this model has, no more and no less.

        A stage that no refit has fitted yet is this model's own: a run that starts from another's
        checkpoint may have one more, or one of another kind. It may leave out any that is not in
        use.

        Raises:
            ValueError: if it leaves out the one in use.
        """
        prefix, state_dict = "prior.stages.", checkpoint["state_dict"]
        last = len(self.prior.stages) - 1
        if (in_use := int(state_dict["prior.stage"])) > last:
            raise ValueError(
                f"the checkpoint uses stage {in_use} of its prior, and the run has stages up to "
                f"{last}; keep the refit callback of the run that it came from"
            )
        # A refit keeps the steps of its rounds, each of which has fitted the next stage.
        rounds = [state.get("done", ()) for state in checkpoint.get("callbacks", {}).values()]
        kept = min(last, max(in_use, sum(map(len, rounds))))
        matched = {
            key: value
            for key, value in state_dict.items()
            if not key.startswith(prefix) or int(key[len(prefix) :].split(".")[0]) <= kept
        }
        own = {k: v for k, v in self.state_dict().items() if k.startswith(prefix)}
        return own | matched

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.weights_in(checkpoint)
        super().on_load_checkpoint(checkpoint)
