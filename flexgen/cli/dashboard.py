"""`flexgen dashboard`: a W&B workspace of PAG, EMD and NLL, averaged over seeds."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.cli.app import Command
from flexgen.runs.imports import importing


def command(argv: list[str]) -> Command:
    return Command("dashboard", argv, _dashboard, groups=False)


def _dashboard(cfg: DictConfig) -> None:
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    with importing():
        import wandb

        from flexgen.runs.dashboard import build_workspace

    try:
        entity = asked["entity"] or wandb.Api().default_entity
        if not entity:
            raise ValueError(
                "the W&B account has no default entity; give entity=, a user's or a team's"
            )
        keys = ("project", "name", "sweep", "group_by", "axes")
        workspace = build_workspace(entity, **{key: asked[key] for key in keys})
        workspace.save()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise ValueError(
            "a dashboard needs a package that is not here: pip install wandb-workspaces"
        ) from error
    except wandb.Error as error:
        raise RuntimeError(
            f"W&B refused ({' '.join(str(error).split())}); a dashboard needs an account: "
            "`wandb login`. Without one, `flexgen report` and `flexgen table` show the same curves"
        ) from error
    print(f"dashboard: {workspace.url}")
