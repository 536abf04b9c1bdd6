// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Backend "tracepoint": for kernels that refuse kprobes and fentry. Conntrack entries are seen on the packets that
 * leave (skb->_nfct), which costs a look at every packet.
 */

/* net_dev_queue(struct sk_buff *skb), of every network namespace */
int on_net_dev_queue(__u64 *ctx)
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
