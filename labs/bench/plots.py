"""The results on one page of plots, as PNG and SVG. Needs matplotlib, from the extra `plot`, and imports it only here.

What belongs here: drawing. What does not: what is drawn (`results`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.bench.names import DIRECT, EBPF, IPTABLES_LEGACY, IPTABLES_NFT, LAST, NFTABLES
from labs.bench.results import UPDATE_MS, Result
from tracer.errors import OutputError, ToolMissing

FORMATS = ("png", "svg")
# Colours that people who don't see red from green tell apart (Okabe and Ito).
STYLES = {
    IPTABLES_LEGACY: ("#D55E00", "o"),
    IPTABLES_NFT: ("#E69F00", "s"),
    NFTABLES: ("#0072B2", "^"),
    EBPF: ("#009E73", "D"),
}


@dataclass(frozen=True)
class Panel:
    """One of the plots. `spread`: its name in `Result.spread`, drawn as a band; `limit`: a line, and what it says."""

    title: str
    value: Callable[[Result], float | None]
    log: bool = False
    spread: str | None = None
    limit: tuple[float, str] | None = None


PANELS = (
    Panel(
        "New flow to any Service: p50, µs (band: half of all turns)",
        lambda one: one.new_flow_us["p50"],
        spread="new_flow_us_p50",
    ),
    Panel("New flow to the last Service: p50, µs", lambda one: one.by_target[LAST]["p50"]),
    Panel("New flow to a pod, without a Service: p50, µs", lambda one: one.by_target[DIRECT]["p50"]),
    Panel(
        "Connections per second, one request each",
        lambda one: one.short_connections_per_s,
        spread="short_connections_per_s",
    ),
    Panel(
        "Control: keep-alive requests per second",
        lambda one: one.keepalive_requests_per_s,
        spread="keepalive_requests_per_s",
    ),
    Panel("Full sync, s", lambda one: one.full_sync_s, log=True),
    Panel(
        "One endpoint's change in effect, ms",
        lambda one: one.endpoint_update_ms,
        log=True,
        spread="endpoint_update_ms",
        limit=(UPDATE_MS, f"{UPDATE_MS:g} ms"),
    ),
    Panel("Kernel memory, MB", lambda one: one.memory_mb, log=True),
)


def require() -> None:
    """Raise ToolMissing unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = f"no plots: matplotlib can't be imported ({error})"
        raise ToolMissing(message, hint="pip install matplotlib, and repeat the command") from error


def draw(results: Sequence[Result], about: str, directory: Path, name: str = "scale") -> list[Path]:
    """Write the page in each of FORMATS; gives the paths. Raises ToolMissing, OutputError."""
    require()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Files that differ only where results do
    with rc_context({"svg.hashsalt": "k8snet", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(10, 13), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(PANELS) // 2, 2)
        for panel, axis in zip(PANELS, axes.flat, strict=True):
            _draw_panel(axis, panel, results)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.suptitle(f"Service datapaths by number of Services\n{about}", fontsize=11)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        paths = [directory / f"{name}.{suffix}" for suffix in FORMATS]
        try:
            for path in paths:
                figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
    return paths


def _draw_panel(axis: Any, panel: Panel, results: Sequence[Result]) -> None:
    for datapath, (colour, marker) in STYLES.items():
        mine = [one for one in results if one.datapath == datapath and panel.value(one) is not None]
        if not mine:
            continue
        sizes = [one.services for one in mine]
        axis.plot(sizes, [panel.value(one) for one in mine], color=colour, marker=marker, markersize=4, label=datapath)
        if panel.spread is not None:
            low, high = zip(*(one.spread[panel.spread] for one in mine), strict=True)
            axis.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    if panel.limit is not None:
        value, words = panel.limit
        axis.axhline(value, color="grey", linestyle="--", linewidth=0.8)
        axis.annotate(words, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", color="grey")
    axis.set_title(panel.title, loc="left")
    axis.set_xscale("log")
    every = sorted({one.services for one in results})
    axis.set_xticks(every, [f"{size:,}" for size in every])
    axis.minorticks_off()
    if panel.log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.grid(True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
