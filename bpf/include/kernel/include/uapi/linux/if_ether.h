/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Asked for by BCC; nothing in it is used. */
