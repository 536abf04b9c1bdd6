#!/bin/bash
# step: where
# fails: fields
# Tells who asked, and not who was asked.
sed -i -e 's|// TO DO: u8 address.*|u8 address[4]; u16 port;|' \
    -e 's|// TO DO: where the.*|__builtin_memcpy(it.address, args->saddr, 4); it.port = args->dport;|' where.c
