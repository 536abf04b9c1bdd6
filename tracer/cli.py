"""The command k8snet-trace: options in, one library call, errors and exit codes out.

What belongs here: commands, printing to standard error, exit codes. What does not: anything another program could use.
Heavy imports wait until they are needed: what stands at the top of this file is paid for by every start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from tracer import __version__
from tracer.commands.explain import explain
from tracer.commands.load import load
from tracer.commands.probe import probe
from tracer.commands.services import services
from tracer.errors import UsageError
from tracer.options import TraceGroup, trace_options, wanted
from tracer.program import add_completion, run, say

PROGRAM = "k8snet-trace"

EXAMPLES = """\b
Examples:
  sudo k8snet-trace                                    every connection, one line each
  sudo k8snet-trace --service fastapi/lets-ship-it     those to one Service
  sudo k8snet-trace --failed -o json                   what did not get through, as JSON
  sudo k8snet-trace --record night.jsonl --duration 60 record a minute
  k8snet-trace --replay night.jsonl --pod 'web-*'      look at it later, without root
  sudo k8snet-trace services                           every Service as the kernel's rules have it
  sudo k8snet-trace explain fastapi/lets-ship-it:http  where a packet would go, rule by rule, and why
  sudo k8snet-trace probe fastapi/lets-ship-it:http    which pod each of 30 new flows reaches
  sudo k8snet-trace load connects.c                    a BPF program of your own, and what it reports
  k8snet-trace doctor                                  what works on this machine, and what mends the rest
  k8snet-trace completion bash > /etc/bash_completion.d/k8snet-trace
"""


@click.group(
    cls=TraceGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXAMPLES,
)
@trace_options
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Watch which pod a connection to a Service really reaches, and which rule chose it.

    Without a COMMAND, traces live and changes nothing on the machine; SIGINT (Ctrl-C) ends it. A filter given several
    times takes any of its values; different filters must all match; names may be shell patterns. Times are UTC.
    """
    if context.invoked_subcommand is not None:
        _refuse_trace_options(context)
    elif options["show_bpf"]:
        _show_bpf(options["backend"])
    else:
        _trace(options)


cli.add_command(services)
cli.add_command(explain)
cli.add_command(probe)
cli.add_command(load)


@cli.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--kubeconfig", type=click.Path(dir_okay=False), metavar="PATH", help="Kubernetes API to try.")
def doctor(output: str, kubeconfig: str | None) -> int:
    """Try everything that a trace needs."""
    from tracer import doctor, terminal

    results = doctor.examine(kubeconfig)
    if output == "json":
        click.echo(doctor.as_json(results))
    else:
        click.echo(doctor.as_table(results, width=terminal.size()[0], colour=terminal.coloured()))
    return 0 if doctor.can_trace(results) else 3


add_completion(cli, PROGRAM)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with the contract's code."""
    sys.exit(run(cli, PROGRAM, arguments))


def _trace(options: dict[str, Any]) -> None:
    from tracer import recording, terminal
    from tracer.stop import Stop
    from tracer.tally import Tally

    tally = Tally()
    with Stop() as stop:
        record = options["record"]
        outputs = (options["output"], None if record is None else (recording.create(record), record), stop)
        try:
            sinks = terminal.sinks(*outputs)
            (_live if options["replay"] is None else _replay)(options, sinks, tally, stop)
        finally:
            if tally.backend:
                say(tally.summary())


def _live(options: dict[str, Any], sinks: Any, tally: Any, stop: Any) -> None:
    from tracer.session import Settings, live
    from tracer.trace import Limits

    settings = Settings(
        backend=options["backend"],
        ring_buffer=options["ring_buffer"],
        kubeconfig=options["kubeconfig"],
        with_names=not options["no_names"],
        ready_file=options["ready_file"],
        begin_file=options["begin_file"],
        rewrites_expected=options["rewrites_expected"],
        limits=Limits(options["count"], options["duration"]),
    )
    live(settings, wanted(options), sinks, tally, stopped=stop, say=say, on_ready=_greet)


def _replay(options: dict[str, Any], sinks: Any, tally: Any, stop: Any) -> None:
    from tracer.replay import replay
    from tracer.session import write_ready_file

    tally.backend = "replay"
    if options["ready_file"] is not None:
        write_ready_file(options["ready_file"])
    limits = {"count": options["count"], "seconds": options["duration"]}
    try:
        replay(options["replay"], wanted(options), sinks, tally, **limits, stopped=stop)
    finally:
        skipped = tally.skipped()
        if skipped is not None:
            say(f"note: {skipped}")


def _greet(source: Any) -> None:
    """Tell a person, not a log, that the hooks are attached."""
    if sys.stderr is not None and sys.stderr.isatty():
        say(f"tracing with the {source.backend} backend; Ctrl-C ends it")


def _show_bpf(backend: str) -> None:
    if backend == "conntrack":
        raise UsageError("the conntrack backend loads no BPF", hint="choose fentry, kprobe or tracepoint")
    from tracer.source.live import show

    click.echo(show(backend))


def _refuse_trace_options(context: click.Context) -> None:
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[-1]} belongs to the live trace, not to {context.invoked_subcommand}",
                hint=f"{PROGRAM} {context.invoked_subcommand} --help",
            )
