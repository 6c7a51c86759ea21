"""A run as a stranger hands it over, and what it must not touch."""

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

import flexgen
from tests.conftest import SMALL
from tests.strangers.child import Ended, run_child

if sys.platform != "linux":
    pytest.skip("limits and watches are Linux's", allow_module_level=True)

ROOT = Path(flexgen.__file__).parents[1]
PROGRAMS = ("git", "gs", "latex", "pdflatex", "dvipng", "kpsewhich")
"""None of them has any business with a stranger's files."""


@dataclass
class Place:
    """A folder with a stranger's run, another with the user's own things, and where programs lie.

    Attributes:
        root: of all.
        run: the stranger's run.
        own: the user's things, which the run has no business with.
        ran: where a program leaves a file if it was started.
        work: working directory of the commands.
        env: environment of the commands.
    """

    root: Path
    run: Path
    own: Path = field(init=False)
    ran: Path = field(init=False)
    work: Path = field(init=False)
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.own, self.ran, self.work = (self.root / n for n in ("own", "ran", "work"))
        for folder in (self.own, self.ran, self.work, programs := self.root / "bin"):
            folder.mkdir()
        for name in ("secret.txt", "config.yaml", "step=00000010.png", "metrics.csv", ".lock"):
            (self.own / name).write_text("hunter2\n" * 100)
        for name in PROGRAMS:
            # FlexGen asks git for the commit of its own checkout, and of no other folder.
            ours = f"case \"$*\" in '-C {ROOT}/flexgen/runs rev-parse HEAD') exit 1;; esac"
            (programs / name).write_text(f"#!/bin/sh\n{ours}\ntouch {self.ran / name}\n")
            (programs / name).chmod(0o755)
        np.save(self.work / "x.npy", np.zeros((4, 2), np.float32))
        self.env = {"PATH": f"{programs}:/usr/bin:/bin", "FLEXGEN_CACHE": str(self.root / "cache")}

    def flexgen(self, *words: str, **how: object) -> Ended:
        """A command in a child; the user's things are as they were, and no program was started."""
        before = {path: path.read_bytes() for path in self.own.rglob("*") if path.is_file()}
        ended = run_child(
            list(words), self.work, watch=(self.own, self.ran), env=self.env, **how  # type: ignore[arg-type]
        )  # fmt: skip
        after = {path: path.read_bytes() for path in self.own.rglob("*") if path.is_file()}
        assert ended.status != "hung", f"{words} hung: {ended.err[-1000:]}"
        assert after == before, "the user's own files were changed"
        assert not ended.read, "the user's own files were read"
        assert not ended.written, "something was written or started"
        assert "hunter2" not in ended.out + ended.err
        told = ended.out + ended.err
        assert told.replace("\n", "").isprintable(), f"a terminal would obey {told!r}"
        return ended

    def edit(self, key: str, value: object) -> None:
        """Change a value of the run's configuration."""
        config = yaml.safe_load((self.run / "config.yaml").read_text())
        *above, last = key.split(".")
        node = config
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
        (self.run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / "step=00000010.ckpt"


def commands(run: Path) -> dict[str, list[str]]:
    """Every command that takes a run."""
    return {
        "evaluate": ["evaluate", f"run={run}"],
        "sample": ["sample", f"run={run}", "n=2"],
        "reverse": ["reverse", f"run={run}", "n=8"],
        "refit": ["refit", f"run={run}", "prior=gaussian", "refit.n=40", "refit.n_held_out=20",
                  "more=1", "report=false", f"paths.run_dir={run}-refit"],
        "resume": ["resume", f"run={run}", "steps=12", "report=false"],
        "compare": ["compare", f"run={run}", "priors=own", "n=20", "n_fit=20", "seeds=2"],
        "generator": ["reverse", f"generator={run}", "data=array", "path=x.npy", "pairs=0",
                      "reverse.steps=3", "device=cpu"],
        "report": ["report", str(run)],
        "table": ["table", str(run)],
    }  # fmt: skip


ON_RUN = ("evaluate", "sample", "reverse", "refit", "resume", "compare", "generator")
"""Those that rebuild it; the others read its folder."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds, of which each test has a copy."""
    from flexgen.cli import main

    run = tmp_path_factory.mktemp("strangers") / "run"
    words = ["callbacks=[samples,reversal,quality,checkpoint]", "steps=10", "threads=1"]
    main(["train", *SMALL, *words, "report=false", f"paths.run_dir={run}"])
    return run


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, Path(shutil.copytree(trained, tmp_path / "stranger")))
