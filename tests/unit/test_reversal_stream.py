"""Streams: the same codes whatever happens on the way, and nothing mixed in."""

from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flexgen.reversal import reverse
from flexgen.reversal.chunks import CODES
from flexgen.reversal.stream import Streamed, TensorSource, reverse_stream

X = generators.images(50)
OPTIONS: dict[str, Any] = {
    "latent_shape": 4, "method": "adam", "steps": 8, "chunk": 16, "batch_size": 16,
}  # fmt: skip


class Counted(TensorSource):
    """Remembers what was read, and breaks off at a given sample."""

    def __init__(self, x: Tensor, stop: int | None = None) -> None:
        super().__init__(x)
        self.stop = stop
        self.rows: list[int] = []

    def read(self, index: Tensor) -> Tensor:
        if self.stop is not None and self.stop in index:
            raise KeyboardInterrupt
        self.rows += index.tolist()
        return super().read(index)


def stream(out: Path, source: TensorSource | None = None, **options: Any) -> Streamed:
    net = options.pop("generator", generators.small())
    return reverse_stream(net, source or TensorSource(X), out, **OPTIONS | options)


def test_codes_are_those_of_one_call(tmp_path: Path) -> None:
    done = stream(tmp_path)
    found = load_file(done.codes)
    whole = reverse(generators.small(), X, latent_shape=4, method="adam", steps=8)
    for name in ("z", "loss", "steps", "converged"):
        assert torch.equal(found[name], getattr(whole, name))
    assert torch.equal(found["index"], torch.arange(50))
    assert (done.samples, done.before) == (50, 0)
    assert [path.name for path in tmp_path.iterdir()] == [CODES]


@pytest.mark.parametrize("method", ["auto", "adam"])
@pytest.mark.parametrize("options", [{"chunk": 7}, {"chunk": 100}, {"chunk": 32, "batch_size": 8}])
def test_codes_do_not_depend_on_chunks(
    tmp_path: Path, options: dict[str, int], method: str
) -> None:
    one = stream(tmp_path / "a", method=method)
    other = stream(tmp_path / "b", method=method, **options)
    assert torch.equal(load_file(one.codes)["z"], load_file(other.codes)["z"])


def test_an_interrupted_stream_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = stream(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "cut", Counted(X, stop=40))
    # What a kill leaves: a file begun and never renamed.
    (tmp_path / "cut" / "codes.parts" / ".00000002.safetensors.0").write_bytes(b"half")
    rest = Counted(X)
    done = stream(tmp_path / "cut", rest)
    assert rest.rows == list(range(32, 50))
    assert done.before == 32
    assert done.codes.read_bytes() == whole.codes.read_bytes()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [CODES]


def test_a_finished_stream_is_not_done_again(tmp_path: Path) -> None:
    before = stream(tmp_path).codes.read_bytes()
    again = Counted(X)
    done = stream(tmp_path, again)
    assert again.rows == []
    assert done.before == 50
    assert done.codes.read_bytes() == before


def test_ranks_do_their_own_chunks_and_the_first_gathers(tmp_path: Path) -> None:
    second = Counted(X)
    stream(tmp_path / "two", second, rank=1, world_size=2)
    assert second.rows == [*range(16, 32), *range(48, 50)]
    assert not (tmp_path / "two" / CODES).exists()
    first = Counted(X)
    done = stream(tmp_path / "two", first, rank=0, world_size=2)
    assert set(first.rows).isdisjoint(second.rows)
    assert done.codes.read_bytes() == stream(tmp_path / "one").codes.read_bytes()
    # A rank that comes late finds everything done.
    assert stream(tmp_path / "two", rank=1, world_size=2).before == 50


def test_the_first_rank_does_not_wait_for_one_that_failed(tmp_path: Path) -> None:
    def check() -> None:
        if (tmp_path / "codes.parts" / "00000002.safetensors").exists():
            raise RuntimeError("the other failed")

    with pytest.raises(RuntimeError, match="the other failed"):
        stream(tmp_path, rank=0, world_size=2, check=check)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 9}, r"options.steps \(8, now 9\)"),
        ({"seed": 1}, r"options.seed \(none, now 1\)"),
        ({"generator": generators.Small().eval()}, "generator"),
        ({"chunk": 8}, r"chunk \(16, now 8\)"),
        ({"index": torch.arange(0, 50, 2)}, "samples|index"),
    ],
)
def test_work_of_another_kind_is_refused(
    tmp_path: Path, finished: bool, change: dict[str, Any], named: str
) -> None:
    if finished:
        stream(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            stream(tmp_path, Counted(X, stop=40))
    with pytest.raises(ValueError, match=f"{named}.*out=.*restart=true"):
        stream(tmp_path, **change)
    done = stream(tmp_path, restart=True, **change)
    assert done.before == 0
    assert done.codes.read_bytes() == stream(tmp_path / "fresh", **change).codes.read_bytes()


def test_an_option_that_was_refused_can_be_mended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method"):
        stream(tmp_path, method="no such method")
    stream(tmp_path)


def test_changed_data_are_refused_where_they_were_done(tmp_path: Path) -> None:
    for changed, refused in ((3, True), (45, False)):
        out = tmp_path / str(changed)
        with pytest.raises(KeyboardInterrupt):
            stream(out, Counted(X, stop=40))
        other = X.clone()
        other[changed] = 0
        if refused:
            with pytest.raises(ValueError, match="samples 0 to 15 have changed"):
                stream(out, TensorSource(other))
        else:  # an unreadable image of a chunk not yet done may be replaced
            stream(out, TensorSource(other))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path, Counted(X, stop=40))
    part = tmp_path / "codes.parts" / "00000000.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"00000000.safetensors holds a damaged file.*restart=true"
    ):
        stream(tmp_path)


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")

    class Nosy(TensorSource):
        def read(self, index: Tensor) -> Tensor:
            with pytest.raises(ValueError, match="another process is writing"):
                stream(tmp_path)
            return super().read(index)

    stream(tmp_path, Nosy(X))


def test_names_and_options_are_kept_with_the_codes(tmp_path: Path) -> None:
    source = TensorSource(X)
    source.names = [f"image {i}" for i in range(50)]
    done = stream(tmp_path, source, index=torch.arange(10, 40, 10), identity={"generator": "abc"})
    with safe_open(done.codes, "pt") as file:
        about = file.metadata()
    assert about["names"] == '["image 10", "image 20", "image 30"]'
    assert '"generator": "abc"' in about["identity"]
    assert '"steps": 8' in about["identity"]


def test_memory_holds_one_chunk(tmp_path: Path) -> None:
    class Watched(Counted):
        def read(self, index: Tensor) -> Tensor:
            assert len(index) <= 16
            return super().read(index)

    source = Watched(X)
    stream(tmp_path, source)
    assert source.rows == list(range(50))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chunk": 0}, "`chunk` must be a whole number of at least 1"),
        ({"rank": 2, "world_size": 2}, "`rank`"),
        ({"restart": True, "world_size": 2}, "`restart` is for one process"),
        ({"norm": "batch", "chunk": 7}, "one sample alone"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        stream(tmp_path, **options)


def test_progress_counts_all_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexgen.reversal.progress.SECONDS_A_LINE", 0.0)
    stream(tmp_path, rank=1, world_size=2, progress=True)
    assert capsys.readouterr().err == ""
    stream(tmp_path, rank=0, world_size=2, progress=True)
    told = capsys.readouterr().err
    assert "50/50 samples" in told
    assert "mean loss" in told
