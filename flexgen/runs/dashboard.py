"""A W&B workspace that shows what a report shows, over many runs."""

from collections.abc import Sequence
from typing import Any

from flexgen.report.catalogue import PANELS, describe
from flexgen.report.gallery import CODES, SAMPLES
from flexgen.training import Counters

_HEADLINES = ("pag/unit", "emd/samples", "nll/samples")
_PICTURES = (*SAMPLES, "reconstructions", *(k for k in CODES if k != "reconstructions"))
_MOST_RUNS = 100  # W&B averages over those that it shows, and shows 10 unless told


def build_workspace(
    entity: str, *, project: str, name: str, sweep: str | None, group_by: str, axes: Sequence[str]
) -> Any:
    """The workspace, not saved yet; nothing here needs the network.

    Its panels are those of the report, each curve the mean over the runs of a group with a band of
    one standard deviation.

    Args:
        entity: whose project it is; `name` is the workspace's.
        sweep: show the runs of this W&B group alone; None: all of the project.
        group_by: the key of a run's configuration that tells the groups apart.
        axes: step counters; the headline panels are drawn over each, the others over the first.

    Raises:
        ModuleNotFoundError: without the package wandb-workspaces.
        ValueError: for an axis that is no step counter.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    if unknown := [axis for axis in axes if axis not in Counters().axes()] or not axes:
        raise ValueError(
            f"`axes` must name step counters ({', '.join(Counters().axes())}), got {unknown}"
        )
    over_seeds: dict[str, Any] = {
        "groupby": panels.Config(group_by), "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev", "max_runs_to_show": _MOST_RUNS,
    }  # fmt: skip

    def curves(axis: str, title: str, names: Sequence[str]) -> Any:
        title = f"{title} {describe(names[0]).arrow}".strip()
        return panels.LinePlot(title=title, x=axis, y=list(names), title_x=axis, **over_seeds)

    headlines = [panel for panel in PANELS if panel[1][0] in _HEADLINES]
    last: dict[str, Any] = {m: [panels.SummaryMetric(f"{m}.mean_of_last")] for m in _HEADLINES}
    ends = [
        panels.BarPlot(title=describe(m).heading, metrics=last[m], **over_seeds) for m in _HEADLINES
    ]
    pictures = [panels.MediaBrowser(title=k, media_keys=[f"images/{k}"]) for k in _PICTURES]
    others = [curves(axes[0], *panel) for panel in PANELS if panel not in headlines]
    sections = {f"By {axis}": [curves(axis, *panel) for panel in headlines] for axis in axes}
    sections |= {"At the end: mean of the last values": ends, "Pictures": pictures,
                 "All else": others}  # fmt: skip
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=name, panels=members, is_open=name != "All else")
            for name, members in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=axes[0], max_runs=_MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters="" if sweep is None else ws.And(ws.Metric("Group") == sweep),
            groupby=[ws.Config(group_by)],
        ),
    )
