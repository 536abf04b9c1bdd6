"""What k8snet-trace and k8snet-lab have in common as programs: errors and exit codes, standard error, shell completion.

What belongs here: the edge between a click command and the process that it runs in; it returns exit codes, and only
the two cli modules exit. What does not: commands and options.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from tracer.errors import K8snetError, UsageError
from tracer.escape import escape

SHELLS = ("bash", "zsh", "fish")


def run(command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command to its end, tell its error, and return the exit code: 0 done, 1 failed, 2 usage, 3 something
    missing, 130 interrupted outside a trace.
    """
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
        if sys.stdout is not None:  # it may have been closed
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's own last flush stays quiet
        return 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        return _report(error, name)
    return code if isinstance(code, int) else 0


def say(text: str) -> None:
    """One line on standard error; names in it may come from anywhere. A closed standard error is no reason to end."""
    try:
        sys.stderr.write("\n".join(map(escape, text.split("\n"))) + "\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass


def add_completion(group: click.Group, name: str) -> None:
    """Give a group the command `completion`."""

    @group.command()
    @click.argument("shell", type=click.Choice(SHELLS))
    def completion(shell: str) -> None:
        """Print the completion script for a shell."""
        from click.shell_completion import get_completion_class

        found = get_completion_class(shell)
        if found is None:
            raise UsageError(f"no completion for {shell}")
        click.echo(found(group, {}, name, f"_{name.upper().replace('-', '_')}_COMPLETE").source())


def _report(error: Exception, name: str) -> int:
    """Show an error as the contract wants it; returns the exit code."""
    if os.environ.get("K8SNET_DEBUG") == "1":
        traceback.print_exception(error)
        say(getattr(error, "log", ""))
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
        message = " ".join(error.format_message().split())
        error, code = K8snetError(message, hint=f"{path} --help"), error.exit_code
    elif isinstance(error, K8snetError):
        code = error.exit_code
    else:
        hint = "this is a defect of k8snet; K8SNET_DEBUG=1 shows where"
        error, code = K8snetError(f"{type(error).__name__}: {error}", hint=hint), 1
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return code
