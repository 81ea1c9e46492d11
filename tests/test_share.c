#include "share.h"

#include <criterion/criterion.h>
#include <math.h>

#define QUANTUM 100.0

/* One round of picking that serves `serves` times `cost`; who may be served is the caller's. */
static void pick(struct share *root, int serves, double cost, struct share *unfit, double *served,
    const struct share *first)
{
    while (serves > 0) {
        struct share *leaf = share_next(root, QUANTUM);
        if (leaf == NULL) {
            break;
        }
        if (leaf == unfit) {
            leaf->has_more = true;
            share_pass(leaf);
            continue;
        }
        served[leaf - first] += cost;
        share_charge(leaf, cost);
        serves--;
    }
    share_settle(root, QUANTUM);
}

/* A round's quantum, and what exceeded the last turn. */
#define BOUND (QUANTUM + 30)

Test(share, gives_everyone_the_same_within_a_quantum_and_a_cost)
{
    struct share root;
    struct share leaf[3];
    double served[3] = {0};
    share_init(&root, NULL);
    for (int i = 0; i < 3; i++) {
        share_init(&leaf[i], &root);
        share_attach(&leaf[i]);
    }
    for (int round = 0; round < 2000; round++) {
        pick(&root, 1 + round % 5, 30, NULL, served, leaf);
        for (int i = 1; i < 3; i++) {
            cr_assert_leq(fabs(served[i] - served[0]), BOUND, "round %d", round);
        }
    }
}

Test(share, is_fair_to_inner_shares_however_many_leaves_they_have)
{
    struct share root;
    struct share inner[2];
    struct share leaf[6];
    double served[6] = {0};
    share_init(&root, NULL);
    share_init(&inner[0], &root);
    share_init(&inner[1], &root);
    for (int i = 0; i < 6; i++) {
        share_init(&leaf[i], &inner[i > 0]);
        share_attach(&leaf[i]);
    }
    for (int round = 0; round < 2000; round++) {
        pick(&root, 3, 30, NULL, served, leaf);
    }
    double others = served[1] + served[2] + served[3] + served[4] + served[5];
    cr_expect_leq(fabs(served[0] - others), BOUND);
    for (int i = 2; i < 6; i++) {
        cr_expect_leq(fabs(served[i] - served[1]), BOUND);
    }
}

Test(share, gives_those_passed_over_what_they_missed)
{
    struct share root;
    struct share leaf[2];
    double served[2] = {0};
    share_init(&root, NULL);
    for (int i = 0; i < 2; i++) {
        share_init(&leaf[i], &root);
        share_attach(&leaf[i]);
    }
    pick(&root, 10, 50, &leaf[1], served, leaf);
    cr_assert_float_eq(served[0], 500, 1e-9);
    pick(&root, 10, 50, NULL, served, leaf);
    cr_expect_leq(fabs(served[1] - served[0]), 2 * QUANTUM);
}

Test(share, forgets_credit_that_grows_without_end)
{
    struct share root;
    struct share leaf[2];
    double served[2] = {0};
    share_init(&root, NULL);
    for (int i = 0; i < 2; i++) {
        share_init(&leaf[i], &root);
        share_attach(&leaf[i]);
    }
    for (int round = 0; round < 1000; round++) {
        pick(&root, 10, 50, &leaf[1], served, leaf);
    }
    cr_expect_geq(leaf[1].deficit, 4 * QUANTUM);
    cr_expect_leq(leaf[1].deficit, 20 * QUANTUM);
}

Test(share, keeps_debt_and_little_credit_of_those_who_leave)
{
    struct share root;
    struct share leaf;
    share_init(&root, NULL);
    share_init(&leaf, &root);
    share_attach(&leaf);
    share_charge(&leaf, 1000);
    share_detach(&leaf, QUANTUM);
    cr_expect_float_eq(leaf.deficit, -1000, 1e-9);
    cr_expect_null(share_next(&root, QUANTUM));
    leaf.deficit = 1000;
    share_attach(&leaf);
    share_attach(&leaf);
    share_detach(&leaf, QUANTUM);
    cr_expect_float_eq(leaf.deficit, QUANTUM, 1e-9);
    cr_expect(list_empty(&root.waiting));
}
