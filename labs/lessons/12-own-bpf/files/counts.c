struct connect {
    u8 address[4];
    u32 times;
};
BPF_RINGBUF_OUTPUT(connects, 8);
BPF_HASH(seen, u32, u32);  // address -> how many connections to it

TRACEPOINT_PROBE(sock, inet_sock_set_state)
{
    struct connect it = {};
    u32 address = 0, none = 0, *times;

    if (args->newstate != 2)
        return 0;
    __builtin_memcpy(&address, args->daddr, sizeof(address));
    times = seen.lookup(&address);
    *times += 1;
    it.times = *times;
    __builtin_memcpy(it.address, args->daddr, sizeof(it.address));
    connects.ringbuf_output(&it, sizeof(it), 0);
    return 0;
}
