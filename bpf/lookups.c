// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Where packets went that nobody looked at: asked of conntrack, for the outcomes in `finished_outcomes`.
 *
 * Here: a program that user space runs (BPF_PROG_TEST_RUN, tracer/source/lookups.py), in a network namespace of its own,
 * for which all others have a number. Not here: who ended how (connections.c, which comes first in the text).
 *
 * The kernel's functions for this (net/netfilter/nf_conntrack_bpf.c) are there for programs at XDP and tc only, hence a
 * program of that kind, whose packet is of no interest.
 */

/* Functions of the kernel that are no helpers: the loader puts their BTF ids in place of these numbers. */
static __u64 (*bpf_skb_ct_lookup)(void *skb, const void *tuple, __u32 tuple_size, void *options,
	__u32 options_size) = (void *)KERNEL_FUNCTION_LOOKUP;
static void (*bpf_ct_release)(__u64 ct) = (void *)KERNEL_FUNCTION_RELEASE;

/* struct bpf_ct_opts, as far as every kernel has it (Linux 5.18) */
struct lookup_options {
	__s32 netns_id;
	__s32 error;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};
_Static_assert(sizeof(struct lookup_options) == 12, "NF_BPF_CT_OPTS_SZ of Linux 5.18");

/* struct bpf_sock_tuple (include/uapi/linux/bpf.h) without its union */
struct lookup_tuple4 {
	__be32 source, destination;
	__be16 source_port, destination_port;
};
struct lookup_tuple6 {
	__be32 source[4], destination[4];
	__be16 source_port, destination_port;
};

/* The namespaces whose tables may be asked: those with a number below `count`. */
struct tables {
	__u32 count;
	__u32 generation; /* changes when what was learnt may be no longer true */
};
BPF_ARRAY(tables, struct tables, 1);

/* Clients that were there when user space last looked for namespaces, so that `tables` has all on their way. */
BPF_TABLE("lru_hash", __u64, __u32, known_clients, 4096);

/* Which namespace translates what a client sends to a destination: learnt by asking all, and asked first then. */
struct step {
	__u64 client;
	__u8 destination[ADDRESS_LENGTH];
	__be16 port;
	__u16 l3;
	__u32 protocol;
	__u32 generation;
	__s32 netns_id; /* NOBODY: none does */
};
#define NOBODY -1
#define STEPS_LOG 12
BPF_ARRAY(steps, struct step, 1 << STEPS_LOG);

/* What is being looked up: one namespace's table after the other, in as many runs. */
struct search {
	__u64 client;
	struct tuple tuple; /* of the packets, as far as they were followed */
	__u32 active;
	__u32 hop; /* translations followed so far */
	__u32 netns_id; /* whose table is next, while `asks_all` */
	__u32 asks_all;
	__u32 found; /* an entry, translating or not */
	__u32 nat_netns;
	__u32 flags; /* FLAG_ bits of the translations */
	__u32 expected; /* another connection to that destination was translated */
	__u64 ended_ns; /* since the Unix epoch */
	__u64 wanted; /* 0: the record is complete as it is */
};
BPF_ARRAY(searches, struct search, 1);

/* What a run tells user space; tracer/source/lookups.py has the same. */
enum progress {
	PROGRESS_DONE, /* `finished_outcomes` is empty */
	PROGRESS_MORE,
	PROGRESS_UNKNOWN_CLIENT, /* look which namespaces there are, then put the client into known_clients */
};

static __always_inline bool ask_table(
	void *skb, __u32 netns_id, const struct tuple *tuple, struct conntrack_entry *entry)
{
	struct lookup_options options = {.netns_id = netns_id, .protocol = tuple->protocol};
	__u64 ct;
	if (tuple->l3 == K8SNET_AF_INET6) {
		struct lookup_tuple6 wanted = {};
		__builtin_memcpy(wanted.source, tuple->source, 16);
		__builtin_memcpy(wanted.destination, tuple->destination, 16);
		wanted.source_port = tuple->source_port;
		wanted.destination_port = tuple->destination_port;
		ct = bpf_skb_ct_lookup(skb, &wanted, sizeof(wanted), &options, sizeof(options));
	} else {
		struct lookup_tuple4 wanted = {};
		__builtin_memcpy(&wanted.source, tuple->source, 4);
		__builtin_memcpy(&wanted.destination, tuple->destination, 4);
		wanted.source_port = tuple->source_port;
		wanted.destination_port = tuple->destination_port;
		ct = bpf_skb_ct_lookup(skb, &wanted, sizeof(wanted), &options, sizeof(options));
	}
	if (!ct)
		return false;
	read_conntrack(ct, entry);
	bpf_ct_release(ct);
	/* An answer has the same addresses the other way round, and belongs to the same entry. */
	return same_tuple(&entry->original, tuple);
}

static __always_inline struct step *step_of(__u64 client, const struct tuple *tuple)
{
	__u64 folded = destination_hash(tuple) ^ client * 0x9e3779b97f4a7c15ULL;
	__u32 number = (folded ^ folded >> 32) & ((1 << STEPS_LOG) - 1);
	return steps.lookup(&number);
}

/* Whether the step was learnt for what `client` sends as `tuple`, and lately. */
static __always_inline bool is_learnt(
	const struct step *step, __u64 client, const struct tuple *tuple, const struct tables *now)
{
	const __u64 *one = (const __u64 *)step->destination, *other = (const __u64 *)tuple->destination;
	return step->generation == now->generation && step->client == client && one[0] == other[0] &&
	       one[1] == other[1] && step->port == tuple->destination_port && step->l3 == tuple->l3 &&
	       step->protocol == tuple->protocol;
}

/* `netns_id` is who translates what `client` sends as `tuple`. */
static __always_inline void learn(
	struct step *step, __u64 client, const struct tuple *tuple, __u32 generation, __s32 netns_id)
{
	step->client = client;
	__builtin_memcpy(step->destination, tuple->destination, 16);
	step->port = tuple->destination_port;
	step->l3 = tuple->l3;
	step->protocol = tuple->protocol;
	step->generation = generation;
	step->netns_id = netns_id;
}

/* Whether the entry leads to somewhere else: then the tuple is that. */
static __always_inline bool follow_entry(struct search *search, const struct conntrack_entry *entry)
{
	struct translation translation = {.status = entry->status & (STATUS_SNAT | STATUS_DNAT)};
	search->found = 1;
	if (!translation.status)
		return false;
	translation.netns = netns_inode(entry->net);
	reverse_tuple(&entry->reply, &translation.after);
	search->flags |= follow_translation(&translation, &search->tuple, &search->nat_netns);
	search->hop++;
	return true;
}

static __always_inline void begin_search(struct search *search, const struct finished *finished)
{
	search->active = 1;
	search->client = finished->client;
	search->tuple = finished->tuple;
	search->ended_ns = finished->record.time_ns + finished->record.latency_ns;
	search->wanted = finished->record.pad;
	search->hop = search->asks_all = search->found = search->expected = 0;
	search->nat_netns = search->flags = 0;
}

/*
 * What hooks saw of packets that conntrack knows nothing of, or nothing any more: those that were dropped (on_kfree_skb),
 * or sent when packets were looked at. False: nothing.
 */
static __always_inline bool follow_seen(struct search *search, const struct finished *finished)
{
	struct tuple asked = search->tuple;
	struct translation *seen = translations.lookup(&asked);
	if (!seen || seen->time_ns < finished->time_ns)
		return false;
	search->flags |= follow_translation(seen, &search->tuple, &search->nat_netns);
	search->hop++;
	search->asks_all = 0;
	translations.delete(&asked);
	return true;
}

/* With a RST as the first answer conntrack forgets at once (nf_conntrack_tcp_packet): only packets would tell. */
static __always_inline void want_refused(const struct search *search)
{
	want_packets();
	if (search->expected)
		count_lost(LOST_UNWATCHED);
}

/* Make a record of what was found. */
static __always_inline int end_search(struct search *search, struct finished *finished, struct finished_ends *ends)
{
	struct connection_record *record = &finished->record;
	struct connection_shape *shape = &record->shape;
	search->active = record->pad = 0;
	if (search->wanted) {
		if (!search->found && !search->flags && shape->outcome == OUTCOME_REFUSED)
			want_refused(search);
		fill_backend(shape, &search->tuple, shape->flags | search->flags, search->nat_netns);
	}
	if (records.ringbuf_output(record, sizeof(*record), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING_BUFFER);
	ends->tail++;
	return PROGRESS_MORE;
}

/* Whom to ask: known, or one after the other. False: nobody, or nobody any more. */
static __always_inline bool choose_table(
	struct search *search, const struct step *step, const struct tables *now, __u32 *netns_id)
{
	if (search->hop >= MAX_TRANSLATIONS || !search->wanted)
		return false;
	if (search->asks_all) {
		*netns_id = search->netns_id++;
		return *netns_id < now->count;
	}
	*netns_id = step->netns_id;
	return step->netns_id != NOBODY;
}

/* One step of one search. */
int look_up(void *skb)
{
	int zero = 0;
	struct search *search = searches.lookup(&zero);
	struct finished_ends *ends = finished_ends.lookup(&zero);
	const struct tables *now = tables.lookup(&zero);
	if (!search || !ends || !now)
		return PROGRESS_DONE;
	__u32 place = ends->tail & (MAX_FINISHED - 1), netns_id;
	struct finished *finished = finished_outcomes.lookup(&place);
	if (!finished || finished->ready != ends->tail + 1)
		return PROGRESS_DONE;
	if (!search->active)
		begin_search(search, finished);
	struct tuple asked = search->tuple;
	struct step *step = step_of(search->client, &asked);
	if (!step)
		return PROGRESS_DONE;
	if (!search->asks_all && search->wanted && !is_learnt(step, search->client, &asked, now)) {
		if (!known_clients.lookup(&search->client))
			return PROGRESS_UNKNOWN_CLIENT;
		search->asks_all = 1;
		search->netns_id = 0;
	}
	struct conntrack_entry entry;
	bool over = !choose_table(search, step, now, &netns_id);
	if (over) {
		/* That nobody translates a refused connection is not sure. */
		if (search->asks_all && (search->found || finished->record.shape.outcome == OUTCOME_ESTABLISHED))
			learn(step, search->client, &asked, now->generation, NOBODY);
		if (search->wanted && search->hop < MAX_TRANSLATIONS &&
			finished->record.shape.outcome != OUTCOME_ESTABLISHED && follow_seen(search, finished))
			return PROGRESS_MORE;
	} else if (ask_table(skb, netns_id, &asked, &entry) && follow_entry(search, &entry)) {
		if (search->asks_all)
			learn(step, search->client, &asked, now->generation, netns_id);
		search->asks_all = 0;
		/* Most are translated once: then this is all. */
		step = step_of(search->client, &search->tuple);
		over = step && step->netns_id == NOBODY && is_learnt(step, search->client, &search->tuple, now);
	} else if (!search->asks_all) {
		/* Not where it was so far: perhaps the namespace is gone, and another has its number. */
		search->expected = search->asks_all = 1;
		search->netns_id = 0;
	}
	return over ? end_search(search, finished, ends) : PROGRESS_MORE;
}
