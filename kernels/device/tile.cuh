/*
 * Tiles of 16-bit elements in shared memory, for 16-byte copies and ldmatrix without bank conflicts.
 *
 * A tile has Rows rows of Width columns (a multiple of 32). It is kept in pages of 64 columns, or of
 * 32 where 64 does not divide Width; within a page rows follow each other and the 16-byte chunks of a
 * row are permuted by its number, so that eight rows of one chunk lie in different banks.
 */
#pragma once

#include <ptx/sm80.cuh>

template <int Rows, int Width>
struct tile {
    static const int page_columns = Width % 64 == 0 ? 64 : 32;
    static const int chunks = page_columns / 8; /* of a page's row */
    static const int bytes = Rows * Width * 2;

    /* Byte offset of an element; column may be any, what is read there should begin a chunk. */
    PTX_FUNCTION uint32_t offset(int row, int column)
    {
        int page = column / page_columns;
        int chunk = column % page_columns / 8;
        int twist = page_columns == 64 ? row & 7 : row >> 1 & 3;
        return (uint32_t)((page * Rows + row) * page_columns * 2 + (chunk ^ twist) * 16 +
                          column % 8 * 2);
    }
};

/* A tensor's rows as a tile sees them: row 0, and how far rows lie apart, in elements. */
struct tile_rows {
    char *first;
    int64_t stride;
    int rows;     /* that exist, from the tile's first on; may be 0 or less */
    int columns;  /* that exist: the head dim */
    bool aligned; /* all rows begin at multiples of 16 bytes */
};

/* Starts to copy a tile; what does not exist becomes 0. All Threads of the block. The copies that are
 * not aligned are complete after the block's next barrier, the others as ptx_copy_wait() says. */
template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_load(char *shared, const struct tile_rows &from)
{
    typedef struct tile<Rows, Width> place;
    static const int steps = Rows * (Width / 8) / Threads;
    static_assert(Rows * (Width / 8) % Threads == 0, "every thread copies as much");
    uint32_t base = ptx_shared_address(shared);
#pragma unroll
    for (int step = 0; step < steps; step++) {
        int number = step * Threads + (int)ptx_thread();
        int chunk = number % place::chunks;
        int row = number / place::chunks % Rows;
        int column = (number / place::chunks / Rows * place::chunks + chunk) * 8;
        int left = row < from.rows ? from.columns - column : 0;
        const char *source = from.first + (left > 0 ? (row * from.stride + column) * 2 : 0);
        if (from.aligned) {
            uint32_t bytes = left >= 8 ? 16U : left > 0 ? (uint32_t)left * 2 : 0U;
            ptx_copy_16(base + place::offset(row, column), source, bytes);
            continue;
        }
        uint16_t *to = (uint16_t *)(shared + place::offset(row, column));
        const uint16_t *elements = (const uint16_t *)source;
        for (int i = 0; i < 8; i++) {
            to[i] = i < left ? elements[i] : (uint16_t)0;
        }
    }
}

/* Copies a tile's existing elements to global memory, after a barrier behind its last write. */
template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_store(const char *shared, const struct tile_rows &to)
{
    typedef struct tile<Rows, Width> place;
    static const int steps = Rows * (Width / 8) / Threads;
    static_assert(Rows * (Width / 8) % Threads == 0, "every thread copies as much");
#pragma unroll
    for (int step = 0; step < steps; step++) {
        int number = step * Threads + (int)ptx_thread();
        int chunk = number % place::chunks;
        int row = number / place::chunks % Rows;
        int column = (number / place::chunks / Rows * place::chunks + chunk) * 8;
        int left = row < to.rows ? to.columns - column : 0;
        if (left <= 0) {
            continue;
        }
        const char *source = shared + place::offset(row, column);
        char *target = to.first + (row * to.stride + column) * 2;
        if (to.aligned && left >= 8) {
            ptx_store_16(target, ptx_load_16(source));
            continue;
        }
        for (int i = 0; i < 8 && i < left; i++) {
            ((uint16_t *)target)[i] = ((const uint16_t *)source)[i];
        }
    }
}

/*
 * Operands of D = A B from tiles, 16 columns of the summed dimension at a time.
 *
 * A (m x k) from a tile whose rows are m, or whose rows are k (transposed). B (k x n) for 16 n's, words
 * 0 and 1 being the first eight's operand, from a tile whose rows are n, or whose rows are k
 * (transposed).
 */
template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_a(uint32_t shared, int m, int k)
{
    int lane = (int)ptx_thread() & 31;
    return ptx_load_matrices(
        shared + tile<Rows, Width>::offset(m + (lane & 15), k + (lane >> 4) * 8));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_a_transposed(uint32_t shared, int m, int k)
{
    int lane = (int)ptx_thread() & 31;
    int row = k + (lane & 7) + (lane >> 4) * 8;
    return ptx_load_matrices_transposed(
        shared + tile<Rows, Width>::offset(row, m + (lane >> 3 & 1) * 8));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_b(uint32_t shared, int n, int k)
{
    int lane = (int)ptx_thread() & 31;
    int row = n + (lane & 7) + (lane >> 4) * 8;
    return ptx_load_matrices(shared + tile<Rows, Width>::offset(row, k + (lane >> 3 & 1) * 8));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_b_transposed(uint32_t shared, int n, int k)
{
    int lane = (int)ptx_thread() & 31;
    return ptx_load_matrices_transposed(
        shared + tile<Rows, Width>::offset(k + (lane & 15), n + (lane >> 4) * 8));
}

/* Two neighbours of an accumulator, rounded, into a tile; column is even. */
PTX_FUNCTION void tile_put(char *element, uint32_t pair)
{
    *(uint32_t *)element = pair;
}
