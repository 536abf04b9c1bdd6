// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Services without rules: connect() to a Service's address becomes connect() to one of its endpoints.
 *
 * Stands for Cilium's socket load balancing (bpf/bpf_sock.c). The kernel calls these programs with the address that a
 * process passed to connect() or sendto(), before any packet exists; they look it up in a hash map and may replace it.
 * No packet ever carries the Service's address, and how many Services there are does not matter.
 *
 *     connect(10.96.100.50:8000) ─▶ services ─▶ {list 7, 3 endpoints} ─▶ slots[7, random 0..2] ─▶ connect(10.244.1.4:8000)
 *
 * Here: the maps, the choice of an endpoint, and the hooks of sockets. Not here: packets that were sent to a Service's
 * address all the same (service_lb_packets.c). Source addresses are never changed here, so an endpoint sees who asked.
 */
#include "service_lb.h"

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ECONNREFUSED 111
#define NANOSECONDS_PER_SECOND 1000000000ULL
/* First word of ::ffff:0:0/96 that is not zero */
#define MAPPED __builtin_bswap32(0xffff)
/* What cgroup programs return (kernel/bpf/cgroup.c). */
#define REJECT 0
#define PROCEED 1

BPF_F_TABLE("hash", struct service_key, struct service, services, MAX_SERVICES, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct slot_key, struct backend, slots, MAX_SLOTS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct member_key, __u32, members, MAX_SLOTS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct range_key, __u32, source_ranges, MAX_RANGES, BPF_F_NO_PREALLOC);
BPF_ARRAY(node, struct node_facts, 1);

/* ---- session affinity ---- */

struct affinity_key {
	__be32 client[4]; /* an address; of a socket, whose address is not known yet, its network namespace's cookie */
	__u32 port_id;
	__u32 scope;
};

struct affinity {
	__u64 used_ns;
	struct backend backend;
	__u32 pad;
};

BPF_TABLE("lru_hash", struct affinity_key, struct affinity, affinities, MAX_AFFINITIES);

static __always_inline bool is_member(__u32 list, const struct backend *backend)
{
	struct member_key key = {.list = list, .port = backend->port};
	__builtin_memcpy(key.address, backend->address, 16);
	return members.lookup(&key) != NULL;
}

/* The endpoint that this client had, if that is not too long ago and it is still one. */
static __always_inline bool find_affine(
	const struct service *service, struct affinity_key *client, struct backend *backend)
{
	__u64 now = bpf_ktime_get_ns();
	struct affinity *known = affinities.lookup(client);
	if (!known || now - known->used_ns > service->affinity_seconds * NANOSECONDS_PER_SECOND)
		return false;
	*backend = known->backend;
	if (!is_member(service->list, backend))
		return false;
	known->used_ns = now;
	return true;
}

/* ---- the choice ---- */

enum choice {
	CHOSEN,
	NO_ENDPOINT, /* to be refused */
	SILENCE, /* to be dropped */
	OUTDATED, /* `service` is no longer what the maps hold: look it up once more */
};

/*
 * Choose an endpoint of `service`. `random`: 32 bits; the same ones choose the same slot.
 *
 * A reader never sees half a change: user space fills a slot before it raises the count, and lowers the count before it
 * lets go of a slot; a slot that is past the count by the time that we look still holds an endpoint. Only where this
 * takes very long between two look-ups (a virtual processor may stand still) is a slot gone by then.
 */
static __always_inline enum choice choose(
	const struct service *service, struct affinity_key *client, __u32 random, struct backend *backend)
{
	if (service->flags & SERVICE_SILENT)
		return SILENCE;
	if (!service->count)
		return NO_ENDPOINT;
	client->port_id = service->port_id;
	if (service->affinity_seconds && find_affine(service, client, backend))
		return CHOSEN;
	struct slot_key key = {.list = service->list, .slot = (__u64)random * service->count >> 32};
	struct backend *found = slots.lookup(&key);
	if (!found)
		return OUTDATED;
	*backend = *found;
	if (service->affinity_seconds) {
		struct affinity affinity = {.used_ns = bpf_ktime_get_ns(), .backend = *backend};
		affinities.update(client, &affinity);
	}
	return CHOSEN;
}

/* ---- what a socket asked for ---- */

/* Of an endpoint that a socket was sent to: which Service address it had asked for. */
BPF_TABLE("lru_hash", struct peer_key, struct service_key, asked, MAX_SOCKETS);

static __always_inline void peer_of(struct bpf_sock_addr *ctx, const struct backend *backend, struct peer_key *key)
{
	key->socket = bpf_get_socket_cookie(ctx);
	__builtin_memcpy(key->address, backend->address, 16);
	key->port = backend->port;
}

/* The address in `ctx`, which is the one passed to connect() or sendto(), or the one about to be told. */
static __always_inline void read4(struct bpf_sock_addr *ctx, __be32 address[4], __be16 *port)
{
	address[2] = MAPPED;
	address[3] = ctx->user_ip4;
	*port = ctx->user_port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, __be32 address[4], __be16 *port)
{
	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
	*port = ctx->user_port;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const __be32 address[4], __be16 port)
{
	ctx->user_ip4 = address[3];
	ctx->user_port = port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const __be32 address[4], __be16 port)
{
	ctx->user_ip6[0] = address[0];
	ctx->user_ip6[1] = address[1];
	ctx->user_ip6[2] = address[2];
	ctx->user_ip6[3] = address[3];
	ctx->user_port = port;
}

/* ---- there ---- */

/*
 * Whether the Service's source ranges keep out who asks. A pod's address is not known before its packet is: that one
 * is let go as it is, and judged at the pod's device (service_lb_packets.c).
 */
static __always_inline bool is_for_packets(struct bpf_sock_addr *ctx, const struct service *service, __u64 netns)
{
	int zero = 0;
	if (!(service->flags & SERVICE_HAS_RANGES))
		return false;
	struct node_facts *facts = node.lookup(&zero);
	bool is_node = facts && facts->netns_cookie == netns;
	return !is_node || service->flags & SERVICE_DENIES_NODE;
}

/*
 * Find an endpoint for what `ctx` asks for; true if there is one, in `backend`. `verdict` is what to return to the
 * kernel.
 *
 * connect() to a Service without endpoints is refused at once, as it is under kube-proxy after one packet. A datagram
 * that nobody will take is let go as it is, and meets the programs for packets: its sender hears no more of it than
 * under kube-proxy.
 */
static __always_inline bool translate(
	struct bpf_sock_addr *ctx, struct service_key *key, bool connects, struct backend *backend, int *verdict)
{
	*verdict = PROCEED;
	key->protocol = ctx->protocol;
	struct service *service = services.lookup(key);
	if (!service)
		return false;
	__u64 netns = bpf_get_netns_cookie(ctx);
	if (is_for_packets(ctx, service, netns))
		return false;
	struct affinity_key client = {.scope = SCOPE_SOCKET};
	__builtin_memcpy(client.client, &netns, sizeof(netns));
	/* All datagrams of a socket go to one endpoint, for as long as the number of endpoints stays what it is. */
	__u32 random = key->protocol == IPPROTO_UDP ? (bpf_get_socket_cookie(ctx) * 0x9e3779b97f4a7c15ULL) >> 32
						    : bpf_get_prandom_u32();
	enum choice choice = choose(service, &client, random, backend);
	if (choice == OUTDATED) {
		service = services.lookup(key);
		choice = service ? choose(service, &client, random, backend) : NO_ENDPOINT;
		if (choice == OUTDATED)
			choice = NO_ENDPOINT;
	}
	if (choice == NO_ENDPOINT && connects) {
		bpf_set_retval(-ECONNREFUSED);
		*verdict = REJECT;
	}
	if (choice != CHOSEN)
		return false;
	struct peer_key peer = {};
	peer_of(ctx, backend, &peer);
	asked.update(&peer, key);
	return true;
}

static __always_inline int ask4(struct bpf_sock_addr *ctx, bool connects)
{
	struct service_key key = {.scope = SCOPE_SOCKET};
	struct backend backend = {};
	int verdict;
	read4(ctx, key.address, &key.port);
	if (translate(ctx, &key, connects, &backend, &verdict))
		write4(ctx, backend.address, backend.port);
	return verdict;
}

static __always_inline int ask6(struct bpf_sock_addr *ctx, bool connects)
{
	struct service_key key = {.scope = SCOPE_SOCKET};
	struct backend backend = {};
	int verdict;
	read6(ctx, key.address, &key.port);
	if (translate(ctx, &key, connects, &backend, &verdict))
		write6(ctx, backend.address, backend.port);
	return verdict;
}

int lb_connect4(struct bpf_sock_addr *ctx)
{
	return ask4(ctx, true);
}

int lb_connect6(struct bpf_sock_addr *ctx)
{
	return ask6(ctx, true);
}

int lb_sendmsg4(struct bpf_sock_addr *ctx)
{
	return ask4(ctx, false);
}

int lb_sendmsg6(struct bpf_sock_addr *ctx)
{
	return ask6(ctx, false);
}

/* ---- and back: who sent a datagram, and getpeername(), must be what was asked for ---- */

int lb_answer4(struct bpf_sock_addr *ctx)
{
	struct backend backend = {};
	struct peer_key peer = {};
	read4(ctx, backend.address, &backend.port);
	peer_of(ctx, &backend, &peer);
	struct service_key *key = asked.lookup(&peer);
	if (key)
		write4(ctx, key->address, key->port);
	return PROCEED;
}

int lb_answer6(struct bpf_sock_addr *ctx)
{
	struct backend backend = {};
	struct peer_key peer = {};
	read6(ctx, backend.address, &backend.port);
	peer_of(ctx, &backend, &peer);
	struct service_key *key = asked.lookup(&peer);
	if (key)
		write6(ctx, key->address, key->port);
	return PROCEED;
}
