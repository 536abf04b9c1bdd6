// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * UDP's requests: the first datagram of a flow opens one, the first that comes back, or an ICMP error, ends it.
 *
 * Here: flows of datagrams, and what to do with packets that are sent and arrive. Not here: what all requests share, such
 * as translations and the record (connections.c, which comes first in the text); hooks (hooks_*.c).
 */
#define NANOSECONDS_PER_SECOND 1000000000ULL
/* As conntrack forgets UDP flows: net/netfilter/nf_conntrack_proto_udp.c, udp_timeouts. */
#define UDP_UNANSWERED_NS (30 * NANOSECONDS_PER_SECOND)
#define UDP_ANSWERED_NS (120 * NANOSECONDS_PER_SECOND)

struct datagram_flow {
	__u64 last_ns;
	__u64 answered;
};

/* Plain and LRU hashes as in connections.c. */
BPF_TABLE("lru_hash", struct tuple, struct datagram_flow, datagram_flows, MAX_DATAGRAMS);
BPF_TABLE("hash", struct tuple, struct request, datagram_requests, MAX_DATAGRAMS);
BPF_TABLE("lru_hash", struct tuple, struct tuple, datagram_answers, MAX_DATAGRAMS);
/* See look_at_arrivals(). */
BPF_ARRAY(attention, __u64, 2);

/*
 * The tuple of the IP packet in `skb`, whose network header lies at `header`. False: not UDP, a fragment, or not IP.
 */
static __always_inline bool read_packet_tuple(__u64 header, struct tuple *tuple, __u8 *protocol)
{
	__u8 ip[40] = {};
	__u64 ports;
	__builtin_memset(tuple, 0, sizeof(*tuple));
	if (bpf_probe_read_kernel(ip, 20, (void *)header))
		return false;
	if (ip[0] >> 4 == 4) {
		/* RFC 791. Only the first fragment has ports. */
		if (((ip[6] & 0x1f) | ip[7]) != 0)
			return false;
		*protocol = ip[9];
		tuple->l3 = K8SNET_AF_INET;
		__builtin_memcpy(tuple->source, ip + 12, 4);
		__builtin_memcpy(tuple->destination, ip + 16, 4);
		ports = header + (ip[0] & 0xf) * 4;
	} else if (ip[0] >> 4 == 6) {
		/* RFC 8200. Extension headers before UDP are not followed. */
		if (bpf_probe_read_kernel(ip, 40, (void *)header))
			return false;
		*protocol = ip[6];
		tuple->l3 = K8SNET_AF_INET6;
		__builtin_memcpy(tuple->source, ip + 8, 16);
		__builtin_memcpy(tuple->destination, ip + 24, 16);
		ports = header + 40;
	} else {
		return false;
	}
	if (*protocol == PROTOCOL_UDP) {
		tuple->protocol = PROTOCOL_UDP;
		tuple->source_port = READ(__be16, ports, 0);
		tuple->destination_port = READ(__be16, ports, 2);
	}
	return true;
}

/*
 * Arriving packets are of interest only to UDP, so they are looked at while a process on the machine has lately sent a
 * datagram. [0] is when the last one was sent, in jiffies; once that is some seconds old, user space writes it to [1],
 * too, and detaches on_netif_receive_skb (tracer/source/arrivals.py). So every other packet costs two loads from one
 * line of the cache, and no look at a clock.
 */
static __always_inline bool look_at_arrivals(void)
{
	int zero = 0, one = 1;
	__u64 *sent = attention.lookup(&zero), *settled = attention.lookup(&one);
	return sent && settled && *sent != *settled;
}

static __always_inline void pay_attention(void)
{
	int zero = 0;
	__u64 now = bpf_jiffies64(), *sent = attention.lookup(&zero);
	if (sent && *sent != now)
		*sent = now;
}

/* Whether the process chose this socket's source port itself, as servers do, and did not connect it. */
static __always_inline bool may_be_server(__u64 sk)
{
	return READ(__u8, sk, SOCK_STATE) != STATE_ESTABLISHED &&
	       ((READ(__u8, sk, SOCK_USERLOCKS) >> SOCK_USERLOCKS_SHIFT) & SOCK_BINDPORT_LOCK);
}

/* A datagram of `tuple` was sent by `sk`, which `answer` would answer: the first of a flow opens a request. */
static __always_inline void open_datagram(__u64 sk, struct tuple *tuple, struct tuple *answer)
{
	/* Had we looked at what arrives, a request that this datagram answers would be known. */
	bool looked = look_at_arrivals();
	pay_attention();
	__u64 now = bpf_ktime_get_ns();
	struct datagram_flow *known = datagram_flows.lookup(tuple);
	if (known && now - known->last_ns < (known->answered ? UDP_ANSWERED_NS : UDP_UNANSWERED_NS)) {
		known->last_ns = now;
		return;
	}
	struct datagram_flow flow = {.last_ns = now};
	if (datagram_flows.update(tuple, &flow)) {
		count_lost(LOST_DATAGRAM_MAP);
		return;
	}
	struct request request = {};
	note_process(&request, netns_inode(READ(__u64, sk, SOCK_NET)));
	request.doubtful = !looked && may_be_server(sk);
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked *asked = asked_here(thread);
	if (!asked)
		asked = asked_by_socket.lookup(&sk);
	if (asked)
		request.asked = *asked;
	datagram_answers.update(answer, tuple);
	if (datagram_requests.update(tuple, &request))
		count_lost(LOST_DATAGRAM_MAP);
}

/*
 * A process sends a datagram: the first of a flow opens a request. `ct` and `ctinfo` are of the packet, 0 when this
 * namespace tracks nothing. In process context, with the packet's socket still known.
 */
static __always_inline void send_datagram(__u64 skb, __u64 sk, __u64 ct, int ctinfo)
{
	struct tuple tuple, answer;
	__u8 protocol = 0;
	if (ct && ctinfo >= CTINFO_REPLY)
		return;
	if (ct) {
		/* The packet may be rewritten already; the entry holds what was asked, and what will answer. */
		struct conntrack_entry entry;
		read_conntrack(ct, &entry);
		tuple = entry.original;
		answer = entry.reply;
	} else {
		__u64 header = READ(__u64, skb, SKB_HEAD) + READ(__u16, skb, SKB_NETWORK_HEADER);
		if (!read_packet_tuple(header, &tuple, &protocol))
			return;
		reverse_tuple(&tuple, &answer);
	}
	if (tuple.protocol != PROTOCOL_UDP)
		return;
	open_datagram(sk, &tuple, &answer);
}

#ifdef LOOKS_UP
/*
 * A process has sent a datagram by `sk` while nobody looked at packets. Now somebody will (pay_attention); the answer,
 * too, may have come by then, so that only conntrack tells of it (LiveSource._completed).
 */
static __always_inline void note_sent(__u64 sk)
{
	struct tuple tuple, answer;
	if (READ(__u8, sk, SOCK_STATE) == STATE_ESTABLISHED) {
		read_socket_tuple(sk, &tuple);
		tuple.protocol = PROTOCOL_UDP;
		reverse_tuple(&tuple, &answer);
		open_datagram(sk, &tuple, &answer);
		return;
	}
	pay_attention();
	/* Where to, a socket that is not connected does not say. A server's is not missed: it answers. */
	if (!may_be_server(sk))
		count_lost(LOST_UNWATCHED);
}
#endif

/*
 * Taking the request away comes first: user space takes it away, too, when nobody answers, and only one of us
 * reports.
 */
static __always_inline void finish_datagram(struct tuple *tuple, __u8 outcome, __u16 error)
{
	struct tuple key = *tuple;
	struct request *found = datagram_requests.lookup(&key);
	if (!found)
		return;
	struct request request = *found;
	if (datagram_requests.delete(&key) == 0)
		submit_connection(&request, tuple, NULL, outcome, error);
}

/*
 * What an ICMP error says (RFC 792, RFC 4443). `outer`: the packet that brought it; `about`: the one that it is
 * about, whose start it carries. False: it is no such error, or not about UDP.
 */
static __always_inline bool read_icmp_error(
	__u64 icmp, bool is_v6, const struct tuple *outer, struct tuple *about, __u8 *outcome, __u16 *error)
{
	__u8 protocol = 0, type = READ(__u8, icmp, 0), code = READ(__u8, icmp, 1);
	if (type != (is_v6 ? 1 : 3) || !read_packet_tuple(icmp + 8, about, &protocol) || protocol != PROTOCOL_UDP)
		return false;
	const __u64 *sender = (const __u64 *)outer->source, *asked = (const __u64 *)about->destination;
	*outcome = OUTCOME_UNREACHABLE;
	*error = !is_v6 && code == 0 ? ERROR_NETUNREACH : ERROR_HOSTUNREACH;
	if (code == (is_v6 ? 4 : 3)) {
		/* Port unreachable: the far end's own word, or a rule's on the way (iptables' REJECT). */
		*outcome = sender[0] == asked[0] && sender[1] == asked[1] ? OUTCOME_REFUSED : OUTCOME_REJECTED;
		*error = ERROR_CONNREFUSED;
	} else if (is_v6 ? code == 1 : code == 9 || code == 10 || code == 13) {
		*outcome = OUTCOME_REJECTED;
		*error = is_v6 ? ERROR_ACCES : ERROR_HOSTUNREACH;
	}
	return true;
}

/* Somebody else's request: what is sent back must not look like a new flow of ours. */
static __always_inline void note_heard(const struct tuple *tuple)
{
	struct tuple answer;
	struct datagram_flow heard = {.last_ns = bpf_ktime_get_ns(), .answered = 1};
	reverse_tuple(tuple, &answer);
	struct datagram_flow *known = datagram_flows.lookup(&answer);
	if (known)
		known->last_ns = heard.last_ns;
	else if (datagram_flows.update(&answer, &heard))
		count_lost(LOST_DATAGRAM_MAP);
}

/* A packet arrives somewhere on the machine: perhaps the answer to a datagram. `header`: its network header. */
static __always_inline void receive_packet(__u64 header)
{
	struct tuple packet, request, answer;
	__u8 start[10] = {}, protocol, outcome = OUTCOME_ANSWERED;
	__u16 error = 0;
	/* The protocol before all else: most packets are TCP. */
	if (bpf_probe_read_kernel(start, sizeof(start), (void *)header))
		return;
	bool is_v6 = start[0] >> 4 == 6;
	protocol = is_v6 ? start[6] : start[9];
	bool is_icmp = protocol == (is_v6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP);
	if (!is_icmp && protocol != PROTOCOL_UDP)
		return;
	if (!read_packet_tuple(header, &packet, &protocol))
		return;
	if (is_icmp) {
		__u64 icmp = header + (is_v6 ? 40 : (start[0] & 0xf) * 4);
		if (!read_icmp_error(icmp, is_v6, &packet, &request, &outcome, &error))
			return;
		reverse_tuple(&request, &answer);
	} else {
		answer = packet;
	}
	struct tuple *original = datagram_answers.lookup(&answer);
	if (original) {
		/* What was asked for, where the packet is about what it was translated to. */
		request = *original;
	} else if (!is_icmp) {
		note_heard(&packet);
		return;
	}
	struct datagram_flow *flow = is_icmp ? NULL : datagram_flows.lookup(&request);
	if (flow) {
		flow->last_ns = bpf_ktime_get_ns();
		flow->answered = 1;
	}
	finish_datagram(&request, outcome, error);
}

/*
 * A packet is handed to a device, in whatever namespace. One that no UDP socket of this namespace sends has come from
 * elsewhere, or is an ICMP error: for who waits for an answer it arrives. On the loopback device sending is arriving.
 * What comes in by a real network card and stays here is not seen on this way, but by on_netif_receive_skb.
 */
static __always_inline void watch_queued(__u64 skb, __u64 sk, __u64 nfct)
{
	__u16 protocol = sk ? FIELD(__u16, sk, SOCK_PROTOCOL) : 0;
	bool sent_here = protocol == PROTOCOL_UDP;
	if (protocol == PROTOCOL_TCP)
		return;
	if (sent_here)
		send_datagram(skb, sk, nfct & ~CTINFO_MASK, nfct & CTINFO_MASK);
	if (!look_at_arrivals())
		return;
	if (!sent_here || READ(__u32, READ(__u64, skb, SKB_DEV), DEVICE_FLAGS) & DEVICE_LOOPBACK)
		receive_packet(FIELD(__u64, skb, SKB_HEAD) + FIELD(__u16, skb, SKB_NETWORK_HEADER));
}
