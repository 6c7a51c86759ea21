"""Generators from files and import paths: loaded as they are meant, refused in one line."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from torch import Tensor, nn

from flexgen.reversal.loading import Loaded, load_generator, missing_latent_shape, probe
from flexgen.reversal.stream import weights_sha256


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
    loaded = load_generator(generators.script(tmp_path / "any.name"))
    same(loaded)
    assert loaded.kind == "TorchScript file"
    assert loaded.latent_shape is None
    assert not any(weight.requires_grad for weight in loaded.generator.parameters())


def test_torchscript_saved_in_train_mode_is_loaded_in_eval_mode(tmp_path: Path) -> None:
    same(load_generator(generators.script(tmp_path / "g.pt", generators.small().train())))


@pytest.mark.parametrize(("dynamic", "notes"), [(True, 0), (False, 1)])
def test_an_exported_program_takes_any_batch(tmp_path: Path, dynamic: bool, notes: int) -> None:
    loaded = load_generator(generators.export(tmp_path / "g.pt2", dynamic=dynamic))
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
        load_generator(tmp_path / "g.pt2")


def test_import_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same(load_generator("generators:network"))
    same(load_generator("generators:function"))
    (tmp_path / "apart.py").write_text("from generators import network as inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    same(load_generator("apart:inner"))


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
        load_generator(source)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content",
    [generators.small().state_dict(), {"state_dict": generators.small().state_dict(), "epoch": 3}],
)
def test_weights_alone_name_what_is_missing(
    tmp_path: Path, content: dict[str, Any], legacy: bool
) -> None:
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights alone.*class.*is missing.*torch\.jit\.script"):
        load_generator(tmp_path / "w.pt", trust=True)


def test_a_pickle_is_not_loaded_without_trust(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    torch.save({"hyper": Evil(mark)}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"is a pickle.*say trust=true"):
        load_generator(tmp_path / "evil.pt")
    assert not mark.exists()
    torch.save(generators.small(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="is a pickle"):
        load_generator(tmp_path / "whole.pt")
    same(load_generator(tmp_path / "whole.pt", trust=True))


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace a file of an archive."""
    old = path.with_suffix(".old")
    shutil.move(path, old)
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        for found in source.namelist():
            inside = found.partition("/")[2] == name
            target.writestr(found, content if inside else source.read(found))


def test_an_archive_with_a_pickle_inside_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = generators.export(tmp_path / "g.pt2")
    torch.save((Evil(mark),), tmp_path / "inputs.pt")
    rewrite(path, "data/sample_inputs/model.pt", (tmp_path / "inputs.pt").read_bytes())
    with pytest.raises(ValueError, match="cannot load"):
        load_generator(path)
    assert not mark.exists()


def test_an_archive_with_an_expression_to_evaluate_is_refused(tmp_path: Path) -> None:
    path = generators.export(tmp_path / "g.pt2")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        text = archive.read(name).decode()
    evil = "__import__('os').getcwd()"
    sizes = json.dumps("Symbol('s")[:-1]
    assert sizes in text
    start = text.index('"expr_str": ')
    end = text.index(",", text.index(")", start))
    rewrite(
        path, "models/model.json", (text[:start] + f'"expr_str": "{evil}"' + text[end:]).encode()
    )
    with pytest.raises(ValueError, match=r"holds the expression.*say trust=true"):
        load_generator(path)


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
        load_generator(path)


def test_other_files_are_no_generators(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a generator")
    with pytest.raises(ValueError, match=r"neither TorchScript nor torch.export"):
        load_generator(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "no")
    with pytest.raises(ValueError, match=r"neither TorchScript nor torch.export"):
        load_generator(tmp_path / "x.zip")


def loaded(generator: Any, shape: tuple[int, ...] | None = None) -> Loaded:
    return Loaded(generator, shape, "function", "")


def test_a_probe_finds_shape_and_range() -> None:
    found = probe(load_generator("generators:network"), (4,))
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
    assert load_generator(generators.script(tmp_path / "g.pt", net)).latent_shape == (4,)
    told = missing_latent_shape(load_generator("generators:network"))
    assert "latent_dim=100" in told
    assert "(32, 4)" in told


def test_a_hash_of_the_weights_changes_with_them() -> None:
    net = generators.small()
    before = weights_sha256(net)
    assert before == weights_sha256(generators.small())
    net.last.bias.data[3] += 1
    assert weights_sha256(net) != before


def test_an_archive_with_python_among_its_guards_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = generators.export(tmp_path / "g.pt2")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        program = json.loads(archive.read(name))
    program["guards_code"] = [f"open({str(mark)!r}, 'w') and True"]
    rewrite(path, "models/model.json", json.dumps(program).encode())
    loaded = load_generator(path)
    probe(loaded, loaded.latent_shape or ())
    assert not mark.exists()
    for call in ("torch.os.system", "torch.ops.image.write_file.default", "_operator.methodcaller"):
        program["graph_module"]["graph"]["nodes"][0]["target"] = call
        rewrite(path, "models/model.json", json.dumps(program).encode())
        with pytest.raises(ValueError, match=rf"holds a call of '{call}'.*say trust=true"):
            load_generator(path)


def test_a_script_that_writes_files_wants_trust(tmp_path: Path) -> None:
    mark = tmp_path / "it wrote"
    path = generators.script(tmp_path / "g.pt")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if b"torch.relu(" in archive.read(n))
        code = archive.read(name).decode()
    inside = name.partition("/")[2]
    for call, shown in (
        (f'torch.from_file("{mark}", True, 8)', "from_file"),
        ("ops.image.read_file('x')", "ops.image.read_file"),
    ):
        evil = code.replace("torch.relu(", f"torch.add(torch.sum({call}), 0.0) + torch.relu(", 1)
        rewrite(path, inside, evil.encode())
        with pytest.raises(ValueError, match=rf"calls {shown}, which could.*say trust=true"):
            load_generator(path)
    assert not mark.exists()
