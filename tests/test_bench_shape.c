/* The shapes of attnd-bench: their words, the protocol's list, and how many FLOPs they have. */
#include "shape.h"

#include <criterion/criterion.h>
#include <string.h>

static struct shape parsed(const char *text)
{
    struct shape shape;
    char message[SHAPE_TEXT_BYTES] = "";
    cr_assert(shape_parse(&shape, text, message), "%s: %s", text, message);
    return shape;
}

Test(bench_shape, what_is_left_out_has_a_default)
{
    struct shape shape = parsed("sq=7,hq=6");
    cr_expect_eq(shape.batch, 1);
    cr_expect_eq(shape.heads_kv, 6);
    cr_expect_eq(shape.seqlen_k, 7);
    cr_expect_eq(shape.head_dim_qk, 64);
    cr_expect_eq(shape.head_dim_v, 64);
    cr_expect_eq(shape.window_left, ATTN_UNBOUNDED);
    cr_expect_eq(shape.window_right, ATTN_UNBOUNDED);
    cr_expect_eq(shape.alignment, ATTN_BOTTOM_RIGHT);
    cr_expect_not(shape.bias || shape.alibi || shape.sinks || shape.deterministic);
}

Test(bench_shape, a_description_is_read_as_the_same_shape)
{
    static const char *const texts[] = {"sq=1",
        "b=3,sq=10,sk=20,hq=4,hkv=2,d=32,dv=16,causal,softcap=2.5,bias=1xhx1xk,sinks",
        "sq=9,window=3:-,align=tl,bias=bx1xqxk,bias_dtype=fp32,alibi,constant,dlse,dropout=0.25",
        "varlen=3:0:9,varlen_k=4:4:4,short_k=1:2:3,deterministic", "sq=5,window=0:12"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char text[SHAPE_TEXT_BYTES];
        struct shape first = parsed(texts[i]);
        shape_describe(&first, text);
        struct shape again = parsed(text);
        cr_expect(memcmp(&first, &again, sizeof first) == 0, "%s became %s", texts[i], text);
    }
}

Test(bench_shape, a_refusal_names_the_key)
{
    static const struct {
        const char *text;
        const char *because;
    } refused[] = {
        {"sq=1,size=4", "'size'"},
        {"sq=0", "sq cannot be '0'"},
        {"sq", "sq needs a value"},
        {"sq=1,alibi=2", "alibi takes no value"},
        {"sq=1,window=3", "window cannot be '3'"},
        {"sq=1,window=3:4:5", "window cannot be"},
        {"sq=1,window=-1:0", "window cannot be"},
        {"sq=1,align=center", "align cannot be 'center'"},
        {"sq=1,bias=bxhxq", "bias cannot be"},
        {"sq=1,bias=hxbxqxk", "bias cannot be"},
        {"sq=1,bias=bxhxqxkx1", "bias cannot be"},
        {"sq=1,bias_dtype=fp32", "bias_dtype needs bias"},
        {"sq=1,softcap=-1", "softcap cannot be"},
        {"sq=1,dropout=1", "dropout cannot be '1'"},
        {"varlen=1:2,b=2", "varlen stands instead of"},
        {"varlen=1:x", "varlen cannot be"},
        {"varlen=1:2,varlen_k=3", "varlen_k has 1"},
        {"sq=1,varlen_k=3", "varlen_k needs varlen"},
        {"b=2,sq=4,short_k=1:2:3", "short_k has 3"},
        {"", "needs sq"},
    };

    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct shape shape;
        char message[SHAPE_TEXT_BYTES] = "";
        cr_expect_not(
            shape_parse(&shape, refused[i].text, message), "%s was taken", refused[i].text);
        cr_expect_not_null(strstr(message, refused[i].because), "%s: %s", refused[i].text, message);
    }
}

Test(bench_shape, varlen_gives_batch_and_longest_lengths)
{
    struct shape shape = parsed("varlen=3:0:9,varlen_k=4:5:6,short_k=9:2:9");
    cr_expect_eq(shape.batch, 3);
    cr_expect_eq(shape.seqlen_q, 9);
    cr_expect_eq(shape.seqlen_k, 6);
    cr_expect_eq(shape_rows_q(&shape, 2), 9);
    cr_expect_eq(shape_rows_k(&shape, 0), 4);
    cr_expect_eq(shape_rows_k(&shape, 1), 2);
    cr_expect_eq(shape_start_q(&shape, 2), 3);
    cr_expect_eq(shape_start_k(&shape, 2), 9);
}

Test(bench_shape, flops_count_what_is_visible)
{
    struct shape full = parsed("b=2,hq=3,sq=10,sk=20,d=8,dv=4,dtype=bf16");
    struct shape causal = parsed("sq=10,d=8,causal");
    struct shape packed = parsed("varlen=10:3,varlen_k=20:5,d=8,dv=4");
    cr_expect_eq(shape_flops(&full, ATTN_FORWARD), 2 * 3 * 10 * 20 * 2 * (8 + 4));
    cr_expect_eq(shape_flops(&full, ATTN_BACKWARD), 2 * 3 * 10 * 20 * 5 * (8 + 4));
    cr_expect_eq(shape_flops(&causal, ATTN_FORWARD), 55 * 4 * 8);
    cr_expect_eq(shape_flops(&packed, ATTN_FORWARD), (10 * 20 + 3 * 5) * 2 * (8 + 4));
    cr_expect_eq(shape_score_bytes(&full), 2 * 3 * 10 * 20 * 2);
}

Test(bench_shape, the_protocol_keeps_tokens_and_hidden_size)
{
    struct shape shape;
    int count = 0;
    for (; shape_protocol(&shape, 16384, count); count++) {
        cr_expect_eq(shape.batch * shape.seqlen_q, 16384);
        cr_expect_eq(shape.heads_q * shape.head_dim_qk, 2048);
        double full = 4.0 * 16384 * 2048 * (double)shape.seqlen_q;
        bool causal = shape.window_right == 0;
        cr_expect_eq(shape_flops(&shape, ATTN_FORWARD), causal ? full / 2 : full);
        cr_expect_eq(shape_flops(&shape, ATTN_BACKWARD), causal ? full * 1.25 : full * 2.5);
    }
    cr_expect_eq(count, 6 * 3 * 2, "six lengths, three head dims, full and causal");
    cr_expect_not(shape_protocol(&shape, 512, 6), "one length fits into 512 tokens");
}
