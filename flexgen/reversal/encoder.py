"""An encoder of a generator: codes guessed from data, learned once from pairs (G(z), z)."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from flexgen.checks import check_integer
from flexgen.files import write_tensors
from flexgen.reversal.fast import fast_pass, worth_bfloat16
from flexgen.reversal.freezing import Generator, frozen, home
from flexgen.reversal.passes import Generate, NoFastPass

# Pairs drawn at a time, and how often each is learned from: drawing them is half the cost.
_PAIRS = 4096
_EPOCHS = 4
_BATCH = 256
# Noise on the data, as a share of their spread: held-out data are not quite what a generator makes.
_NOISE = 0.5


class Encoder(nn.Module):
    """E: x → z, two hidden layers over the flattened data.

    Args:
        shape: of one sample.
        latent_shape: of one code.
        hidden_features: width of both hidden layers.
    """

    def __init__(
        self, shape: Sequence[int], latent_shape: Sequence[int], hidden_features: int = 512
    ) -> None:
        super().__init__()
        self.shape, self.latent_shape = torch.Size(shape), torch.Size(latent_shape)
        widths = [self.shape.numel(), hidden_features, hidden_features, self.latent_shape.numel()]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(nn.Flatten(), *layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Codes `(batch, *latent_shape)` guessed from data `(batch, *shape)`."""
        z: Tensor = self.net(x.to(next(self.parameters()).dtype))
        return z.view(-1, *self.latent_shape)


def train_encoder(
    generator: Generator, prior: Callable[[int], Tensor], *, steps: int = 2500, lr: float = 2e-3,
    seed: int = 0, progress: bool = False,
) -> Encoder:  # fmt: skip
    """An encoder in eval mode that inverts a generator: min E ‖E(G(z) + noise) − z‖², z ~ prior.

    No data are needed, and the result is a start for :func:`~flexgen.reversal.reverse`
    (`init=encoder`), not an answer: data that the generator never makes are encoded badly. Half
    the samples' spread of Gaussian noise makes it less so.

    Args:
        generator: codes to data; its state is restored afterwards.
        prior: n to codes, `(n, *latent_shape)`, on the generator's device, by torch's global
            generator, such as `lambda n: prior().sample((n,))`.
        steps: of Adam on 256 pairs; the step size falls linearly to 0.
        lr: first step size.
        seed: of the weights, the pairs and the noise. The global generator is restored.
        progress: whether to show a progress bar, on standard error.

    Raises:
        ValueError: if `steps` is below 1, or the generator makes no finite data.

    Source: the start of Zhu et al., 2016 (generative visual manipulation on the natural image
        manifold), which learns it from real images; here from pairs, so that codes are the target.
    """
    check_integer("steps", steps)
    with torch.random.fork_rng(), torch.no_grad(), frozen(generator, "eval"):
        # Not the seed itself, by which others may draw the codes that the encoder is tried on.
        torch.manual_seed(int(np.random.SeedSequence([seed, _PAIRS]).generate_state(1)[0]))
        z = prior(_PAIRS)
        _, own = home(generator, z)
        wide = torch.promote_types(own, torch.float32)
        z = z.to(wide)

        def make(z: Tensor) -> Tensor:
            return generator(z.to(own, copy=True)).to(wide)  # it may write there

        x = make(z[:32])
        if not x.isfinite().all():
            raise ValueError("the generator must make finite data; check its weights")
        encoder = Encoder(x.shape[1:], z.shape[1:]).to(z.device, z.dtype)
        generate: Generate = make
        with suppress(NoFastPass):
            half = own == torch.float32 and worth_bfloat16(make, z[:32])
            dtype = torch.bfloat16 if half else z.dtype
            generate = fast_pass(generator, dtype, z[:32], x)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=lr, fused=True)
        rounds, step = range(0, steps, _EPOCHS * _PAIRS // _BATCH), 0
        for _ in track(rounds, "encoder", console=Console(stderr=True), disable=not progress):
            x = torch.cat([generate(part) for part in z.split(_BATCH)])
            noise = _NOISE * x.std()
            for _ in range(_EPOCHS):
                for rows in torch.randperm(_PAIRS).split(_BATCH):
                    if step == steps:
                        break
                    optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
                    target, data = z[rows], x[rows]
                    optimizer.zero_grad()
                    with torch.enable_grad():
                        guess = encoder(data + noise * torch.randn_like(data))
                        F.mse_loss(guess, target).backward()
                    optimizer.step()
                    step += 1
            z = prior(_PAIRS).to(wide)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def refined(
    encoder: Callable[[Tensor], Tensor], generate: Generate, x: Tensor, guess: Tensor,
    rounds: int = 3,
) -> Tensor:  # fmt: skip
    """A guess made better by looking at what it makes: z ← z + E(x) − E(G(z)), the best kept.

    Args:
        encoder: E, from data to codes.
        generate: G, a pass of the generator.
        x: data, `(n, *shape)`.
        guess: E(x), `(n, *latent_shape)`.
        rounds: how often.

    Source: the feedback of Alaluf et al., "ReStyle", 2021, section 3, without its training: here an
        encoder of single data, whose error is taken to be alike at x and at G(z).
    """
    z = best = guess
    lowest = torch.full((len(x),), torch.inf, device=x.device)
    for left in range(rounds, -1, -1):
        x_hat = generate(z.to(x))
        loss = (x_hat - x).flatten(1).square().sum(1)
        better = (loss < lowest).view(-1, *[1] * (z.dim() - 1))
        best, lowest = torch.where(better, z, best), torch.minimum(loss, lowest)
        z = z + guess - encoder(x_hat) if left else z
    return best


def load_or_train_encoder(
    path: Path, identity: str, train: Callable[[], Encoder], *, say: bool = False
) -> Encoder:
    """The encoder saved at `path` for this generator, or a new one by `train`, saved there.

    Args:
        path: a safetensors file; that of a generator of another identity is replaced.
        identity: what says which generator it is, such as a hash of its weights.
        train: what makes an encoder.
        say: whether to say on standard error which it was.

    Raises:
        ValueError: if the file is damaged, or is not an encoder's.
    """
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to train it again") from error
        if not {"generator", "shape", "latent"} <= about.keys():
            raise ValueError(f"{path} is no encoder; give the name of another file")
        if about["generator"] == identity:
            shape, latent = ([int(n) for n in about[key].split()] for key in ("shape", "latent"))
            encoder = Encoder(shape, latent, hidden_features=len(weights["net.1.weight"]))
            encoder.load_state_dict(weights)
            if say:
                print(f"encoder: {path}", file=sys.stderr)
            return encoder.eval().requires_grad_(False)
    encoder = train()
    about = {
        "generator": identity,
        "shape": " ".join(map(str, encoder.shape)),
        "latent": " ".join(map(str, encoder.latent_shape)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, encoder.state_dict(), about)
    if say:
        print(f"encoder: trained and saved to {path}", file=sys.stderr)
    return encoder
