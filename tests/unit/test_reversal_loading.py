"""Generators from files and import paths: loaded as they are meant, refused in one line."""

import zipfile
from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

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
def test_a_pickle_of_weights_says_how_to_save_them(tmp_path: Path, legacy: bool) -> None:
    state = generators.small().state_dict()
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"holds a dictionary.*safetensors\.torch\.save_file"):
        load_generator(tmp_path / "w.pt", trust=True)


def test_weights_go_into_the_network_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_file(generators.small().state_dict(), path)
    same(load_generator(path, network=generators.Small()))
    with pytest.raises(ValueError, match="weights alone; name what they belong to"):
        load_generator(path)
    with pytest.raises(ValueError, match=r"into Linear .*of another network"):
        load_generator(path, network=nn.Linear(4, 3))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot load .*damaged"):
        load_generator(path, network=generators.Small())
    with pytest.raises(ValueError, match="`network` goes with weights"):
        load_generator("generators:network", network=generators.Small())


@pytest.mark.parametrize("kind", ["script", "export", "pickle", "legacy", "import", "text"])
def test_a_program_wants_trust(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "it ran"
    source: Any = tmp_path / "g.pt2"
    if kind in ("script", "export"):
        getattr(generators, kind)(source)
    elif kind == "import":
        source = "not.there.at.all:generator"  # nor is it looked for
    elif kind == "text":
        source.write_text("no program that anybody knows")
    else:
        torch.save([Evil(mark)], source, _use_new_zipfile_serialization=kind == "pickle")
    with pytest.raises(ValueError, match=r"is a program.*trust=true.*safetensors") as told:
        load_generator(source)
    assert "\n" not in str(told.value)
    assert not mark.exists()
    if kind in ("pickle", "legacy"):
        with pytest.raises(ValueError, match="not a generator"):
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
