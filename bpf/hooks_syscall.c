// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * What a process passes to connect() and sendto(), for the tracepoint backend: raw sys_enter and sys_exit.
 */
#if defined(__TARGET_ARCH_arm64)
#define SYSCALL_CONNECT 203
#define SYSCALL_SENDTO 206
#define SYSCALL_SENDMSG 211
#define ARGUMENT(regs, n) READ(__u64, regs, (n)*8)
#define SYSCALL_NUMBER(regs) READ(__s32, regs, 280) /* pt_regs.syscallno */
#else
#define SYSCALL_CONNECT 42
#define SYSCALL_SENDTO 44
#define SYSCALL_SENDMSG 46
/* di si dx r10 r8 r9 */
#define REGISTER_OFFSET(n) ((n) == 0 ? 112 : (n) == 1 ? 104 : (n) == 2 ? 96 : (n) == 3 ? 56 : (n) == 4 ? 72 : 64)
#define ARGUMENT(regs, n) READ(__u64, regs, REGISTER_OFFSET(n))
#define SYSCALL_NUMBER(regs) READ(__u64, regs, 120) /* orig_ax */
#endif

/* The first 28 bytes of struct sockaddr_in6; an IPv4 one is 16 and what follows is ignored. */
#define SOCKADDR_LENGTH 28

static __always_inline void note_user_address(__u64 user_address, __u64 length, __u32 fd)
{
	__u8 address[32] = {};
	if (!user_address || length < 16)
		return;
	if (bpf_probe_read_user(address, length < SOCKADDR_LENGTH ? 16 : SOCKADDR_LENGTH, (void *)user_address))
		return;
	note_asked(address, fd);
}

/*
 * The struct socket behind a file descriptor of the current process, 0 for none. Of a file that is no socket it is
 * whatever its private data are: reading those is harmless, and connect() fails with ENOTSOCK.
 */
static __always_inline __u64 socket_of_fd(__u32 fd)
{
	__u64 files = READ(__u64, bpf_get_current_task(), TASK_FILES);
	__u64 table = READ(__u64, files, FILES_FDT);
	if (fd >= READ(__u32, table, FDT_MAX_FDS))
		return 0;
	__u64 file = READ(__u64, READ(__u64, table, FDT_FD) + fd * 8ULL, 0);
	return READ(__u64, file, FILE_PRIVATE_DATA);
}

/* sys_enter(struct pt_regs *regs, long id) */
int on_sys_enter(__u64 *ctx)
{
	__u64 regs = ctx[0], id = ctx[1], address = 0;
	__u32 length = 0, fd;
	if (id != SYSCALL_CONNECT && id != SYSCALL_SENDTO && id != SYSCALL_SENDMSG)
		return 0;
	fd = ARGUMENT(regs, 0);
	if (id == SYSCALL_CONNECT) {
		/* A second connect() on a socket that is still connecting only asks how the first one went. */
		if (READ(__u32, socket_of_fd(fd), SOCKET_STATE) != SOCKET_UNCONNECTED)
			return 0;
		address = ARGUMENT(regs, 1);
		length = ARGUMENT(regs, 2);
	} else if (id == SYSCALL_SENDTO) {
		address = ARGUMENT(regs, 4);
		length = ARGUMENT(regs, 5);
	} else {
		/* struct msghdr: void *msg_name; int msg_namelen; */
		__u64 message = ARGUMENT(regs, 1);
		bpf_probe_read_user(&address, sizeof(address), (void *)message);
		bpf_probe_read_user(&length, sizeof(length), (void *)(message + 8));
	}
	note_user_address(address, length, fd);
	return 0;
}

/* sys_exit(struct pt_regs *regs, long ret) */
int on_sys_exit(__u64 *ctx)
{
	__u64 regs = ctx[0];
	long result = ctx[1];
	__u64 id = SYSCALL_NUMBER(regs);
	if (id != SYSCALL_CONNECT && id != SYSCALL_SENDTO && id != SYSCALL_SENDMSG)
		return 0;
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked *asked = asked_by_thread.lookup(&thread);
	if (!asked)
		return 0;
	if (id == SYSCALL_CONNECT)
		finish_connect(asked, READ(__u64, socket_of_fd(asked->fd), SOCKET_SK), result);
	asked_by_thread.delete(&thread);
	return 0;
}
