// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Backend "tracepoint": for kernels that refuse kprobes and fentry. Conntrack entries are seen on the packets that
 * leave (skb->_nfct), which costs a look at every packet.
 */

/* net_dev_queue(struct sk_buff *skb), of every network namespace */
int on_net_dev_queue(__u64 *ctx)
{
	__u64 skb = ctx[0];
	__u64 nfct = FIELD(__u64, skb, SKB_NFCT);
	__u64 ct = nfct & ~CTINFO_MASK;
	int ctinfo = nfct & CTINFO_MASK;

	if (ct && (ctinfo == CTINFO_NEW || ctinfo == CTINFO_REPLY))
		note_translation(ct, ctinfo == CTINFO_REPLY);
	__u64 sk = FIELD(__u64, skb, SKB_SK);
	if (sk && FIELD(__u16, sk, SOCK_PROTOCOL) == PROTOCOL_UDP)
		send_datagram(skb, sk, ct, ctinfo);
	return 0;
}
