"""k8snet-trace: watches which pod a connection to a Service really reaches.

What belongs here: reading the kernel (BPF, conntrack, rules), naming what was read, printing it.
What does not: anything that changes the machine, and anything of the miniature cluster (package `labs`).
Only `tracer.bpf` imports bcc; only `tracer.cli` prints and exits.
"""

__version__ = "0.1.0"
