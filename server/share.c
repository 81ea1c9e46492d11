#include "share.h"

#include <assert.h>
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

static void grant(struct share *share, double quantum)
{
    share->deficit += quantum;
    share->grants++;
    if (share->parent->most_grants < share->grants) {
        share->parent->most_grants = share->grants;
    }
    move(share, &share->parent->waiting);
}

/* One child's end of a round: quanta of the rounds that it missed with work at hand. */
static void settle_child(struct share *child, double quantum)
{
    if (child->has_more) {
        child->deficit += (child->parent->most_grants - child->grants) * quantum;
    }
    limit(child, MAX_QUANTA * quantum);
    share_settle(child, quantum);
    child->served = false;
    child->has_more = false;
    child->grants = 0;
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
        list_append(&at->parent->waiting, &at->node);
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
        struct list_node *first = list_first(&at->waiting);
        if (first == NULL) {
            share_pass(at);
            at = at->parent;
        } else if (share_of(first)->deficit < 0) {
            grant(share_of(first), quantum);
        } else {
            at = share_of(first);
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

/* Those not served come first, each part in its old order. */
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
            settle_child(child, quantum);
        }
    }
    for (size_t i = 0; i < 2; i++) {
        list_for_each(at, &order[i]) {
            move(share_of(at), &root->waiting);
        }
    }
    root->most_grants = 0;
}
