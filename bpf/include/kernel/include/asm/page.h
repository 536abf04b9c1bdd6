/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* BCC rounds ring buffer sizes and casts with these. */
#ifndef K8SNET_ASM_PAGE_H
#define K8SNET_ASM_PAGE_H
#define PAGE_SIZE 4096UL
typedef unsigned long uintptr_t;
#endif
