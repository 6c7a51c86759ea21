import io
import zipfile
from pathlib import Path

import generators
import pytest
import torch
from torch import nn

from flexgen.reversal import load_generator
from flexgen.reversal.script_code import arithmetic_alone


def rewritten(path: Path, old: str, new: str) -> Path:
    """A file of TorchScript with another text in its code."""
    with zipfile.ZipFile(generators.script(path)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    changed = 0
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            if name.endswith(".py") and old.encode() in content:
                content, changed = content.replace(old.encode(), new.encode(), 1), changed + 1
            archive.writestr(name, content)
    assert changed
    return path


def test_arithmetic_is_loaded_without_trust(tmp_path: Path) -> None:
    loaded = load_generator(generators.script(tmp_path / "g.pt"))
    z = torch.randn(3, 4)
    torch.testing.assert_close(loaded.generator(z), generators.small()(z))
    assert loaded.kind == "TorchScript file"


def test_what_is_not_code_is_left_behind(tmp_path: Path) -> None:
    path = generators.script(tmp_path / "g.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("g/model.json", "another program")
        archive.writestr("g/archive_format", "pt2")
        archive.writestr("g/extra/notes", "hello")
    content, why = arithmetic_alone(path)
    assert (content is not None, why) == (True, "")
    assert content is not None
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert not any("model.json" in name or "extra" in name for name in names)
    assert load_generator(path).kind == "TorchScript file"  # not the export that it pretends to be


def test_networks_of_every_layer_are_arithmetic(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 8, 4), nn.InstanceNorm2d(8, affine=True),
        nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Conv2d(8, 8, 3, 1, 1),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.PixelShuffle(2), nn.ReflectionPad2d(1),
        nn.Conv2d(2, 1, 3), nn.Dropout(0.1), nn.GELU(), nn.Flatten(), nn.LayerNorm(256),
        nn.Linear(256, 4), nn.Softplus(),
    ).eval()  # fmt: skip
    loaded = load_generator(generators.script(tmp_path / "g.pt", net)).generator
    z = torch.randn(2, 4)
    torch.testing.assert_close(loaded(z), net(z))


def before(line: str) -> tuple[str, str]:
    return "    return torch.linear", f"    {line}\n    return torch.linear"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("torch.linear(", "torch.from_file(", r"calls torch\.from_file"),
        ("torch.linear(", "ops.aten.save(", r"calls ops\.aten\.save"),
        (*before("f = torch.save"), r"torch\.save"),
        (*before("f = torch"), "calls torch"),
        (*before("f = rpc_async"), "calls rpc_async"),
        (*before("f = g\n    g = 1"), "calls g"),
        (*before("range = 1"), "another meaning"),
        (*before("a = \"\\\\\""), "other characters"),
        (*before("c = __torch__.torch.classes.a.B()"), r"uses __torch__\.torch\.classes\.a\.B"),
        (*before("# a"), "other characters"),
        (*before("a = r\"x\""), "other characters"),
        (*before("import os"), "does not write"),
        (*before("n = __torch__.torch"), r"uses __torch__\.torch"),
        (*before("n = __torch__"), "calls __torch__"),
        (*before("i = (input).as_strided([1], [1], 0)"), "calls as_strided"),
        (*before("i = input.to_sparse"), "calls to_sparse"),
        (*before("i = self.__new__"), "calls __new__"),
        (*before('i = getattr(input, "set_data")'), "calls getattr"),
        ("  def forward", "  def __setstate__(self, x: int):\n    pass\n  def forward",
         "defines __setstate__"),
        ("    return torch.linear", "    return ((torch.linear", "cannot be read"),
    ],
)  # fmt: skip
def test_what_does_more_wants_trust(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = rewritten(tmp_path / "g.pt", old, new)
    with pytest.raises(ValueError, match=rf"a program, not weights, that .*{why}.*trust=true"):
        load_generator(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice_wants_trust(tmp_path: Path) -> None:
    path = generators.script(tmp_path / "g.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"another")
    with pytest.raises(ValueError, match=r"two entries of one name"):
        load_generator(path)
