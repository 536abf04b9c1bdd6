"""The API server: the one way in and out of the cluster's state, for kubectl and for every component.

Stands for kube-apiserver: get, list, watch, create, update, patch, delete, subresources, discovery, server-side tables,
server-side apply. It serves two sockets: loopback of the machine, for kubectl there, and port 6443 of node1.

What belongs here: HTTP, who may do what, the form of answers. What does not: the state (`labs.cluster.store`), defaults
(`labs.cluster.admission`), anything that acts on objects.
"""
