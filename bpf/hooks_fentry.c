// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Backend "fentry": trampolines at function entry and exit, the cheapest hooks there are. ctx holds the arguments
 * and, at exit, the return value after them.
 */

/*
 * int __nf_conntrack_confirm(struct sk_buff *skb), net/netfilter/nf_conntrack_core.c: once per new entry, NAT decided
 */
int enter_nf_conntrack_confirm(__u64 *ctx)
{
	note_confirmed(ctx[0]);
	return 0;
}

/* int inet_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags), net/ipv4/af_inet.c */
int enter_inet_stream_connect(__u64 *ctx)
{
	begin_connect(ctx[0], ctx[1], ctx[2]);
	return 0;
}

int leave_inet_stream_connect(__u64 *ctx)
{
	end_connect(ctx[0], (int)ctx[4]);
	return 0;
}

/* int inet_dgram_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags) */
int enter_inet_dgram_connect(__u64 *ctx)
{
	begin_connect(ctx[0], ctx[1], ctx[2]);
	return 0;
}

int leave_inet_dgram_connect(__u64 *ctx)
{
	end_connect(ctx[0], (int)ctx[4]);
	return 0;
}

/* int udp_sendmsg(struct sock *sk, struct msghdr *msg, size_t len), net/ipv4/udp.c */
int enter_udp_sendmsg(__u64 *ctx)
{
	begin_datagram(ctx[1]);
	return 0;
}

int leave_udp_sendmsg(__u64 *ctx)
{
	forget_asked();
	return 0;
}

/* int udpv6_sendmsg(struct sock *sk, struct msghdr *msg, size_t len), net/ipv6/udp.c */
int enter_udpv6_sendmsg(__u64 *ctx)
{
	begin_datagram(ctx[1]);
	return 0;
}

int leave_udpv6_sendmsg(__u64 *ctx)
{
	forget_asked();
	return 0;
}
