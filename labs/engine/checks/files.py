"""Checks of files that the learner edits in the lesson's workspace.

What belongs here: that a file is there and can be used. What does not: what using it does (the other checks).
"""

from __future__ import annotations

import yaml

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed


def file(context: Context, *, name: str, form: str = "text", changed_from: str | None = None) -> Outcome:
    """A file of the workspace is there and is `form`: text, or yaml. `changed_from`: what must no longer be in it.

    Reasons: missing, form, unchanged.
    """
    path = context.workspace / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        return failed(
            "missing", expected=f"the file {path}", seen=str(error.strerror), look="sudo k8snet-lab reset --step"
        )
    if form == "yaml":
        try:
            list(yaml.safe_load_all(text))
        except yaml.YAMLError as error:
            return failed(
                "form", expected=f"{path} to be YAML", seen=str(error).replace("\n", " "), look=f"less {path}"
            )
    if changed_from is not None and changed_from in text:
        return failed(
            "unchanged", expected=f"{path} without {changed_from!r}", seen="it is still there", look=f"less {path}"
        )
    return passed(f"{path} is there")
