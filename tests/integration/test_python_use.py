"""FlexGen without its command line: as a script and a notebook use it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor

import flexgen
from flexgen.objectives import WGANGP
from flexgen.report import table
from flexgen.runs.compose import grid
from flexgen.runs.saved_config import relocate
from tests.conftest import REFIT, SMALL
from tests.integration.test_sweeps import TINY
from tests.training import at_call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FLEXGEN_DATA", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> flexgen.Run:
    """A run with a learned prior at its end."""
    folder = tmp_path_factory.mktemp("python") / "run"
    words = [*SMALL, *REFIT, "report=false", f"paths.run_dir={folder}"]
    return flexgen.train(flexgen.compose(words))


PAGE = Path(__file__).parents[2] / "docs" / "howto" / "python.md"


def test_the_documentations_own_lines_run(here: Path) -> None:
    code = PAGE.read_text().partition("```python")[2].partition("```")[0]
    words = ["network.generator.hidden_features=[16]", "callbacks.reversal.options.steps=5",
             "callbacks.reversal.num_resamples=40", "trainer=cpu"]  # fmt: skip
    assert '"steps=2000"' in code
    code = code.replace('"steps=2000"', f'"steps=3", *{words}')
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x"].shape == (64, 1, 8, 8)
    assert names["steps"].tolist() == [3]
    assert names["values"]["pag/unit"] == names["pag"][-1]


def test_importing_flexgen_imports_nothing_heavy() -> None:
    code = (
        "import sys, flexgen; heavy = {'torch', 'hydra', 'numpy', 'yaml'} & sys.modules.keys();"
        "assert not heavy, heavy; flexgen.metrics.PriorAgreement"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_are_there() -> None:
    assert {"open_run", "compose", "train", "reverse", "metrics", "priors"} <= set(flexgen.__all__)
    for name in flexgen.__all__:
        assert getattr(flexgen, name) is not None
        assert name in dir(flexgen)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = flexgen.trian
    assert (Path(flexgen.__file__).parent / "py.typed").is_file()


def test_a_configuration_is_plain_and_its_folder_is_its_own(here: Path) -> None:
    words = ["data=ring8", "latent_dim=2", "hydra.job.name=x"]
    configs = [flexgen.compose(words) for _ in range(20)]
    folders = {config["paths"]["run_dir"] for config in configs}
    assert len(folders) == 20
    assert all(Path(folder).parent == here / "runs" / "train" for folder in folders)
    assert list(here.iterdir()) == []
    assert configs[0]["overrides"] == words[:2]
    assert type(configs[0]) is dict
    assert yaml.safe_load(yaml.safe_dump(configs[0])) == configs[0]
    typed = flexgen.compose(["paths.run_dir=mine"])
    assert typed["paths"]["run_dir"] == typed["logger"]["csv"]["save_dir"] == "mine"


@pytest.mark.parametrize("several", [{"WORLD_SIZE": "2"}, {"SLURM_NTASKS": "4"}])
def test_the_processes_of_a_job_share_its_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, several: dict[str, str]
) -> None:
    def token() -> str:
        return str(flexgen.compose()["paths"]["run_dir"]).rpartition("_")[2]

    for name, value in several.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = token()
    assert token() == first
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert token() != first


def test_yaml_of_ones_own(here: Path) -> None:
    mine = here / "my conf=1" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\ndefaults: [override /data: ring8]\nsteps: 7\n")
    config = flexgen.compose(["experiment=mine"], config_dir="my conf=1")
    assert (config["steps"], config["data"]["name"]) == (7, "ring8")
    with pytest.raises(ValueError, match=r"^no experiment called 'mine'"):
        flexgen.compose(["experiment=mine"])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        flexgen.compose(config_dir="elsewhere")


def test_hydra_is_given_back_to_whoever_uses_it(here: Path) -> None:
    (here / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(here), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        with pytest.raises(ValueError, match=r"^unknown key `stepz`; did you mean `steps`\?$"):
            flexgen.compose(["stepz=3"])
        assert flexgen.compose()["seed"] == 0
        assert GlobalHydra.instance().hydra is theirs


def test_a_grid_is_that_of_a_sweep() -> None:
    assert grid(["seed=0,1", "data=ring8", "a=[1,2],[3]"]) == [
        ["seed=0", "data=ring8", "a=[1,2]"],
        ["seed=0", "data=ring8", "a=[3]"],
        ["seed=1", "data=ring8", "a=[1,2]"],
        ["seed=1", "data=ring8", "a=[3]"],
    ]
    words = ["report=false", "lr=1e-3", "~x", "~y=2", "z=null", "path='a b'"]
    parsed = OverridesParser.create().parse_overrides(words)
    (theirs,) = BasicSweeper.split_arguments(parsed, None)[0]
    assert grid(words) == [["~x" if word == "~x=null" else word for word in theirs]]


def test_runs_from_python_are_told_apart_in_a_table(here: Path) -> None:
    for model in ("gan", "wgan"):
        for seed in (0, 1):
            config = flexgen.compose([*TINY, f"model={model}", f"seed={seed}", "steps=3"])
            before = json.dumps(config)
            run = flexgen.train(config)
            assert json.dumps(config) == before
            assert "overrides" not in yaml.safe_load((run.folder / "config.yaml").read_text())
    rows = table(["runs"], metrics=["loss/critic"]).rows
    assert {row.settings["model"]: len(row.runs) for row in rows} == {"gan": 2, "wgan": 2}


def test_a_run_is_opened_where_it_was_moved_to(trained: flexgen.Run, here: Path) -> None:
    moved = Path(shutil.copytree(trained.folder, here / "elsewhere"))
    run = flexgen.open_run(moved)
    assert run.folder == moved
    assert run.config["logger"]["csv"]["save_dir"] == str(moved)
    assert run.checkpoint == moved / "checkpoints" / "step=00000030.ckpt"
    assert run.model.counters.generator_steps == 30
    assert set(run.measurements) == {"reversal", "quality", "samples"}
    assert {"progress", "refit", "checkpoint"} <= run.callbacks.keys()
    earlier = flexgen.open_run(moved, checkpoint="step=00000010.ckpt")
    assert earlier.model.counters.generator_steps == 10
    assert not torch.equal(earlier.sample(5), run.sample(5))


def test_metrics_are_steps_and_values(trained: flexgen.Run) -> None:
    final = json.loads((trained.folder / "metrics.json").read_text())["values"]
    metrics = trained.metrics
    for name in ("pag/unit", "emd/samples", "loss/critic"):
        steps, values = metrics[name]
        assert steps[-1] == 30
        assert values[-1] == final[name]
    assert metrics["loss/critic"][0].tolist() == [7, 14, 21, 28, 30]


def test_codes_are_those_of_a_step(trained: flexgen.Run) -> None:
    run = flexgen.open_run(trained.folder)
    last = run.codes()
    assert last["z"].shape == (64, 2)
    assert torch.equal(run.codes(30)["z"], last["z"])
    with pytest.raises(FileNotFoundError, match="has no codes of step 3, there are 30"):
        run.codes(3)


def test_samples_are_drawn_by_a_seed_of_their_own(trained: flexgen.Run) -> None:
    run = flexgen.open_run(trained.folder)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert run.model.latent_dim == 2  # which builds it
    assert torch.equal(state, torch.get_rng_state())
    x = run.sample(6)
    assert x.shape == (6, 2)
    assert torch.equal(x, trained.sample(6, seed=0))
    assert not torch.equal(x, run.sample(6, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_data_are_reversed_to_codes_that_decode(trained: flexgen.Run) -> None:
    x, _ = trained.data.split("validation", 9)
    found = trained.reverse(x, progress=False, steps=20)
    assert found.z.shape == (9, 2)
    torch.testing.assert_close(trained.decode(found.z), found.x_hat)
    before = trained.reverse(x, progress=False, steps=1)
    assert found.loss.mean() < before.loss.mean()
    below = trained.reverse(x, space="base", progress=False, steps=20)
    codes = trained.model.prior.base_space().to_code(below.z)
    torch.testing.assert_close(trained.decode(codes), below.x_hat)
    with pytest.raises(ValueError, match="`space` must be code or base, got 'z'"):
        trained.reverse(x, space="z")


def test_evaluating_gives_what_training_logged(trained: flexgen.Run) -> None:
    values = flexgen.open_run(trained.folder).evaluate()
    assert values["emd/samples"] == trained.metrics["emd/samples"][1][-1]
    assert values["pag/unit"] == trained.metrics["pag/unit"][1][-1]
    saved = json.loads((trained.folder / "evaluation.json").read_text())
    assert saved["values"] == values
    assert saved["checkpoint"] == str(trained.checkpoint)


def test_what_saves_nothing_is_known_from_memory(here: Path) -> None:
    run = flexgen.train(flexgen.compose([*TINY, "steps=4", "~callbacks.checkpoint"]))
    assert run.model.counters.generator_steps == 4
    with pytest.raises(FileNotFoundError):
        _ = flexgen.open_run(run.folder).model


def test_a_class_of_ones_own_wants_trust(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine_own.py").write_text("from flexgen.priors import Normal as Mine\n")
    monkeypatch.syspath_prepend(here)
    words = [*TINY, "steps=2", "prior._target_=mine_own.Mine"]
    run = flexgen.train(flexgen.compose(words))
    with pytest.raises(ValueError, match=r"mine_own\.Mine"):
        flexgen.open_run(run.folder)
    assert flexgen.open_run(run.folder, trust=True).sample(3).shape == (3, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_is_told_by_an_exception(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handler = signal.getsignal(number)

    def signalled(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return loss

    at_call(monkeypatch, WGANGP, "generator", 13, signalled)
    config = flexgen.compose(TINY)
    with pytest.raises(flexgen.TrainingStopped, match=r"^stopped at step 1\d of 30, saved step=0"):
        flexgen.train(config)
    assert signal.getsignal(number) == handler
    assert 13 <= flexgen.open_run(config["paths"]["run_dir"]).model.counters.generator_steps < 20


def test_to_be_stopped_twice_ends_no_kernel(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WGANGP, "generator", interrupted)
    with pytest.raises(KeyboardInterrupt):  # Lightning exits
        flexgen.train(flexgen.compose(TINY))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_paths_move_with_a_folder() -> None:
    config = {
        "paths": {"data_dir": "data", "mine": "data/x"},
        "data": {"root": "data/images", "name": "data"},
        "callbacks": {"refit": {"source": "data"}, "quality": {"cache_dir": "data/cache"}},
        "notes": ["/old/run/a.txt", "see /old/run", "/old/runs"],
    }
    assert relocate(config, [("data", "/new"), ("/old/run", "/there")]) == {
        "paths": {"data_dir": "/new", "mine": "/new/x"},
        "data": {"root": "/new/images", "name": "data"},
        "callbacks": {"refit": {"source": "data"}, "quality": {"cache_dir": "/new/cache"}},
        "notes": ["/there/a.txt", "see /old/run", "/old/runs"],
    }
