"""What all pixel networks share: the distribution over images, its draws, the head."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional

from flexgen.checks import check_integer
from flexgen.contracts import Density, PixelOutput
from flexgen.networks.conditioning import one_hot
from flexgen.networks.layers import image_shape
from flexgen.networks.pixel_cache import PixelCache, of_columns


class PixelDensity(Density):
    """A density of images that knows the parameters of every pixel in one pass.

    Called, it returns a :class:`PixelProduct`.

    Args:
        shape: `(channels, height, width)` of one image.
        output: what the parameters mean.

    Raises:
        ValueError: for a shape that is no image, or several channels under an output that shows the
            network more than it is of.
    """

    def __init__(self, shape: Sequence[int], output: PixelOutput) -> None:
        super().__init__()
        self.shape, self.output = image_shape(shape), output
        self.data_range, self.has_mass = output.data_range, output.has_mass
        self.num_seen = output.num_seen(self.shape[0])
        if self.num_seen != self.shape[0] > 1:
            raise ValueError(
                f"a {type(output).__name__} output is of maps of one channel, got shape "
                f"{self.shape}; set output=categorical or logistic_mixture"
            )

    @abstractmethod
    def parameters_of(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output's parameters of images `(n, *shape)`: `(n, sets, a set, height, width)`."""

    def check_data(self, x: Tensor) -> None:
        self.output.check_data(x)


class PixelNetwork(PixelDensity):
    r"""An autoregressive density of images: called, it returns :class:`AutoregressivePixels`.

    .. math:: p(x) = \prod_i p(x_i | x_{<i}, c)

    over pixels i in raster order, rows from the top, each from the left, and within a pixel over
    its channels in order. An heir gives :meth:`features` of all pixels in one pass, those of a
    pixel from the pixels before it alone; the head makes the output's parameters of them, and sees
    the channels before. Only the head orders channels, so that the network itself is passed once a
    pixel and not once a channel (departure from the papers, whose layers are split by colours).

    Args:
        shape: `(channels, height, width)` of one image.
        output: what the parameters mean.
        features: maps that the head is given.
        head_features: hidden units of the head, for each channel that has parameters of its own.
        num_classes: of the labels `(n,)` that the context is, or of shares of classes
            `(n, num_classes)`, between which the distribution is what the network makes of them;
            null: none.
        context_features: size c of a context of vectors `(n, c)` or maps `(n, c, height, width)`;
            0: none.

    Raises:
        ValueError: as :class:`PixelDensity` does, for a size out of range, or for classes and
            features both.

    Source: van den Oord et al., "Pixel recurrent neural networks", 2016, eq. 1 and 2.
    """

    def __init__(
        self, shape: Sequence[int], output: PixelOutput, features: int, head_features: int,
        *, num_classes: int | None = None, context_features: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(shape, output)
        self.num_classes = num_classes
        check_integer("context_features", context_features, 0)
        if num_classes is not None and context_features:
            raise ValueError(
                "a context is labels or features, got `num_classes` and `context_features`; leave "
                "one out"
            )
        classes = 0 if num_classes is None else check_integer("num_classes", num_classes)
        self.context_size = classes or context_features
        self.head = PixelHead(self.shape[0], output, features, head_features)

    @abstractmethod
    def features(self, seen: Tensor, context: Tensor | None) -> Tensor:
        """Features `(n, features, height, width)` of data as the output has them seen.

        Args:
            seen: `(n, num_seen, height, width)`.
            context: maps `(n, context_size, height or 1, width or 1)`; None: not conditional.
        """

    @abstractmethod
    def cache(self, n: int, context: Tensor | None) -> PixelCache:
        """What n draws at once go through, pixel by pixel; context as :meth:`features` has it."""

    def parameters_of(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen = self.output.seen(x)
        parameters: Tensor = self.head(self.features(seen, self.context_maps(context)), seen)
        return parameters

    def context_maps(self, context: Tensor | None) -> Tensor | None:
        """A context as maps `(n, context_size, height or 1, width or 1)`.

        Raises:
            ValueError: if there is one and the network takes none, or the other way round.
        """
        if not self.context_size:
            if context is not None:
                raise ValueError(
                    "the pixel network takes no context, got one; build it with `num_classes` or "
                    "`context_features`"
                )
            return None
        if self.num_classes is not None and (context is None or context.ndim == 1):
            context = one_hot(context, self.num_classes)
        if context is None or context.ndim not in (2, 4) or context.shape[1] != self.context_size:
            got = "none" if context is None else tuple(context.shape)
            raise ValueError(
                f"the pixel network takes a context (n, {self.context_size}), or such maps of the "
                f"image's size, got {got}"
            )
        context = context.to(self.head.first.weight.dtype)
        return context if context.ndim == 4 else context[:, :, None, None]

    def forward(self, context: Tensor | None = None) -> "AutoregressivePixels":
        return AutoregressivePixels(self, context)


class PixelProduct(Distribution):
    """A distribution over images that is a product over pixels, each given others.

    Args:
        network: knows the parameters of each.
        context: labels or features, one for each image of a batch; None: none, no batch shape.
    """

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, network: PixelDensity, context: Tensor | None = None) -> None:
        self.network, self.context = network, context
        batch = torch.Size() if context is None else context.shape[:1]
        super().__init__(batch, torch.Size(network.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats, `(*sample, *batch)`, of images `(*sample, *batch, *shape)`."""
        output = self.network.output
        lead = value.shape[: value.ndim - 3]
        x = value.reshape(-1, *self.network.shape)
        parameters = self.network.parameters_of(x, self._of_rows(lead))
        sets, a_set = parameters.shape[1:3]
        x = x.reshape(len(x) * sets, -1, *x.shape[2:])
        # In half precision the sum over pixels would be known to a nat.
        log_prob = output.log_prob(parameters.reshape(len(x), a_set, *x.shape[2:]).to(x.dtype), x)
        return log_prob.view(-1, sets * math.prod(x.shape[2:])).sum(1).view(lead)

    def _of_rows(self, lead: Sequence[int]) -> Tensor | None:
        """The context of each of so many images, in rows."""
        if self.context is None:
            return None
        own = self.context.shape[1:]
        return self.context.expand(*lead, *own).reshape(-1, *own)


class AutoregressivePixels(PixelProduct):
    """A pixel network's distribution over images: its density in one pass, its draws by a cache.

    Args:
        network: the pixel network.
        context: labels or features, one for each image of a batch; None: none, no batch shape.
    """

    network: PixelNetwork

    @torch.no_grad()
    def sample(
        self, sample_shape: Sequence[int] = (), *, given: Tensor | None = None, known: int = 0,
        cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """Images `(*sample_shape, *batch, *shape)`, exact draws.

        With `given` its first `known` pixels in raster order are kept, and the others are drawn
        from p(· | known pixels). Only such a prefix gives draws from a conditional: pixels that
        are clamped anywhere else are seen by those after them and not by those before.

        Args:
            sample_shape: how many.
            given: images that broadcast to the result.
            known: how many pixels of each are kept, all their channels.
            cached: whether activations are kept from pixel to pixel; if not, each channel takes a
                pass through the whole network: the same draws, some hundred times slower.

        Raises:
            ValueError: if `known` is not between 0 and the number of pixels, or without `given`.
        """
        shape, (channels, height, width) = (
            self._extended_shape(torch.Size(sample_shape)),
            self.shape,
        )
        n = math.prod(shape[:-3])
        if not 0 <= known <= height * width or (known and given is None):
            raise ValueError(
                f"`known` must be a number of pixels from 0 to {height * width}, with `given` "
                f"images that hold them, got {known}; it is a raster prefix, rows from the top"
            )
        network, weight = self.network, self.network.head.first.weight
        sets = network.head.sets
        num_uniforms = network.output.num_uniforms(channels // sets)
        uniform = weight.new_empty(height * width, sets, n, num_uniforms).uniform_()
        noise = network.output.noise(uniform)
        x = weight.new_zeros(height * width, network.num_seen, n)
        if given is not None:
            rows = given.to(x).expand(shape).reshape(n, channels, -1)
            x[:known] = network.output.seen(rows.permute(2, 1, 0)[:known])
        context = self._of_rows(shape[:-3])
        with torch.inference_mode():  # a tenth less for each of its thousands of calls
            (self._draw if cached else self._draw_naively)(x, noise, known, context)
        return network.output.data(x).permute(2, 1, 0).reshape(shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.network.shape

    def _draw(self, x: Tensor, noise: Tensor, known: int, context: Tensor | None) -> None:
        """Fill in `x (pixels, channels, n)`, as the network sees it, from pixel `known` on."""
        network, width = self.network, self.shape[2]
        if known == len(x):
            return
        cache = network.cache(x.shape[2], network.context_maps(context))
        line = torch.empty_like(x[:width])
        columns, draw = line.unbind(), network.head.stepper(network.output, line)
        rows = zip(x.split(width), noise.split(width), strict=True)
        for row, (own, numbers) in enumerate(rows):
            cache.start_row(row)
            line.copy_(own)
            of_columns = list(zip(*(one.unbind() for one in numbers.unbind(1)), strict=True))
            for column, channels in enumerate(columns):
                features = cache.features(column)
                if row * width + column >= known:
                    draw(column, features, of_columns[column])
                cache.put(column, channels)
            own.copy_(line)

    def _draw_naively(self, x: Tensor, noise: Tensor, known: int, context: Tensor | None) -> None:
        network, (height, width) = self.network, self.shape[1:]
        sets, context = network.head.sets, network.context_maps(context)
        images = x.permute(2, 1, 0).view(-1, network.num_seen, height, width)
        for pixel in range(known, len(x)):
            row, column = divmod(pixel, width)
            for k, own in enumerate(x[pixel].split(network.num_seen // sets)):
                seen = images.contiguous()
                parameters = network.head(network.features(seen, context), seen)
                network.output.draw(parameters[:, k, :, row, column], noise[pixel, k], own.mT)


class PixelsGivenMaps(Distribution):
    """A pixel network's distribution for contexts `(*batch, features, height, width)`."""

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, pixels: PixelNetwork, context: Tensor) -> None:
        self.of_rows = pixels(context.reshape(-1, *context.shape[-3:]))
        super().__init__(context.shape[:-3], self.of_rows.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p, nats, `(*sample, *batch)`, of images that broadcast to that and `shape`."""
        lead = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        draws = lead[: len(lead) - len(self.batch_shape)]
        rows = value.expand(*lead, *self.event_shape).reshape(*draws, -1, *self.event_shape)
        log_prob: Tensor = self.of_rows.log_prob(rows)
        return log_prob.view(lead)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Images `(*sample_shape, *batch, *shape)`, exact draws."""
        drawn: Tensor = self.of_rows.sample(sample_shape)
        return drawn.view(self._extended_shape(torch.Size(sample_shape)))


class PixelHead(nn.Module):
    r"""$W_2\, a(W_1 h + V x_{<c})$: from a pixel's features to its output's parameters.

    Each channel that has parameters of its own has its own hidden units, which see the channels
    before it in V.

    Args:
        channels: of a pixel.
        output: what the parameters mean.
        features: size of h.
        hidden: units for each set of parameters.
    """

    def __init__(self, channels: int, output: PixelOutput, features: int, hidden: int) -> None:
        super().__init__()
        self.sets = 1 if output.together else channels
        self.num_parameters = output.num_parameters(channels // self.sets)
        hidden = check_integer("head_features", hidden)
        self.first = nn.Conv2d(features, self.sets * hidden, 1)
        self.last = nn.Conv2d(
            self.sets * hidden, self.sets * self.num_parameters, 1, groups=self.sets
        )
        # Of each pair of channels (b before c) one column of V, so that no weight is masked.
        self.pairs = [(c, b) for c in range(self.sets) for b in range(c)]
        bound = 1 / math.sqrt(features)
        self.earlier = nn.ParameterList(
            torch.empty(hidden).uniform_(-bound, bound) for _ in self.pairs
        )

    def _weight_of_earlier(self) -> Tensor:
        """V `(sets · hidden, channels)`."""
        zero = torch.zeros_like(self.earlier[0])
        columns = dict(zip(self.pairs, self.earlier, strict=True))
        return torch.cat([
            torch.stack([columns.get((c, b), zero) for b in range(self.sets)], 1)
            for c in range(self.sets)
        ])  # fmt: skip

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """Parameters `(n, sets, a set, *rest)` of features and channels `(n, …, *rest)`."""
        h = self.first(features)
        if self.sets > 1:
            h = h + functional.conv2d(seen.to(h.dtype), self._weight_of_earlier()[..., None, None])
        parameters: Tensor = self.last(functional.relu(h)).unflatten(1, (self.sets, -1))
        return parameters

    def stepper(self, output: PixelOutput, x: Tensor) -> "HeadStep":
        """The head and the draw of a place of x, as :class:`HeadStep` has it."""
        return HeadStep(self, output, x)


class HeadStep:
    """The channels of places from their features, by the weights as they are now.

    Views are made here, once: what a draw takes is how many calls it makes.

    Args:
        head: the head.
        output: what its parameters mean.
        x: where draws go, as the network sees them, `(places, num_seen, n)`.
    """

    def __init__(self, head: PixelHead, output: PixelOutput, x: Tensor) -> None:
        sets, n = head.sets, x.shape[2]
        self.draw = output.draw
        self.bias, self.first = of_columns(head.first)
        bias, weight = of_columns(head.last)
        earlier = head._weight_of_earlier() if sets > 1 else self.first
        self.h = weight.new_empty(len(self.first), n)
        self.sets = list(zip(
            self.h.chunk(sets), self.h.mT.chunk(sets, 1),
            [own[:, :c] for c, own in enumerate(earlier.chunk(sets))],
            bias.mT.chunk(sets, 1), weight.mT.chunk(sets, 1),
            weight.new_empty(sets, n, head.num_parameters), strict=True,
        ))  # fmt: skip
        self.places = [
            [(place[:c] if c else None, own) for c, own in enumerate(place.mT.chunk(sets, 1))]
            for place in x
        ]

    def __call__(self, place: int, features: Tensor, noise: Sequence[Tensor]) -> None:
        """Draw a place's channels.

        Args:
            place: which.
            features: its, `(features, n)`.
            noise: of each set, `(n, uniforms a set)`.
        """
        torch.addmm(self.bias, self.first, features, out=self.h)
        steps = zip(self.sets, self.places[place], noise, strict=True)
        for (h, rows, earlier, bias, weight, parameters), (before, own), numbers in steps:
            if before is not None:
                torch.addmm(h, earlier, before, out=h)
            h.relu_()
            torch.addmm(bias, rows, weight, out=parameters)
            self.draw(parameters, numbers, own)


def reach_of(name: str, side: int) -> int:
    """How far a kernel of an odd side reaches from its centre.

    Raises:
        ValueError: if it is even, or below 3.
    """
    check_integer(name, side, 3)
    if side % 2 == 0:
        raise ValueError(f"`{name}` must be odd, got {side}; set {side + 1}")
    return side // 2


def scale_weights(*layers: nn.Conv2d | nn.Linear) -> None:
    """Draw weights from N(0, 1/inputs), which keeps the variance, and set biases to zero."""
    for layer in layers:
        nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
