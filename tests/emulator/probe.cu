/*
 * Small kernels that show what the emulator does: right ones, whose results are checked, and one for
 * each kind of mistake, which ends the process or shows in what comes out.
 *
 *   emulator_probe NAME
 */
#include <ptx/sm80.cuh>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "emulator.h"

namespace {
const uint32_t threads = 64;
const int size = 16; /* of square matrices */

typedef void (*kernel_function)(struct device_group group);

/* What a kernel gets: numbers of 16 bits in, of 32 bits out. */
struct data {
    alignas(16) uint16_t a[size][size];
    alignas(16) uint16_t b[size][size];
    float one; /* which the compiler does not know */
    float out[size * size];
};

__device__ struct data *data_of(const struct device_group *group)
{
    return static_cast<struct data *>(static_cast<void *>(group->item[0].workspace));
}

/* -- right ones ----------------------------------------------------------------------------------- */

/* 32 bytes a row; lane l copies half a row. */
__device__ void copy_matrix(uint32_t shared, const uint16_t (*matrix)[size])
{
    uint32_t row = ptx_thread() % 32 / 2;
    uint32_t half = ptx_thread() % 2;

    ptx_copy_16(shared + 32 * row + 16 * half, &matrix[row][8 * half], 16);
    ptx_copy_commit();
}

/* out = a b, a column of eight by each warp. */
__global__ void multiply(const __grid_constant__ struct device_group group)
{
    struct data *data = data_of(&group);
    uint32_t shared = ptx_shared_address(ptx_shared_memory());
    uint32_t lane = ptx_thread() % 32;
    uint32_t warp = ptx_thread() / 32;
    float sums[4] = {};

    if (warp == 0) {
        copy_matrix(shared, data->a);
        copy_matrix(shared + 512, data->b);
        ptx_copy_wait<0>();
    }
    ptx_barrier();
    struct ptx_words4 a = ptx_load_matrices(shared + 32 * (lane % 16) + 16 * (lane / 16));
    struct ptx_words4 b =
        ptx_load_matrices_transposed(shared + 512 + 32 * (lane % 16) + 16 * (lane / 16));
    ptx_multiply_fp16(sums, a, b.word[2 * warp], b.word[2 * warp + 1]);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = lane / 4 + 8 * (i / 2);
        data->out[row * size + 8 * warp + 2 * (lane % 4) + i % 2] = sums[i];
    }
}

/* out[thread] = the sum of the numbers of its warp's threads, and those before it. */
__global__ void sum(const __grid_constant__ struct device_group group)
{
    struct data *data = data_of(&group);
    float value = static_cast<float>(ptx_thread());
    int64_t before = ptx_thread();

    for (uint32_t mask = 1; mask < 32; mask *= 2) {
        value += ptx_shuffle_xor(value, mask);
        int64_t other = ptx_shuffle_up(before, mask);
        before += ptx_thread() % 32 >= mask ? other : 0;
    }
    data->out[ptx_thread()] = value;
    data->out[threads + ptx_thread()] = static_cast<float>(before);
}

/* One thread of the second warp is against it. */
__global__ void vote(const __grid_constant__ struct device_group group)
{
    data_of(&group)->out[ptx_thread()] = ptx_all(ptx_thread() != 40) ? 1.0F : 0.0F;
}

/* Every thread's number, by way of shared memory. */
__device__ void turn_around(const struct device_group *group, bool barrier)
{
    volatile float *shared = static_cast<float *>(static_cast<void *>(ptx_shared_memory()));

    shared[ptx_thread()] = static_cast<float>(ptx_thread());
    if (barrier) {
        ptx_barrier();
    }
    data_of(group)->out[ptx_thread()] = shared[threads - 1 - ptx_thread()];
}

__global__ void reverse(const __grid_constant__ struct device_group group)
{
    turn_around(&group, true);
}

/* Two copies under way, of which the older one is there with `pending` left. Every thread reads what
 * another has copied. */
template <int Pending>
__device__ void copy_two(const struct device_group *group, bool second, bool barrier)
{
    struct data *data = data_of(group);
    char *shared = ptx_shared_memory();
    uint32_t at = ptx_shared_address(shared) + 16 * (ptx_thread() % 32);
    const uint16_t *from = &data->a[ptx_thread() % 32 / 2][ptx_thread() % 2 * 8];

    if (ptx_thread() < 32) {
        ptx_copy_16(at, from, 16);
    }
    ptx_copy_commit();
    if (ptx_thread() < 32) {
        ptx_copy_16(at + 512, from, 16);
    }
    ptx_copy_commit();
    ptx_copy_wait<Pending>();
    if (barrier) {
        ptx_barrier();
    }
    uint16_t number;
    memcpy(&number, shared + (second ? 512 : 0) + 2 * (threads - 1 - ptx_thread()), sizeof number);
    data->out[ptx_thread()] = ptx_float_of_fp16(number);
    ptx_copy_wait<0>();
}

__global__ void older_copy(const __grid_constant__ struct device_group group)
{
    copy_two<1>(&group, false, true);
}

/* What follows from fp32 as devices have it: one rounding for a product and the sum it is part of. */
__global__ void fuse(const __grid_constant__ struct device_group group)
{
    struct data *data = data_of(&group);
    float x = 1 + 0x1p-12F * static_cast<float>(ptx_thread());

    data->out[ptx_thread()] = x * x - data->one;
}

/* Items that a launch does not have are not those of the launch before it. */
__global__ void other_items(const __grid_constant__ struct device_group group)
{
    bool is_nothing = group.item[1].workspace == reinterpret_cast<char *>(UINTPTR_MAX);

    data_of(&group)->out[ptx_thread()] = is_nothing ? 1 : 0;
}

/* -- mistakes ------------------------------------------------------------------------------------- */

__global__ void newer_copy(const __grid_constant__ struct device_group group)
{
    copy_two<1>(&group, true, true);
}

__global__ void copy_without_barrier(const __grid_constant__ struct device_group group)
{
    copy_two<0>(&group, false, false);
}

/* Reads what others have written the second time: as much more. */
__global__ void overtaken(const __grid_constant__ struct device_group group)
{
    volatile float *shared = static_cast<float *>(static_cast<void *>(ptx_shared_memory()));
    float sum = 0;

    for (uint32_t round = 0; round < 2; round++) {
        shared[ptx_thread()] = static_cast<float>(ptx_thread() * (round == 0 ? 1 : 100));
        ptx_barrier();
        sum = round == 0 ? shared[threads - 1 - ptx_thread()] : sum;
    }
    data_of(&group)->out[ptx_thread()] = sum;
}

__global__ void no_barrier(const __grid_constant__ struct device_group group)
{
    turn_around(&group, false);
}

__device__ void copy_and_read(const struct device_group *group, bool commit, bool wait)
{
    struct data *data = data_of(group);

    if (ptx_thread() < 32) {
        uint32_t lane = ptx_thread();
        ptx_copy_16(ptx_shared_address(ptx_shared_memory()) + 16 * lane,
            &data->a[lane / 2][lane % 2 * 8], 16);
    }
    if (commit) {
        ptx_copy_commit();
    }
    if (wait) {
        ptx_copy_wait<0>();
    }
    ptx_barrier();
    uint16_t number;
    memcpy(&number, ptx_shared_memory() + 2 * ptx_thread(), sizeof number);
    data->out[ptx_thread()] = ptx_float_of_fp16(number);
    if (!wait) {
        ptx_copy_wait<0>();
    }
}

__global__ void no_wait(const __grid_constant__ struct device_group group)
{
    copy_and_read(&group, true, false);
}

__global__ void no_commit(const __grid_constant__ struct device_group group)
{
    copy_and_read(&group, false, true);
}

__global__ void beyond_shared(const __grid_constant__ struct device_group)
{
    volatile char *shared = ptx_shared_memory();

    shared[1024 + ptx_thread()] = 0;
}

__global__ void copy_beyond_shared(const __grid_constant__ struct device_group group)
{
    uint32_t shared = ptx_shared_address(ptx_shared_memory());

    ptx_copy_16(shared + 1024 - 16 * 32 + 16 * ptx_thread(), data_of(&group)->a, 16);
    ptx_copy_commit();
    ptx_copy_wait<0>();
}

__global__ void crooked_copy(const __grid_constant__ struct device_group group)
{
    uint32_t shared = ptx_shared_address(ptx_shared_memory());

    ptx_copy_16(shared + 16 * (ptx_thread() % 32), &data_of(&group)->a[1][ptx_thread() % 16], 16);
}

__global__ void crooked_load(const __grid_constant__ struct device_group)
{
    ptx_load_matrices(ptx_shared_address(ptx_shared_memory()) + 8 * (ptx_thread() % 32));
}

__global__ void divergent_shuffle(const __grid_constant__ struct device_group group)
{
    float value = 1;

    if (ptx_thread() != 5) {
        value = ptx_shuffle_xor(value, 1);
    }
    data_of(&group)->out[ptx_thread()] = value;
}

__global__ void different_shuffles(const __grid_constant__ struct device_group group)
{
    float value = 1;

    if (ptx_thread() % 2 == 0) {
        value = ptx_shuffle_xor(value, 2);
    } else {
        value = ptx_shuffle_xor(value, 2) + 1;
    }
    data_of(&group)->out[ptx_thread()] = value;
}

/* Nobody has set the first sum; at the end it is 0, as fresh memory would be. */
__global__ void unset_sum(const __grid_constant__ struct device_group group)
{
    volatile float sums[4];

    sums[ptx_thread() % 4] = sums[ptx_thread() % 4] + 1;
    data_of(&group)->out[ptx_thread()] = sums[ptx_thread() % 4];
    sums[ptx_thread() % 4] = 0;
}

__global__ void crooked_word(const __grid_constant__ struct device_group group)
{
    const uint16_t *number = &data_of(&group)->a[0][1];
    const void *word = number + 2 * ptx_thread();

    data_of(&group)->out[ptx_thread()] = ptx_float_of_bits(*static_cast<const uint32_t *>(word));
}

__global__ void half_a_barrier(const __grid_constant__ struct device_group)
{
    if (ptx_thread() < 32) {
        ptx_barrier();
    }
}

/* -- the program ---------------------------------------------------------------------------------- */

struct data fresh_data()
{
    struct data data;

    data.one = 1;
    for (int i = 0; i < size * size; i++) {
        data.a[i / size][i % size] = fp16_of_float(static_cast<float>(i % 7) - 3);
        data.b[i / size][i % size] = fp16_of_float(static_cast<float>(i % 11) * 0.25F);
        data.out[i] = NAN;
    }
    return data;
}

__global__ void nothing(const __grid_constant__ struct device_group)
{
}

/* After another launch, of two items. */
struct data launch(kernel_function kernel, uint32_t blocks)
{
    static struct device_group group;
    struct data data = fresh_data();
    void *arguments[] = {&group};

    group.items = 2;
    group.end[0] = 1;
    group.end[1] = 2;
    cudaLaunchKernel(reinterpret_cast<const void *>(nothing), 2, threads, arguments, 1024, nullptr);
    group.items = 1;
    group.end[0] = blocks;
    group.item[0].workspace = static_cast<char *>(static_cast<void *>(&data));
    cudaError_t error = cudaLaunchKernel(
        reinterpret_cast<const void *>(kernel), blocks, threads, arguments, 1024, nullptr);
    if (error != cudaSuccess) {
        printf("emulator_probe: %s\n", cudaGetErrorString(error));
        exit(1);
    }
    return data;
}

float product_at(const struct data *data, int i)
{
    float sum = 0;

    for (int k = 0; k < size; k++) {
        sum += float_of_fp16(data->a[i / size][k]) * float_of_fp16(data->b[k][i % size]);
    }
    return sum;
}

float sum_at(const struct data *, int i)
{
    int lane = i % 32;
    int first = i / 32 * 32 % static_cast<int>(threads);
    bool whole = i < static_cast<int>(threads);
    int last = whole ? first + 31 : first + lane;

    return static_cast<float>((first + last) * (last - first + 1) / 2);
}

float vote_at(const struct data *, int i)
{
    return i < 32 ? 1 : 0;
}

float fused_at(const struct data *, int i)
{
    float x = 1 + 0x1p-12F * static_cast<float>(i);

    return fmaf(x, x, -1);
}

float other_number_at(const struct data *data, int i)
{
    int other = static_cast<int>(threads) - 1 - i;

    return float_of_fp16(data->a[other / size][other % size]);
}

float one_at(const struct data *, int)
{
    return 1;
}

float reversed_at(const struct data *, int i)
{
    return static_cast<float>(static_cast<int>(threads) - 1 - i);
}

float number_at(const struct data *data, int i)
{
    return float_of_fp16(data->a[i / size][i % size]);
}

struct probe {
    const char *name;
    kernel_function kernel;
    float (*expected)(const struct data *data, int index); /* NULL: does not come so far */
    int count;
};

const struct probe probes[] = {
    {"multiply", multiply, product_at, size *size},
    {"sum", sum, sum_at, 2 * threads},
    {"vote", vote, vote_at, threads},
    {"reverse", reverse, reversed_at, threads},
    {"fuse", fuse, fused_at, threads},
    {"other_items", other_items, one_at, threads},
    {"older_copy", older_copy, other_number_at, threads},
    {"newer_copy", newer_copy, other_number_at, threads},
    {"copy_without_barrier", copy_without_barrier, other_number_at, threads},
    {"overtaken", overtaken, reversed_at, threads},
    {"no_barrier", no_barrier, reversed_at, threads},
    {"no_wait", no_wait, number_at, threads},
    {"no_commit", no_commit, number_at, threads},
    {"beyond_shared", beyond_shared, nullptr, 0},
    {"copy_beyond_shared", copy_beyond_shared, nullptr, 0},
    {"crooked_copy", crooked_copy, nullptr, 0},
    {"crooked_load", crooked_load, nullptr, 0},
    {"divergent_shuffle", divergent_shuffle, nullptr, 0},
    {"different_shuffles", different_shuffles, nullptr, 0},
    {"unset_sum", unset_sum, one_at, threads},
    {"crooked_word", crooked_word, nullptr, 0},
    {"half_a_barrier", half_a_barrier, nullptr, 0},
};

/* Whatever the order of threads. */
int run(const struct probe *probe)
{
    int wrong = 0;

    for (uint64_t seed = 1; seed <= 20; seed++) {
        emulator_seed(seed);
        struct data data = launch(probe->kernel, 3);
        for (int i = 0; i < probe->count; i++) {
            wrong += data.out[i] == probe->expected(&data, i) ? 0 : 1;
        }
    }
    printf("emulator_probe: %s, %d numbers are wrong\n", probe->name, wrong);
    return wrong == 0 && probe->expected != nullptr ? 0 : 1;
}
} // namespace

/* A mistake that is found has an exit status; signals would look like mistakes of the emulator. */
int main(int argc, char **argv)
{
    signal(SIGABRT, [](int) { _exit(3); });
    for (const struct probe &probe : probes) {
        if (argc == 2 && strcmp(argv[1], probe.name) == 0) {
            return run(&probe);
        }
    }
    fprintf(stderr, "usage: emulator_probe NAME\n");
    return 2;
}
