"""Every error that the tools raise on purpose, as one tree.

    K8snetError                 exit code 1
    ├── UsageError              2   the command line asks for something that makes no sense
    ├── MissingError            3   the machine lacks something; `hint` is the one command that mends it
    │   ├── NotRoot
    │   ├── BackendUnavailable      one backend of the live trace can't run here (why, in the message)
    │   └── ToolMissing             a program such as iptables-save is not installed
    ├── BpfCompileError         1   the C did not compile; the message carries file and line
    ├── BpfRefused          1   the kernel's verifier refused a program; the message carries its words
    ├── FormatError             1   a file can't be read: carries its name and line number
    └── OutputError             1   the output can't be written (disk full, file not writable)

Foreign exceptions are wrapped where they arise, once. Nothing here prints or exits: only the CLI does, by
showing `error: {message}` and `hint: {hint}` and leaving with `exit_code`.
"""

from __future__ import annotations


class K8snetError(Exception):
    """Base of all errors meant for the user: a message (what, and why), perhaps a hint (the command that mends it)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(K8snetError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class MissingError(K8snetError):
    """The machine lacks something that this command needs."""

    exit_code = 3


class NotRoot(MissingError):
    """The command needs root (or the capabilities named in the message)."""


class BackendUnavailable(MissingError):
    """A backend of the live trace can't run on this kernel; the message says why."""


class ToolMissing(MissingError):
    """A program that the command calls is not installed."""


class BpfCompileError(K8snetError):
    """The BPF C did not compile; the message holds clang's words with real file names."""


class BpfRefused(K8snetError):
    """The kernel's verifier refused a BPF program; the message holds its words."""


class FormatError(K8snetError):
    """A file or stream is not what it should be; the message names the file and the line."""


class OutputError(K8snetError):
    """The output can't be written."""
