#include "list.h"

#include <criterion/criterion.h>

struct item {
    int number;
    struct list_node node;
};

static struct item *item_of(struct list_node *node)
{
    return list_entry(node, struct item, node);
}

Test(list, pops_in_the_order_of_appending)
{
    struct list list;
    struct item items[3] = {{.number = 0}, {.number = 1}, {.number = 2}};
    list_init(&list);
    cr_expect(list_empty(&list));
    cr_expect_null(list_first(&list));
    for (int i = 0; i < 3; i++) {
        list_append(&list, &items[i].node);
    }
    cr_expect_eq(list_first(&list), &items[0].node);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(item_of(list_pop(&list))->number, i);
    }
    cr_expect(list_empty(&list));
    cr_expect_null(list_pop(&list));
}

Test(list, lets_the_node_at_hand_be_removed)
{
    struct list list;
    struct item items[5];
    int visited = 0;
    list_init(&list);
    for (int i = 0; i < 5; i++) {
        items[i].number = i;
        list_append(&list, &items[i].node);
    }
    list_for_each(at, &list) {
        cr_expect_eq(item_of(at)->number, visited);
        visited++;
        if (item_of(at)->number % 2 == 0) {
            list_remove(at);
        }
    }
    cr_expect_eq(visited, 5);
    cr_expect_eq(item_of(list_pop(&list))->number, 1);
    cr_expect_eq(item_of(list_pop(&list))->number, 3);
    cr_expect(list_empty(&list));
}
