/*
 * Fair shares of the device: a tree (all, uids, sessions, lanes) served by deficit round robin at
 * every level, the cost being floating point operations.
 *
 * A share is in the tree while there is work below it. It is served while its deficit is not negative
 * and charged the cost of what it was served; when no child of a parent may be served any more, a new
 * round gives one quantum to each that has work. A share whose work can't join the group at hand is
 * passed over and keeps its deficit. Plain data, no locks; the engine thread's.
 */
#pragma once

#include <stdbool.h>

#include "list.h"

struct share {
    struct list_node node; /* in one of the parent's lists while attached */
    struct share *parent;  /* NULL: the root */
    struct list waiting;   /* children that may be served, next first */
    struct list passed;    /* children passed over in this pick */
    double deficit;        /* of two children, the larger is owed more */
    bool attached;

    /* Of the pick at hand. */
    bool served;
    bool has_more; /* there is work that could run, though not in this group */
};

void share_init(struct share *share, struct share *parent);

/* Puts a leaf into the tree and takes it out again; inner shares follow by themselves. Not during a
 * pick. */
void share_attach(struct share *leaf);
void share_detach(struct share *leaf, double quantum);

/* A pick: the leaf whose turn it is, to be charged or passed over; NULL when all have been passed over.
 * Then settle, after which all are waiting again. */
struct share *share_next(struct share *root, double quantum);
void share_charge(struct share *leaf, double cost);
void share_pass(struct share *share);
void share_settle(struct share *root, double quantum);
