#include "wire.h"

#include <criterion/criterion.h>
#include <string.h>

Test(wire, every_status_has_its_own_name)
{
    for (int status = 0; status < WIRE_STATUS_END; status++) {
        const char *name = wire_status_name((enum wire_status)status);
        cr_expect_str_neq(name, "?");
        for (int other = 0; other < status; other++) {
            cr_expect_str_neq(name, wire_status_name((enum wire_status)other));
        }
    }
    cr_expect_str_eq(wire_status_name(WIRE_OK), "OK");
    cr_expect_str_eq(wire_status_name(WIRE_INVALID_ARGUMENT), "INVALID_ARGUMENT");
    cr_expect_str_eq(wire_status_name(WIRE_INTERNAL), "INTERNAL");
    cr_expect_str_eq(wire_status_name(WIRE_STATUS_END), "?");
    cr_expect_str_eq(wire_status_name((enum wire_status) - 1), "?");
}

Test(wire, dtypes_have_names_and_sizes)
{
    cr_expect_str_eq(wire_dtype_name(WIRE_FP16), "fp16");
    cr_expect_str_eq(wire_dtype_name(WIRE_BF16), "bf16");
    cr_expect_str_eq(wire_dtype_name(WIRE_FP32), "fp32");
    cr_expect_str_eq(wire_dtype_name((enum wire_dtype)0), "?");
    cr_expect_str_eq(wire_dtype_name(WIRE_INT32), "int32");
    cr_expect_str_eq(wire_dtype_name((enum wire_dtype)5), "?");
    cr_expect_eq(wire_dtype_bytes(WIRE_FP16), 2);
    cr_expect_eq(wire_dtype_bytes(WIRE_BF16), 2);
    cr_expect_eq(wire_dtype_bytes(WIRE_FP32), 4);
    cr_expect_eq(wire_dtype_bytes(WIRE_INT32), 4);
    cr_expect_eq(wire_dtype_bytes((enum wire_dtype)0), 0);
    cr_expect_eq(wire_dtype_bytes((enum wire_dtype)99), 0);
}

Test(wire, roles_are_named_as_in_the_api)
{
    static const char *const names[] = {"?", "q", "k", "v", "out", "lse", "dout", "dlse", "dq",
        "dk", "dv", "bias", "dbias", "slopes", "dslopes", "sinks", "dsinks", "cu_seqlens_q",
        "cu_seqlens_k", "seqlens_k", "?"};

    for (int role = 0; role <= WIRE_ROLE_END; role++) {
        cr_expect_str_eq(wire_role_name((enum wire_role)role), names[role]);
    }
    cr_expect_str_eq(wire_role_name((enum wire_role) - 1), "?");
}

Test(wire, failing_sets_status_and_a_sentence_that_always_ends)
{
    struct wire_error error;
    char long_text[2 * WIRE_DETAIL_BYTES];

    memset(&error, 0xff, sizeof(error));
    cr_expect_not(wire_fail(&error, WIRE_NOT_FOUND, "plan %d is unknown", 7));
    cr_expect_eq(error.status, WIRE_NOT_FOUND);
    cr_expect_str_eq(error.detail, "plan 7 is unknown");

    memset(long_text, 'x', sizeof(long_text));
    long_text[sizeof(long_text) - 1] = 0;
    wire_fail(&error, WIRE_INTERNAL, "%s", long_text);
    cr_expect_eq(strlen(error.detail), WIRE_DETAIL_BYTES - 1);
}

Test(wire, copied_text_is_printable)
{
    static const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"", ""}, {"trainer 7", "trainer 7"}, {"a\nb\tc\x1b[31md\x7f", "a?b?c?[31md?"},
        {"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\x80\xbf", "??"},                     /* continuation without a start */
        {"\xc3(", "?("},                        /* start without continuation */
        {"\xc3", "?"},                          /* cut at the end */
        {"\xe2\x82", "??"},                     /* cut at the end */
        {"\xc0\xaf\xe0\x80\xaf", "?????"},      /* longer than needed */
        {"\xe0\x82\xa9", "???"},                /* so too, for a printable one */
        {"\xc2\x9b", "??"},                     /* U+009B, which starts a terminal sequence */
        {"\xc2\xa0", "\xc2\xa0"},               /* the first one past the control characters */
        {"\xed\xa0\x80", "???"},                /* a surrogate */
        {"\xf4\x90\x80\x80", "????"},           /* past U+10FFFF */
        {"\xf8\x88\x80\x80\x80\xff", "??????"}, /* no lengths of today's UTF-8 */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char out[64];
        memset(out, 'x', sizeof(out));
        wire_copy_text(out, sizeof(out), cases[i].in);
        cr_expect_str_eq(out, cases[i].out, "case %zu gives \"%s\"", i, out);
        for (size_t rest = strlen(out); rest < sizeof(out); rest++) {
            cr_expect_eq(out[rest], 0);
        }
    }
}

Test(wire, copied_text_is_cut_between_characters)
{
    char out[4];

    wire_copy_text(out, sizeof(out), "abcdef");
    cr_expect_str_eq(out, "abc");
    wire_copy_text(out, sizeof(out), "ab\xc3\xa9");
    cr_expect_str_eq(out, "ab");
    wire_copy_text(out, 1, "abc");
    cr_expect_str_eq(out, "");
}
