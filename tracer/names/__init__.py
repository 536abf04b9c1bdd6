"""From addresses, cgroups and network namespaces to pods, Services, nodes and rules.

What belongs here: the providers of names and their order. What does not: talking to the API (`tracer.kubeapi`), reading
rules (`tracer.rules`) or /proc (`tracer.procfs`), putting names into records (`tracer.resolve`).

    lookup      Names       which provider's word counts, question by question
    cluster     Cluster     1. the Kubernetes API
    rulebook    RuleBook    2. the comments and chain names that kube-proxy writes into its rules
    processes   Processes   3. /proc: cgroup, the kubelet's logs, hostname, service account of a process
    local       LocalPods      the same for all pods of this machine, by address
    changes     Changes     when answers that were given may have become wrong

Whatever takes time is done by daemon threads; a look-up reads dictionaries. A name that can't be found is None, and
`Names.notes` says why once. Where two sources could match, the better one wins; where one source has two answers,
there is none.
"""

from tracer.names.lookup import Names
from tracer.names.model import DestinationName, PodName, Route

__all__ = ["DestinationName", "Names", "PodName", "Route"]
