/*
 * What a peer of the requests' socket may say in ZMTP 3, judged byte by byte as it arrives.
 *
 * It is less than the protocol allows, for libzmq gives way under the rest: a peer that names itself
 * can take the name of the next one, which ends the process, and a message whose frames all say that
 * more follow has no bound. Allocates nothing and keeps no bytes; one thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where in the stream a connection is. The rest is zmtp.c's. */
struct zmtp {
    const char *fault; /* what was wrong; NULL: nothing yet */
    uint64_t number;   /* a size, as far as it was read */
    uint32_t left;     /* bytes of the frame to come */
    uint8_t phase;
    uint8_t at; /* bytes that the phase has had */
    uint8_t flags;
    uint8_t key_size;
    bool ready;    /* READY has come */
    bool identity; /* the key so far is the beginning of "Identity" */
};

/* At the beginning of a connection. */
void zmtp_init(struct zmtp *zmtp);

/* The next bytes of the peer, in pieces of any size. false: they, or earlier ones, are not allowed. */
bool zmtp_feed(struct zmtp *zmtp, const uint8_t *bytes, size_t size);
