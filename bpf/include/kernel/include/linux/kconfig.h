/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* BCC's helpers.h stops with an error unless the kernel is known to have the bpf system call. */
#define CONFIG_BPF_SYSCALL 1
