/* What a peer may say in ZMTP 3, whole, cut in two anywhere, and byte by byte. */
#include <criterion/criterion.h>
#include <string.h>

#include "wire.h"
#include "zmtp.h"

#define COMMAND 4
#define LONG 2
#define MORE 1

/* Enough for a greeting, a READY and the largest message. */
struct stream {
    uint8_t bytes[2 * WIRE_MAX_MESSAGE_BYTES];
    size_t size;
};

static struct stream stream;

static void add(const void *bytes, size_t size)
{
    memcpy(stream.bytes + stream.size, bytes, size);
    stream.size += size;
}

static void add_byte(unsigned byte)
{
    stream.bytes[stream.size++] = (uint8_t)byte;
}

static void add_number(uint64_t number, unsigned bytes)
{
    while (bytes-- > 0) {
        add_byte((uint8_t)(number >> (8 * bytes)));
    }
}

static void greet(void)
{
    uint8_t greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    stream.size = 0;
    add(greeting, sizeof greeting);
}

static void add_property(const char *key, const char *value)
{
    add_byte((unsigned)strlen(key));
    add(key, strlen(key));
    add_number(strlen(value), 4);
    add(value, strlen(value));
}

/* READY with a property more, if there is a key; long: with 8 bytes of size. */
static void be_ready(const char *key, const char *value, bool is_long)
{
    size_t more = key ? 5 + strlen(key) + strlen(value) : 0;
    size_t size = 6 + 1 + 11 + 4 + 6 + more;
    add_byte(is_long ? COMMAND | LONG : COMMAND);
    add_number(size, is_long ? 8 : 1);
    add("\5READY", 6);
    add_property("Socket-Type", "DEALER");
    if (key) {
        add_property(key, value);
    }
}

static void begin(void)
{
    greet();
    be_ready("Identity", "", false);
}

static void add_frame(unsigned flags, uint64_t announced, size_t size)
{
    add_byte(flags);
    add_number(announced, (flags & LONG) != 0 ? 8 : 1);
    memset(stream.bytes + stream.size, MORE, size); /* what would be wrong as flags */
    stream.size += size;
}

/* Whether the stream passes; in how many pieces it comes must not matter. */
static bool passes(void)
{
    struct zmtp zmtp;
    zmtp_init(&zmtp);
    bool whole = zmtp_feed(&zmtp, stream.bytes, stream.size);
    cr_assert_eq(whole, zmtp.fault == NULL);
    zmtp_init(&zmtp);
    bool good = true;
    for (size_t i = 0; i < stream.size; i++) {
        bool next = zmtp_feed(&zmtp, stream.bytes + i, 1);
        cr_assert(good || !next, "it forgot at byte %zu", i);
        good = next;
    }
    cr_assert_eq(good, whole);
    for (size_t cut = 0; cut <= stream.size && cut < 300; cut++) {
        zmtp_init(&zmtp);
        (void)zmtp_feed(&zmtp, stream.bytes, cut);
        cr_assert_eq(zmtp_feed(&zmtp, stream.bytes + cut, stream.size - cut), whole, "%zu", cut);
    }
    return whole;
}

Test(zmtp, what_an_honest_peer_says_passes)
{
    begin();
    add_frame(0, 0, 0);
    add_frame(0, 1, 1);
    add_frame(0, 255, 255);
    add_frame(LONG, 3, 3);
    add_frame(COMMAND, 9, 9);
    add_frame(LONG, WIRE_MAX_MESSAGE_BYTES, WIRE_MAX_MESSAGE_BYTES);
    add_frame(0, 7, 7);
    cr_expect(passes());
}

Test(zmtp, every_form_of_ready_without_a_name_passes)
{
    static const char *const keys[] = {
        NULL, "identity", "X", "", "Identitz", "dentity", "Identity2"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        for (int is_long = 0; is_long < 2; is_long++) {
            greet();
            be_ready(keys[i], i < 2 ? "" : "value", is_long != 0);
            add_frame(0, 7, 7);
            cr_expect(passes(), "case %zu", i);
        }
    }
}

Test(zmtp, a_peer_that_names_itself_does_not_pass)
{
    static const char *const keys[] = {"Identity", "identity", "IDENTITY"};
    for (size_t i = 0; i < 3; i++) {
        greet();
        be_ready(keys[i], "x", i == 1);
        cr_expect_not(passes());
        stream.size--; /* not even before the name itself */
        cr_expect_not(passes());
        stream.size--;
        cr_expect(passes());
    }
    greet();
    be_ready("X", "\10Identity", false);
    cr_expect(passes(), "a value is no key");
}

Test(zmtp, a_message_of_several_frames_does_not_pass)
{
    begin();
    add_frame(0, 5, 5);
    cr_expect(passes());
    add_byte(MORE);
    cr_expect_not(passes());
    begin();
    add_byte(MORE | LONG);
    cr_expect_not(passes());
    begin();
    add_byte(MORE | COMMAND);
    cr_expect_not(passes());
    begin();
    add_byte(8);
    cr_expect_not(passes(), "unknown flags");
}

Test(zmtp, sizes_have_bounds)
{
    static const uint64_t sizes[] = {
        WIRE_MAX_MESSAGE_BYTES + 1, UINT32_MAX, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        begin();
        add_frame(LONG, sizes[i], 0);
        cr_expect_not(passes(), "case %zu", i);
    }
    begin();
    add_frame(LONG | COMMAND, 512, 512);
    cr_expect(passes());
    add_frame(LONG | COMMAND, 513, 0);
    cr_expect_not(passes());
}

Test(zmtp, the_first_frame_is_a_whole_ready)
{
    static const uint8_t frames[][12] = {{0, 6, 5, 'R', 'E', 'A', 'D', 'Y'}, {0, 0}, {COMMAND, 0},
        {COMMAND, 6, 5, 'E', 'R', 'R', 'O', 'R'}, {COMMAND, 5, 5, 'R', 'E', 'A', 'D'},
        {COMMAND, 7, 5, 'R', 'E', 'A', 'D', 'Y', 0},
        {COMMAND, 8, 5, 'R', 'E', 'A', 'D', 'Y', 1, 'x'},
        {COMMAND, 7, 5, 'R', 'E', 'A', 'D', 'Y', 1}};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        greet();
        add(frames[i], frames[i][1] + 2U);
        cr_expect_not(passes(), "case %zu", i);
    }
    greet();
    add("\4\6\5READY", 8);
    cr_expect(passes(), "no property at all");
    greet();
    add("\4\14\5READY\1x\0\0\0\1", 14);
    cr_expect_not(passes(), "a value that is longer than the command");
}

Test(zmtp, the_greeting_is_that_of_version_3_without_a_mechanism)
{
    static const struct {
        size_t at;
        uint8_t byte;
        bool good;
    } cases[] = {{0, 0xfe, false}, {0, 0, false}, {5, 9, true}, {9, 0x7e, false}, {9, 0, false},
        {10, 2, false}, {10, 0, false}, {10, 4, true}, {11, 1, true}, {12, 'P', false},
        {16, 'X', false}, {31, 1, false}, {32, 1, true}, {63, 1, true}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin();
        stream.bytes[cases[i].at] = cases[i].byte;
        cr_expect_eq(passes(), cases[i].good, "case %zu", i);
    }
}
