"""Draws simulated runs as a PNG: watts, requests that wait, GPUs that are loaded, over time.

Called by ``scheduler.commands.simulate``. It must never compute a figure that the course does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scheduler.simulation.course import Course

COLOURS = ("#2f6db3", "#1b7f5c", "#c2412d", "#8a5fb0", "#b8860b", "#8a94a0", "#1d2733")
PANELS = (
    ("watts of all GPUs", "watts"),
    ("requests without a first token", "num_waiting"),
    ("loaded GPUs", "loaded_gpus"),
)


def draw(courses: Mapping[str, Course], title: str, path: Path) -> None:
    """Write the picture to ``path``, a line a policy. Raises: OSError on a bad path."""
    figure = Figure(figsize=(12, 8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.07, top=0.91, hspace=0.12)
    for panel, (label, name) in zip(panels, PANELS, strict=True):
        for number, (policy, course) in enumerate(courses.items()):
            colour = COLOURS[number % len(COLOURS)]
            panel.plot(
                course.at_s, getattr(course, name), label=policy, color=colour, linewidth=1.1, drawstyle="steps-post"
            )
        panel.set_ylabel(label, fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(True, color="#e6e9ed", linewidth=0.7)
        panel.tick_params(labelsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlabel("simulated seconds", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    figure.suptitle(title, fontsize=11, color="#1d2733", x=0.012, y=0.985, ha="left")
    figure.savefig(path, format="png")
