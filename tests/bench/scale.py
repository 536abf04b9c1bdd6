"""What `k8snet-lab bench scale --output DIR` measured, put into docs/performance.md and docs/pictures.

What belongs here: writing the documentation from results. What does not: measuring (`labs.bench`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from labs.bench import machine, plots, report, results
from labs.bench.names import DATAPATHS
from labs.bench.resume import FILE, Journal
from labs.bench.scale import QUICK

DOCUMENT = Path("docs/performance.md")
PICTURES = Path("docs/pictures")
BEGIN, END = "<!-- scripts/bench scale: begin -->", "<!-- scripts/bench scale: end -->"


def document(directory: Path) -> None:
    """Replace what stands between BEGIN and END in DOCUMENT, and the plot beside it."""
    journal = Journal.read(directory / FILE)
    sizes = sorted({entry["services"] for entry in journal.entries})
    found = results.collect(journal, DATAPATHS, sizes)
    about = machine.words(journal.machine)
    for path in plots.draw(found, about, PICTURES):
        if path.suffix == ".png":  # the document shows the other one
            path.unlink()
    verdicts = "\n".join(f"- {report.verdict_line(verdict)}" for verdict in results.verdicts(found))
    losses = "\n".join(f"- {line}" for line in results.not_won(found))
    how = "A quick run" if journal.method == asdict(QUICK) else "A full run"
    text = (
        f"{how}: {about}, {journal.machine['time'][:10]}.\n\n{report.markdown(found)}\nThe targets:\n\n{verdicts}\n\n"
        f"Where eBPF does not win:\n\n{losses}\n"
    )
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
