// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Backend "kprobe": the functions of hooks_fentry.c, for kernels without trampolines. A kretprobe does not get the
 * arguments, so what it needs is kept by thread from entry to return.
 */
BPF_TABLE("lru_hash", __u64, __u64, connecting_sockets, MAX_ASKED);

int enter_nf_conntrack_confirm(struct pt_regs *ctx)
{
	note_confirmed(PT_REGS_PARM1(ctx));
	return 0;
}

static __always_inline int begin_probed_connect(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), socket = PT_REGS_PARM1(ctx);
	connecting_sockets.update(&thread, &socket);
	begin_connect(socket, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
	return 0;
}

static __always_inline int end_probed_connect(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), *socket = connecting_sockets.lookup(&thread);
	if (socket) {
		end_connect(*socket, (int)PT_REGS_RC(ctx));
		connecting_sockets.delete(&thread);
	}
	return 0;
}

int enter_inet_stream_connect(struct pt_regs *ctx)
{
	return begin_probed_connect(ctx);
}

int leave_inet_stream_connect(struct pt_regs *ctx)
{
	return end_probed_connect(ctx);
}

int enter_inet_dgram_connect(struct pt_regs *ctx)
{
	return begin_probed_connect(ctx);
}

int leave_inet_dgram_connect(struct pt_regs *ctx)
{
	return end_probed_connect(ctx);
}

int enter_udp_sendmsg(struct pt_regs *ctx)
{
	begin_datagram(PT_REGS_PARM2(ctx));
	return 0;
}

int leave_udp_sendmsg(struct pt_regs *ctx)
{
	forget_asked();
	return 0;
}

int enter_udpv6_sendmsg(struct pt_regs *ctx)
{
	begin_datagram(PT_REGS_PARM2(ctx));
	return 0;
}

int leave_udpv6_sendmsg(struct pt_regs *ctx)
{
	forget_asked();
	return 0;
}
