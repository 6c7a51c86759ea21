"""A user's own project, outside the checkout: on the command line and from Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexgen import open_run
from tests.forked import fork

PROJECT = Path(__file__).parents[2] / "examples" / "own_project"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder."""
    folder = tmp_path_factory.mktemp("elsewhere") / "project"
    return Path(shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("runs", "__py*")))


def call(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLEXGEN_CACHE": str(project / "cache")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=project, env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


def flexgen(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    # As the installed command starts, with its own folder first on Python's path, not this one.
    start = "import sys; sys.path.remove(''); from flexgen.cli import main; main()"
    return call(project, "-c", start, *words)


@pytest.fixture(scope="module")
def run(project: Path) -> Path:
    """A short run of the experiment."""
    folder = project / "runs" / "one"
    done = flexgen(
        project, "train", "--config-dir", "conf", "experiment=mine", "steps=20", "prior.df=3",
        f"paths.run_dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_experiment_trains_and_is_measured_by_parts_of_ones_own(run: Path) -> None:
    assert (run / "report.html").is_file()
    assert (run / "checkpoints" / "step=00000020.ckpt").is_file()
    final = json.loads((run / "metrics.json").read_text())
    assert final["counters"]["images_seen"] == 20 * 50
    assert {"copies/ratio", "emd/samples", "pag/unit"} <= final["values"].keys()
    assert open_run(run, trust=True).config["model"]["prior"] == {
        "_target_": "own_project.priors.StudentT", "latent_dim": 8, "df": 3,
    }  # fmt: skip


def test_a_run_with_code_of_ones_own_wants_trust(run: Path) -> None:
    with pytest.raises(ValueError, match=r"own_project\.data\.FewDigits.*say trust=true"):
        open_run(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["evaluate"], "evaluation.json"),
        (["sample", "n=4"], "samples"),
        (["resume", "steps=25"], "checkpoints/step=00000025.ckpt"),
    ],
    ids=lambda words: words[0],
)
def test_a_run_with_code_of_ones_own_goes_on_when_it_is_trusted(
    words: list[str], left: str, project: Path, run: Path
) -> None:
    def forget() -> None:
        """What this process has imported of the project."""
        sys.path[:] = [path for path in sys.path if Path(path).resolve() != project.resolve()]
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_project"]:
            del sys.modules[name]

    command, *rest = words
    assert not (run / left).exists()
    environment = {"FLEXGEN_CACHE": str(project / "cache")}
    told = (command, f"run={run}", *rest, "trust=true")
    process = fork(*told, cwd=project, env=environment, prepare=forget)
    assert process.wait() == 0, process.err
    assert (run / left).exists()


@pytest.mark.slow
def test_the_script_trains_opens_and_uses_a_run(project: Path) -> None:
    done = call(project, "explore.py")
    assert done.returncode == 0, done.stderr
    (evaluated,) = (project / "runs" / "mine").glob("*/evaluation.json")
    values = json.loads(evaluated.read_text())["values"]
    assert {"copies/ratio", "emd/samples", "pag/unit"} <= values.keys()
    assert (evaluated.parent / "checkpoints" / "step=00000200.ckpt").is_file()
    assert "generator steps 100 samples (4, 1, 8, 8)" in done.stdout
