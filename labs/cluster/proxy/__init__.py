"""kube-proxy: what turns Services and EndpointSlices into packet-filter rules on every node.

Stands for the program `kube-proxy` v1.30.5 (kubernetes/kubernetes, pkg/proxy). It reads like the real one:

    settings.py    how the proxy is configured
    objects.py     documents (JSON, YAML, Lists) -> {"services", "endpointslices", "nodes"}
    node.py        what the proxy knows of its own node: name, address, zone
    addresses.py   IP texts as Go prints them, one family at a time
    services.py    Service -> one ServicePort for each port (pkg/proxy/serviceport.go)
    endpoints.py   EndpointSlices -> endpoints of each ServicePort; which of them a node may use
                   (pkg/proxy/endpointslicecache.go, topology.go)
    iptables.py    both -> input for iptables-restore (pkg/proxy/iptables/proxier.go)
    nftables.py    both -> input for nft (pkg/proxy/nftables/proxier.go)
    iptables_tables.py, nftables_tables.py
                   the part of that which all Services share: chains, jumps, sets and maps
    changes.py     which Service ports differ from last time (servicechangetracker.go, endpointschangetracker.go);
                   `Wanted`, which every mode works from
    iptables_sync.py, nftables_sync.py
                   what of the rules has to be written for that: a `Planner` for each mode
    healthchecks.py
                   what a Service's health check port says (servicechangetracker.go, endpointschangetracker.go)
    conntrack.py   which entries of UDP have to go (pkg/proxy/conntrack/cleanup.go)

Nothing here touches a kernel, files, or a clock. Who watches the API belongs to labs/cluster/kubeproxy.py, who loads
rules and clears conntrack entries to labs/cluster/proxymodes.py.
"""
