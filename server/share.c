#include "share.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>

/* Credit beyond this many quanta is lost: who could not be served for long, for instance for lack of
 * workspace, does not get the device for as long afterwards. */
#define MAX_QUANTA 16

static struct share *share_of(struct list_node *node)
{
    return list_entry(node, struct share, node);
}

static void move(struct share *share, struct list *list)
{
    list_remove(&share->node);
    list_append(list, &share->node);
}

static bool childless(const struct share *share)
{
    return list_empty(&share->waiting) && list_empty(&share->passed);
}

static void limit(struct share *share, double most)
{
    if (share->deficit > most) {
        share->deficit = most;
    }
}

/* Behind those that are owed as much or more. */
static void insert(struct list *list, struct share *share)
{
    struct list_node *at = list->head.prev;
    while (at != &list->head && share_of(at)->deficit < share->deficit) {
        at = at->prev;
    }
    share->node.prev = at;
    share->node.next = at->next;
    at->next->prev = &share->node;
    at->next = &share->node;
}

/* As many rounds at once as it takes until a waiting child may be served. */
static void new_round(struct share *parent, double quantum)
{
    double most = share_of(list_first(&parent->waiting))->deficit;
    list_for_each(at, &parent->waiting) {
        most = fmax(most, share_of(at)->deficit);
    }
    double grant = ceil(-most / quantum) * quantum;
    list_for_each(at, &parent->waiting) {
        share_of(at)->deficit += grant;
    }
    list_for_each(at, &parent->passed) {
        share_of(at)->deficit += share_of(at)->has_more ? grant : 0;
    }
}

/*
 * The child to serve next. Only the first may be out of place, having just become negative: all
 * others that are negative come after those that are not.
 */
static struct share *next_child(struct share *parent, double quantum)
{
    struct share *first = share_of(list_first(&parent->waiting));
    if (first->deficit >= 0) {
        return first;
    }
    move(first, &parent->waiting);
    if (share_of(list_first(&parent->waiting))->deficit < 0) {
        struct list order;
        new_round(parent, quantum);
        list_init(&order);
        list_for_each(at, &parent->waiting) {
            move(share_of(at), &order);
        }
        list_for_each(at, &order) {
            list_remove(at);
            insert(&parent->waiting, share_of(at));
        }
    }
    return share_of(list_first(&parent->waiting));
}

void share_init(struct share *share, struct share *parent)
{
    *share = (struct share){.parent = parent};
    list_init(&share->waiting);
    list_init(&share->passed);
}

void share_attach(struct share *leaf)
{
    for (struct share *at = leaf; at->parent != NULL && !at->attached; at = at->parent) {
        insert(&at->parent->waiting, at);
        at->attached = true;
    }
}

/* Debt stays: else whoever has one request at a time would never pay for more than it was granted. */
void share_detach(struct share *leaf, double quantum)
{
    assert(childless(leaf));
    for (struct share *at = leaf; at->attached && childless(at); at = at->parent) {
        list_remove(&at->node);
        at->attached = false;
        limit(at, quantum);
    }
}

struct share *share_next(struct share *root, double quantum)
{
    struct share *at = root;
    while (!list_empty(&at->waiting) || at->parent != NULL) {
        if (childless(at)) {
            return at;
        }
        if (list_empty(&at->waiting)) {
            share_pass(at);
            at = at->parent;
        } else {
            at = next_child(at, quantum);
        }
    }
    return NULL;
}

void share_charge(struct share *leaf, double cost)
{
    for (struct share *at = leaf; at->parent != NULL; at = at->parent) {
        at->deficit -= cost;
        at->served = true;
    }
}

void share_pass(struct share *share)
{
    move(share, &share->parent->passed);
    share->parent->has_more |= share->has_more;
}

/* Those who are owed most come first, as they will choose whom others may join; among equals those not
 * served this time, in their old order. */
void share_settle(struct share *root, double quantum)
{
    struct list order[2];
    struct list *from[] = {&root->passed, &root->waiting};
    list_init(&order[false]);
    list_init(&order[true]);
    for (size_t i = 0; i < 2; i++) {
        list_for_each(at, from[i]) {
            struct share *child = share_of(at);
            move(child, &order[child->served]);
            limit(child, MAX_QUANTA * quantum);
            share_settle(child, quantum);
        }
    }
    for (size_t i = 0; i < 2; i++) {
        list_for_each(at, &order[i]) {
            list_remove(at);
            insert(&root->waiting, share_of(at));
        }
    }
    root->served = false;
    root->has_more = false;
}
