// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * The join: who asked (from the socket), where it was sent (from conntrack), how it ended. One record per connection.
 *
 * Here: the maps, and what to do with each fact. Not here: datagrams, which have no connection to follow (datagrams.c);
 * which kernel hook tells a fact (hooks_*.c). BCC rewrites map operations only in the main file, so tracer/bpf.py joins
 * this file and others into a single text.
 */
#include <uapi/linux/ptrace.h>
#include "records.h"
#include "kernel_fields.h"

/* One translation in the pod's node, one where the packet arrives (a NodePort of another node), and one to spare. */
#define MAX_TRANSLATIONS 3
#define TRANSLATED_DESTINATIONS 8192 /* 2 to the power of 13 */

struct asked {
	__u8 address[ADDRESS_LENGTH];
	__u16 port; /* host order */
	__u8 family; /* 4 or 6; 0: nothing noted */
	__u8 pad;
	__u32 fd;
} __attribute__((aligned(8)));

struct request {
	__u64 time_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 netns;
	char comm[COMM_LENGTH];
	struct asked asked;
	__u16 was_reset; /* a RST came: tells a refusal from an ICMP error */
	__u16 soft_error; /* the errno of the last ICMP error, which the socket itself may not keep */
	__u32 doubtful; /* a datagram that may itself be an answer: a record only if it is answered */
};

struct translation {
	struct tuple after; /* the tuple that packets have once translated */
	__u32 netns;
	__u32 status;
	/* When a TCP packet was last seen translated so; 0: before this trace, or in a request of its own. */
	__u64 time_ns;
};

/* A TCP socket's request. */
struct tcp_request {
	struct request request;
	struct translation translation; /* of its packets, where request_here() found it; status 0: none */
	__u32 noted; /* translations_noted() at that time */
	/*
	 * Of those packets, network order. Had a request ended on another CPU while its translation was written, that
	 * might be in another's place by then: the port tells.
	 */
	__be16 source_port;
	__u16 pad;
};

/* See slot_of(). */
struct request_slot {
	__u64 socket; /* whose request it holds, as socket_number() has it; 0: nobody's */
	__u64 fetched; /* written, never read */
	struct tcp_request opened;
};
#define REQUEST_SLOTS_LOG 10

BPF_RINGBUF_OUTPUT(records, RING_BUFFER_PAGES);
/* Plain hashes where every entry is removed by us, so that a full map shows as an error to count; LRU where entries
 * may be about flows whose end we never see. */
BPF_TABLE("hash", __u64, struct tcp_request, requests, MAX_REQUESTS);
BPF_ARRAY(request_slots, struct request_slot, 1 << REQUEST_SLOTS_LOG);
/*
 * The socket, as socket_number() has it, whose request this CPU opened last: its first packet is most likely handled
 * here, too, and next.
 */
BPF_PERCPU_ARRAY(opened_last, __u64, 1);
BPF_TABLE("lru_hash", struct tuple, struct translation, translations, MAX_TRANSLATED);
/*
 * By destination_hash(): how often a tuple with such a destination was put into `translations`. Looking there for one
 * that is not in it costs a cache miss, and most destinations, such as a pod's address, are never translated.
 */
BPF_ARRAY(translated_destinations, __u32, TRANSLATED_DESTINATIONS);
BPF_TABLE("lru_hash", __u64, struct asked, asked_by_thread, MAX_ASKED);
BPF_TABLE("lru_hash", __u64, struct asked, asked_by_socket, MAX_ASKED);
BPF_PERCPU_ARRAY(lost, __u64, LOST_STAGES);
/* Whether anything was ever noted in asked_by_thread: as long as nothing was, nobody need look there. */
BPF_ARRAY(any_asked, __u64, 1);
/* What user space adds to CLOCK_MONOTONIC for nanoseconds since the Unix epoch; it keeps this up to date. */
BPF_ARRAY(since_boot, __u64, 1);

#ifdef LOOKS_UP
/*
 * Under a load of many connections and no datagrams, user space takes the hook away that looks at every packet
 * (tracer/source/watch.py): its mere call, thirty times for a connection that crosses a few devices, would cost 1 %.
 * Outcomes then wait here for user space to run look_up() (lookups.c), which asks conntrack where packets went.
 */
struct finished {
	__u64 ready; /* its number, counted from 1, once the rest is there */
	__u64 client; /* cookie of the socket's network namespace, which no other ever has */
	__u64 time_ns; /* of the request, as struct request has it */
	struct tuple tuple; /* as the socket has it */
	struct connection_record record; /* its pad: whether conntrack is to be asked */
};
/* A ring, MAX_FINISHED (a power of 2) long: in place of a queue map, whose lock and copies cost as much as all the rest. */
BPF_ARRAY(finished_outcomes, struct finished, MAX_FINISHED);

struct finished_ends {
	__u64 head; /* how many were ever begun to be written */
	__u64 pad[7]; /* a line of the cache for each: they are written by different processors */
	__u64 tail; /* how many were looked up */
};
BPF_ARRAY(finished_ends, struct finished_ends, 1);

struct watch {
	__u64 since_ns; /* requests begun from then on had their packets looked at; all bits set: none has */
	__u64 queued; /* `finished_outcomes` may hold something: what comes after that must not overtake it */
};
BPF_ARRAY(watch, struct watch, 1);
/* The programs' word to user space: counts what only a look at packets would tell for sure. */
BPF_ARRAY(packets_wanted, __u64, 1);
#endif

static __always_inline void count_lost(int stage)
{
	__u64 *count = lost.lookup(&stage);
	if (count)
		*count += 1;
}

/* Fill in who is running now. Only in process context is that who asked. `netns`: of the socket. */
static __always_inline void note_process(struct request *request, __u32 netns)
{
	request->time_ns = bpf_ktime_get_ns();
	request->netns = netns;
#ifdef TYPED_ARGUMENTS
	/* What the three helpers below do, without their calls. */
	__u64 task = (__u64)bpf_get_current_task_btf();
	__u64 cgroups = FIELD(__u64, task, TASK_CGROUPS), cgroup = FIELD(__u64, cgroups, CSS_SET_CGROUP);
	__u64 node = FIELD(__u64, cgroup, CGROUP_NODE);
	request->pid = FIELD(__u32, task, TASK_TGID);
	request->cgroup_id = FIELD(__u64, node, KERNFS_NODE_ID);
	((__u64 *)request->comm)[0] = FIELD(__u64, task, TASK_COMM);
	((__u64 *)request->comm)[1] = FIELD(__u64, task, TASK_COMM + 8);
#else
	request->pid = bpf_get_current_pid_tgid() >> 32;
	request->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(request->comm, sizeof(request->comm));
#endif
}

/* The tuple of packets that answer those of `tuple`. */
static __always_inline void reverse_tuple(const struct tuple *tuple, struct tuple *reversed)
{
	__builtin_memcpy(reversed->source, tuple->destination, 16);
	__builtin_memcpy(reversed->destination, tuple->source, 16);
	reversed->source_port = tuple->destination_port;
	reversed->destination_port = tuple->source_port;
	reversed->l3 = tuple->l3;
	reversed->protocol = tuple->protocol;
	reversed->pad = 0;
}

/* ---- what the process asked for, where a cgroup program may rewrite it (Cilium's socket load balancing) ---- */

/*
 * Remember the address that this thread passes to the kernel, before any program could change it.
 * `address`: the first 28 bytes of a struct sockaddr, already copied.
 */
static __always_inline void note_asked(const __u8 *address, __u32 fd)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked asked = {};
	__u16 family = *(__u16 *)address;
	asked.fd = fd;
	asked.port = __builtin_bswap16(*(__u16 *)(address + 2));
	if (family == K8SNET_AF_INET) {
		asked.family = 4;
		__builtin_memcpy(asked.address, address + 4, 4);
	} else if (family == K8SNET_AF_INET6) {
		__u64 address6[2];
		__builtin_memcpy(address6, address + 8, 16);
		asked.family = 6;
		if (is_mapped(address6)) {
			asked.family = 4;
			__builtin_memcpy(asked.address, address + 20, 4);
		} else {
			__builtin_memcpy(asked.address, address6, 16);
		}
	} else {
		return; /* no internet address: AF_UNIX, AF_UNSPEC (disconnect), … */
	}
	asked_by_thread.update(&thread, &asked);
	int zero = 0;
	__u64 *any = any_asked.lookup(&zero);
	if (any && !*any)
		*any = 1;
}

/* What this thread has just passed to the kernel, if that is watched. */
static __always_inline struct asked *asked_here(__u64 thread)
{
	int zero = 0;
	__u64 *any = any_asked.lookup(&zero);
	return any && *any ? asked_by_thread.lookup(&thread) : NULL;
}

/*
 * Whether the socket holds another destination than the process asked for: only then was it translated at the socket.
 */
static __always_inline bool is_translated(const struct asked *asked, const struct tuple *tuple)
{
	const __u64 *want = (const __u64 *)asked->address, *have = (const __u64 *)tuple->destination;
	__u8 family = tuple->l3 == K8SNET_AF_INET6 ? 6 : 4;
	if (!asked->family)
		return false;
	/*
	 * connect() to the unspecified address means loopback (tcp_v4_connect, tcp_v6_connect): the kernel's doing,
	 * not a program's.
	 */
	if (want[0] == 0 && want[1] == 0)
		return false;
	return asked->family != family || want[0] != have[0] || want[1] != have[1] ||
	       asked->port != __builtin_bswap16(tuple->destination_port);
}

/* ---- the record ---- */

/* 13 bits of a tuple's destination. tracer/source/translations.py has the same. */
static __always_inline __u32 destination_hash(const struct tuple *tuple)
{
	const __u32 *address = (const __u32 *)tuple->destination;
	__u32 folded = address[0] ^ address[1] ^ address[2] ^ address[3] ^ tuple->destination_port;
	return folded * 0x9e3779b1u >> 19;
}

static __always_inline void count_translation(const struct tuple *tuple)
{
	__u32 hash = destination_hash(tuple), *count = translated_destinations.lookup(&hash);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* How often a tuple with such a destination was put into `translations`. 0: `tuple` is not there. */
static __always_inline __u32 translations_noted(const struct tuple *tuple)
{
	__u32 hash = destination_hash(tuple), *count = translated_destinations.lookup(&hash);
	return count ? *count : 0;
}

/* Follow one translation of `tuple`. Returns FLAG_ bits. */
static __always_inline __u8 follow_translation(
	const struct translation *translation, struct tuple *tuple, __u32 *nat_netns)
{
	__u8 flags = 0;
	if (translation->status & STATUS_SNAT)
		flags |= FLAG_SNAT;
	if (translation->status & STATUS_DNAT)
		flags |= FLAG_DNAT;
	if (flags & FLAG_DNAT || !*nat_netns)
		*nat_netns = translation->netns;
	*tuple = translation->after;
	return flags;
}

/*
 * What `translations` knows of a tuple of `request`; of TCP, only what is not older than the request: an entry may have
 * been left by an earlier connection with the same ports.
 */
static __always_inline struct translation *translation_since(const struct tuple *tuple, const struct request *request)
{
	struct translation *found = translations.lookup((struct tuple *)tuple);
	return found && (tuple->protocol != PROTOCOL_TCP || found->time_ns >= request->time_ns) ? found : NULL;
}

/*
 * Follow the translations of `tuple` from namespace to namespace; leaves the last tuple in place. Returns FLAG_ bits.
 * `opened`: of a TCP socket, else NULL. What came into `translations` after what it holds itself is the truth (a SYN sent
 * again, and translated anew).
 */
static __always_inline __u8 follow_translations(
	const struct request *request, struct tuple *tuple, const struct tcp_request *opened, __u32 *nat_netns)
{
	bool has_own = opened && opened->translation.status && opened->source_port == tuple->source_port;
	__u8 flags = 0;
#pragma unroll
	for (int i = 0; i < MAX_TRANSLATIONS; i++) {
		bool own = i == 0 && has_own;
		__u32 noted = translations_noted(tuple);
		bool look = noted && !(own && noted == opened->noted);
		struct translation *translation = look ? translation_since(tuple, request) : NULL;
		if (translation) {
			struct tuple key = *tuple;
			flags |= follow_translation(translation, tuple, nat_netns);
			/* A datagram flow's later packets would only store it again. */
			if (key.protocol == PROTOCOL_TCP)
				translations.delete(&key);
		} else if (own) {
			flags |= follow_translation(&opened->translation, tuple, nat_netns);
		} else {
			break;
		}
	}
	return flags;
}

/* The parts of a record that need no look at translations; the others zero. */
static __always_inline void fill_record(struct connection_record *record, const struct request *request,
	const struct tuple *tuple, __u8 outcome, __u16 error)
{
	struct connection_shape *shape = &record->shape;
	int zero = 0;
	__u64 *offset = since_boot.lookup(&zero);
	record->time_ns = request->time_ns + (offset ? *offset : 0);
	record->latency_ns = bpf_ktime_get_ns() - request->time_ns;
	record->source_port = __builtin_bswap16(tuple->source_port);
	record->pad = 0;
	shape->cgroup_id = request->cgroup_id;
	shape->pid = request->pid;
	shape->netns = request->netns;
	shape->nat_netns = 0;
	shape->family = tuple->l3 == K8SNET_AF_INET6 ? 6 : 4;
	shape->protocol = tuple->protocol;
	shape->outcome = outcome;
	shape->flags = 0;
	shape->error = error;
	shape->destination_port = __builtin_bswap16(tuple->destination_port);
	shape->backend_port = 0;
	shape->pad = 0;
	__builtin_memcpy(shape->source, tuple->source, 16);
	__builtin_memcpy(shape->destination, tuple->destination, 16);
	__builtin_memset(shape->backend, 0, 16);
	__builtin_memcpy(shape->comm, request->comm, COMM_LENGTH);
}

/* A record in the ring buffer, as fill_record() has it. NULL: there is no room, and it is counted. */
static __always_inline struct connection_record *begin_record(
	const struct request *request, const struct tuple *tuple, __u8 outcome, __u16 error)
{
	struct connection_record *record = records.ringbuf_reserve(sizeof(*record));
	if (record)
		fill_record(record, request, tuple, outcome, error);
	else
		count_lost(LOST_RING_BUFFER);
	return record;
}

/*
 * User space sweeps the buffer on its own clock (tracer/source/live.py): waking it for each record costs more than
 * the record.
 */
static __always_inline void end_record(struct connection_record *record)
{
	records.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* What follow_translations() found, and where packets go. */
static __always_inline void fill_backend(
	struct connection_shape *shape, const struct tuple *tuple, __u8 flags, __u32 nat_netns)
{
	shape->nat_netns = nat_netns;
	shape->flags = flags;
	if (flags & (FLAG_DNAT | FLAG_SOCKET)) {
		shape->backend_port = __builtin_bswap16(tuple->destination_port);
		__builtin_memcpy(shape->backend, tuple->destination, 16);
	}
}

/* Say what the process asked for, where the socket holds another destination. Returns FLAG_SOCKET or 0. */
static __always_inline __u8 fill_asked(
	struct connection_shape *shape, const struct request *request, const struct tuple *tuple)
{
	if (!is_translated(&request->asked, tuple))
		return 0;
	shape->family = request->asked.family;
	shape->destination_port = request->asked.port;
	__builtin_memcpy(shape->destination, request->asked.address, 16);
	return FLAG_SOCKET;
}

/*
 * Hand the finished connection to user space. `tuple`: as the socket has it; changed to where packets go. `opened`: see
 * follow_translations().
 */
static __always_inline void submit_connection(
	const struct request *request, struct tuple *tuple, const struct tcp_request *opened, __u8 outcome, __u16 error)
{
	struct connection_record *record = begin_record(request, tuple, outcome, error);
	if (!record)
		return;
	__u32 nat_netns = 0;
	__u8 flags = fill_asked(&record->shape, request, tuple);
	flags |= follow_translations(request, tuple, opened, &nat_netns);
	fill_backend(&record->shape, tuple, flags, nat_netns);
	end_record(record);
}

#ifdef LOOKS_UP
static __always_inline struct watch *watching(void)
{
	int zero = 0;
	return watch.lookup(&zero);
}

/* Whether what ends now has to wait behind others that are to be looked up. */
static __always_inline bool is_queueing(void)
{
	struct watch *watch = watching();
	return watch && watch->queued;
}

/* Have user space look at packets again: conntrack may not tell. */
static __always_inline void want_packets(void)
{
	int zero = 0;
	__u64 *wanted = packets_wanted.lookup(&zero);
	if (wanted)
		__sync_fetch_and_add(wanted, 1);
}

/* A place in the ring, to be filled in and published. NULL: there is none, and it is counted. */
static __always_inline struct finished *take_place(__u64 *number)
{
	int zero = 0;
	struct finished_ends *ends = finished_ends.lookup(&zero);
	/* Some processors may take their places at the same time. */
	if (!ends || ends->head - ends->tail >= MAX_FINISHED - 256) {
		count_lost(LOST_QUEUE);
		return NULL;
	}
	*number = __sync_fetch_and_add(&ends->head, 1);
	__u32 place = *number & (MAX_FINISHED - 1);
	return finished_outcomes.lookup(&place);
}

/* After all else that was written. */
static __always_inline void publish(struct finished *finished, __u64 number)
{
	__sync_lock_test_and_set(&finished->ready, number + 1);
}

/* As submit_connection(), where nobody looked at the packets. `net`: of the socket. */
static __always_inline void queue_connection(
	const struct request *request, const struct tuple *tuple, __u64 net, __u8 outcome, __u16 error)
{
	__u64 number;
	struct finished *finished = take_place(&number);
	if (!finished)
		return;
	finished->client = FIELD(__u64, net, NET_COOKIE);
	finished->time_ns = request->time_ns;
	finished->tuple = *tuple;
	fill_record(&finished->record, request, tuple, outcome, error);
	finished->record.pad = 1;
	fill_backend(&finished->record.shape, tuple, fill_asked(&finished->record.shape, request, tuple), 0);
	publish(finished, number);
}

/* A record that needs no look-up, and must not overtake those that do. */
static __always_inline void queue_record(
	const struct request *request, const struct tuple *tuple, __u8 outcome, __u16 error)
{
	__u64 number;
	struct finished *finished = take_place(&number);
	if (!finished)
		return;
	fill_record(&finished->record, request, tuple, outcome, error);
	publish(finished, number);
}
#endif

/* What an errno says of the outcome, for errors that need no look at how they came about. */
static __always_inline __u8 outcome_of_error(int error)
{
	switch (error) {
	case ERROR_TIMEDOUT:
		return OUTCOME_TIMEOUT;
	case ERROR_CONNRESET:
		return OUTCOME_RESET;
	case ERROR_HOSTUNREACH:
	case ERROR_NETUNREACH:
		return OUTCOME_UNREACHABLE;
	case ERROR_PERM:
	case ERROR_ACCES:
	case ERROR_CONNREFUSED: /* by a program: no packet was sent that somebody could have refused */
		return OUTCOME_REJECTED;
	default:
		return OUTCOME_UNKNOWN;
	}
}

/* ---- TCP ---- */

/*
 * The address of a socket as a number: with its bytes in reverse, and back again. Where arguments are typed, the verifier lets nobody
 * calculate with a pointer; that of 6.1 and 6.12 (no longer that of 6.18) forgets, too, what a pointer points at once it
 * was on the stack and a helper was shown that place, and FIELD(sk) is "invalid mem access 'scalar'" then.
 */
static __always_inline __u64 socket_number(__u64 sk)
{
	return __builtin_bswap64(sk);
}

/*
 * The one place in `request_slots` where a socket's request may lie; where that is taken, it lies in `requests`. The
 * requests under way are few and end soon, so hardly any has to: that hash costs half a microsecond for a connection
 * (locks, its free list, a copy), a slot little more than the lines of the cache that it lies in.
 */
static __always_inline struct request_slot *slot_of(__u64 socket)
{
	__u32 number = socket * 0x9e3779b97f4a7c15ULL >> (64 - REQUEST_SLOTS_LOG);
	return request_slots.lookup(&number);
}

static __always_inline struct tcp_request *find_request(__u64 socket)
{
	struct request_slot *slot = slot_of(socket);
	return slot && slot->socket == socket ? &slot->opened : requests.lookup(&socket);
}

static __always_inline void forget_request(__u64 socket)
{
	struct request_slot *slot = slot_of(socket);
	if (!slot || __sync_val_compare_and_swap(&slot->socket, socket, 0) != socket)
		requests.delete(&socket);
}

/* A request as the running process asks for it. */
static __always_inline void begin_request(struct request *request, __u64 sk)
{
	__u64 net = FIELD(__u64, sk, SOCK_NET), thread = bpf_get_current_pid_tgid();
	note_process(request, FIELD(__u32, net, NET_INUM));
	request->was_reset = 0;
	request->soft_error = 0;
	request->doubtful = 0;
	struct asked *asked = asked_here(thread);
	if (asked) {
		request->asked = *asked;
		/* The connect() that returns later has then nothing more to tell. */
		asked_by_thread.delete(&thread);
	} else {
		__builtin_memset(&request->asked, 0, sizeof(request->asked));
	}
}

/* A process asks for a connection: the socket goes from CLOSE to SYN_SENT. Its source port may not be chosen yet. */
static __always_inline void open_request(__u64 sk)
{
	__u64 socket = socket_number(sk);
	struct request_slot *slot = slot_of(socket);
	struct tcp_request opened = {};
	/*
	 * The slot was last used by another request, and is no longer in this processor's cache. A store does not wait for
	 * that, as the exchange would.
	 */
	if (slot)
		slot->fetched = 1;
	begin_request(&opened.request, sk);
	__u64 owner = slot ? __sync_val_compare_and_swap(&slot->socket, 0, socket) : 1;
	/* A request whose end we missed leaves its slot to the next socket of the same address. */
	if (slot && (owner == 0 || owner == socket)) {
		slot->opened.request = opened.request;
		slot->opened.translation.status = 0;
	} else if (requests.update(&socket, &opened)) {
		count_lost(LOST_REQUEST_MAP);
	}
	int zero = 0;
	__u64 *last = opened_last.lookup(&zero);
	if (last)
		*last = socket;
#ifdef LOOKS_UP
	/*
	 * A port that bind() named may come round again before user space asks conntrack, which then tells of the later
	 * connection.
	 */
	if (FIELD(__u16, sk, SOCK_NUM) && is_queueing())
		want_packets();
#endif
}

/*
 * The request that `original`, the tuple of a TCP packet that this CPU handles, asks for, if it was the last to be opened
 * here: connect() sends its SYN at once, and on the same CPU through veth devices to the node's rules. To write a
 * translation there saves putting it into `translations`, where the outcome would have to look it up and take it out
 * again: half a microsecond. Whatever goes another way (a SYN sent again, another CPU's work) finds NULL.
 */
static __always_inline struct tcp_request *request_here(const struct tuple *original)
{
	int zero = 0;
#ifdef LOOKS_UP
	/* Whoever looks up knows of the request only what is in `finished_outcomes`. */
	if (is_queueing())
		return NULL;
#endif
	__u64 *last = opened_last.lookup(&zero), socket = last ? *last : 0;
	/* The socket may be gone, and another in its place. */
	return socket && asks_for(socket_number(socket), original) ? find_request(socket) : NULL;
}

/* What the errors of a socket that was never established say of its request. */
static __always_inline __u8 outcome_of_failure(const struct request *request, int error)
{
	if (error == ERROR_CONNREFUSED)
		/* A RST is the far end's own word; the same errno without one came by ICMP, as REJECT sends it. */
		return request->was_reset ? OUTCOME_REFUSED : OUTCOME_REJECTED;
	if (error == 0)
		/* The process closed the socket before anybody answered. */
		return OUTCOME_TIMEOUT;
	return outcome_of_error(error);
}

/* The socket leaves SYN_SENT: it is established, or closes without having been. */
static __always_inline void finish_request(__u64 sk, bool established)
{
	__u64 socket = socket_number(sk);
	struct tcp_request *opened = find_request(socket);
	if (!opened)
		return;
	const struct request *request = &opened->request;
	__u8 outcome = OUTCOME_ESTABLISHED;
	int error = 0;
	if (!established) {
		error = FIELD(int, sk, SOCK_ERR) ?: request->soft_error;
		outcome = outcome_of_failure(request, error);
	}
	struct tuple tuple;
	read_socket_tuple(sk, &tuple);
#ifdef LOOKS_UP
	struct watch *watch = watching();
	if (watch && (watch->queued || request->time_ns < watch->since_ns))
		queue_connection(request, &tuple, FIELD(__u64, sk, SOCK_NET), outcome, error);
	else
#endif
		submit_connection(request, &tuple, opened, outcome, error);
	forget_request(socket);
}

/*
 * A RST arrived for this socket: the answer to its request, or, where the connection stands but no byte has come, the
 * other side's change of mind. User space then looks for the record that it has just got (tracer/source/resets.py).
 */
static __always_inline void note_reset(__u64 sk)
{
	struct tcp_request *opened = find_request(socket_number(sk));
	if (opened) {
		opened->request.was_reset = 1;
		return;
	}
	if (FIELD(__u8, sk, SOCK_STATE) != STATE_ESTABLISHED || READ(__u64, sk, TCP_BYTES_RECEIVED))
		return;
	struct request reset = {.time_ns = bpf_ktime_get_ns(), .netns = netns_inode(READ(__u64, sk, SOCK_NET))};
	struct tuple tuple;
	read_socket_tuple(sk, &tuple);
#ifdef LOOKS_UP
	if (is_queueing()) {
		queue_record(&reset, &tuple, OUTCOME_RESET, ERROR_CONNRESET);
		return;
	}
#endif
	struct connection_record *record = begin_record(&reset, &tuple, OUTCOME_RESET, ERROR_CONNRESET);
	if (record)
		end_record(record);
}

/*
 * An error was reported to the socket. While a process holds its lock, as in connect(), an ICMP error only becomes
 * sk_err_soft, which getsockopt(SO_ERROR) takes away; the error queue, too, has it (tcp_v4_err, ip_icmp_error).
 */
static __always_inline void note_error(__u64 sk)
{
	struct tcp_request *opened = find_request(socket_number(sk));
	if (!opened)
		return;
	__u64 queue = sk + SOCK_ERROR_QUEUE, last = READ(__u64, queue, SKB_PREV);
	if (last && last != queue)
		opened->request.soft_error = READ(__u32, last, SKB_CB + EXTERR_ERRNO);
}

/*
 * A connect() that failed before there was a request to follow: no route, no free port, a cgroup program said no.
 * The source is not known: none was chosen. `protocol` of the socket.
 */
static __always_inline void fail_unrouted(const struct asked *asked, __u64 sk, __u8 protocol, int error)
{
	struct request request = {};
	struct tuple tuple = {};
	note_process(&request, netns_inode(READ(__u64, sk, SOCK_NET)));
	tuple.protocol = protocol;
	tuple.l3 = asked->family == 6 ? K8SNET_AF_INET6 : K8SNET_AF_INET;
	tuple.destination_port = __builtin_bswap16(asked->port);
	__builtin_memcpy(tuple.destination, asked->address, 16);
	struct connection_record *record = begin_record(&request, &tuple, outcome_of_error(error), error);
	if (record)
		end_record(record);
}

/*
 * connect() returns. Most of the time all has been told by then; left are a UDP socket whose destination a program
 * changed (it is asked for once, and used by datagrams to come), and a TCP request that failed before it began.
 */
static __always_inline void finish_connect(const struct asked *asked, __u64 sk, long result)
{
	__u16 protocol = READ(__u16, sk, SOCK_PROTOCOL);
	struct tuple tuple;
	if (protocol == PROTOCOL_UDP && result == 0) {
		read_socket_destination(sk, &tuple);
		if (is_translated(asked, &tuple))
			asked_by_socket.update(&sk, (struct asked *)asked);
		else
			asked_by_socket.delete(&sk);
	} else if (result == -ERROR_NETUNREACH || result == -ERROR_HOSTUNREACH || result == -ERROR_PERM ||
		   result == -ERROR_ACCES || result == -ERROR_ADDRNOTAVAIL || result == -ERROR_CONNREFUSED) {
		if (protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP)
			fail_unrouted(asked, sk, protocol, -result);
	}
}

/* ---- conntrack ---- */

static __always_inline void copy_conntrack_tuple(const struct conntrack_tuple *from, struct tuple *tuple)
{
	__builtin_memcpy(tuple->source, from->source, 16);
	__builtin_memcpy(tuple->destination, from->destination, 16);
	tuple->source_port = from->source_port;
	tuple->destination_port = from->destination_port;
	tuple->l3 = from->l3;
	tuple->protocol = from->protocol;
	tuple->pad = 0;
}

/* What we want of a struct nf_conn (include/net/netfilter/nf_conntrack.h). */
struct conntrack_entry {
	struct tuple original; /* of packets as they were asked for */
	struct tuple reply; /* of those that answer */
	__u32 status;
	__u64 net;
};
#define CT_SPAN (CT_NET + 8 - CT_TUPLEHASH)
_Static_assert(CT_TUPLEHASH < CT_STATUS && CT_STATUS < CT_NET && CT_SPAN % 8 == 0 && CT_SPAN <= 192,
	"struct nf_conn has changed its layout");

/* In one go: a call of the helper costs more than the bytes that lie between. */
static __always_inline void read_conntrack(__u64 ct, struct conntrack_entry *entry)
{
	__u64 copy[CT_SPAN / 8] = {};
	const __u8 *start = (const __u8 *)copy;
	bpf_probe_read_kernel(copy, sizeof(copy), (void *)(ct + CT_TUPLEHASH));
	copy_conntrack_tuple((const struct conntrack_tuple *)(start + TUPLEHASH_TUPLE), &entry->original);
	copy_conntrack_tuple((const struct conntrack_tuple *)(start + TUPLEHASH_SIZE + TUPLEHASH_TUPLE), &entry->reply);
	entry->status = *(const __u32 *)(start + CT_STATUS - CT_TUPLEHASH);
	entry->net = *(const __u64 *)(start + CT_NET - CT_TUPLEHASH);
}

/*
 * A conntrack entry that rewrites addresses: remember where its packets go, under the tuple that was asked for.
 * `is_answer`: the packet goes the other way. Only the first of those still matters: where a DNAT leads to the node
 * itself (a hostNetwork pod), no packet of the asking direction is ever sent on.
 */
static __always_inline void note_translation(__u64 ct, bool is_answer)
{
	struct conntrack_entry entry;
	read_conntrack(ct, &entry);
	if (!(entry.status & (STATUS_SNAT | STATUS_DNAT)) || (is_answer && (entry.status & STATUS_ASSURED)))
		return;
	const struct tuple *original = &entry.original;
	bool is_tcp = original->protocol == PROTOCOL_TCP;
	if (!is_tcp && original->protocol != PROTOCOL_UDP)
		return;
	struct translation translation = {.status = entry.status & (STATUS_SNAT | STATUS_DNAT)};
	reverse_tuple(&entry.reply, &translation.after);
	struct tcp_request *opened = is_tcp ? request_here(original) : NULL;
	if (opened) {
		if (is_answer && opened->translation.status)
			return;
		translation.netns = netns_inode(entry.net);
		opened->translation = translation;
		opened->source_port = original->source_port;
		opened->noted = translations_noted(original);
		return;
	}
	if (is_tcp)
		translation.time_ns = bpf_ktime_get_ns();
	struct translation *known = translations.lookup(&entry.original);
	/* Many packets of a datagram flow may be new to conntrack; a SYN is where it passes several devices. */
	if (known && same_tuple(&known->after, &translation.after)) {
		known->time_ns = translation.time_ns;
		return;
	}
	translation.netns = netns_inode(entry.net);
	count_translation(original);
	if (translations.update(&entry.original, &translation))
		count_lost(LOST_NAT_MAP);
}
