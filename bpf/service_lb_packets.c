// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Services for packets: whoever calls a NodePort, an external IP or a LoadBalancer IP from outside has no socket on this
 * node that connect() could be changed for, so the addresses in his packets must change. The same goes for what a pod
 * sends without asking the kernel to connect, such as a crafted packet.
 *
 * Stands for Cilium's NodePort handling in SNAT mode and its load balancing per packet (bpf/lib/nodeport.h, bpf_lxc.c).
 * At each device there is a program for what comes in from it, which rewrites destinations, and one for what goes out,
 * which rewrites sources. What to rewrite is found in one table, which gets all entries of a connection with its first
 * packet:
 *
 *     in   client ─▶ Service    destination := endpoint
 *     out  client ─▶ endpoint   source      := node      if masqueraded, so that the answer comes back this way
 *     in   endpoint ─▶ node     destination := client     the same
 *     out  endpoint ─▶ client   source      := Service
 *
 * Left out: fragments, IP options and IPv6 extension headers, ICMP errors about rewritten packets.
 */

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2
#define ETH_LENGTH 14
#define ETH_TYPE_OFFSET 12
#define ETH_TYPE_IPV4 __builtin_bswap16(0x0800)
#define ETH_TYPE_IPV6 __builtin_bswap16(0x86dd)
#define TCP_FLAGS_OFFSET 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
/* FIRST_SNAT_PORT is above what the kernel gives to sockets of its own accord (net.ipv4.ip_local_port_range), which the
 * proxy sees to, so that no two collide. */
#define SNAT_PORTS (65536 - FIRST_SNAT_PORT)
#define SNAT_ATTEMPTS 8
/* As conntrack forgets UDP flows: net/netfilter/nf_conntrack_proto_udp.c, udp_timeouts. */
#define UDP_SECONDS 120

enum direction {
	IN = 0,
	OUT = 1,
};

struct rewrite_key {
	__be32 source[4], destination[4];
	__be16 source_port, destination_port;
	__u8 protocol;
	__u8 direction;
	__u16 pad;
};
_Static_assert(sizeof(struct rewrite_key) == 40, "tracer.service_lb.REWRITE_KEY");

struct rewrite {
	__be32 address[4]; /* what the destination (IN) or source (OUT) becomes */
	__be16 port;
	__u8 seen; /* of the packets that it was for: TCP_FIN, TCP_RST */
	__u8 pad;
	__u32 list; /* of endpoints, one of which this is; 0: this is none */
	__u32 used; /* when it last was, see seconds() */
};
_Static_assert(sizeof(struct rewrite) == 28, "tracer.service_lb.REWRITE");

BPF_TABLE("lru_hash", struct rewrite_key, struct rewrite, rewrites, MAX_REWRITES);

struct packet {
	struct rewrite_key key; /* its addresses, and which way it goes */
	__u32 l3, l4; /* offsets of its headers */
	bool is_ipv4;
	__u8 flags; /* of TCP; of a datagram: TCP_SYN */
	bool begins; /* it may begin a connection: TCP with SYN and without ACK, any datagram */
};

/* The first `length` bytes of a packet, to be read in place: copying them takes longer than all else here. */
static __always_inline __u8 *first_bytes(struct __sk_buff *skb, __u32 length)
{
	if ((void *)(long)skb->data + length > (void *)(long)skb->data_end && bpf_skb_pull_data(skb, length))
		return NULL;
	void *data = (void *)(long)skb->data;
	return data + length <= (void *)(long)skb->data_end ? data : NULL;
}

/* Fill in what is behind the IP header, `l4` bytes into the packet (a constant to the compiler). */
static __always_inline bool parse_transport(struct __sk_buff *skb, __u32 l4, struct packet *packet)
{
	struct rewrite_key *key = &packet->key;
	__u8 *data;
	packet->l4 = l4;
	if (key->protocol == IPPROTO_TCP) {
		data = first_bytes(skb, l4 + TCP_FLAGS_OFFSET + 1);
		if (!data)
			return false;
		packet->flags = data[l4 + TCP_FLAGS_OFFSET];
	} else if (key->protocol == IPPROTO_UDP) {
		data = first_bytes(skb, l4 + 4);
		packet->flags = TCP_SYN;
	} else {
		return false;
	}
	if (!data)
		return false;
	key->source_port = *(__be16 *)(data + l4);
	key->destination_port = *(__be16 *)(data + l4 + 2);
	packet->begins = (packet->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return true;
}

/* Fill in `packet`; false for what is not ours to look at. */
static __always_inline bool parse(struct __sk_buff *skb, enum direction direction, struct packet *packet)
{
	struct rewrite_key *key = &packet->key;
	__u8 *data = first_bytes(skb, ETH_LENGTH + 20);
	if (!data)
		return false;
	__u16 type = *(__u16 *)(data + ETH_TYPE_OFFSET);
	packet->l3 = ETH_LENGTH;
	key->direction = direction;
	if (type == ETH_TYPE_IPV4) {
		__u8 *header = data + ETH_LENGTH;
		if (header[0] != 0x45)
			return false;
		if (header[6] & 0x3f || header[7]) /* a fragment */
			return false;
		key->protocol = header[9];
		key->source[2] = key->destination[2] = MAPPED;
		__builtin_memcpy(&key->source[3], header + 12, 4);
		__builtin_memcpy(&key->destination[3], header + 16, 4);
		packet->is_ipv4 = true;
		return parse_transport(skb, ETH_LENGTH + 20, packet);
	}
	if (type == ETH_TYPE_IPV6) {
		data = first_bytes(skb, ETH_LENGTH + 40);
		if (!data)
			return false;
		__u8 *header = data + ETH_LENGTH;
		key->protocol = header[6];
		__builtin_memcpy(key->source, header + 8, 16);
		__builtin_memcpy(key->destination, header + 24, 16);
		return parse_transport(skb, ETH_LENGTH + 40, packet);
	}
	return false;
}

/* Seconds, nearly (2^30 ns), since some time in the past. */
static __always_inline __u32 seconds(void)
{
	return bpf_ktime_get_ns() >> 30;
}

/* Note that a rewrite was used for a packet. */
static __always_inline void note_use(struct rewrite *rewrite, const struct packet *packet)
{
	rewrite->used = seconds();
	if (packet->flags & TCP_SYN)
		rewrite->seen = 0;
	else if (packet->flags & (TCP_FIN | TCP_RST))
		rewrite->seen |= packet->flags & (TCP_FIN | TCP_RST);
}

/* Replace `length` bytes at `offset` of the header, and correct the transport checksum at `checksum` for it. */
static __always_inline void replace(struct __sk_buff *skb, __u32 offset, const void *old, const void *new, __u32 length,
	__u32 checksum, __u64 flags)
{
	__s64 difference = bpf_csum_diff((__be32 *)old, length, (__be32 *)new, length, 0);
	bpf_l4_csum_replace(skb, checksum, 0, difference, flags);
	bpf_skb_store_bytes(skb, offset, (void *)new, length, 0);
}

static __always_inline void apply(struct __sk_buff *skb, const struct packet *packet, const struct rewrite *rewrite)
{
	bool destination = packet->key.direction == IN, udp = packet->key.protocol == IPPROTO_UDP;
	const __be32 *old = destination ? packet->key.destination : packet->key.source;
	__be16 old_port = destination ? packet->key.destination_port : packet->key.source_port;
	__u32 checksum = packet->l4 + (udp ? 6 : 16), port = packet->l4 + (destination ? 2 : 0);
	/* A UDP checksum of 0 says that there is none, and has to stay. */
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	if (packet->is_ipv4) {
		bpf_l3_csum_replace(skb, packet->l3 + 10, old[3], rewrite->address[3], 4);
		replace(skb, packet->l3 + (destination ? 16 : 12), &old[3], &rewrite->address[3], 4, checksum,
			flags | BPF_F_PSEUDO_HDR);
	} else {
		replace(skb, packet->l3 + (destination ? 24 : 8), old, rewrite->address, 16, checksum,
			flags | BPF_F_PSEUDO_HDR);
	}
	bpf_l4_csum_replace(skb, checksum, old_port, rewrite->port, flags | 2);
	bpf_skb_store_bytes(skb, port, (void *)&rewrite->port, 2, 0);
}

/* ---- a new connection ---- */

/* What is entered for one, here because the stack has no room for it. Packets are not preempted. */
struct entries {
	struct rewrite_key answer; /* out endpoint ─▶ client */
	struct rewrite_key there; /* out client ─▶ endpoint */
	struct rewrite_key back; /* in endpoint ─▶ node */
	struct rewrite_key other; /* the `there` of another connection */
	struct rewrite from_service, from_node, to_client;
};

BPF_PERCPU_ARRAY(scratch, struct entries, 1);

static __always_inline void copy_address(__be32 to[4], const __be32 from[4])
{
	__builtin_memcpy(to, from, 16);
}

static __always_inline bool is_same(const __be32 one[4], const __be32 other[4])
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

static __always_inline void set_key(
	struct rewrite_key *key, __u8 protocol, enum direction direction, __be16 source_port, __be16 destination_port)
{
	key->protocol = protocol;
	key->direction = direction;
	key->source_port = source_port;
	key->destination_port = destination_port;
	key->pad = 0;
}

/* Whether the masqueraded connection that has the answers `entries->back` has ended, so that its port is free. */
static __always_inline bool is_over(struct entries *entries, const struct rewrite *to_client)
{
	const struct rewrite_key *back = &entries->back;
	set_key(&entries->other, back->protocol, OUT, to_client->port, back->source_port);
	copy_address(entries->other.source, to_client->address);
	copy_address(entries->other.destination, back->source);
	struct rewrite *from_node = rewrites.lookup(&entries->other);
	if (!from_node || from_node->port != back->destination_port)
		return true; /* the client's port has been used for another connection since */
	if (back->protocol == IPPROTO_UDP)
		return seconds() - to_client->used > UDP_SECONDS && seconds() - from_node->used > UDP_SECONDS;
	return (to_client->seen | from_node->seen) & TCP_RST || to_client->seen & from_node->seen & TCP_FIN;
}

/* Whether what goes `there` has a source of this node already, and its answers find the way back. */
static __always_inline bool has_snat(struct entries *entries)
{
	const struct rewrite_key *there = &entries->there;
	struct rewrite *from_node = rewrites.lookup(&entries->there);
	if (!from_node)
		return false;
	set_key(&entries->back, there->protocol, IN, there->destination_port, from_node->port);
	copy_address(entries->back.source, there->destination);
	copy_address(entries->back.destination, from_node->address);
	struct rewrite *to_client = rewrites.lookup(&entries->back);
	return to_client && to_client->port == there->source_port && is_same(to_client->address, there->source);
}

/* Give what goes `there` a source of this node, with a port from which answers find the way back. */
static __always_inline bool enter_snat(struct entries *entries, const __be32 node_address[4])
{
	struct rewrite_key *there = &entries->there, *back = &entries->back;
	struct rewrite *to_client = &entries->to_client, *from_node = &entries->from_node;
	set_key(back, there->protocol, IN, there->destination_port, 0);
	copy_address(back->source, there->destination);
	copy_address(back->destination, node_address);
	__builtin_memset(to_client, 0, sizeof(*to_client));
	__builtin_memset(from_node, 0, sizeof(*from_node));
	copy_address(to_client->address, there->source);
	to_client->port = there->source_port;
	copy_address(from_node->address, node_address);
	to_client->used = from_node->used = seconds();
	__u32 first = bpf_get_prandom_u32();
#pragma unroll
	for (int attempt = 0; attempt < SNAT_ATTEMPTS; attempt++) {
		__u16 port = FIRST_SNAT_PORT + (first + attempt * 1013) % SNAT_PORTS;
		back->destination_port = __builtin_bswap16(port);
		struct rewrite *taken = rewrites.lookup(back);
		if (taken && !is_over(entries, taken))
			continue;
		from_node->port = back->destination_port;
		rewrites.update(back, to_client);
		rewrites.update(there, from_node);
		return true;
	}
	return false;
}

/*
 * Whether the endpoint is to see the node as its client. It must if it is the client itself, since it would answer
 * without a packet. It can't if it is on the node's own network: packets to it leave by no device.
 */
static __always_inline bool needs_snat(const struct packet *packet, const struct service *service,
	const struct backend *backend, const __be32 node_address[4])
{
	if (is_same(backend->address, node_address))
		return false;
	return service->flags & SERVICE_MASQUERADE || is_same(backend->address, packet->key.source);
}

/* Enter all that becomes of a connection to `backend`. */
static __always_inline bool enter(const struct packet *packet, const struct service *service,
	const struct backend *backend, struct rewrite *to_backend)
{
	int zero = 0;
	struct node_facts *facts = node.lookup(&zero);
	struct entries *entries = scratch.lookup(&zero);
	if (!facts || !entries)
		return false;
	const __be32 *node_address = packet->is_ipv4 ? facts->address4 : facts->address6;
	struct rewrite_key *answer = &entries->answer, *there = &entries->there;
	struct rewrite *from_service = &entries->from_service;
	set_key(answer, packet->key.protocol, OUT, backend->port, packet->key.source_port);
	copy_address(answer->source, backend->address);
	copy_address(answer->destination, packet->key.source);
	set_key(there, packet->key.protocol, OUT, packet->key.source_port, backend->port);
	copy_address(there->source, packet->key.source);
	copy_address(there->destination, backend->address);
	__builtin_memset(from_service, 0, sizeof(*from_service));
	copy_address(from_service->address, packet->key.destination);
	from_service->port = packet->key.destination_port;
	copy_address(to_backend->address, backend->address);
	to_backend->port = backend->port;
	to_backend->list = service->list;
	/* Else it has been masqueraded if the client used this port before, for another Service. */
	if (!needs_snat(packet, service, backend, node_address))
		rewrites.delete(there);
	else if (!has_snat(entries) && !enter_snat(entries, node_address))
		return false;
	rewrites.update(answer, from_service);
	rewrites.update((struct rewrite_key *)&packet->key, to_backend);
	return true;
}

static __always_inline bool is_in_range(const struct service *service, const struct packet *packet)
{
	struct range_key key = {.prefixlen = 32 + 128, .port_id = service->port_id};
	copy_address(key.address, packet->key.source);
	return !(service->flags & SERVICE_HAS_RANGES) || source_ranges.lookup(&key) != NULL;
}

/* ---- no endpoint ---- */

#define ICMP_HEADER 8
#define ICMPV4_PROTOCOL 1
#define ICMPV6_PROTOCOL 58
#define ICMP_TTL 64

/*
 * Turn the packet into the answer "port unreachable" (RFC 792, RFC 4443) and send it back, which connect() reports as a
 * refusal; kube-proxy's rules do the same. It quotes the packet up to the transport header: of TCP all 20 bytes, since
 * a virtual device may not have filled in the checksum in there, and the kernel does not let us cut before it.
 */
#define QUOTED_MAX (40 + 20)
#define ANSWER_MAX (40 + ICMP_HEADER + QUOTED_MAX)

static __always_inline __u16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

/* `ip`: length of an IP header; `transport`: how much to quote of what follows. Both are constants to the compiler. */
static __always_inline int refuse_with(struct __sk_buff *skb, const struct packet *packet, __u32 ip, __u32 transport)
{
	__u32 quoted = ip + transport, room = ip + ICMP_HEADER;
	__u8 answer[ANSWER_MAX] = {}, macs[12], swapped[12];
	__u8 *icmp = answer + ip;
	bool is_ipv4 = ip == 20;
	const __be32 *from = packet->key.destination, *to = packet->key.source;
	__s64 sum = 0;

	if (bpf_skb_load_bytes(skb, ETH_LENGTH, icmp + ICMP_HEADER, quoted))
		return TC_ACT_SHOT;
	if (is_ipv4) {
		__u16 length = __builtin_bswap16(room + quoted), checksum;
		icmp[0] = 3, icmp[1] = 3;
		answer[0] = 0x45, answer[8] = ICMP_TTL, answer[9] = ICMPV4_PROTOCOL;
		__builtin_memcpy(answer + 2, &length, 2);
		__builtin_memcpy(answer + 12, &from[3], 4);
		__builtin_memcpy(answer + 16, &to[3], 4);
		checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)answer, 20, 0));
		__builtin_memcpy(answer + 10, &checksum, 2);
	} else {
		__u16 length = __builtin_bswap16(ICMP_HEADER + quoted);
		/* RFC 8200, 8.1: of the pseudo-header; the addresses are summed where they stand in the header. */
		__be32 pseudo[2] = {__builtin_bswap32(ICMP_HEADER + quoted), __builtin_bswap32(ICMPV6_PROTOCOL)};
		icmp[0] = 1, icmp[1] = 4;
		answer[0] = 0x60, answer[6] = ICMPV6_PROTOCOL, answer[7] = ICMP_TTL;
		__builtin_memcpy(answer + 4, &length, 2);
		__builtin_memcpy(answer + 8, from, 16);
		__builtin_memcpy(answer + 24, to, 16);
		sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), 0);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)(answer + 8), 32, sum);
	}
	__u16 checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)icmp, ICMP_HEADER + quoted, sum));
	__builtin_memcpy(icmp + 2, &checksum, 2);

	if (bpf_skb_change_tail(skb, ETH_LENGTH + quoted, 0) || bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	bpf_skb_load_bytes(skb, 0, macs, sizeof(macs));
	__builtin_memcpy(swapped, macs + 6, 6);
	__builtin_memcpy(swapped + 6, macs, 6);
	bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
	bpf_skb_store_bytes(skb, ETH_LENGTH, answer, room + quoted, 0);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet)
{
	bool tcp = packet->key.protocol == IPPROTO_TCP;
	if (packet->is_ipv4)
		return tcp ? refuse_with(skb, packet, 20, 20) : refuse_with(skb, packet, 20, 8);
	return tcp ? refuse_with(skb, packet, 40, 20) : refuse_with(skb, packet, 40, 8);
}

/* ---- the programs ---- */

static __always_inline struct service *service_of(const struct packet *packet, enum scope scope)
{
	struct service_key key = {
		.port = packet->key.destination_port, .protocol = packet->key.protocol, .scope = scope};
	copy_address(key.address, packet->key.destination);
	return services.lookup(&key);
}

/* The endpoint that a connection which begins anew had before, if it is still one: a first packet may come twice. */
static __always_inline bool find_known(
	const struct rewrite *known, const struct service *service, struct backend *backend)
{
	if (!known || known->list != service->list)
		return false;
	copy_address(backend->address, known->address);
	backend->port = known->port;
	return is_member(service->list, backend);
}

/* Translate a packet that may begin a connection to the Service; what to do with it. */
static __always_inline int begin(
	struct __sk_buff *skb, const struct packet *packet, const struct rewrite *known, const struct service *service)
{
	struct rewrite to_backend = {};
	struct backend backend = {};
	struct affinity_key client = {.scope = SCOPE_OUTSIDE};
	if (!is_in_range(service, packet))
		return TC_ACT_SHOT;
	copy_address(client.client, packet->key.source);
	if (!find_known(known, service, &backend)) {
		enum choice choice = choose(service, &client, bpf_get_prandom_u32(), &backend);
		if (choice == NO_ENDPOINT)
			return refuse(skb, packet);
		if (choice != CHOSEN)
			return TC_ACT_SHOT; /* or outdated: the sender will try again */
	}
	if (!enter(packet, service, &backend, &to_backend))
		return TC_ACT_SHOT;
	apply(skb, packet, &to_backend);
	return TC_ACT_OK;
}

/*
 * The packet begins a connection to an endpoint itself. If its client had a connection to the same endpoint through a
 * Service before, with the same port, then what was entered for that one would rewrite this one's packets.
 */
static __always_inline void forget_former(const struct packet *packet)
{
	int zero = 0;
	const struct rewrite_key *key = &packet->key;
	struct entries *entries = scratch.lookup(&zero);
	if (!entries)
		return;
	set_key(&entries->answer, key->protocol, OUT, key->destination_port, key->source_port);
	copy_address(entries->answer.source, key->destination);
	copy_address(entries->answer.destination, key->source);
	if (!rewrites.lookup(&entries->answer))
		return;
	set_key(&entries->there, key->protocol, OUT, key->source_port, key->destination_port);
	copy_address(entries->there.source, key->source);
	copy_address(entries->there.destination, key->destination);
	rewrites.delete(&entries->answer);
	rewrites.delete(&entries->there);
}

static __always_inline int come_in(struct __sk_buff *skb, enum scope scope)
{
	struct packet packet = {};
	if (!parse(skb, IN, &packet))
		return TC_ACT_OK;
	struct rewrite *known = rewrites.lookup(&packet.key);
	struct service *service = packet.begins ? service_of(&packet, scope) : NULL;
	if (service)
		return begin(skb, &packet, known, service);
	if (packet.begins && !known)
		forget_former(&packet);
	/* A datagram to an endpoint that is gone with its Service is left alone; a connection may end in peace. */
	if (known && !(known->list && packet.begins)) {
		note_use(known, &packet);
		struct rewrite rewrite = *known;
		apply(skb, &packet, &rewrite);
	}
	return TC_ACT_OK;
}

/* At a device that leads to other machines. */
int lb_from_outside(struct __sk_buff *skb)
{
	return come_in(skb, SCOPE_OUTSIDE);
}

/* At a pod's device: what its sockets asked for has been translated before, so this is what is left. */
int lb_from_pod(struct __sk_buff *skb)
{
	return come_in(skb, SCOPE_SOCKET);
}

/* At both. */
int lb_to_device(struct __sk_buff *skb)
{
	struct packet packet = {};
	if (!parse(skb, OUT, &packet))
		return TC_ACT_OK;
	struct rewrite *known = rewrites.lookup(&packet.key);
	if (known) {
		note_use(known, &packet);
		struct rewrite rewrite = *known;
		apply(skb, &packet, &rewrite);
		return TC_ACT_OK;
	}
	/* Where a Service's own address leads there is nothing: the node sent this, and no endpoint would take it. */
	return packet.begins && service_of(&packet, SCOPE_SOCKET) ? TC_ACT_SHOT : TC_ACT_OK;
}
