"""k8snet-lab: a Kubernetes cluster's network in miniature, and the guided lessons that run on it.

What belongs here: building namespaces, links, rules and servers, inside namespaces that this package made.
What does not: tracing (package `tracer`, which this one may import), and any change to the host itself.
"""
