import io
import zipfile
from pathlib import Path

import generators
import pytest
import torch

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
        archive.writestr("g/extra/notes", "hello")
    content, why = arithmetic_alone(path)
    assert (content is not None, why) == (True, "")
    assert content is not None
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert not any("model.json" in name or "extra" in name for name in names)


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
        (*before("fork = 1"), "another meaning"),
        (*before("c = __torch__.torch.classes.a.B()"), r"uses __torch__\.torch\.classes\.a\.B"),
        (*before("# a"), "other characters"),
        (*before("a = r\"x\""), "other characters"),
        (*before("import os"), "does not write"),
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
