"""The classifier: learning, sizes, randomness, the file of a trained one."""

import errno
import json
import math

import pytest
import torch
from safetensors import safe_open

from flexgen.metrics import Classifier, classifier_store, load_or_train_classifier, train_classifier


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on such small images are slower than one, and much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stripes(n: int, seed: int = 0, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, dark on the left (class 0) or on the right (class 1)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = 0.3 * torch.randn(n, 1, size, size, generator=generator)
    x[y == 0, :, :, : size // 2] += 1
    x[y == 1, :, :, size // 2 :] += 1
    return x, y


X, Y = stripes(96)
X_TEST, Y_TEST = stripes(50, seed=1)


def stored(cache_dir, x=X, y=Y, x_test=X_TEST, y_test=Y_TEST, **kwargs) -> Classifier:
    kwargs = {"epochs": 2, **kwargs}
    return load_or_train_classifier("stripes", x, y, x_test, y_test, 2, cache_dir, **kwargs)


def same_weights(a: Classifier, b: Classifier) -> bool:
    states = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in states)


def test_it_learns_the_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    classifier = train_classifier(x[train], y[train], 10, epochs=10)
    assert classifier.accuracy(x[test], y[test]) > 0.97


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 9), (1, 2, 2)])
def test_sizes_of_images(shape):
    classifier = Classifier(shape, num_classes=5, num_features=16)
    x = torch.zeros(3, *shape)
    assert classifier.features(x).shape == (3, 16)
    assert classifier(x).shape == (3, 5)


def test_logits_are_the_head_of_the_features_in_either_mode():
    classifier = train_classifier(X, Y, 2, epochs=1)
    logits = classifier(X)
    torch.testing.assert_close(classifier.head(classifier.features(X)), logits)
    assert torch.equal(classifier.train()(X), logits)


def test_many_images_go_through_in_parts():
    classifier, sizes = train_classifier(X, Y, 2, epochs=1), []
    index = torch.arange(2500) % len(X)
    expected = classifier(X)[index]
    classifier.body.register_forward_pre_hook(lambda _, x: sizes.append(len(*x)))
    torch.testing.assert_close(classifier(X[index]), expected)
    assert sizes == [1000, 1000, 500]
    assert classifier(X[:0]).shape == (0, 2)


def test_the_range_of_the_images_does_not_matter():
    a = train_classifier(X, Y, 2, epochs=2)
    b = train_classifier(255 * X + 1000, Y, 2, epochs=2)
    torch.testing.assert_close(a(X), b(255 * X + 1000), rtol=1e-2, atol=1e-2)


def test_every_parameter_is_learned():
    torch.manual_seed(0)
    start = Classifier((1, 8, 8), 2)
    trained = train_classifier(X, Y, 2, epochs=1)
    for (name, a), b in zip(start.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(a, b), name
        assert not b.requires_grad


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = train_classifier(X, Y, 2, epochs=1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same_weights(a, train_classifier(X, Y, 2, epochs=1, seed=3))
    assert not same_weights(a, train_classifier(X, Y, 2, epochs=1, seed=4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(mode):
    expected = train_classifier(X, Y, 2, epochs=1)
    with mode():
        assert same_weights(train_classifier(X.clone(), Y.clone(), 2, epochs=1), expected)


def test_progress_is_shown_on_request(capsys):
    train_classifier(X, Y, 2, epochs=1, progress=True)
    assert "Training the classifier" in capsys.readouterr().out
    train_classifier(X, Y, 2, epochs=1)
    assert capsys.readouterr().out == ""


def test_a_stored_one_is_read_back_and_not_trained(tmp_path, monkeypatch):
    first = stored(tmp_path)
    monkeypatch.setattr(classifier_store, "train_classifier", None)
    second = stored(tmp_path)
    assert same_weights(first, second)
    assert second.metadata == first.metadata
    assert not any(p.requires_grad for p in second.parameters())


def test_the_file_says_what_it_is(tmp_path):
    classifier = stored(tmp_path, seed=4)
    with safe_open(tmp_path / "stripes.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata == classifier.metadata
    assert float(metadata["accuracy"]) == classifier.accuracy(X_TEST, Y_TEST) > 0.9
    assert (metadata["seed"], metadata["num_train"], metadata["num_test"]) == ("4", "96", "50")
    assert json.loads(metadata["shape"]) == [1, 8, 8]
    assert len(metadata["data_hash"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["stripes.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"x": X.flip(0)},
        {"y": 1 - Y},
        {"x_test": X_TEST + 1e-6},
        {"y_test": 1 - Y_TEST},
        {"seed": 1},
        {"epochs": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_stored_one_of_other_data_or_settings_is_trained_anew(tmp_path, change):
    first = stored(tmp_path)
    other = stored(tmp_path, **change)
    assert other.metadata != first.metadata
    assert stored(tmp_path, **change).metadata == other.metadata


def test_a_file_cut_short_is_trained_anew(tmp_path, caplog):
    first = stored(tmp_path)
    path = tmp_path / "stripes.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert same_weights(stored(tmp_path), first)
    assert "cannot be read" in caplog.text
    assert same_weights(stored(tmp_path), first)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    stored(tmp_path)
    before = (tmp_path / "stripes.safetensors").read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("flexgen.files.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        stored(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["stripes.safetensors"]
    assert (tmp_path / "stripes.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": X[:, 0]}, r"`x` must be images \(n, channels, height, width\).*got \(96, 8, 8\)"),
        ({"x": X[:0], "y": Y[:0]}, r"n above 0, got \(0, 1, 8, 8\)"),
        ({"y": Y[:5]}, "one whole number for each of the 96 images"),
        ({"y": Y.float()}, "of torch.float32"),
        ({"y": Y + 1}, r"`y` must be in \[0, 1\], got 1 to 2"),
        ({"x": X / 0.0}, "`x` must be finite"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        (
            {"num_classes": 1, "y": 0 * Y},
            "`num_classes` must be a whole number of at least 2, got 1",
        ),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(**{"x": X, "y": Y, "num_classes": 2, **kwargs})


def test_divergence_stops_with_the_step():
    with pytest.raises(RuntimeError, match="cross-entropy is nan at step"):
        train_classifier(X, Y, 2, epochs=1, lr=math.inf)


def test_images_of_another_shape_are_refused(tmp_path):
    classifier = Classifier((1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), got \(1, 9, 9\)"):
        classifier(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ValueError, match=r"`shape` must be \(channels, height, width\)"):
        Classifier((64,), 2)
    with pytest.raises(ValueError, match="`name` must be a plain file name"):
        load_or_train_classifier("../digits", X, Y, X_TEST, Y_TEST, 2, tmp_path)
