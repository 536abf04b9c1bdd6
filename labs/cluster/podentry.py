"""How to run a command inside a container from outside it.

Stands for the part of a container runtime that execs (runc exec). Programs of util-linux and coreutils do the work:
nsenter joins the namespaces, and a shell joins the cgroup before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def entering(
    pid: int,
    cgroup: str | None,
    env: Mapping[str, str],
    command: Sequence[str],
    more_env: Iterable[str] = (),
    *,
    directory: str = "/",
) -> list[str]:
    """The command line that runs `command` in the container whose first process is `pid`, as this process sees it.

    `more_env`: further NAME=VALUE pairs. `directory`: where it starts.
    """
    enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
    pairs = [f"{key}={value}" for key, value in env.items()]
    # Not nsenter's --wd: that looks for the directory before it has entered.
    words = [*enter, "env", "-i", f"--chdir={directory}", *pairs, *more_env, *command]
    if cgroup is None:
        return words
    return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', cgroup, *words]
