"""Hypothesis strategies for the API's objects: what an API server may hold, and what only old or odd ones do."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.labs.proxy.kube_objects import endpoint_slice, node, service

_MAYBE = st.sampled_from([None, True, False])
_POLICY = st.sampled_from([None, "Cluster", "Local"])
_NAMES = st.sampled_from(["web", "db"])
_PORT_NAMES = st.sampled_from(["", "a", "b"])
_PROTOCOLS = st.sampled_from(["TCP", "UDP", "SCTP"])

_SERVICES = st.builds(
    service,
    _NAMES,
    ports=st.lists(
        st.fixed_dictionaries(
            {"name": _PORT_NAMES, "port": st.integers(1, 3), "protocol": _PROTOCOLS},
            optional={"nodePort": st.integers(30000, 30003)},
        ),
        max_size=3,
    ),
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    clusterIP=st.sampled_from(["10.96.0.1", "10.96.0.2", "None", "", "fd00:10:96::1"]),
    externalIPs=st.none() | st.lists(st.sampled_from(["203.0.113.1", "2001:db8::1", "rubbish"]), max_size=2),
    ingress=st.lists(
        st.fixed_dictionaries({}, optional={"ip": st.sampled_from(["198.51.100.1", ""]), "ipMode": st.just("VIP")}),
        max_size=2,
    ),
    loadBalancerSourceRanges=st.none() | st.lists(st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "x"]), max_size=2),
    internalTrafficPolicy=_POLICY,
    externalTrafficPolicy=_POLICY,
    sessionAffinity=st.sampled_from([None, "None", "ClientIP"]),
    healthCheckNodePort=st.sampled_from([None, 0, 32000]),
    annotations=st.none() | st.just({"service.kubernetes.io/topology-mode": "Auto"}),
)
_ENTRIES = st.fixed_dictionaries(
    {
        "addresses": st.lists(
            st.sampled_from(["10.244.0.1", "10.244.1.1", "10.244.0.0", "fd00:10:244::1", "rubbish", ""]), max_size=2
        )
    },
    optional={
        "conditions": st.fixed_dictionaries({}, optional={"ready": _MAYBE, "serving": _MAYBE, "terminating": _MAYBE}),
        "nodeName": st.sampled_from([None, "node1", "node2"]),
        "hints": st.just({"forZones": [{"name": "b"}]}),
    },
)
_SLICES = st.builds(
    lambda endpoints, **more: endpoint_slice(*endpoints, **more),
    st.lists(_ENTRIES, max_size=4),
    of=_NAMES,
    ports=st.lists(
        st.fixed_dictionaries({"name": _PORT_NAMES | st.none(), "port": st.integers(0, 2), "protocol": _PROTOCOLS}),
        max_size=2,
    ),
)

OBJECTS = st.fixed_dictionaries(
    {
        "services": st.lists(_SERVICES, max_size=3),
        "endpointslices": st.lists(_SLICES, max_size=4),
        "nodes": st.just([node(zone="b")]),
    }
)
FAMILIES = st.sampled_from([4, 6])
