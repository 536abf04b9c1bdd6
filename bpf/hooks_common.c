// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Hooks that every backend uses: tracepoints, which need neither kprobes nor trampolines nor tracefs. Attached as
 * tp_btf (typed arguments) or, where the kernel refuses that, as raw tracepoints; both see the arguments of the
 * TP_PROTO in include/trace/events/{sock,net,tcp}.h as an array.
 */

/*
 * Most calls of a hook are of no interest. What decides that is a small program, which goes on to the other only where it
 * has to: beside a network stack that is larger than the processor's cache for code, each line of a program's code is
 * fetched anew, and the compiler puts the way out behind everything else. The kernel makes it a plain jump
 * (bpf_tail_call_direct_fixup). tracer/source/live.py fills this in before it attaches the small ones.
 */
BPF_PROG_ARRAY(after_inet_sock_set_state, 1);

/* inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate) */
int on_inet_sock_set_state(__u64 *ctx)
{
	int oldstate = ctx[1];

	/*
	 * From SYN_RECV it is a simultaneous open, or an accepted connection, for which nobody has a file yet
	 * (tcp_v4_syn_recv_sock): it is no request.
	 */
	if (oldstate == STATE_SYN_SENT || (int)ctx[2] == STATE_SYN_SENT ||
		(oldstate == STATE_SYN_RECV && FIELD(__u64, ctx[0], SOCK_SOCKET)))
		after_inet_sock_set_state.call(ctx, 0);
	return 0;
}

/* As on_inet_sock_set_state(), of a socket that asks for a connection, or has. */
int on_request_state(__u64 *ctx)
{
	__u64 sk = ctx[0];
	int oldstate = ctx[1], newstate = ctx[2];

	if (oldstate == STATE_SYN_SENT || oldstate == STATE_SYN_RECV) {
		if (newstate == STATE_ESTABLISHED || newstate == STATE_CLOSE)
			finish_request(sk, newstate == STATE_ESTABLISHED);
	} else if (newstate == STATE_SYN_SENT && FIELD(__u16, sk, SOCK_PROTOCOL) == PROTOCOL_TCP) {
		open_request(sk);
	}
	return 0;
}

/* tcp_receive_reset(struct sock *sk) */
int on_tcp_receive_reset(__u64 *ctx)
{
	note_reset(ctx[0]);
	return 0;
}

/* inet_sk_error_report(const struct sock *sk) */
int on_inet_sk_error_report(__u64 *ctx)
{
	note_error(ctx[0]);
	return 0;
}

/*
 * netif_receive_skb(struct sk_buff *skb): the network header is not set everywhere yet, but data points at it. Attached
 * only while look_at_arrivals() holds: short TCP connections that cross a few devices would lose 1.5 % of their
 * throughput by the mere call.
 */
int on_netif_receive_skb(__u64 *ctx)
{
	if (look_at_arrivals())
		receive_packet(FIELD(__u64, ctx[0], SKB_DATA));
	return 0;
}

/*
 * kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason): a packet is dropped. A rule may do
 * that after the translation, or the next hop may not answer (ARP): then no later hook sees where the packet was to
 * go.
 */
int on_kfree_skb(__u64 *ctx)
{
	__u64 nfct = FIELD(__u64, ctx[0], SKB_NFCT);
	if ((nfct & CTINFO_MASK) == CTINFO_NEW)
		note_translation(nfct & ~CTINFO_MASK, false);
	return 0;
}
