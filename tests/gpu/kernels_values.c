/* What is held against the float64 reference: edges of tiles and extreme scores. */
#include <stdio.h>

#include "draw.h"
#include "kernels.h"

#define ARENA_BYTES ((size_t)256 << 20)
#define WORKSPACE_BYTES ((size_t)128 << 20)
#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

static const int32_t head_dims[][2] = {
    {32, 32}, {64, 64}, {96, 96}, {128, 128}, {192, 128}, {256, 256}, {40, 40}, {80, 80}, {59, 33}};

static void judge_spec(
    struct kernels *kernels, struct twin *twin, const struct trial_spec *spec, bool strict)
{
    struct trial trial;
    struct verdict verdict = {0};
    const struct judge_run run = {.family = kernels->family,
        .direction = ATTN_BACKWARD,
        .lse = true,
        .workers = 1,
        .twin = twin,
        .strict = strict};
    if (!kernels_begin(kernels)) {
        return;
    }
    if (twin != NULL) {
        twin->arena.used = 0;
    }
    trial_init_in(&trial, spec, twin != NULL ? &twin->arena : NULL);
    judge_trial(&verdict, &trial, &run);
    if (verdict.failed) {
        const struct draw draw = {.spec = *spec, .direction = ATTN_BACKWARD, .lse = true};
        draw_describe(&draw);
    }
    kernels_count(kernels, !verdict.failed, "the case above");
    kernels->worst = verdict.ratio > kernels->worst ? verdict.ratio : kernels->worst;
    trial_finish(&trial);
}

static struct trial_spec base_spec(uint64_t number, enum attn_dtype dtype, const int32_t dims[2])
{
    struct trial_spec spec = trial_spec_default();
    spec.seed = number;
    spec.dtype = dtype;
    spec.batch = 2;
    spec.heads_q = 2;
    spec.heads_kv = number % 2 == 0 ? 1 : 2;
    spec.head_dim_qk = dims[0];
    spec.head_dim_v = dims[1];
    spec.scale = 0.1F;
    spec.deterministic = number % 3 == 0;
    return spec;
}

/* One of several masks and ways to say lengths. */
static void vary(struct trial_spec *spec, uint64_t number)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        spec->layout[id] = TRIAL_PADDED; /* NaN between all rows and heads */
    }
    spec->aligned = number / 2 % 2 == 0; /* what kernels copy fast, if head dims allow */
    spec->layout[TENSOR_SINKS] = TRIAL_COMPACT;
    spec->alignment = number % 4 < 2 ? ATTN_BOTTOM_RIGHT : ATTN_TOP_LEFT;
    switch (number % 6) {
    case 0:
        spec->window_right = 0;
        break;
    case 1:
        spec->key_lengths = true;
        break;
    case 2:
        spec->varlen_q = true;
        spec->varlen_k = true;
        break;
    case 3:
        spec->window_left = 33;
        spec->window_right = 17;
        break;
    case 4:
        spec->varlen_k = true;
        spec->window_right = 0;
        break;
    default:
        break;
    }
    if (number % 5 == 0) {
        spec->bias = true;
        spec->bias_fp32 = number % 2 == 0;
        spec->bias_one[number % 4] = true;
        spec->dbias = true;
    }
}

void kernels_edges(struct kernels *kernels)
{
    static const int64_t lengths[] = {1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 193};
    struct twin *twin = twin_create(kernels->family, ARENA_BYTES, WORKSPACE_BYTES);
    uint64_t number = 0;
    for (size_t dim = 0; dim < COUNT_OF(head_dims); dim++) {
        for (size_t k = 0; k < COUNT_OF(lengths); k++) {
            for (enum attn_dtype dtype = ATTN_FP16; dtype <= ATTN_BF16; dtype++) {
                struct trial_spec spec = base_spec(++number, dtype, head_dims[dim]);
                spec.seqlen_k = lengths[k];
                spec.seqlen_q = lengths[(k * 5 + dim + (size_t)dtype) % COUNT_OF(lengths)];
                vary(&spec, number);
                judge_spec(kernels, twin, &spec, false);
            }
        }
    }
    twin_destroy(twin);
}

/*
 * Scores up to 2e5, of either sign, with everything that is added to them. They are far beyond what fp16
 * has and bf16 tells apart, so that the reference keeps them in fp32 as well.
 */
void kernels_logits(struct kernels *kernels)
{
    static const double sizes[] = {30, 300, 3000};
    struct twin *twin = twin_create(kernels->family, ARENA_BYTES, WORKSPACE_BYTES);
    uint64_t number = 0;
    for (size_t dim = 0; dim < COUNT_OF(head_dims); dim++) {
        for (size_t size = 0; size < COUNT_OF(sizes); size++) {
            for (int kind = 0; kind < 4; kind++) {
                enum attn_dtype dtype = number % 2 == 0 ? ATTN_FP16 : ATTN_BF16;
                struct trial_spec spec = base_spec(++number, dtype, head_dims[dim]);
                spec.seqlen_q = 70;
                spec.aligned = number / 2 % 2 == 0;
                spec.seqlen_k = 150;
                spec.query_size = sizes[size];
                spec.scale = kind == 1 ? -1 : 1;
                spec.softcap = kind == 2 ? 1000 : 0;
                spec.bias = kind == 3;
                spec.bias_size = 10000;
                spec.bias_infinities = TRIAL_WHOLE_ROWS;
                spec.sinks = kind >= 2;
                judge_spec(kernels, twin, &spec, true);
            }
        }
    }
    twin_destroy(twin);
}
