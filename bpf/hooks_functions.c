// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * What the backends fentry and kprobe share: handlers of the kernel functions that both probe, and the one packet
 * hook that they still need, for UDP.
 */

static __always_inline void forget_asked(void)
{
	__u64 thread = bpf_get_current_pid_tgid();
	asked_by_thread.delete(&thread);
}

/* A conntrack entry is about to enter the table; all NAT has been decided (nf_confirm comes last of all hooks). */
static __always_inline void note_confirmed(__u64 skb)
{
	__u64 ct = READ(__u64, skb, SKB_NFCT) & ~CTINFO_MASK;
	if (ct)
		note_translation(ct, false);
}

/* connect() enters the protocol, before any cgroup program ran. `address`: kernel copy of what the process passed. */
static __always_inline void begin_connect(__u64 socket, __u64 address, __u64 length)
{
	__u8 copy[32] = {};
	if (length < 16 || READ(__u32, socket, SOCKET_STATE) != SOCKET_UNCONNECTED)
		return;
	/* The kernel's copy is a struct sockaddr_storage: 28 bytes are there whatever the length. */
	if (!bpf_probe_read_kernel(copy, 28, (void *)address))
		note_asked(copy, 0);
}

static __always_inline void end_connect(__u64 socket, int result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked *asked = asked_by_thread.lookup(&thread);
	if (!asked)
		return;
	finish_connect(asked, READ(__u64, socket, SOCKET_SK), result);
	asked_by_thread.delete(&thread);
}

/*
 * sendto() or sendmsg() on a UDP socket; `message`: struct msghdr, whose msg_name is NULL when the socket is
 * connected.
 */
static __always_inline void begin_datagram(__u64 message)
{
	__u8 copy[32] = {};
	__u64 address = READ(__u64, message, MSGHDR_NAME);
	if (!address || READ(__u32, message, MSGHDR_NAMELEN) < 16)
		return;
	if (!bpf_probe_read_kernel(copy, 28, (void *)address))
		note_asked(copy, 0);
}

/* net_dev_queue(struct sk_buff *skb) */
int on_net_dev_queue(__u64 *ctx)
{
	__u64 skb = ctx[0];
	watch_queued(skb, FIELD(__u64, skb, SKB_SK), FIELD(__u64, skb, SKB_NFCT));
	return 0;
}
