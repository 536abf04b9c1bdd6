// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Backend "tracepoint": for kernels that refuse kprobes and fentry. Conntrack entries are seen on the packets that
 * leave (skb->_nfct), which costs a look at every packet.
 */

BPF_PROG_ARRAY(after_net_dev_queue, 1); /* see hooks_common.c */

/*
 * net_dev_queue(struct sk_buff *skb), of every network namespace. Goes on for a packet that may tell of a translation, or
 * that UDP may be interested in: see on_queued_packet().
 */
int on_net_dev_queue(__u64 *ctx)
{
	__u64 skb = ctx[0];
	__u64 sk = FIELD(__u64, skb, SKB_SK), ctinfo = FIELD(__u64, skb, SKB_NFCT) & CTINFO_MASK;

	if (ctinfo == CTINFO_NEW ||
		(sk && (ctinfo == CTINFO_REPLY || FIELD(__u16, sk, SOCK_PROTOCOL) != PROTOCOL_TCP)) ||
		(!sk && look_at_arrivals()))
		after_net_dev_queue.call(ctx, 0);
	return 0;
}

/* As on_net_dev_queue(). */
int on_queued_packet(__u64 *ctx)
{
	__u64 skb = ctx[0];
	__u64 nfct = FIELD(__u64, skb, SKB_NFCT), sk = FIELD(__u64, skb, SKB_SK);
	__u64 ct = nfct & ~CTINFO_MASK;
	int ctinfo = nfct & CTINFO_MASK;

	/*
	 * An answer tells something new only where a DNAT leads to the node itself (a hostNetwork pod): then no packet
	 * of the asking direction is ever sent on, and a socket of this namespace answers. Answers that are passed on
	 * have none, and there are many of them.
	 */
	if (ct && (ctinfo == CTINFO_NEW || (ctinfo == CTINFO_REPLY && sk)))
		note_translation(ct, ctinfo == CTINFO_REPLY);
	watch_queued(skb, sk, nfct);
	return 0;
}

#ifdef LOOKS_UP
BPF_PROG_ARRAY(after_sock_send_length, 1); /* see hooks_common.c */

/*
 * sock_send_length(struct sock *sk, int ret, int flags): a send to any kind of socket has returned. Attached only while
 * on_net_dev_queue is not. Goes on for what may be a datagram.
 */
int on_sock_send_length(__u64 *ctx)
{
	if (FIELD(__u16, ctx[0], SOCK_PROTOCOL) == PROTOCOL_UDP)
		after_sock_send_length.call(ctx, 0);
	return 0;
}

/* As on_sock_send_length(). The numbers of protocols are other ones in other families. */
int on_datagram_sent(__u64 *ctx)
{
	__u16 family = FIELD(__u16, ctx[0], SOCK_FAMILY);
	if ((int)ctx[1] >= 0 && (family == K8SNET_AF_INET || family == K8SNET_AF_INET6))
		note_sent(ctx[0]);
	return 0;
}
#endif
