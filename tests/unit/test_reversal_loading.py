"""Generators from files and import paths: loaded as they are meant, refused in one line."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flexgen.reversal import reverse
from flexgen.reversal.freezing import weights_sha256
from flexgen.reversal.loading import Loaded, load_generator, missing_latent_shape, probe


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def same(loaded: Loaded) -> None:
    z = torch.randn(5, 4)
    torch.testing.assert_close(loaded.generator(z), generators.small()(z))


def test_torchscript_gives_the_module_that_was_saved(tmp_path: Path) -> None:
    loaded = load_generator(generators.script(tmp_path / "any.name"), trust=True)
    same(loaded)
    assert loaded.kind == "TorchScript file"
    assert loaded.latent_shape is None
    assert not any(weight.requires_grad for weight in loaded.generator.parameters())


def test_torchscript_saved_in_train_mode_is_loaded_in_eval_mode(tmp_path: Path) -> None:
    path = generators.script(tmp_path / "g.pt", generators.small().train())
    same(load_generator(path, trust=True))


@pytest.mark.parametrize(("dynamic", "notes"), [(True, 0), (False, 1)])
def test_an_exported_program_takes_any_batch(tmp_path: Path, dynamic: bool, notes: int) -> None:
    loaded = load_generator(generators.export(tmp_path / "g.pt2", dynamic=dynamic), trust=True)
    same(loaded)  # 5 codes, where a static program takes 4 at once
    assert loaded.latent_shape == (4,)
    assert len(loaded.notes) == notes


def test_an_exported_program_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return z + y

    program = torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    torch.export.save(program, tmp_path / "g.pt2")
    with pytest.raises(ValueError, match=r"must take one tensor of codes.*got 2 inputs"):
        load_generator(tmp_path / "g.pt2", trust=True)


def test_import_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same(load_generator("generators:network", trust=True))
    same(load_generator("generators:function", trust=True))
    (tmp_path / "apart.py").write_text("from generators import network as inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    same(load_generator("apart:inner", trust=True))


@pytest.mark.parametrize(
    ("source", "error", "expected"),
    [
        ("nowhere.pt", FileNotFoundError, "there is no file nowhere.pt"),
        ("nowhere.at.all:net", FileNotFoundError, "cannot import nowhere.at.all"),
        ("generators:nothing", FileNotFoundError, "generators has no attribute nothing"),
        ("generators:Small", ValueError, "got the class Small; name an object made from it"),
        ("generators:__name__", ValueError, "must be a torch.nn.Module or a function"),
        (".", ValueError, "is a folder"),
    ],
)
def test_sources_that_are_none(source: str, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        load_generator(source, trust=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_of_weights_goes_into_the_network_that_is_given(
    tmp_path: Path, legacy: bool
) -> None:
    state = {f"module.{name}": value for name, value in generators.small().state_dict().items()}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"holds weights alone \(a dictionary.*network="):
        load_generator(tmp_path / "w.pt", trust=True)
    same(load_generator(tmp_path / "w.pt", network=generators.Small(), trust=True))


def _averaged_first(net: nn.Module) -> dict[str, Any]:
    return {"G": nn.Linear(4, 4), "D": nn.Linear(4, 1), "G_ema": net, "args": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("content", "key", "note"),
    [
        (_averaged_first, None, "taken: key=G_ema; the file also holds G, D, args"),
        (lambda net: {"nets": {"mine": net, "other": nn.Linear(4, 4)}}, "nets.mine", None),
        (lambda net: {"g": nn.ModuleDict({"inner": net})}, "g.inner", None),
        (lambda net: {"epoch": 3, "anything": net}, None, "taken: key=anything"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_a_generator_among_other_things(
    tmp_path: Path, content: Any, key: str | None, note: str | None, plain: bool
) -> None:
    path, held = tmp_path / "networks.pkl", content(generators.small())
    if plain:  # as NVIDIA's files are
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path)
    found = load_generator(path, key=key, trust=True)
    same(found)
    assert (note is None) == (found.notes == ())
    assert note is None or found.notes[0].startswith(note)


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        ({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}, None, r"holds several: a, b; .* key=a"),
        ({"G": nn.Linear(1, 1)}, "G_ema", r"has no key 'G_ema'; it holds a dictionary \(G\)"),
        ({"lr": 0.1}, None, r"holds a dictionary \(lr\), no generator"),
        (3, None, "holds int, no generator"),
        ({"opt": 1, "G": {"w": torch.ones(2)}}, None, r"holds weights alone .*network="),
    ],
)
def test_a_file_in_which_no_generator_is_found(
    tmp_path: Path, content: Any, key: str | None, expected: str
) -> None:
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=expected):
        load_generator(tmp_path / "g.pt", key=key, trust=True)


def test_weights_below_a_key(tmp_path: Path) -> None:
    state = generators.small().state_dict()
    torch.save({"state_dict": {f"generator.{k}": v for k, v in state.items()}}, tmp_path / "l.ckpt")
    key, net = "state_dict.generator", generators.Small()
    same(load_generator(tmp_path / "l.ckpt", network=net, key=key, trust=True))
    save_file({f"G.{k}": v for k, v in state.items()}, tmp_path / "g.safetensors")
    same(load_generator(tmp_path / "g.safetensors", network=generators.Small(), key="G"))
    with pytest.raises(ValueError, match=r"are not those of a Small.*or key="):
        load_generator(tmp_path / "g.safetensors", network=generators.Small())


def test_a_pickle_without_its_code_says_which_module_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g.pkl").write_bytes(b"\x80\x02ctorch_utils.persistence\nG\n.")
    with pytest.raises(ValueError, match=r"need the module torch_utils.*PYTHONPATH"):
        load_generator(tmp_path / "g.pkl", trust=True)
    (tmp_path / "its_code.py").write_text("import not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "g.pkl").write_bytes(b"\x80\x02cits_code\nG\n.")
    with pytest.raises(ValueError, match=r"its_code.py fails.*'not_installed'.*; install that"):
        load_generator(tmp_path / "g.pkl", trust=True)
    (tmp_path / "g.pkl").write_bytes(b"\x80\x02c__main__\nMyGenerator\n.")
    with pytest.raises(ValueError, match=r"MyGenerator.*a class in it is not where it was"):
        load_generator(tmp_path / "g.pkl", trust=True)


def test_a_generator_with_labels_and_noise_is_called_with_codes_alone(tmp_path: Path) -> None:
    torch.save({"G_ema": generators.Styled()}, tmp_path / "network.pkl")
    found = load_generator(tmp_path / "network.pkl", trust=True)
    assert found.latent_shape == (4,)
    assert "noise is held" in found.notes[-1]
    z = torch.randn(3, 4)
    x = found.generator(z)
    assert torch.equal(x, found.generator(z))
    assert torch.equal(x, found.generator.synthesis(found.generator.mapping(z)))


def test_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    same(load_generator(generators.onnx(tmp_path / "g.onnx"), trust=True))
    upsampling = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Upsample(scale_factor=2),
        nn.ReflectionPad2d(1),
        nn.Conv2d(1, 3, 3),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.InstanceNorm2d(3, affine=True),
        nn.ConvTranspose2d(3, 1, 4, 2, 1),
        nn.Sigmoid(),
    ).eval()
    found = load_generator(generators.onnx(tmp_path / "u.onnx", upsampling), trust=True)
    z = torch.randn(6, 4)
    torch.testing.assert_close(found.generator(z), upsampling(z))
    assert found.latent_shape == (4,)
    rounded = generators.onnx(tmp_path / "r.onnx", nn.Softmax(1))
    with pytest.raises(ValueError, match="the ONNX operator Softmax is not known"):
        load_generator(rounded, trust=True)
    rounded.write_bytes(rounded.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        load_generator(rounded, trust=True)


@pytest.mark.parametrize(
    ("start", "expected"), [(b"\x89HDF\r\n", "an HDF5 file"), (b"\x93NUMPY", "an array")]
)
def test_files_of_other_kinds_are_called_by_their_names(
    tmp_path: Path, start: bytes, expected: str
) -> None:
    (tmp_path / "g.h5").write_bytes(start + bytes(50))
    with pytest.raises(ValueError, match=expected):
        load_generator(tmp_path / "g.h5", trust=True)


def test_weights_go_into_the_network_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_file(generators.small().state_dict(), path)
    same(load_generator(path, network=generators.Small()))
    with pytest.raises(ValueError, match="weights alone; name what they belong to"):
        load_generator(path)
    with pytest.raises(ValueError, match=r"are not those of a Linear"):
        load_generator(path, network=nn.Linear(4, 3))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot load .*damaged"):
        load_generator(path, network=generators.Small())
    with pytest.raises(ValueError, match="`network` and `key` go with a file"):
        load_generator("generators:network", network=generators.Small(), trust=True)
    with pytest.raises(ValueError, match="a generator by itself; leave out"):
        load_generator(generators.script(tmp_path / "g.pt"), key="G", trust=True)


@pytest.mark.parametrize("kind", ["export", "pickle", "legacy", "import", "text"])
def test_a_program_wants_trust(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "it ran"
    source: Any = tmp_path / "g.pt2"
    if kind == "export":
        generators.export(source)
    elif kind == "import":
        source = "not.there.at.all:generator"  # nor is it looked for
    elif kind == "text":
        source.write_text("no program that anybody knows")
    else:
        torch.save([Evil(mark)], source, _use_new_zipfile_serialization=kind == "pickle")
    what = "a pickle, which may be" if kind in ("pickle", "legacy") else "a program, not weights"
    with pytest.raises(ValueError, match=rf"is {what}.*trust=true.*safetensors") as told:
        load_generator(source)
    assert "\n" not in str(told.value)
    assert not mark.exists()
    if kind in ("pickle", "legacy"):
        with pytest.raises(ValueError, match="no generator"):
            load_generator(source, trust=True)
        assert mark.exists()  # so it would have


def test_a_module_saved_whole(tmp_path: Path) -> None:
    torch.save(generators.small(), tmp_path / "whole.pt")
    same(load_generator(tmp_path / "whole.pt", trust=True))


@pytest.mark.parametrize("kind", ["script", "export", "pickle"])
def test_a_file_cut_short_is_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g"
    if kind == "pickle":
        torch.save(generators.small().state_dict(), path)
    else:
        getattr(generators, kind)(path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut short"):
        load_generator(path, trust=True)


def test_other_files_are_no_generators(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a generator")
    with pytest.raises(ValueError, match="no file of torch"):
        load_generator(tmp_path / "notes.txt", trust=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "no")
    with pytest.raises(ValueError, match="no file of torch"):
        load_generator(tmp_path / "x.zip", trust=True)


def loaded(generator: Any, shape: tuple[int, ...] | None = None) -> Loaded:
    return Loaded(generator, shape, "function", "")


def test_a_probe_finds_shape_and_range() -> None:
    found = probe(load_generator("generators:network", trust=True), (4,))
    assert found.shape == (1, 8, 8)
    assert -1 <= found.low < found.high <= 1
    assert found.notes == ()


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        (generators.small(), r"does not take codes of shape \(5,\).*first weight.*\(32, 4\)"),
        (lambda z: (z, z), "must return one floating-point tensor.*tuple"),
        (lambda z: z.long(), "must return one floating-point tensor.*int64"),
        (lambda z: z[:1], "one sample for each code, got 1 for 16"),
        (lambda z: z / 0, "finite"),
    ],
)
def test_a_probe_refuses(generator: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        probe(loaded(generator), (5,))


def test_a_probe_tells_of_noise_and_of_ties_to_the_batch() -> None:
    (note,) = probe(loaded(lambda z: z + torch.rand_like(z)), (3,)).notes
    assert "another image each time" in note
    (note,) = probe(loaded(lambda z: z - z.mean(0)), (3,)).notes
    assert "depends on the codes beside it" in note


class Writing(nn.Module):
    """Scales its codes where they lie."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z.mul_(2))


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        (lambda z: z.round(), "no slope in its codes"),
        (lambda z: (z > 0).float() + 0 * z, "no slope in its codes"),
        (lambda z: nn.functional.one_hot(z.argmax(1), 5).float(), "without a gradient.*argmax"),
        (lambda z: (z * 255).to(torch.uint8), r"torch.uint8 of shape.*before it rounds"),
        (lambda z: {"image": z, "w": z}, r"a dict \(image, w\).*generator\(z\)\['image'\]"),
        (lambda z: z.div_(z.norm(dim=1, keepdim=True)), r"writes in place.*z = z / z.norm\(\)"),
        (lambda z, label: z, r"give classes by labels="),
        (lambda z: (z, 1), r"a tuple \(\(16, 5\), int\).*generator\(z\)\[0\]"),
    ],
)
def test_what_cannot_be_searched_is_told_before_the_search(generator: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        probe(loaded(generator), (5,))


def test_a_generator_that_writes_into_its_codes_is_no_noisy_one() -> None:
    assert probe(loaded(Writing()), (3,)).notes == ()
    x = Writing()(torch.randn(20, 3))
    for method in ("lbfgs", "adam"):
        found = reverse(Writing(), x, latent_shape=3, method=method, steps=200)
        assert found.loss.max() < 1e-2


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_no_code_of_a_noisy_generator_has_converged(method: str) -> None:
    noisy = lambda z: z + 0.1 * torch.rand_like(z)  # noqa: E731
    found = reverse(noisy, torch.randn(6, 3), latent_shape=3, method=method, tolerance=0.5)
    assert not found.converged.any()
    assert found.how.endswith("makes other data of one code each time")


def test_train_mode_and_half_precision_are_told(tmp_path: Path) -> None:
    torch.save(generators.small().train(), tmp_path / "g.pt")
    found = load_generator(tmp_path / "g.pt", trust=True)
    assert found.notes == ("it was saved in train mode, and is run in eval mode",)
    torch.save(generators.small().half(), tmp_path / "h.pt")
    (note,) = probe(load_generator(tmp_path / "h.pt", trust=True), (4,)).notes
    assert note.startswith("the generator computes in float16")


@pytest.mark.parametrize(
    ("made", "given", "expected"),
    [
        ((3, 8, 6), (8, 6, 3), r"channels last: permute them, x\.permute\(0, 3, 1, 2\)"),
        ((8, 6, 3), (3, 8, 6), r"permute x to it, x\.permute\(0, 2, 3, 1\)"),
        ((3, 8, 6), (3, 6, 6), "of the size that the generator was trained on"),
    ],
)
def test_data_that_lie_the_other_way(
    made: tuple[int, ...], given: tuple[int, ...], expected: str
) -> None:
    generator = nn.Sequential(nn.Linear(2, 144), nn.Unflatten(1, made))
    with pytest.raises(ValueError, match=expected):
        reverse(generator, torch.rand(2, *given), latent_shape=2)


def test_the_shape_of_a_code_is_taken_where_it_is_said(tmp_path: Path) -> None:
    net = generators.small()
    net.latent_dim = 4
    assert load_generator(generators.script(tmp_path / "g.pt", net), trust=True).latent_shape == (
        4,
    )
    told = missing_latent_shape(load_generator("generators:network", trust=True))
    assert "latent_dim=100" in told
    assert "(32, 4)" in told


def test_a_hash_of_the_weights_changes_with_them() -> None:
    net = generators.small()
    before = weights_sha256(net)
    assert before == weights_sha256(generators.small())
    net.last.bias.data[3] += 1
    assert weights_sha256(net) != before
