/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Opcode classes, named by BCC's copy of bpf.h. Values: include/uapi/linux/bpf_common.h. */
#ifndef K8SNET_LINUX_BPF_COMMON_H
#define K8SNET_LINUX_BPF_COMMON_H
#define BPF_LD 0x00
#define BPF_W 0x00
#define BPF_H 0x08
#define BPF_B 0x10
#define BPF_ABS 0x20
#define BPF_IND 0x40
#define BPF_K 0x00
#ifndef BPF_MAXINSNS
#define BPF_MAXINSNS 4096
#endif
#endif
