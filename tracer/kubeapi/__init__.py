"""A client of the Kubernetes API that lists and watches, and that nobody ever has to wait for.

What belongs here: how to reach the API, requests, list and watch with all that can go wrong in them. What does not:
what the objects mean and which fields of them are kept (`tracer.names`).

    mirror      Mirror      keeps stores equal to the cluster's objects, for as long as it runs
                Reflector   one thread for each resource: list, then watch, then begin again when that fails
    connection  Connection  one API server: a pool of urllib3, TLS, credentials
    config      Access      what a kubeconfig or a service account says

An API that is slow, refuses, sends rubbish or disappears costs names, never a trace: every failure ends in a line of
`Mirror.trouble` and in another attempt later. urllib3, ssl, json and yaml are imported by the background threads, not
here: loading them would be felt at the start.
"""

from tracer.kubeapi.config import Access, find
from tracer.kubeapi.mirror import Mirror, Resource, Store

__all__ = ["Access", "Mirror", "Resource", "Store", "find"]
