/*
 * Packets of the gate: bytes and descriptors of one message in, a reply out. Never waits.
 *
 * Says what came and how much of it was lost; what it means, and closing the descriptors, is the
 * gate's business.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* The kernel's limit of one packet: all are taken, for what it has to drop it frees at once. */
#define PACKET_MAX_DESCRIPTORS 253

struct packet {
    uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];
    size_t size;
    bool cut;             /* longer than the buffer */
    bool descriptors_cut; /* some were lost */
    unsigned descriptors;
    int descriptor[PACKET_MAX_DESCRIPTORS];
};

/* 1: a packet; 0: none there; -1: the connection is over. */
int packet_receive(int fd, struct packet *packet);

/* Whether there is a packet that comes with descriptors. Takes nothing. */
bool packet_has_descriptors(int fd);

/* Whether it came with as many descriptors as wanted. */
bool packet_check(const struct packet *packet, unsigned wanted, struct wire_error *error);

/* false: the peer does not read its replies. */
bool packet_send(int fd, const struct wire_gate_reply *reply);
