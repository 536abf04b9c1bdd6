/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * What user space and the Service datapath share: keys and values of its maps. tracer/service_lb.py holds
 * the other side; each asserts the sizes.
 *
 * Addresses are 16 bytes in network order, an IPv4 one as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2): so one table serves both
 * families, and an IPv6 socket that calls an IPv4 Service finds it. Ports are in network order, other numbers in the
 * machine's.
 */
#ifndef K8SNET_SERVICE_LB_H
#define K8SNET_SERVICE_LB_H

#include <linux/types.h>

/* Who looks: a socket of this node or its pods, or a packet that came from somewhere else. They may get other endpoints
 * (externalTrafficPolicy, internalTrafficPolicy). */
enum scope {
	SCOPE_SOCKET = 0,
	SCOPE_OUTSIDE = 1,
};

struct service_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 scope;
};
_Static_assert(sizeof(struct service_key) == 20, "tracer.service_lb.SERVICE_KEY");

/* No endpoint may be used, and whoever asks is to hear nothing: traffic policy Local without a local endpoint. */
#define SERVICE_SILENT 1
/* spec.loadBalancerSourceRanges: whoever is not in source_ranges is to hear nothing; nor may the node itself, if
 * SERVICE_DENIES_NODE. */
#define SERVICE_HAS_RANGES 2
#define SERVICE_DENIES_NODE 4
/* The endpoint is to see the node's address as its client: answers must come back this way. */
#define SERVICE_MASQUERADE 8
/* The list has the node's own endpoints only (traffic policy Local): for readers, no program asks. */
#define SERVICE_LOCAL 16

struct service {
	__u32 port_id; /* of the Service port, whatever its address: session affinity holds for all of them */
	__u32 list; /* of its endpoints */
	__u32 count; /* slots 0 to count - 1 of the list */
	__u32 affinity_seconds; /* 0: none */
	__u32 flags;
};
_Static_assert(sizeof(struct service) == 20, "tracer.service_lb.SERVICE");

struct slot_key {
	__u32 list;
	__u32 slot;
};
_Static_assert(sizeof(struct slot_key) == 8, "tracer.service_lb.SLOT_KEY");

struct backend {
	__be32 address[4];
	__be16 port;
	__u8 is_local; /* on this node */
	__u8 pad;
};
_Static_assert(sizeof(struct backend) == 20, "tracer.service_lb.BACKEND");

/* Whether an endpoint is in a list: for what remembers one. The value says nothing. */
struct member_key {
	__u32 list;
	__be32 address[4];
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct member_key) == 24, "tracer.service_lb.MEMBER_KEY");

/* Key of the trie source_ranges: prefixlen counts from list on, as BPF_MAP_TYPE_LPM_TRIE wants it. */
struct range_key {
	__u32 prefixlen;
	__u32 port_id;
	__be32 address[4];
};
_Static_assert(sizeof(struct range_key) == 24, "tracer.service_lb.RANGE_KEY");

/* An endpoint that a socket was sent to, in `asked`; the value is the struct service_key that it had asked for. */
struct peer_key {
	__u64 socket; /* its cookie */
	__be32 address[4];
	__be16 port;
	__u16 pad;
	__u32 more;
};
_Static_assert(sizeof(struct peer_key) == 32, "tracer.service_lb.PEER_KEY");

/* What the proxy tells the programs of its node. */
struct node_facts {
	__u64 netns_cookie; /* of the node's own network namespace */
	__be32 address4[4]; /* what masqueraded packets get as source */
	__be32 address6[4];
	__u32 netns; /* its inode, by which readers tell nodes apart */
	__u32 pad;
};
_Static_assert(sizeof(struct node_facts) == 48, "tracer.service_lb.NODE_FACTS");

#endif
