"""Lessons on a kind cluster: real Kubernetes, its nodes containers of Docker.

    world      the cluster as checks see it: kubectl and docker exec
    prepare    what a lesson finds there when it starts
    images     the miniature cluster's built-in images, as public ones
    create     the cluster that a lesson needs
    servicelb  Services by eBPF, where there is no kube-proxy
    install    k8snet-trace in the nodes' containers

What belongs here: what differs on kind. What does not: lessons, checks and sessions, which know one protocol
(`labs.engine.world.World`) and no cluster.
"""
