/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * Reading kernel structures at offsets that tracer/btf.py found in the running kernel's BTF and passed with -D.
 *
 * READ() copies through bpf_probe_read_kernel and takes any address; what can't be read is 0. FIELD() is for pointers
 * that come straight from a hook's arguments, or from bpf_get_current_task_btf(): in programs that the verifier knows
 * the argument types of (TYPED_ARGUMENTS: tp_btf, fentry) it is a plain load, which costs a nanosecond where the helper
 * costs fifteen.
 */
#ifndef K8SNET_KERNEL_FIELDS_H
#define K8SNET_KERNEL_FIELDS_H

#include <linux/types.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define READ(type, base, offset)                                                             \
	({                                                                                   \
		type value_ = 0;                                                             \
		bpf_probe_read_kernel(&value_, sizeof(value_), (void *)((base) + (offset))); \
		value_;                                                                      \
	})

#ifdef TYPED_ARGUMENTS
#define FIELD(type, base, offset) (*(type *)((base) + (offset)))
#else
#define FIELD(type, base, offset) READ(type, base, offset)
#endif

/* struct nf_conntrack_tuple (include/net/netfilter/nf_conntrack_tuple.h), ports in network order. */
struct conntrack_tuple {
	__u8 source[16];
	__be16 source_port;
	__u16 l3;
	__u8 destination[16];
	__be16 destination_port;
	__u8 protocol;
	__u8 direction;
};
_Static_assert(sizeof(struct conntrack_tuple) == TUPLE_SIZE, "struct nf_conntrack_tuple has changed its layout");

/* The same facts as the key of our maps: addresses aligned to 8 bytes, so that they compare as two words. */
struct tuple {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u16 l3; /* AF_INET or AF_INET6 */
	__u8 protocol;
	__u8 pad;
} __attribute__((aligned(8)));

static __always_inline bool same_tuple(const struct tuple *one, const struct tuple *other)
{
	const __u64 *a = (const __u64 *)one, *b = (const __u64 *)other;
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4];
}

#define K8SNET_AF_INET 2
#define K8SNET_AF_INET6 10
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58

/* include/net/tcp_states.h */
#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT 2
#define STATE_SYN_RECV 3
#define STATE_CLOSE 7

/* socket_state, include/uapi/linux/net.h: no connect() is under way */
#define SOCKET_UNCONNECTED 1

/* include/net/sock.h: bind() named a port */
#define SOCK_BINDPORT_LOCK 8

/* include/uapi/linux/if.h */
#define DEVICE_LOOPBACK 8

/* enum ip_conntrack_info, enum ip_conntrack_status (include/uapi/linux/netfilter/nf_conntrack_common.h) */
#define CTINFO_MASK 7UL
#define CTINFO_NEW 2
#define CTINFO_REPLY 3 /* this and above: the packet answers */
#define STATUS_ASSURED 4
#define STATUS_SNAT 0x10
#define STATUS_DNAT 0x20

/* errno values that outcomes are read from */
#define ERROR_PERM 1
#define ERROR_ACCES 13
#define ERROR_CONNRESET 104
#define ERROR_TIMEDOUT 110
#define ERROR_CONNREFUSED 111
#define ERROR_HOSTUNREACH 113
#define ERROR_ADDRNOTAVAIL 99
#define ERROR_NETUNREACH 101

/* Inode of a struct net, as /proc/PID/ns/net shows it. */
static __always_inline __u32 netns_inode(__u64 net)
{
	return net ? READ(__u32, net, NET_INUM) : 0;
}

static __always_inline bool is_mapped(const __u64 *address)
{
	/* ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2; little-endian view of bytes 8..15 */
	return address[0] == 0 && (__u32)address[1] == 0xffff0000u;
}

/*
 * The 5-tuple of a TCP socket, as the process asked for it; `sk` is a tracepoint's argument. An IPv4-mapped IPv6
 * address becomes IPv4: that is what the packets are. tcp_set_state(TCP_CLOSE) has cleared skc_num when the tracepoint
 * runs; the source port is then read from inet_sport, which lies behind struct sock (hence READ).
 */
static __always_inline void read_socket_tuple(__u64 sk, struct tuple *tuple)
{
	__u16 source_port = FIELD(__u16, sk, SOCK_NUM); /* host order */
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->protocol = PROTOCOL_TCP;
	tuple->source_port = source_port ? __builtin_bswap16(source_port) : READ(__be16, sk, INET_SPORT);
	tuple->destination_port = FIELD(__be16, sk, SOCK_DPORT);
	tuple->l3 = K8SNET_AF_INET;
	if (FIELD(__u16, sk, SOCK_FAMILY) == K8SNET_AF_INET6) {
		__u64 address[2] = {};
		bpf_probe_read_kernel(address, 16, (void *)(sk + SOCK_DADDR6));
		if (!is_mapped(address)) {
			tuple->l3 = K8SNET_AF_INET6;
			__builtin_memcpy(tuple->destination, address, 16);
			bpf_probe_read_kernel(tuple->source, 16, (void *)(sk + SOCK_SADDR6));
			return;
		}
	}
	*(__be32 *)tuple->destination = FIELD(__be32, sk, SOCK_DADDR);
	*(__be32 *)tuple->source = FIELD(__be32, sk, SOCK_SADDR);
}

/* The start of a struct sock_common (include/net/sock.h), whose order inet_lookup() relies on. */
struct socket_start {
	__be32 destination;
	__be32 source;
	__u32 hash;
	__be16 destination_port;
	__u16 source_port; /* host order; 0: not bound */
};
_Static_assert(
	SOCK_SADDR == SOCK_DADDR + 4 && SOCK_DPORT == SOCK_DADDR + 12, "struct sock_common has changed its layout");

/* Whether a TCP socket asks for `tuple`, for a socket pointer from anywhere. */
static __always_inline bool asks_for(__u64 sk, const struct tuple *tuple)
{
	struct socket_start start = {};
	bpf_probe_read_kernel(&start, sizeof(start), (void *)(sk + SOCK_DADDR));
	if (__builtin_bswap16(start.source_port) != tuple->source_port ||
		start.destination_port != tuple->destination_port)
		return false;
	if (tuple->l3 == K8SNET_AF_INET)
		return start.source == *(__be32 *)tuple->source && start.destination == *(__be32 *)tuple->destination;
	__u64 source[2] = {}, destination[2] = {};
	const __u64 *from = (const __u64 *)tuple->source, *to = (const __u64 *)tuple->destination;
	bpf_probe_read_kernel(source, 16, (void *)(sk + SOCK_SADDR6));
	bpf_probe_read_kernel(destination, 16, (void *)(sk + SOCK_DADDR6));
	return source[0] == from[0] && source[1] == from[1] && destination[0] == to[0] && destination[1] == to[1];
}

/* Where a socket's packets go, for a socket pointer from anywhere. Fills in destination, port and family only. */
static __always_inline void read_socket_destination(__u64 sk, struct tuple *tuple)
{
	__u64 address[2] = {};
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->destination_port = READ(__be16, sk, SOCK_DPORT);
	tuple->l3 = READ(__u16, sk, SOCK_FAMILY);
	if (tuple->l3 == K8SNET_AF_INET6) {
		bpf_probe_read_kernel(address, 16, (void *)(sk + SOCK_DADDR6));
		if (!is_mapped(address)) {
			__builtin_memcpy(tuple->destination, address, 16);
			return;
		}
	}
	tuple->l3 = K8SNET_AF_INET;
	bpf_probe_read_kernel(tuple->destination, 4, (void *)(sk + SOCK_DADDR));
}

#endif
