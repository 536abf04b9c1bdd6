"""The API server: the one way in and out of the cluster's state, for kubectl and for every component.

Stands for kube-apiserver. So far it is read-only: get, list, watch, discovery, server-side tables. Writes,
subresources, OpenAPI and custom resources are still to come. It serves two sockets: loopback of the machine, for
kubectl there, and port 6443 of node1.

What belongs here: HTTP, who may do what, the form of answers. What does not: the state (`labs.cluster.store`), defaults
(`labs.cluster.admission`), anything that acts on objects.
"""
