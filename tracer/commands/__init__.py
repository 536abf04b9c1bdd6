"""The subcommands of k8snet-trace, one module each: options in, one library call, what it gives on standard output.

What belongs here: click commands and their options. What does not: exit codes and errors (`tracer.cli` reports what is
raised), and anything that another program could use. Heavy imports wait inside the functions: every start of
k8snet-trace, the live trace too, imports these modules.
"""
