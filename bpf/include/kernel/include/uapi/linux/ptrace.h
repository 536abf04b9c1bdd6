/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The registers of the two architectures that BCC's PT_REGS_ macros are used on. Layouts: arch/{x86,arm64}/include. */
#ifndef K8SNET_UAPI_PTRACE_H
#define K8SNET_UAPI_PTRACE_H
#include <linux/types.h>
#if defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#else
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif
#endif
