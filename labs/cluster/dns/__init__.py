"""The cluster's DNS server: names of Services and pods, as the Kubernetes DNS specification 1.1 has them.

Stands for CoreDNS v1.11.1 in a cluster without upstream servers, with this Corefile:

    cluster.local in-addr.arpa ip6.arpa {
        errors
        health
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods insecure
            ttl 30
        }
        prometheus :9153
        loadbalance
    }

What kubeadm writes has four more lines, and why each is missing is what a client can see of it:

    .:53 { … }               it is the only server of its pods. Without `forward`, a name of others would be SERVFAIL
                             ("no next plugin found", plugin/plugin.go); with a server block for the cluster's zones
                             alone it is REFUSED (core/dnsserver/server.go, the end of ServeDNS): not ours, don't retry
    forward . …              there is nobody to ask: the cluster's network ends at its nodes
    fallthrough …            nor anything to fall through to: a reverse name of nobody is NXDOMAIN, and not SERVFAIL
    cache 30                 newer kubeadm turns it off for cluster.local (`disable success`, `disable denial`), since
                             it hides a new Service for 30 seconds; so TTLs do not count down, and changes show at once

Specification: github.com/kubernetes/dns/blob/master/docs/specification.md. Files that the modules name are CoreDNS's,
except msg*.go, acceptfunc.go and server.go of github.com/miekg/dns, the library that it stands on.

    objects   what of a Service and of an EndpointSlice matters for names    plugin/kubernetes/object
    index     all of them, by name and by address; what a change touches     plugin/kubernetes/controller.go
    names     a name -> the addresses, ports and other names behind it       kubernetes.go, parse.go, ns.go, reverse.go
    answer    a question -> the records of an answer                         handler.go, plugin/backend_lookup.go
    message   the bytes of a query -> the bytes of a response                core/dnsserver, acceptfunc.go
    memory    the same bytes for the same query                              nothing of CoreDNS
    server    sockets, and following the API                                 server.go, setup.go
    metrics   what Prometheus and the kubelet ask over HTTP                  plugin/metrics, health, ready

Left out: reading a Corefile (and so `reload`), all other plugins, lameduck (a server that is told to end does so at
once), and records of the pods themselves (`pods verified`).
"""
