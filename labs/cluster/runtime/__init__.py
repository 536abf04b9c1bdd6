"""The container runtime: makes sandboxes and starts containers, each in namespaces and a cgroup of its own.

Stands for containerd with runc, and on the outermost level for the machine that runs kind's node containers: a node is
started by the same code as a pod. A runtime is a process that forks for each container rather than starting a program,
since its servers are Python and loaded already: 5 ms instead of 200. It talks to one client over a socket.

    supervisor ── forks ─▶ runtime of the machine ── starts ─▶ node1: a container whose program is again a runtime
                                                                 └─ starts ─▶ containers of node1's pods

    container.py    what a container is to be, and what its program knows of it
    client.py       the kubelet's end: ask a runtime for sandboxes and containers, hear of their ends
    messages.py     what goes over the socket between client and service
    service.py      the runtime process: does what it is asked, reaps (containerd)
    __main__.py     a runtime that was started, not forked, because the first one died
    process.py      from a fork to a container's first process: namespaces, descriptors, signals (runc)
    command.py      a further command in a container that runs (runc exec)
    lookpath.py     which file a command's first word means
    root.py         a root file system: the machine's files below a writable layer (the overlayfs snapshotter)
    filesystem.py   what is put into that: /etc/hosts and its kin, volumes, /sys of the network namespace

A container has its own mount, PID, UTS and IPC namespaces and cgroup; the network namespace is the pod's (its sandbox,
held by a mount in /run/netns as CNI runtimes do), or the node's. Left out: images are no file systems (the
machine's files are what lies below each container's writable layer), there is no pause process, UTS and IPC are per
container rather than per pod, and there is no isolation from hostile programs: everything runs as root.

What belongs here: forking, namespaces, mounts, waiting. What does not: what runs in a container
(`labs.cluster.images`), when and where it runs (`labs.cluster.kubelet`), its network (`labs.cluster.network`).
"""
