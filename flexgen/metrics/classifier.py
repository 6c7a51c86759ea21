"""A small image classifier that FlexGen trains itself, whose features and classes metrics use."""

import math

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from flexgen.checks import check_integer
from flexgen.metrics.streaming import check_labels

# Epochs are chosen so that training sees at least this many images.
_IMAGES_SEEN = 45_000
# Images that go through the network at a time.
_AT_ONCE = 1000


class Classifier(nn.Module):
    """A convolutional classifier of images of any size, with the same output in either mode.

    Convolutions of 3×3 and pooling by 2 until the shorter side is below 8, then `num_features`
    rectified features and a linear layer. There is no batch norm and no dropout: whoever calls
    `train()` on a module that holds a metric changes no score.

    Args:
        shape: `(channels, height, width)` of an image, at least 2 pixels a side.
        num_classes: number of classes, at least 2.
        num_features: number of features before the last layer. A Fréchet distance needs several
            times as many images as features.
        hidden_channels: channels of the first convolution; they double to at most 128.

    Attributes:
        metadata: what a saved classifier's file says of it (test accuracy, seed, data hash, ...);
            empty before `load_or_train_classifier`.

    Raises:
        ValueError: `shape` is not three sizes of an image, or there are fewer than 2 classes.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, num_features: int = 64,
        hidden_channels: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < 2:
            raise ValueError(
                f"`shape` must be (channels, height, width) with 2 pixels a side or more, got "
                f"{tuple(shape)}; this classifier is for images only"
            )
        check_integer("num_classes", num_classes, 2, "give the labels' number")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.num_features = num_features
        self.metadata: dict[str, str] = {}
        channels, height, width = shape
        layers: list[nn.Module] = []
        while min(height, width) >= 8:
            layers += [nn.Conv2d(channels, hidden_channels, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels, hidden_channels = hidden_channels, min(2 * hidden_channels, 128)
            height, width = height // 2, width // 2
        layers += [nn.Conv2d(channels, hidden_channels, 3, padding=1), nn.ReLU(), nn.Flatten()]
        layers += [nn.Linear(hidden_channels * height * width, num_features), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("loc", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """Features `(n, num_features)`, not negative, of images in the training images' range.

        Raises:
            ValueError: `x` holds no images of the classifier's shape.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"`x` must be images of shape {self.shape}, got {tuple(x.shape[1:])}; use a "
                "classifier trained on data of that shape"
            )
        # In parts: the first layer of a whole test set at once would take gigabytes.
        parts = [(part.to(self.loc.dtype) - self.loc) / self.scale for part in x.split(_AT_ONCE)]
        return torch.cat([self.body(part) for part in parts])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes, `(n, num_classes)`, of images `x` as in `features`."""
        return self.head(self.features(x))

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of the images `x` whose most probable class is the label in `y`, 0 to 1."""
        return int((self(x).argmax(1) == y).sum()) / len(x)


def train_classifier(
    x: Tensor, y: Tensor, num_classes: int, *, seed: int = 0, epochs: int | None = None,
    batch_size: int | None = None, lr: float = 3e-3, progress: bool = False,
) -> Classifier:  # fmt: skip
    """Train a `Classifier` on images, on the device they lie on.

    Adam with a one-cycle rate on cross-entropy; each image is turned by up to 0.15 radians, scaled
    by up to 10 % and moved by up to 1/16 of its side, which takes scikit-learn's digits from 94 to
    99 % on writers not trained on. On one thread of a CPU digits take seconds, MNIST a minute.

    Args:
        x: images, `(n, channels, height, width)`, in any range.
        y: labels, `(n,)`, whole numbers from 0 to `num_classes` - 1.
        num_classes: number of classes, at least 2.
        seed: of initialisation, order and distortion; the global generators are left alone.
        epochs: passes over the images; by default as many as make 45,000 images or more.
        batch_size: images a step; by default 64, and 128 from 10,000 images on.
        lr: highest learning rate.
        progress: show a progress bar.

    Returns:
        The classifier, in evaluation mode, without gradients.

    Raises:
        ValueError: `x` are not images, or `y` are not their labels.
        RuntimeError: the loss is no longer finite.
    """
    check_labelled(x, y, num_classes, "x", "y")
    n = len(x)
    epochs = num_epochs(epochs, n)
    batch_size = batch_size or (128 if n >= 10_000 else 64)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it seeds the GPUs' generators too, which are not restored here.
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(tuple(x.shape[1:]), num_classes)
        x, y = x.detach().float().clone(), y.detach().long().clone()
        classifier.loc.copy_(x.mean())
        classifier.scale.copy_(x.std().clamp(min=1e-6))
        classifier.to(x.device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=lr, fused=True)
        batches = [
            batch
            for _ in range(epochs)
            for batch in torch.randperm(n, generator=generator).split(batch_size)
        ]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches))
        shown = track(batches, "Training the classifier", disable=not progress)
        for step, batch in enumerate(shown):
            batch = batch.to(x.device)
            loss = F.cross_entropy(classifier(_distort(x[batch], generator)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step % 100 == 0 or step == len(batches) - 1) and not loss.isfinite():
                raise RuntimeError(
                    f"the classifier's cross-entropy is {loss.item()} at step {step}; lower `lr`"
                )
    return classifier.eval().requires_grad_(False)


def _distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled and moved a little, at random."""
    turn, scale, across, down = (torch.rand(4, len(x), generator=generator) * 2 - 1).to(x.device)
    turn, scale = 0.15 * turn, 1 + 0.1 * scale
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [cos, -sin, across / 8, sin, cos, down / 8]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def num_epochs(epochs: int | None, n: int) -> int:
    """The asked number of passes over `n` images, or the default."""
    if epochs is None:
        return math.ceil(_IMAGES_SEEN / n)
    return check_integer("epochs", epochs, 1, "leave it out for the default")


def check_labelled(x: Tensor, y: Tensor, num_classes: int, x_name: str, y_name: str) -> None:
    """Refuse what is not images with a label each."""
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(
            f"`{x_name}` must be images (n, channels, height, width) with n above 0, got "
            f"{tuple(x.shape)}; add the channel dimension of grey images with `x[:, None]`"
        )
    if not x.isfinite().all():
        raise ValueError(f"`{x_name}` must be finite, got NaN or infinity; check how it was scaled")
    check_labels(y, len(x), num_classes, y_name, "images")
