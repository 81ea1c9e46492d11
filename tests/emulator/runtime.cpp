#include "cuda_runtime_api.h"

#include <map>
#include <mutex>

#include "machine.h"

namespace {
const size_t usual_shared_bytes = size_t{48} << 10;
const size_t most_shared_bytes = size_t{163} << 10;
const unsigned most_threads = 1024;

std::mutex lock;
std::map<const void *, size_t> shared_limits; /* by kernel, if not the usual */
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t conclude(cudaError_t error)
{
    last_error = error != cudaSuccess ? error : last_error;
    return error;
}

size_t shared_limit(const void *kernel)
{
    const std::lock_guard<std::mutex> guard(lock);
    auto found = shared_limits.find(kernel);

    return found != shared_limits.end() ? found->second : usual_shared_bytes;
}

bool is_line(dim3 dimensions)
{
    return dimensions.x > 0 && dimensions.y == 1 && dimensions.z == 1;
}
} // namespace

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
    size_t shared_bytes, cudaStream_t stream)
{
    (void)stream;
    if (!is_line(grid) || !is_line(block) || block.x > most_threads || block.x % 32 != 0) {
        return conclude(cudaErrorInvalidConfiguration);
    }
    if (shared_bytes > shared_limit(kernel)) {
        return conclude(cudaErrorInvalidValue);
    }
    machine_launch(reinterpret_cast<machine_kernel>(const_cast<void *>(kernel)), grid.x, block.x,
        shared_bytes, static_cast<const struct device_group *>(arguments[0]));
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return cudaSuccess;
    }
    if (value < 0 || static_cast<size_t>(value) > most_shared_bytes) {
        return conclude(cudaErrorInvalidValue);
    }
    const std::lock_guard<std::mutex> guard(lock);
    shared_limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
    (void)kernel;
    *attributes = {};
    attributes->maxThreadsPerBlock = most_threads;
    return cudaSuccess;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;

    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    default:
        return "invalid argument";
    }
}
