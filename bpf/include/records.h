/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * What the programs hand to user space. tracer/events.py holds the other side (Shape, RawConnection); each asserts
 * the sizes. Native byte order; addresses in network order, an IPv4 one in the first 4 of 16 bytes, the rest zero.
 */
#ifndef K8SNET_RECORDS_H
#define K8SNET_RECORDS_H

#include <linux/types.h>

#define COMM_LENGTH 16
#define ADDRESS_LENGTH 16

/* Values of tracer.events.Outcome. */
enum outcome {
	OUTCOME_UNKNOWN = 0,
	OUTCOME_ESTABLISHED = 1,
	OUTCOME_REFUSED = 2,
	OUTCOME_RESET = 3,
	OUTCOME_TIMEOUT = 4,
	OUTCOME_REJECTED = 5,
	OUTCOME_UNREACHABLE = 7,
	OUTCOME_SENT = 8,
	OUTCOME_ANSWERED = 9,
};

/* Bits of tracer.events.Flag. */
#define FLAG_DNAT 1
#define FLAG_SNAT 2
#define FLAG_SOCKET 4

/* All of a connection but its times and source port: many connections share one, and user space formats each once. */
struct connection_shape {
	__u64 cgroup_id;
	__u32 pid; /* of the process, not the thread */
	__u32 netns; /* of the socket: inode */
	__u32 nat_netns; /* of the conntrack entry that translated: inode; 0: none */
	__u8 family; /* 4 or 6 */
	__u8 protocol;
	__u8 outcome;
	__u8 flags;
	__u16 error; /* positive errno, 0: none */
	__u16 destination_port; /* host order, as are all ports here */
	__u16 backend_port;
	__u16 pad;
	__u8 source[ADDRESS_LENGTH];
	__u8 destination[ADDRESS_LENGTH]; /* as the process asked */
	__u8 backend[ADDRESS_LENGTH]; /* where packets go; zero when nothing translated */
	char comm[COMM_LENGTH];
};
_Static_assert(sizeof(struct connection_shape) == 96, "tracer.events.SHAPE_SIZE");

struct connection_record {
	__u64 time_ns; /* of the request, since the Unix epoch */
	__s64 latency_ns; /* request to outcome */
	__u32 source_port;
	__u32 pad;
	struct connection_shape shape;
};
_Static_assert(sizeof(struct connection_record) == 120, "tracer.source.live.RECORD_SIZE");

/* Stages at which an event can be lost; tracer.source.live.STAGES names them in this order. */
enum lost_stage {
	LOST_RING_BUFFER, /* no room for a record */
	LOST_REQUEST_MAP, /* no room to remember a request until its outcome */
	LOST_NAT_MAP, /* a translation could not be stored */
	LOST_DATAGRAM_MAP, /* a UDP flow could not be stored */
	LOST_UNWATCHED, /* what only a packet would have told, while nobody looked at them */
	LOST_QUEUE, /* no room for an outcome that is to be looked up */
	LOST_STAGES,
};

#endif
