/*
 * From the caller's requests to a message on its way: checks, plans, places, a lane and its sequences.
 */
#pragma once

#include <stddef.h>

#include "attnd.h"
#include "request.h"

/* attnd_submit() of one request. Its lengths may be replaced. */
enum attnd_status submit_one(
    struct attnd *client, void *stream, struct request *request, attnd_ticket *ticket);

/* The same of some whose tensors all lie in regions. */
enum attnd_status submit_in_place(struct attnd *client, void *stream,
    const struct request *requests, size_t count, attnd_ticket *ticket);

/* A ticket: the sequence of the last request, how many there are, and the lane. The lane's number plus
 * 1 is never 0; 2^54 sequences outlive the machine. */
static inline attnd_ticket submit_ticket(unsigned lane, uint64_t sequence, size_t count)
{
    return sequence << 10 | (uint64_t)(count - 1) << 5 | (lane + 1);
}

static inline unsigned submit_ticket_lane(attnd_ticket ticket)
{
    return (unsigned)(ticket & 31) - 1; /* beyond every lane if the ticket is none */
}

static inline size_t submit_ticket_count(attnd_ticket ticket)
{
    return (size_t)(ticket >> 5 & 31) + 1;
}

static inline uint64_t submit_ticket_sequence(attnd_ticket ticket)
{
    return ticket >> 10;
}
