/* Lanes, their sequences and failures, against a control page that the test writes as a daemon does. */
#include <criterion/criterion.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "lane.h"
#include "submit.h"

#define STREAM(number) ((struct lane_key){.id = (number)})
#define DEVICE_STREAM(number) ((struct lane_key){.id = (number), .device = true})

static struct lanes lanes;
static struct page *page;

static void init(void)
{
    int fd;
    cr_assert_eq(page_create(&fd, &page), 0);
    (void)close(fd);
    lane_init(&lanes, page, 10000);
}

static void finish(void)
{
    lane_finish(&lanes);
    page_unmap(page);
}

TestSuite(client_lane, .init = init, .fini = finish);

/* As if the lane had served this many requests before. */
static void begin_at(unsigned lane, uint64_t sequence)
{
    atomic_store(&lanes.lane[lane].sent, sequence);
    atomic_store(&lanes.lane[lane].reaped, sequence);
    atomic_store(&page->lane[lane].done, (uint32_t)sequence);
}

static void end(unsigned lane, uint64_t sequence, enum wire_status status)
{
    page_finish(&page->lane[lane], (uint32_t)sequence, status);
}

static uint64_t send(struct lane_key stream, size_t count, unsigned *lane)
{
    cr_assert(lane_pick(&lanes, stream, count, lane));
    return lane_advance(&lanes, *lane, count);
}

Test(client_lane, a_stream_keeps_its_lane_while_requests_of_it_run)
{
    unsigned a;
    unsigned b;
    unsigned again;
    cr_expect_eq(send(STREAM(1), 1, &a), 1);
    cr_expect_eq(send(STREAM(0), 3, &b), 3);
    cr_expect_neq(a, b);
    cr_expect_eq(send(STREAM(1), 2, &again), 3);
    cr_expect_eq(again, a);
    cr_expect_eq(lanes.in_flight, 6);
}

Test(client_lane, a_lane_takes_64_requests_and_goes_on_when_one_has_ended)
{
    unsigned lane;
    cr_expect_eq(send(STREAM(1), 32, &lane), 32);
    cr_expect_eq(send(STREAM(1), 32, &lane), 64);
    cr_expect_not(lane_pick(&lanes, STREAM(1), 1, &lane));
    end(lane, 1, WIRE_OK);
    cr_expect_not(lane_pick(&lanes, STREAM(1), 2, &lane));
    cr_expect_eq(send(STREAM(1), 1, &lane), 65);
}

Test(client_lane, thirty_one_streams_have_room_and_the_next_waits_for_one_to_end)
{
    unsigned lane[PAGE_LANES + 1];
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        (void)send(STREAM(i), 1, &lane[i]);
        for (unsigned j = 0; j < i; j++) {
            cr_assert_neq(lane[i], lane[j]);
        }
    }
    cr_expect_not(lane_pick(&lanes, STREAM(100), 1, &lane[PAGE_LANES]));
    end(lane[7], 1, WIRE_OK);
    cr_expect_eq(send(STREAM(100), 1, &lane[PAGE_LANES]), 2);
    cr_expect_eq(lane[PAGE_LANES], lane[7]);
    cr_expect_not(lane_pick(&lanes, STREAM(7), 1, &lane[7]), "its lane is another's now");
}

Test(client_lane, the_credit_of_the_client_bounds_all_lanes_together)
{
    unsigned lane;
    uint64_t sequence;
    lanes.max_in_flight = 5;
    (void)send(STREAM(1), 3, &lane);
    cr_expect_not(lane_pick(&lanes, STREAM(2), 3, &lane));
    (void)send(STREAM(2), 2, &lane);
    cr_assert(lane_oldest(&lanes, STREAM(2), &lane, &sequence));
    cr_expect_eq(lanes.lane[lane].key.id, 2);
    cr_expect_eq(sequence, 1);
    end(lane, 1, WIRE_OK);
    cr_expect(lane_pick(&lanes, STREAM(3), 1, &lane));
}

Test(client_lane, sequences_go_on_where_their_low_halves_wrap)
{
    uint64_t base = (UINT64_C(3) << 32) - 40;
    unsigned lane;
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        begin_at(i, base);
    }
    uint64_t old = base - 100;
    for (int i = 1; i <= 200; i++) {
        uint64_t sequence = send(STREAM(1), 1, &lane);
        cr_assert_eq(sequence, base + (uint64_t)i);
        cr_assert_not(lane_ended(&lanes, lane, sequence));
        cr_assert(lane_ended(&lanes, lane, old), "what ended long ago stays ended");
        end(lane, sequence, i % 50 == 0 ? WIRE_CANCELLED : WIRE_OK);
        cr_assert(lane_ended(&lanes, lane, sequence));
        lane_reap(&lanes, lane);
        cr_assert_eq(lane_find_failure(&lanes, lane, sequence, 1) != NULL, i % 50 == 0);
    }
    cr_expect_not_null(lane_find_failure(&lanes, lane, base + 50, 1));
    cr_expect_null(lane_find_failure(&lanes, lane, base + 50 + (UINT64_C(1) << 32), 1));
}

Test(client_lane, a_daemon_that_counts_ahead_is_not_believed)
{
    unsigned lane;
    (void)send(STREAM(1), 2, &lane);
    atomic_store(&page->lane[lane].done, 3);
    cr_expect_not(lane_ended(&lanes, lane, 1));
    lane_reap(&lanes, lane);
    cr_expect_eq(lanes.in_flight, 2);
    atomic_store(&page->lane[lane].done, UINT32_MAX);
    cr_expect_not(lane_ended(&lanes, lane, 1));
    end(lane, 2, WIRE_OK);
    cr_expect(lane_ended(&lanes, lane, 2));
}

Test(client_lane, a_request_that_ended_without_a_result_has_failed)
{
    unsigned lane;
    (void)send(STREAM(1), 1, &lane);
    atomic_store(&page->lane[lane].done, 1);
    lane_reap(&lanes, lane);
    const struct lane_failure *failure = lane_find_failure(&lanes, lane, 1, 1);
    cr_assert_not_null(failure);
    cr_expect_eq(failure->error.status, WIRE_INTERNAL);
}

/* ---- Turns -------------------------------------------------------------------------------------- */

/* It has waited for long. */
static void enter(struct lane_key key, size_t count, struct lane_turn *turn)
{
    *turn = (struct lane_turn){.key = key, .count = count};
    lane_enter(&lanes, turn);
    turn->patience = 0;
}

Test(client_lane, who_waits_long_for_the_room_of_all_is_not_overtaken)
{
    struct lane_turn large;
    struct lane_turn small;
    unsigned lane;
    lanes.max_in_flight = 32;
    (void)send(STREAM(1), 1, &lane);
    enter(STREAM(2), 32, &large);
    enter(STREAM(1), 1, &small);
    cr_expect(lane_is_turn(&lanes, &large));
    cr_expect_not(lane_pick(&lanes, large.key, large.count, &lane));
    cr_expect_not(lane_is_turn(&lanes, &small), "there is room for it, but it came later");
    large.patience = clock_deadline(CLOCK_SECOND_NS);
    cr_expect(lane_is_turn(&lanes, &small), "the first has patience yet");
    large.patience = 0;
    lane_leave(&lanes, &large);
    cr_expect(lane_is_turn(&lanes, &small));
    lane_leave(&lanes, &small);
    cr_expect_null(lanes.first_turn);
}

Test(client_lane, a_full_stream_holds_up_no_other_but_its_own_in_order)
{
    struct lane_turn first;
    struct lane_turn second;
    struct lane_turn other;
    unsigned lane;
    (void)send(STREAM(1), 32, &lane);
    (void)send(STREAM(1), 31, &lane);
    enter(STREAM(1), 2, &first);
    enter(STREAM(1), 1, &second);
    enter(STREAM(2), 1, &other);
    cr_expect(lane_is_turn(&lanes, &first));
    cr_expect_not(lane_is_turn(&lanes, &second), "its stream's first comes first");
    cr_expect_not(lane_is_turn(&lanes, &other), "the second has room");
    lane_leave(&lanes, &second);
    cr_expect(lane_is_turn(&lanes, &other), "the first waits for its stream alone");
    end(lane, 1, WIRE_OK);
    cr_expect_not(lane_is_turn(&lanes, &other), "the first has room now");
}

/* ---- Failures ----------------------------------------------------------------------------------- */

static const struct wire_error told = {WIRE_UNSUPPORTED, "the daemon's own words"};

Test(client_lane, the_sentence_of_a_failure_may_come_before_or_after_its_status)
{
    unsigned lane;
    (void)send(STREAM(1), 2, &lane);
    lane_tell(&lanes, lane, 1, &told);
    end(lane, 1, WIRE_UNSUPPORTED);
    end(lane, 2, WIRE_UNSUPPORTED);
    lane_reap(&lanes, lane);
    cr_expect(lane_find_failure(&lanes, lane, 1, 1)->told);
    const struct lane_failure *second = lane_find_failure(&lanes, lane, 2, 1);
    cr_assert_not_null(second);
    cr_expect_not(second->told);
    cr_expect_eq(second->error.status, WIRE_UNSUPPORTED);
    cr_expect_str_not_empty(second->error.detail);
    lane_tell(&lanes, lane, 2, &told);
    cr_expect(second->told);
    cr_expect_str_eq(second->error.detail, "the daemon's own words");
    cr_expect_eq(lanes.next_failure, 2, "each is kept once");
}

Test(client_lane, an_array_fails_with_its_first_failure)
{
    unsigned lane;
    (void)send(STREAM(1), 8, &lane);
    for (uint64_t sequence = 1; sequence <= 8; sequence++) {
        bool fails = sequence == 3 || sequence == 6;
        end(lane, sequence, fails ? WIRE_DEVICE_FAULT : WIRE_OK);
    }
    lane_tell(&lanes, lane, 6, &told);
    lane_reap(&lanes, lane);
    cr_expect_eq(lane_find_failure(&lanes, lane, 8, 8)->sequence, 3);
    cr_expect_eq(lane_find_failure(&lanes, lane, 8, 5)->sequence, 6);
    cr_expect_null(lane_find_failure(&lanes, lane, 8, 2));
    cr_expect_null(lane_find_failure(&lanes, lane + 1, 8, 8));
}

Test(client_lane, the_last_256_failures_are_remembered)
{
    unsigned lane;
    for (uint64_t i = 1; i <= 300; i++) {
        (void)send(STREAM(1), 1, &lane);
        end(lane, i, WIRE_CANCELLED);
        lane_reap(&lanes, lane);
    }
    cr_expect_null(lane_find_failure(&lanes, lane, 44, 1));
    for (uint64_t i = 45; i <= 300; i++) {
        cr_assert_not_null(lane_find_failure(&lanes, lane, i, 1));
    }
}

Test(client_lane, words_about_requests_that_never_were_are_ignored)
{
    unsigned lane;
    (void)send(STREAM(1), 2, &lane);
    lane_tell(&lanes, PAGE_LANES, 1, &told);
    lane_tell(&lanes, lane, 3, &told);
    lane_tell(&lanes, lane, 0, &told);
    cr_expect_not(lanes.any_failed);
}

/* The fastest of five: who else uses the machine does not take its time from all of them. */
#define TRIES 5

static int64_t time_of_wait(struct attnd *client, attnd_ticket ticket, int64_t timeout_ns)
{
    int64_t begin = clock_now_ns();
    cr_expect_eq(attnd_wait(client, ticket, timeout_ns), ATTND_CANCELLED);
    return clock_now_ns() - begin;
}

Test(client_lane, a_failure_without_its_sentence_is_not_waited_for_past_the_callers_time)
{
    static struct attnd client;
    attnd_ticket ticket = 0;
    int64_t fastest = INT64_MAX;
    int64_t begin = 0;
    client.pid = getpid();
    (void)pthread_mutex_init(&client.mutex, NULL);
    lane_init(&client.lanes, page, 100);
    for (uint64_t i = 0; i < TRIES; i++) {
        unsigned lane;
        cr_assert(lane_pick(&client.lanes, STREAM(1 + i), 1, &lane));
        uint64_t sequence = lane_advance(&client.lanes, lane, 1);
        ticket = submit_ticket(lane, sequence, 1);
        begin = clock_now_ns();
        end(lane, sequence, WIRE_CANCELLED);
        int64_t took = time_of_wait(&client, ticket, 0);
        fastest = took < fastest ? took : fastest;
    }
    cr_expect_lt(fastest, CLOCK_SECOND_NS / 10);
    (void)time_of_wait(&client, ticket, ATTND_FOREVER);
    int64_t patient = clock_now_ns() - begin;
    cr_expect_geq(patient, CLOCK_SECOND_NS / 10, "the sentence may still have come");
    fastest = INT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        int64_t took = time_of_wait(&client, ticket, ATTND_FOREVER);
        fastest = took < fastest ? took : fastest;
    }
    cr_expect_lt(fastest, CLOCK_SECOND_NS / 10, "it is waited for once");
    lane_finish(&client.lanes);
    (void)pthread_mutex_destroy(&client.mutex);
}

/* ---- Tickets ------------------------------------------------------------------------------------ */

Test(client_lane, tickets_give_back_what_they_were_made_of_and_are_never_0)
{
    const uint64_t sequences[] = {32, 33, UINT32_MAX, UINT64_C(1) << 32, (UINT64_C(1) << 54) - 1};
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        for (size_t count = 1; count <= 32; count++) {
            for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++) {
                attnd_ticket ticket = submit_ticket(lane, sequences[i], count);
                cr_assert_neq(ticket, 0);
                cr_assert_eq(submit_ticket_lane(ticket), lane);
                cr_assert_eq(submit_ticket_count(ticket), count);
                cr_assert_eq(submit_ticket_sequence(ticket), sequences[i]);
            }
        }
    }
    cr_expect_geq(submit_ticket_lane(0), PAGE_LANES);
}

/* ---- Streams of a device ------------------------------------------------------------------------ */

static struct stream_marks marks;

/* The stream comes past its waits. */
static void pass(unsigned lane, uint64_t sequence)
{
    atomic_store(&marks.passed[lane], (uint32_t)sequence);
}

static const struct lane *poisoned(struct lane_key key)
{
    bool explained;
    return lane_find_poisoned(&lanes, key, &explained);
}

Test(client_lane, a_lane_stays_its_streams_until_that_has_come_past_its_waits)
{
    unsigned a;
    unsigned b;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 2, &a);
    end(a, 1, WIRE_OK);
    end(a, 2, WIRE_OK);
    pass(a, 1);
    cr_expect_not(lane_passed(&lanes, a));
    (void)send(DEVICE_STREAM(2), 1, &b);
    cr_expect_neq(a, b, "the first stream is yet to write to its lane");
    pass(a, 2);
    cr_expect(lane_passed(&lanes, a));
    unsigned c;
    cr_expect_eq(send(DEVICE_STREAM(3), 1, &c), 3);
    cr_expect_eq(a, c);
}

Test(client_lane, a_number_of_the_host_and_one_of_the_device_are_two_streams)
{
    unsigned a;
    unsigned b;
    begin_at(0, 17);
    lane_watch_streams(&lanes, marks.passed);
    (void)send(STREAM(1), 1, &a);
    cr_expect(lane_passed(&lanes, a), "no device has anything to do with it");
    (void)send(DEVICE_STREAM(1), 1, &b);
    cr_expect_neq(a, b);
    cr_expect_not(lane_passed(&lanes, b));
}

Test(client_lane, while_the_stream_is_told_of_one_submission_the_next_waits)
{
    unsigned lane;
    unsigned other;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 1, &lane);
    lanes.lane[lane].enqueuing = true;
    cr_expect_not(lane_pick(&lanes, DEVICE_STREAM(1), 1, &other));
    end(lane, 1, WIRE_OK);
    pass(lane, 1);
    cr_expect_not(lane_pick(&lanes, DEVICE_STREAM(1), 1, &other));
    (void)send(DEVICE_STREAM(2), 1, &other);
    cr_expect_neq(lane, other);
    lanes.lane[lane].enqueuing = false;
    cr_expect(lane_pick(&lanes, DEVICE_STREAM(1), 1, &other));
}

Test(client_lane, a_failure_poisons_a_device_stream_until_it_is_reset)
{
    unsigned lane;
    unsigned other;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 3, &lane);
    uint32_t epoch = lanes.lane[lane].epoch;
    cr_expect_neq(epoch, 0);
    end(lane, 1, WIRE_OK);
    cr_expect_null(poisoned(DEVICE_STREAM(1)));
    end(lane, 2, WIRE_DEVICE_FAULT);
    end(lane, 3, WIRE_LANE_POISONED);
    pass(lane, 3);
    cr_assert_not_null(poisoned(DEVICE_STREAM(1)));
    cr_expect_null(poisoned(STREAM(1)));
    cr_expect_eq(poisoned(DEVICE_STREAM(1))->poisoned, 2, "the first counts");
    (void)send(DEVICE_STREAM(2), 1, &other);
    cr_expect_neq(lane, other, "the next one's would be poisoned as well");
    struct wire_error reason = {WIRE_DEVICE_FAULT, "a reason"};
    lane_tell(&lanes, lane, 3, &(struct wire_error){WIRE_LANE_POISONED, "a consequence"});
    lane_tell(&lanes, lane, 2, &reason);
    cr_expect_str_eq(poisoned(DEVICE_STREAM(1))->poison.detail, "a reason");
    lane_reset(&lanes, DEVICE_STREAM(1));
    cr_expect_null(poisoned(DEVICE_STREAM(1)));
    cr_expect_eq(send(DEVICE_STREAM(3), 1, &other), 4);
    cr_expect_eq(lane, other);
    cr_expect_neq(lanes.lane[lane].epoch, epoch);
}

Test(client_lane, what_was_sent_before_a_reset_poisons_nothing_behind_it)
{
    unsigned lane;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 2, &lane);
    lane_reset(&lanes, DEVICE_STREAM(1));
    (void)send(DEVICE_STREAM(1), 1, &lane);
    end(lane, 1, WIRE_OK);
    end(lane, 2, WIRE_CANCELLED);
    cr_expect_null(poisoned(DEVICE_STREAM(1)));
    end(lane, 3, WIRE_CANCELLED);
    cr_assert_not_null(poisoned(DEVICE_STREAM(1)));
    cr_expect_eq(poisoned(DEVICE_STREAM(1))->poisoned, 3);
}

Test(client_lane, no_epoch_is_zero)
{
    unsigned lane;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 1, &lane);
    lanes.lane[lane].epoch = UINT32_MAX;
    lane_reset(&lanes, DEVICE_STREAM(1));
    cr_expect_eq(lanes.lane[lane].epoch, 1);
}

Test(client_lane, poisoned_lanes_alone_make_no_room)
{
    unsigned lane;
    lane_watch_streams(&lanes, marks.passed);
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        cr_expect_not(lane_all_poisoned(&lanes));
        (void)send(DEVICE_STREAM(i + 1), 1, &lane);
        end(lane, 1, WIRE_INTERNAL);
        pass(lane, 1);
        cr_expect_not_null(poisoned(DEVICE_STREAM(i + 1)));
    }
    cr_expect(lane_all_poisoned(&lanes));
    cr_expect_not(lane_pick(&lanes, DEVICE_STREAM(100), 1, &lane));
}

Test(client_lane, streams_of_a_daemon_that_is_gone_are_let_go)
{
    unsigned a;
    unsigned b;
    lane_watch_streams(&lanes, marks.passed);
    (void)send(DEVICE_STREAM(1), 3, &a);
    (void)send(STREAM(2), 1, &b);
    end(a, 1, WIRE_OK);
    cr_expect(lane_abandon(&lanes));
    cr_expect_eq(page->lane[a].done, 3, "its stream waits for this");
    cr_expect(lane_ended(&lanes, a, 1));
    cr_expect_not(lane_ended(&lanes, a, 2), "it did not end for all that");
    cr_expect_not(lane_ended(&lanes, b, 1));
    atomic_store(&page->lane[a].done, 2); /* the device of the dying daemon wrote it late */
    cr_expect(lane_abandon(&lanes));
    cr_expect_eq(page->lane[a].done, 3);
    cr_expect_not(lane_ended(&lanes, a, 2));
    pass(a, 3);
    cr_expect_not(lane_abandon(&lanes), "nobody waits any more");
}

Test(client_lane, what_was_read_before_the_daemon_went_stays_ended)
{
    unsigned lane;
    (void)send(STREAM(1), 3, &lane);
    end(lane, 1, WIRE_OK);
    end(lane, 2, WIRE_OK);
    lane_reap(&lanes, lane);
    cr_expect_eq(lanes.in_flight, 1);
    atomic_store(
        &lanes.lane[lane].final, 1); /* lane_abandon() had looked before the second ended */
    atomic_store(&lanes.abandoned, true);
    cr_expect(lane_ended(&lanes, lane, 2));
    cr_expect_not(lane_ended(&lanes, lane, 3));
    lane_reap(&lanes, lane);
    cr_expect_eq(lanes.in_flight, 1);
    cr_expect_eq(lanes.lane[lane].reaped, 2);
}

static struct lanes *racing;
static _Atomic bool looking;

static void *look_until_gone(void *context)
{
    bool *ended = context;
    atomic_store(&looking, true);
    do {
        *ended = lane_ended(racing, 0, 1) || *ended;
    } while (!atomic_load(&racing->abandoned));
    return NULL;
}

#define RACES 200

Test(client_lane, what_lets_streams_go_ends_nothing_for_those_who_look_meanwhile)
{
    unsigned lane;
    bool ended = false;
    for (int i = 0; i < RACES && !ended; i++) {
        static struct lanes fresh;
        pthread_t thread;
        memset(&fresh, 0, sizeof fresh);
        atomic_store(&page->lane[0].done, 0);
        pass(0, 0);
        lane_init(&fresh, page, 100);
        lane_watch_streams(&fresh, marks.passed);
        cr_assert(lane_pick(&fresh, DEVICE_STREAM(1), 1, &lane));
        (void)lane_advance(&fresh, lane, 1);
        racing = &fresh;
        atomic_store(&looking, false);
        cr_assert_eq(pthread_create(&thread, NULL, look_until_gone, &ended), 0);
        while (!atomic_load(&looking)) {
            (void)sched_yield();
        }
        cr_expect(lane_abandon(&fresh));
        (void)pthread_join(thread, NULL);
        lane_finish(&fresh);
    }
    cr_expect_not(ended);
}
