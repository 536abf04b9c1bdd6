/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Empty on purpose: BCC has defined all of it from its own copy. */
