/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* BCC stores LINUX_VERSION_CODE with each program. Kernels since 5.0 ignore it; our code never compares versions. */
#ifndef K8SNET_LINUX_VERSION_H
#define K8SNET_LINUX_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 11, 0)
#endif
