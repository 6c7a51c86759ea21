"""MADE: a fully connected autoregressive density of binary images."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from flexgen.checks import check_integer, check_sizes
from flexgen.contracts import Density
from flexgen.networks.conditioning import one_hot
from flexgen.networks.layers import data_shape
from flexgen.outputs import Bernoulli


class MADE(Density):
    r"""Masked fully connected layers: $p(x) = \prod_i p(x_i | x_{<i})$ of binary data.

    A hidden unit of degree m sees the first m coordinates of an order. The first of `num_orders`
    orders is the natural one, the others are drawn at construction; all share the weights, each
    with masks of its own, and the density is their mixture

    .. math:: p(x) = \frac1K \sum_k p_k(x)

    In train mode `log_prob` is that of one order drawn at each call, whose mean is a bound on it
    from below; in eval mode it is exact.

    Args:
        shape: of a datum, an image's `(channels, height, width)` in raster order or any other.
        hidden_features: width of each hidden layer, at least one.
        num_orders: K.
        num_classes: of the labels `(n,)` that the context is; null: none.

    Raises:
        ValueError: for sizes out of range, or no hidden layer.

    Source: Germain et al., "MADE: masked autoencoder for distribution estimation", 2015, eq. 9,
    13 and 14, sections 4.2 and 4.3. Departures: degrees of hidden units are spread evenly, not
    drawn; masks are multiplied in each pass, so no step of an optimizer can undo them.
    """

    has_mass = True
    data_range = (0.0, 1.0)
    orders: Tensor
    layers: Sequence[nn.Linear]

    def __init__(
        self, shape: Sequence[int], hidden_features: Sequence[int] = (500,), num_orders: int = 1,
        num_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.num_classes = data_shape(shape), num_classes
        d = math.prod(self.shape)
        widths = check_sizes("hidden_features", hidden_features)
        if not widths or d < 2:
            raise ValueError(
                "`hidden_features` must list at least one width and `shape` two coordinates, got "
                f"{list(widths)} and {self.shape}; set hidden_features=[500]"
            )
        check_integer("num_orders", num_orders)
        drawn = [torch.randperm(d) for _ in range(num_orders - 1)]
        self.register_buffer("orders", torch.stack([torch.arange(d), *drawn]))
        # Units that see the context alone have degree 0; without one they would be constants.
        lowest = 0 if num_classes is not None else 1
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise((d, *widths, d))]
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.num_hidden = len(widths)
        for k, width in enumerate(widths):
            self.register_buffer(f"degrees{k}", _spread(width, lowest, d - 1), persistent=False)
        self.conditioner = None
        if num_classes is not None:
            check_integer("num_classes", num_classes)
            self.conditioner = nn.Linear(num_classes, widths[0], bias=False)

    def forward(self, context: Tensor | None = None) -> "OrderedBinary":
        return OrderedBinary(self, context)

    def check_data(self, x: Tensor) -> None:
        Bernoulli().check_data(x)

    def share(self, context: Tensor | None) -> Tensor | None:
        """The context's part in the first hidden layer, `(n, width)`.

        Raises:
            ValueError: for labels without classes, or the other way round.
        """
        if self.conditioner is None:
            if context is not None:
                raise ValueError("MADE takes no context, got one; build it with `num_classes`")
            return None
        assert self.num_classes is not None
        labels = one_hot(context, self.num_classes).to(self.conditioner.weight.dtype)
        share: Tensor = self.conditioner(labels)
        return share

    def degrees(self) -> list[Tensor]:
        """Of the units of each hidden layer, sorted: how many coordinates they see."""
        return [self.get_buffer(f"degrees{k}") for k in range(self.num_hidden)]

    def masks(self, order: int) -> list[Tensor]:
        """Of each layer, `(out, in)`, in an order of the coordinates."""
        rank = self.orders[order].argsort()
        hidden = self.degrees()
        sees, has = [*hidden, rank], [rank + 1, *hidden]
        return [out[:, None] >= into for out, into in zip(sees, has, strict=True)]

    def logits(self, x: Tensor, order: int, context: Tensor | None = None) -> Tensor:
        """Of each coordinate given those before it in an order, `(n, d)`, of data `(n, d)`."""
        h, share = x, self.share(context)
        for k, (layer, mask) in enumerate(zip(self.layers, self.masks(order), strict=True)):
            h = linear(relu(h) if k else h, layer.weight * mask, layer.bias)
            if k == 0 and share is not None:
                h = h + share
        return h


def _spread(width: int, low: int, high: int) -> Tensor:
    """Degrees from low to high, sorted, as many of each as can be."""
    return torch.arange(width).mul(high - low + 1).div(width, rounding_mode="floor").add(low)


class OrderedBinary(Distribution):
    """A mixture over orders of MADE's densities.

    Args:
        made: the network.
        context: labels, one for each datum of a batch; None: none, no batch shape.
    """

    arg_constraints = {}  # noqa: RUF012  (the torch interface wants a class attribute)
    support = constraints.real

    def __init__(self, made: MADE, context: Tensor | None = None) -> None:
        self.made, self.context = made, context
        batch = torch.Size() if context is None else context.shape[:1]
        super().__init__(batch, torch.Size(made.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats, `(*sample, *batch)`; in train mode that of one order."""
        made, lead = self.made, value.shape[: value.ndim - len(self.made.shape)]
        x, context = value.reshape(-1, math.prod(made.shape)), self._of_rows(lead)
        num = len(made.orders)
        orders = [int(torch.randint(num, ()))] if made.training and num > 1 else range(num)
        log_probs = []
        for order in orders:
            logits = made.logits(x, order, context).to(x.dtype)
            log_probs.append(-binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1))
        log_prob = torch.stack(log_probs).logsumexp(0) - math.log(len(orders))
        return log_prob.view(lead)

    @torch.no_grad()
    def sample(
        self, sample_shape: Sequence[int] = (), *, given: Tensor | None = None, known: int = 0,
        cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """Data `(*sample_shape, *batch, *shape)`, exact draws, each in an order drawn for it.

        Args:
            sample_shape: how many.
            given: data that broadcast to the result.
            known: how many coordinates of each are kept, the first in raster order.
            cached: whether each hidden unit is computed once, when all it sees is known; if not,
                each coordinate takes a pass through the whole network: the same draws.

        Raises:
            ValueError: if `known` is out of range or without `given`, or there are several orders,
                in most of which those coordinates are no prefix.
        """
        made, d = self.made, math.prod(self.made.shape)
        shape = self._extended_shape(torch.Size(sample_shape))
        n = shape[: len(shape) - len(made.shape)].numel()
        if not 0 <= known <= d or (known and given is None):
            raise ValueError(
                f"`known` must be a number of coordinates from 0 to {d}, with `given` data that "
                f"hold them, got {known}"
            )
        if known and len(made.orders) > 1:
            raise ValueError(
                f"known pixels must come first, and MADE has {len(made.orders)} orders; build it "
                "with `num_orders=1`"
            )
        weight = made.layers[0].weight
        noise = weight.new_empty(d, n).uniform_().logit_()
        x = weight.new_zeros(d, n)
        if given is not None:
            x[:known] = given.to(x).expand(shape).reshape(n, d).T[:known]
        context = self._of_rows(shape[: len(shape) - len(made.shape)])
        which = torch.randint(len(made.orders), (n,), device=weight.device)
        for order in which.unique().tolist():
            rows = (which == order).nonzero().squeeze(1)
            own = None if context is None else context[rows]
            part, of_rows = x[:, rows], noise[:, rows]
            (self._draw if cached else self._draw_naively)(part, of_rows, known, order, own)
            x[:, rows] = part
        return x.T.reshape(shape)

    def _draw(
        self, x: Tensor, noise: Tensor, known: int, order: int, context: Tensor | None
    ) -> None:
        """Fill in `x (d, n)`, units sorted by degree: each is computed once."""
        made, places = self.made, self.made.orders[order]
        share = made.share(context)
        # Columns and rows in the order of their degrees, so that what is seen is a prefix.
        weights = [layer.weight for layer in made.layers]
        weights[0] = weights[0][:, places]
        weights[-1] = weights[-1][places]
        biases = [layer.bias[:, None].expand(-1, x.shape[1]) for layer in made.layers]
        biases[-1] = biases[-1][places]
        if share is not None:
            biases[0] = biases[0] + share.T
        ranked, noise = x[places], noise[places]
        units = [ranked, *(w.new_empty(len(w), x.shape[1]) for w in weights[:-1])]
        degrees = [torch.arange(1, len(x) + 1), *(degree.cpu() for degree in made.degrees())]
        reach = [
            [0, *degree.bincount(minlength=len(x) + 1).cumsum(0).tolist()] for degree in degrees
        ]
        for i in range(len(x)):
            for k, (weight, bias) in enumerate(zip(weights[:-1], biases, strict=False)):
                top, bottom = reach[k + 1][i], reach[k + 1][i + 1]
                if top < bottom:
                    seen, own = reach[k][i + 1], units[k + 1][top:bottom]
                    torch.addmm(
                        bias[top:bottom], weight[top:bottom, :seen], units[k][:seen], out=own
                    )
                    own.relu_()
            if i >= known:
                seen, last = reach[-1][i + 1], slice(i, i + 1)
                logit = torch.addmm(biases[-1][last], weights[-1][last, :seen], units[-1][:seen])
                torch.gt(logit, noise[last], out=ranked[last])
        x[places] = ranked

    def _draw_naively(
        self, x: Tensor, noise: Tensor, known: int, order: int, context: Tensor | None
    ) -> None:
        for place in self.made.orders[order].tolist()[known:]:
            logits = self.made.logits(x.T, order, context)[:, place]
            torch.gt(logits, noise[place], out=x[place])

    def _of_rows(self, lead: Sequence[int]) -> Tensor | None:
        """The label of each of so many data, in rows."""
        return None if self.context is None else self.context.expand(*lead).reshape(-1)
