"""Dashboards for W&B: one table of sections and charts, made into a workspace or a report (package wandb-workspaces).

Objects are built and serialised without a network or an account; only `upload` needs them. Curves are drawn against our
own steps (`env_steps`, `updates`), never smoothed, and in buckets that keep minima: sampled points may miss the dip.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.training.tracking.scalars import PREFIXES, PRETRAIN, SUMMARY

TITLE = "o2o_smooth: the switch"
STABILITY = PREFIXES[SUMMARY]
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7  # a report is 24 units wide
_SHOWN_RUNS = 20


@dataclass(frozen=True)
class Chart:
    """One panel."""

    title: str
    """Its heading."""
    metrics: tuple[str, ...] = ()
    """What it shows; of a scatter, x and y."""
    kind: Literal["line", "bar", "scatter"] = "line"
    """A line over steps, or the summaries of runs as bars or points."""
    regex: str | None = None
    """Of a line: every metric whose name matches, in place of `metrics`."""
    log_x: bool = False
    """Of a line: logarithmic steps. The switch itself (step 0) has no place there."""


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    name: str
    """Its heading."""
    note: str
    """What to look for; reports show it."""
    charts: tuple[Chart, ...]
    """In reading order."""
    axis: Literal["env_steps", "updates"] = "env_steps"
    """What lines are drawn against."""
    is_open: bool = True
    """Whether a workspace shows it unfolded."""


SECTIONS = (
    Section(
        "The switch",
        "The policy's evaluations after the switch (step 0), means over a run's seeds. On the logarithmic axis the "
        "first steps are wide: a dip that comes at once and is over soon shows there only.",
        (
            Chart("Score", ("eval/score",)),
            Chart("Score, logarithmic steps", ("eval/score",), log_x=True),
            Chart("Score of each seed (runs with several)", regex=r"^eval/score/seed_\d+$"),
            Chart("Return (tasks without a score)", ("eval/return_mean",)),
            Chart("Return of collected episodes", ("collect/return",)),
            Chart("Weight of the online objective", regex=r"^smoothing/(actor|critic|value|temperature)_weight$"),
        ),
    ),
    Section(
        "How the switch went",
        "One bar a run, means over its seeds, written when the run ends. A dip no deeper than its null dip is "
        "evaluation noise. A run in which a seed never recovered has no mean recovery time; the share of seeds that "
        "did is beside it.",
        (
            Chart("Dip depth beside the null dip", (f"{STABILITY}dip_depth", f"{STABILITY}null_dip"), "bar"),
            Chart("Dip area (mean points below J0)", (f"{STABILITY}dip_area",), "bar"),
            Chart("Final score beside J0", (f"{STABILITY}final", f"{STABILITY}j0"), "bar"),
            Chart("Environment steps to the minimum", (f"{STABILITY}dip_time",), "bar"),
            Chart("Environment steps to recovery", (f"{STABILITY}recovery_steps",), "bar"),
            Chart("Share of seeds that recovered", (f"{STABILITY}recovered",), "bar"),
            Chart("Late collapse (best minus final)", (f"{STABILITY}late_collapse",), "bar"),
            Chart("Mean score over the budget", (f"{STABILITY}auc",), "bar"),
            Chart("Regret", (f"{STABILITY}regret",), "bar"),
            Chart("Dip depth and final score", (f"{STABILITY}dip_depth", f"{STABILITY}final"), "scatter"),
        ),
    ),
    Section(
        "What the smoothing did",
        "Effective weight: the online gradient's share of the step. A negative cosine means that the two objectives "
        "pull in opposite directions. The gate's return must reach its bar before the weight advances.",
        (
            Chart("Effective weight", regex=r"^smoothing/(actor|critic|value|temperature)_effective_weight$"),
            Chart("Cosine of the two gradients", regex=r"^smoothing/(actor|critic|value|temperature)_gradient_cosine$"),
            Chart("Share of offline rows", ("data/offline_fraction",)),
            Chart("Performance gate", regex=r"^gate/(running_return|bar|switch_return)$"),
            Chart(
                "What the rule looks at",
                regex=r"^(gate/(evidence|verdict)|(pd|kl_gate|td_gate|gradient_agreement)/\w+)$",
            ),
        ),
    ),
    Section(
        "What the switch did to the agent",
        "The audit of the first updates and after (docs/switch.md): how far the policy is from the one at the switch, "
        "how wrong the critics are on rows of both kinds, how far their features have moved.",
        (
            Chart("Distance from the policy at the switch", regex=r"^switch/(kl|action_distance)$"),
            Chart("TD error, offline and fresh rows", regex=r"^switch/td_error_(offline|online)$", log_x=True),
            Chart("Drift of Q on offline rows", ("switch/q_drift",)),
            Chart("Similarity of features (CKA)", regex=r"^switch/(actor|critic)_cka$"),
            Chart("Dormant units", regex=r"^switch/(actor|critic)_dormant$"),
            Chart("Gradient norms of both objectives", regex=r"^switch/\w+_gradient_(offline|online)$"),
        ),
        is_open=False,
    ),
    Section(
        "Learning after the switch",
        "Q that jumps at the switch, or runs away from its target, is the usual cause of a dip.",
        (
            Chart("Critic loss", regex=r"^(offline/|online/)?critic/loss$"),
            Chart("Q of the batch's actions", regex=r"^(offline/|online/)?critic/q$"),
            Chart("TD target", regex=r"^(offline/|online/)?critic/target$"),
            Chart("Actor loss", regex=r"^(offline/|online/)?actor/loss$"),
            Chart("Entropy", regex=r"^(offline/|online/)?actor/entropy$"),
            Chart("Temperature", regex=r"^(offline/|online/)?temperature/alpha$"),
            Chart("Updates per second", ("time/updates_per_s",)),
        ),
        is_open=False,
    ),
    Section(
        "Before the switch",
        "Pretraining, over updates.",
        (
            Chart("Score", (f"{PRETRAIN}eval/score",)),
            Chart("Return", (f"{PRETRAIN}eval/return_mean",)),
            Chart("Critic loss", (f"{PRETRAIN}critic/loss",)),
            Chart("Q of the batch's actions", (f"{PRETRAIN}critic/q",)),
            Chart("Actor loss", (f"{PRETRAIN}actor/loss",)),
        ),
        axis="updates",
        is_open=False,
    ),
)
"""What every dashboard shows. Names are those of `scalars`; docs/tracking.md lists them."""

_TABLE = [
    "run:displayName",
    "config:smoothing.value.schedule",
    *(f"summary:{STABILITY}{name}" for name in ("j0", "dip_depth", "null_dip", "dip_area", "recovered", "final")),
]
"""Columns that the table of runs keeps in sight."""
_INTRO = (
    "How policies behave when training goes from its offline objective to the online one. Runs are compared by their "
    "evaluations since the switch. Definitions of every number: docs/metrics.md and docs/tracking.md of o2o_smooth."
)


def require() -> None:
    """Raise `ConfigError` where the package is not installed."""
    _module("workspaces")


def workspace(entity: str, project: str, title: str = TITLE) -> Any:
    """A workspace: a view of the project's runs, ours first and W&B's own panels for whatever else is logged after it.

    Args:
        entity: The user or team that owns the project.
        project: The W&B project.
        title: What the view is called.

    Raises:
        ConfigError: The package is not installed, or W&B does not take a name.
    """
    ws = _module("workspaces")
    return _checked(
        lambda: ws.Workspace(
            entity=entity,
            project=project,
            name=title,
            sections=[
                ws.Section(
                    name=section.name,
                    panels=[_panel(chart, section.axis) for chart in section.charts],
                    is_open=section.is_open,
                    layout_settings=ws.SectionLayoutSettings(columns=_COLUMNS, rows=_rows(section)),
                    panel_settings=ws.SectionPanelSettings(x_axis=section.axis),
                )
                for section in SECTIONS
            ],
            settings=ws.WorkspaceSettings(x_axis="env_steps", max_runs=_SHOWN_RUNS),
            runset_settings=ws.RunsetSettings(pinned_columns=list(_TABLE)),
            auto_generate_panels=True,
        )
    )


def report(entity: str, project: str, title: str = TITLE) -> Any:
    """A report: the same panels with what to look for, to be read and shared.

    Args:
        entity: The user or team that owns the project.
        project: The W&B project.
        title: The report's.

    Raises:
        ConfigError: The package is not installed, or W&B does not take a name.
    """
    wr = _module("reports.v2")

    def build() -> Any:
        blocks = [wr.P(_INTRO), wr.TableOfContents()]
        for section in SECTIONS:
            panels = [_panel(chart, section.axis, place) for place, chart in enumerate(section.charts)]
            # A run set without a project is the report's own; with one, building it would ask the server.
            runs = wr.Runset(name="runs", pinned_columns=list(_TABLE))
            blocks += [wr.H2(section.name), wr.P(section.note), wr.PanelGrid(runsets=[runs], panels=panels)]
        return wr.Report(entity=entity, project=project, title=title, description=_INTRO, blocks=blocks, width="fluid")

    return _checked(build)


def spec(board: Any) -> dict[str, Any]:
    """What `upload` would send, as plain values; needs no network.

    Args:
        board: From `workspace` or `report`.
    """
    found: dict[str, Any] = json.loads(board._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return found


def upload(board: Any) -> str:
    """Create the dashboard on W&B's server; returns its address. Needs a network and an account (`wandb login`).

    Args:
        board: From `workspace` or `report`.

    Raises:
        O2OError: W&B is switched off or offline by its environment variable, or refuses; the text says why.
    """
    mode = os.environ.get("WANDB_MODE", "online").lower()
    if mode in ("offline", "dryrun", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode}, and a dashboard lives on W&B's server; unset it, or look with --dry-run")
    try:
        return str(board.save().url)
    except Exception as error:  # of the network, the account, the server
        cause = " ".join(str(error).split()) or "no reason given"
        raise O2OError(
            f"W&B did not take the dashboard ({type(error).__name__}: {cause}); is there a network, are you logged in "
            f"(wandb login), does {board.entity}/{board.project} exist? --dry-run needs none of it"
        ) from error


def _panel(chart: Chart, axis: str, place: int | None = None) -> Any:
    """A chart as an object of W&B's.

    Args:
        chart: What to show.
        axis: What lines are drawn against.
        place: Its number in a report's grid.
    """
    wr = _module("reports.v2")
    if chart.kind == "line":
        panel = wr.LinePlot(
            title=chart.title,
            x=axis,
            y=list(chart.metrics),
            metric_regex=chart.regex,
            log_x=chart.log_x or None,
            title_x="environment steps since the switch" if axis == "env_steps" else "updates",
            smoothing_type="none",
            point_visualization_method="bucketing-gorilla",
            max_runs_to_show=_SHOWN_RUNS,
        )
    elif chart.kind == "bar":
        panel = wr.BarPlot(title=chart.title, metrics=list(chart.metrics), max_runs_to_show=_SHOWN_RUNS)
    else:
        x, y = (wr.SummaryMetric(name) for name in chart.metrics)
        panel = wr.ScatterPlot(title=chart.title, x=x, y=y)
    if place is not None:
        row, column = divmod(place, _COLUMNS)
        panel.layout = wr.Layout(x=_WIDTH * column, y=_HEIGHT * row, w=_WIDTH, h=_HEIGHT)
    return panel


def _rows(section: Section) -> int:
    """How many rows a workspace needs to show all of a section at once."""
    return -(-len(section.charts) // _COLUMNS)


def _module(name: str) -> Any:
    """A module of the package, which is slow to import and optional."""
    try:
        with warnings.catch_warnings():  # the package uses what pydantic will drop one day, which is its own affair
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise ConfigError("dashboards need the package wandb-workspaces: pip install 'o2o_smooth[wandb]'") from error


def _checked(build: Any) -> Any:
    """Build a board; what W&B's own checks say of its names becomes one line."""
    try:
        return build()
    except ValueError as error:
        raise ConfigError(f"W&B does not take this dashboard: {' '.join(str(error).split())}") from error
