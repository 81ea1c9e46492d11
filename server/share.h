/*
 * Fair shares of the device: a tree (all, uids, sessions, lanes) served by deficit round robin at
 * every level, the cost being floating point operations.
 *
 * A share is in the tree while there is work below it. It may be served while its deficit is not
 * negative, is charged the cost of what it was served, and gets one quantum a round. Shares with work
 * that can't join the group at hand are passed over: they keep their deficit, get the quanta of the
 * rounds they miss, and come first next time. Plain data, no locks; the engine thread's.
 */
#pragma once

#include <stdbool.h>

#include "list.h"

struct share {
    struct list_node node; /* in one of the parent's lists while attached */
    struct share *parent;  /* NULL: the root */
    struct list waiting;   /* children that may be served, next first */
    struct list passed;    /* children passed over in this round of picking */
    double deficit;
    bool attached;

    /* Of the round of picking at hand. */
    bool served;
    bool has_more;        /* it was passed over although it has work that could run */
    unsigned grants;      /* quanta received */
    unsigned most_grants; /* of any child */
};

void share_init(struct share *share, struct share *parent);

/* Puts a leaf into the tree, at the end, and takes it out again; inner shares follow by themselves.
 * Not during a round of picking. */
void share_attach(struct share *leaf);
void share_detach(struct share *leaf, double quantum);

/* A round of picking: the leaf whose turn it is, to be charged or passed over; NULL when all have been
 * passed over. Then settle, after which all are waiting again. */
struct share *share_next(struct share *root, double quantum);
void share_charge(struct share *leaf, double cost);
void share_pass(struct share *share);
void share_settle(struct share *root, double quantum);
