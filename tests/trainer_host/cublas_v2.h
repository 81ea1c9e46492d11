/* As much of cuBLAS as the trainer's device uses, by CBLAS: its matrices, too, lie column by column. */
#pragma once

#include <cblas.h>
#include <cuda_runtime.h>

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_INVALID_VALUE = 7,
};

enum cublasOperation_t {
    CUBLAS_OP_N = 0,
    CUBLAS_OP_T = 1,
};

struct fake_cublas {
    cudaStream_t stream;
};

typedef fake_cublas *cublasHandle_t;

static inline const char *cublasGetStatusString(cublasStatus_t)
{
    return "the fake of cuBLAS refuses";
}

static inline cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    *handle = new fake_cublas();
    openblas_set_num_threads(1);
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

static inline CBLAS_TRANSPOSE fake_transpose(cublasOperation_t operation)
{
    return operation == CUBLAS_OP_T ? CblasTrans : CblasNoTrans;
}

template <class Work>
static cublasStatus_t fake_product(cublasHandle_t handle, Work work)
{
    return fake_enqueue(handle->stream, work) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                             : CUBLAS_STATUS_INVALID_VALUE;
}

/* The factors are the process's numbers, read at once. */
static inline cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t a_as,
    cublasOperation_t b_as, int m, int n, int k, const float *alpha, const float *a, int a_line,
    const float *b, int b_line, const float *beta, float *c, int c_line)
{
    float of_product = *alpha;
    float of_c = *beta;
    return fake_product(handle, [=] {
        cblas_sgemm(CblasColMajor, fake_transpose(a_as), fake_transpose(b_as), m, n, k, of_product,
            a, a_line, b, b_line, of_c, c, c_line);
    });
}

/* The result is one of the process's numbers: there once it returns. */
static inline cublasStatus_t cublasSnrm2(
    cublasHandle_t handle, int count, const float *numbers, int step, float *result)
{
    cublasStatus_t status =
        fake_product(handle, [=] { *result = cblas_snrm2(count, numbers, step); });
    fake_cuda_synchronize(handle->stream);
    return status;
}
