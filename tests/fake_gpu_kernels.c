#include "fake_gpu_kernels.h"

struct attn_family {
    const char *name;
    enum attn_device device;
    int capability;
};

static const struct attn_family families[] = {
    {"processor", ATTN_DEVICE_CPU, 0},
    {"fake80", ATTN_DEVICE_CUDA, 80},
    {"fake90", ATTN_DEVICE_CUDA, 90},
};

struct fake_kernels fake_kernels = {.families = 3};

size_t attn_family_count(void)
{
    return (size_t)fake_kernels.families;
}

const struct attn_family *attn_family_at(size_t index)
{
    return &families[index];
}

const char *attn_family_name(const struct attn_family *family)
{
    return family->name;
}

enum attn_device attn_family_device(const struct attn_family *family)
{
    return family->device;
}

int attn_family_capability(const struct attn_family *family)
{
    return family->capability;
}

int attn_prepare(const struct attn_family *family)
{
    (void)family;
    fake_kernels.prepares++;
    return fake_kernels.prepare_code;
}

const char *attn_unsupported(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    (void)family;
    (void)direction;
    (void)problem;
    return fake_kernels.unsupported;
}

size_t attn_workspace_bytes(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    (void)family;
    (void)direction;
    (void)problem;
    return 64;
}

uint64_t attn_tile_count(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    (void)family;
    (void)direction;
    (void)problem;
    return 1;
}

int attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target)
{
    (void)family;
    (void)direction;
    (void)slices;
    fake_kernels.launches++;
    fake_kernels.slices = count;
    fake_kernels.stream = target->stream;
    return fake_kernels.launch_code;
}
