/* The device that is a GPU: cuBLAS for the products, a thread per row, column or element for the rest. */
#include "device.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <each.cuh>
#include <stdio.h>
#include <stdlib.h>

#include "part.h"

struct device_cuda {
    struct device device;
    cudaStream_t stream;
    cublasHandle_t blas;
    cudaEvent_t stamps[DEVICE_STAMPS];
    double *losses; /* of each row; the GPU's */
    double *copied; /* the same, the process's */
    size_t rows;    /* for which there is room in both */
};

static struct device_cuda *of(struct device *device)
{
    return (struct device_cuda *)device; /* the first member */
}

/* Keeps the first sentence: what fails later fails because of it. */
static bool check(struct device *device, cudaError_t error, const char *what)
{
    if (error != cudaSuccess && device->error[0] == '\0') {
        snprintf(device->error, sizeof(device->error), "%s: %s", what, cudaGetErrorString(error));
    }
    return device->error[0] == '\0';
}

static bool check_blas(struct device *device, cublasStatus_t status)
{
    if (status != CUBLAS_STATUS_SUCCESS && device->error[0] == '\0') {
        snprintf(device->error, sizeof(device->error), "cuBLAS: %s", cublasGetStatusString(status));
    }
    return device->error[0] == '\0';
}

static bool wait_for(struct device *device)
{
    return check(device, cudaStreamSynchronize(of(device)->stream), "the GPU");
}

static void on_close(struct device *device)
{
    struct device_cuda *cuda = of(device);
    if (cuda->stream != NULL) {
        cudaStreamSynchronize(cuda->stream);
    }
    for (size_t i = 0; i < DEVICE_STAMPS && cuda->stamps[i] != NULL; i++) {
        cudaEventDestroy(cuda->stamps[i]);
    }
    if (cuda->blas != NULL) {
        cublasDestroy(cuda->blas);
    }
    if (cuda->stream != NULL) {
        cudaStreamDestroy(cuda->stream);
    }
    cudaFree(cuda->losses);
    free(cuda->copied);
    free(cuda);
}

static void *on_allocate(struct device *device, size_t bytes)
{
    void *memory = NULL;
    bytes = bytes > 0 ? bytes : 1;
    if (!check(device, cudaMalloc(&memory, bytes), "no GPU memory") ||
        !check(device, cudaMemsetAsync(memory, 0, bytes, of(device)->stream), "clearing memory")) {
        return NULL;
    }
    return memory;
}

static void on_release(struct device *device, void *memory)
{
    if (memory != NULL) {
        check(device, cudaFree(memory), "freeing memory");
    }
}

static void on_upload(struct device *device, void *to, const void *from, size_t bytes)
{
    check(device, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(device)->stream),
        "copying to the GPU");
    wait_for(device);
}

static bool on_download(struct device *device, void *to, const void *from, size_t bytes)
{
    check(device, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(device)->stream),
        "copying from the GPU");
    return wait_for(device);
}

template <class Body>
static void run(struct device *device, size_t count, Body body)
{
    check(device, each(of(device)->stream, count, body), "starting a kernel");
}

static void on_zero(struct device *device, float *numbers, size_t count)
{
    check(device, cudaMemsetAsync(numbers, 0, count * sizeof(*numbers), of(device)->stream),
        "clearing memory");
}

static void on_add(struct device *device, float *sum, const float *other, size_t count)
{
    run(device, count, [=] __device__(size_t at) { sum[at] += other[at]; });
}

static void on_narrow(struct device *device, uint16_t *to, const float *from, size_t count)
{
    run(device, count, [=] __device__(size_t at) { to[at] = part_narrow(from[at]); });
}

static void on_widen(struct device *device, float *to, const uint16_t *from, size_t count)
{
    run(device, count, [=] __device__(size_t at) { to[at] = part_widen(from[at]); });
}

/* cuBLAS counts matrices by columns: to it our row-major arrays are their transposes. c (m, n), a and
 * b as they lie, in its words; c = a b + beta c. */
struct product {
    cublasOperation_t a_as;
    cublasOperation_t b_as;
    size_t m;
    size_t n;
    size_t k;
    const float *a;
    size_t a_line;
    const float *b;
    size_t b_line;
    float beta;
    float *c;
};

static void multiply(struct device *device, const struct product *p)
{
    const float alpha = 1.0F;
    check_blas(
        device, cublasSgemm(of(device)->blas, p->a_as, p->b_as, (int)p->m, (int)p->n, (int)p->k,
                    &alpha, p->a, (int)p->a_line, p->b, (int)p->b_line, &p->beta, p->c, (int)p->m));
}

static void on_linear_forward(struct device *device, const struct layer_linear *linear, float *y)
{
    const float *bias = linear->bias;
    size_t outputs = linear->outputs;
    if (bias != NULL) {
        run(device, linear->rows * outputs,
            [=] __device__(size_t at) { y[at] = bias[at % outputs]; });
    }
    struct product product = {CUBLAS_OP_T, CUBLAS_OP_N, outputs, linear->rows, linear->inputs,
        linear->weight, linear->inputs, linear->x, linear->inputs, bias != NULL ? 1.0F : 0.0F, y};
    multiply(device, &product);
}

static void on_linear_input(
    struct device *device, const struct layer_linear *linear, const float *dy, float *dx)
{
    struct product product = {CUBLAS_OP_N, CUBLAS_OP_N, linear->inputs, linear->rows,
        linear->outputs, linear->weight, linear->inputs, dy, linear->outputs, 0.0F, dx};
    multiply(device, &product);
}

static void on_linear_parameters(struct device *device, const struct layer_linear *linear,
    const float *dy, float *dweight, float *dbias)
{
    size_t rows = linear->rows;
    size_t outputs = linear->outputs;
    struct product product = {CUBLAS_OP_N, CUBLAS_OP_T, linear->inputs, outputs, rows, linear->x,
        linear->inputs, dy, outputs, 1.0F, dweight};
    multiply(device, &product);
    if (dbias != NULL) {
        run(device, outputs, [=] __device__(size_t column) {
            float sum = 0.0F;
            for (size_t row = 0; row < rows; row++) {
                sum += dy[row * outputs + column];
            }
            dbias[column] += sum;
        });
    }
}

static void on_norm_forward(struct device *device, const struct layer_norm *given, float *y)
{
    struct layer_norm norm = *given;
    run(device, norm.rows, [=] __device__(size_t row) { part_norm_forward(&norm, y, row); });
}

static void on_norm_backward(struct device *device, const struct layer_norm *given, const float *dy,
    float *dx, float *dgain, float *dbias)
{
    struct layer_norm norm = *given;
    run(device, norm.rows, [=] __device__(size_t row) { part_norm_input(&norm, dy, dx, row); });
    run(device, norm.channels,
        [=] __device__(size_t column) { part_norm_parameters(&norm, dy, dgain, dbias, column); });
}

static void on_gelu_forward(struct device *device, float *y, float *slope, size_t count)
{
    run(device, count, [=] __device__(size_t at) { part_gelu(y, slope, at); });
}

static void on_gelu_backward(struct device *device, float *dy, const float *slope, size_t count)
{
    run(device, count, [=] __device__(size_t at) { dy[at] *= slope[at]; });
}

static void on_embedding_forward(struct device *device, const struct layer_embedding *given,
    const float *token_table, const float *position_table, float *x)
{
    struct layer_embedding embedding = *given;
    run(device, embedding.rows, [=] __device__(size_t row) {
        part_embed(&embedding, token_table, position_table, x, row);
    });
}

static void on_embedding_backward(struct device *device, const struct layer_embedding *given,
    const float *dx, float *dtoken_table, float *dposition_table)
{
    struct layer_embedding embedding = *given;
    run(device, embedding.channels, [=] __device__(size_t column) {
        part_embed_tables(&embedding, dx, dtoken_table, dposition_table, column);
    });
}

static bool make_room(struct device *device, size_t rows)
{
    struct device_cuda *cuda = of(device);
    if (rows <= cuda->rows) {
        return true;
    }
    cudaFree(cuda->losses);
    free(cuda->copied);
    cuda->rows = 0;
    cuda->losses = (double *)on_allocate(device, rows * sizeof(double));
    cuda->copied = (double *)malloc(rows * sizeof(double));
    if (cuda->copied == NULL && device->error[0] == '\0') {
        snprintf(device->error, sizeof(device->error), "no memory for the losses");
    }
    cuda->rows = cuda->losses != NULL && cuda->copied != NULL ? rows : 0;
    return cuda->rows > 0;
}

static bool on_cross_entropy(struct device *device, float *logits, const uint8_t *targets,
    size_t rows, size_t classes, double *loss)
{
    struct device_cuda *cuda = of(device);
    if (!make_room(device, rows)) {
        return false;
    }
    double *losses = cuda->losses;
    run(device, rows, [=] __device__(size_t row) {
        losses[row] = part_cross_entropy(logits, targets, rows, classes, row);
    });
    if (!on_download(device, cuda->copied, losses, rows * sizeof(*losses))) {
        return false;
    }
    double total = 0.0;
    for (size_t row = 0; row < rows; row++) {
        total += cuda->copied[row];
    }
    *loss = total / (double)rows;
    return true;
}

static bool on_length(struct device *device, const float *numbers, size_t count, double *length)
{
    float result = 0.0F;
    bool good = check_blas(device, cublasSnrm2(of(device)->blas, (int)count, numbers, 1, &result));
    *length = (double)result;
    return good && wait_for(device);
}

static void on_adamw(struct device *device, const struct layer_adamw *given)
{
    struct layer_adamw adamw = *given;
    run(device, adamw.count, [=] __device__(size_t at) { part_adamw(&adamw, at); });
}

static void on_stamp(struct device *device, size_t stamp)
{
    check(device, cudaEventRecord(of(device)->stamps[stamp], of(device)->stream), "an event");
}

static double on_between_us(struct device *device, size_t from, size_t to)
{
    const struct device_cuda *cuda = of(device);
    float ms = 0.0F;
    if (check(device, cudaEventSynchronize(cuda->stamps[to]), "an event")) {
        check(device, cudaEventElapsedTime(&ms, cuda->stamps[from], cuda->stamps[to]), "an event");
    }
    return (double)ms * 1e3;
}

static const struct device_ops OPS = {on_close, on_allocate, on_release, on_upload, on_download,
    on_zero, on_add, on_narrow, on_widen, on_linear_forward, on_linear_input, on_linear_parameters,
    on_norm_forward, on_norm_backward, on_gelu_forward, on_gelu_backward, on_embedding_forward,
    on_embedding_backward, on_cross_entropy, on_length, on_adamw, on_stamp, on_between_us};

/* Products stay in float32 throughout, as the CPU's are: cuBLAS rounds nothing unless asked to. */
static bool open_parts(struct device_cuda *cuda)
{
    struct device *device = &cuda->device;
    bool good = check(device, cudaSetDevice(EACH_PLACE.device_id), "no GPU") &&
                check(device, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking),
                    "no stream") &&
                check_blas(device, cublasCreate(&cuda->blas)) &&
                check_blas(device, cublasSetStream(cuda->blas, cuda->stream));
    for (size_t i = 0; good && i < DEVICE_STAMPS; i++) {
        good = check(device, cudaEventCreate(&cuda->stamps[i]), "no event");
    }
    device->stream = cuda->stream;
    return good;
}

struct device *device_cuda_open(char error[DEVICE_ERROR_BYTES])
{
    struct device_cuda *cuda = (struct device_cuda *)calloc(1, sizeof(*cuda));
    if (cuda == NULL) {
        snprintf(error, DEVICE_ERROR_BYTES, "no memory for the device");
        return NULL;
    }
    cuda->device.ops = &OPS;
    cuda->device.place = EACH_PLACE;
    cuda->device.shares = true;
    if (!open_parts(cuda)) {
        snprintf(error, DEVICE_ERROR_BYTES, "%s", cuda->device.error);
        on_close(&cuda->device);
        return NULL;
    }
    return &cuda->device;
}
