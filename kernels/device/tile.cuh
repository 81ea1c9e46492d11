/*
 * Tiles of 16-bit elements in shared memory, for 16-byte copies and ldmatrix without bank conflicts.
 *
 * A tile has Rows rows of Width columns (a multiple of 32). It is kept in pages of 64 columns, or of
 * 32 where 64 does not divide Width; within a page rows follow each other and the 16-byte chunks of a
 * row are permuted by its number, so that eight rows of one chunk lie in different banks.
 */
#pragma once

#include <ptx/sm80.cuh>

#include "attn.h"

template <int Rows, int Width>
struct tile {
    static const int page_columns = Width % 64 == 0 ? 64 : 32;
    static const int chunks = page_columns / 8; /* of a page's row */
    static const int row_bytes = page_columns * 2;
    static const int page_bytes = Rows * row_bytes;
    static const int bytes = Rows * Width * 2;

    /* Byte offset of an element; column may be any, what is read there should begin a chunk. */
    PTX_FUNCTION uint32_t offset(int row, int column)
    {
        return (uint32_t)(row * row_bytes + column % 8 * 2 +
                          (row_twist(row) ^ column % page_columns / 8) * 16 +
                          column / page_columns * page_bytes);
    }

    PTX_FUNCTION int row_twist(int row)
    {
        return page_columns == 64 ? row & 7 : row >> 1 & 3;
    }

    /*
     * offset() in two steps, for many elements whose rows differ by a multiple of 8 and whose columns
     * by one of 16: lane() once, of the first one, with a row and column that only the lane knows; the
     * others are a constant exclusive or, and a constant, away. Tiles begin at multiples of 128.
     */
    PTX_FUNCTION uint32_t lane(uint32_t shared, int row, int half)
    {
        return shared + (uint32_t)(row * row_bytes + (row_twist(row) ^ half) * 16);
    }

    PTX_FUNCTION uint32_t from_lane(uint32_t lane, int rows, int columns)
    {
        return (lane ^ (uint32_t)(columns % page_columns * 2)) +
               (uint32_t)(rows * row_bytes + columns / page_columns * page_bytes);
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

PTX_FUNCTION struct tile_rows tile_rows_of(const struct attn_view &view, int64_t batch, int64_t row,
    int32_t head, int32_t rows, int32_t columns)
{
    struct tile_rows of;
    int64_t at = view.batch_stride * batch + view.row_stride * row + view.head_stride * head;
    of.first = (char *)view.data + at * 2;
    of.stride = view.row_stride;
    of.rows = rows;
    of.columns = columns;
    of.aligned = (((uintptr_t)of.first | (uintptr_t)of.stride * 2) & 15) == 0;
    return of;
}

/* The same rows without the first ones. */
PTX_FUNCTION struct tile_rows tile_rows_from(const struct tile_rows &rows, int32_t row)
{
    struct tile_rows from = rows;
    from.first += rows.stride * row * 2;
    from.rows -= row;
    return from;
}

/* How the Threads of a block share a tile's chunks: each has one chunk of a page's row, in every
 * `step`th row of all pages. */
template <int Rows, int Width, int Threads>
struct tile_share {
    typedef struct tile<Rows, Width> place;
    static const int step = Threads / place::chunks;
    static_assert(Rows % step == 0 && step % 8 == 0, "every thread copies as much");
};

/* What a thread copies of a tile that exists wholly. Made before a barrier, it lets copies begin right
 * behind that. */
struct tile_cursor {
    const char *at; /* its first chunk */
    int64_t stride; /* of rows, in elements */
    bool whole;     /* all of the tile exists, and begins where copies may */
};

template <int Rows, int Width, int Threads>
PTX_FUNCTION struct tile_cursor tile_cursor_of(const struct tile_rows &rows)
{
    typedef struct tile<Rows, Width> place;
    int row = (int)(ptx_thread() / place::chunks);
    int column = (int)(ptx_thread() % place::chunks) * 8;
    struct tile_cursor cursor;
    cursor.at = rows.first + (row * rows.stride + column) * 2;
    cursor.stride = rows.stride;
    cursor.whole = rows.aligned && rows.rows >= Rows && rows.columns == Width;
    return cursor;
}

/* Whole: every chunk exists; else `rows` and `columns` do, from the thread's first chunk on, but no row
 * of the tile before `begin`. */
template <int Rows, int Width, int Threads, bool Whole>
PTX_FUNCTION void tile_load_chunks(
    uint32_t shared, const struct tile_cursor &cursor, int begin, int rows, int columns)
{
    typedef struct tile<Rows, Width> place;
    static const int step = tile_share<Rows, Width, Threads>::step;
    int first = (int)(ptx_thread() / place::chunks);
    uint32_t to = shared + place::offset(first, (int)(ptx_thread() % place::chunks) * 8);
    const char *at = cursor.at;
#pragma unroll
    for (int i = 0; i < Rows / step; i++) {
#pragma unroll
        for (int page = 0; page < Width / place::page_columns; page++) {
            bool exists = i * step < rows && first + i * step >= begin;
            int left = exists ? columns - page * place::page_columns : 0;
            uint32_t bytes = left >= 8 ? 16U : left > 0 ? (uint32_t)left * 2 : 0U;
            /* Where nothing is read, the address may be any. */
            ptx_copy_16(to + (uint32_t)(page * place::page_bytes + i * step * place::row_bytes),
                at + page * place::page_columns * 2, Whole ? 16U : bytes);
        }
        at += cursor.stride * (step * 2);
    }
}

template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_load_elements(char *shared, const struct tile_rows &from, int begin)
{
    typedef struct tile<Rows, Width> place;
#pragma unroll 1
    for (int number = (int)ptx_thread(); number < Rows * Width / 2; number += Threads) {
        int row = number / (Width / 2);
        int column = number % (Width / 2) * 2;
        int left = row >= begin && row < from.rows ? from.columns - column : 0;
        const uint16_t *source =
            (const uint16_t *)(const void *)from.first + row * from.stride + column;
        uint32_t low = left > 0 ? source[0] : 0U;
        uint32_t high = left > 1 ? source[1] : 0U;
        *(uint32_t *)(void *)(shared + place::offset(row, column)) = high << 16 | low;
    }
}

/* Starts to copy a tile, of `all` from `row` on, of which the cursor is; what does not exist becomes 0,
 * and so do rows of the tile before `begin`. All Threads of the block. The copies that are not aligned
 * are complete after the block's next barrier, the others as ptx_copy_wait() says. */
template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_load(char *shared, const struct tile_cursor &cursor,
    const struct tile_rows &all, int32_t row, int begin = INT32_MIN)
{
    typedef struct tile<Rows, Width> place;
    if (cursor.whole && begin <= 0) {
        tile_load_chunks<Rows, Width, Threads, true>(ptx_shared_address(shared), cursor, 0, 0, 0);
    } else if (all.aligned) {
        tile_load_chunks<Rows, Width, Threads, false>(ptx_shared_address(shared), cursor, begin,
            all.rows - row - (int)(ptx_thread() / place::chunks),
            all.columns - (int)(ptx_thread() % place::chunks) * 8);
    } else {
        tile_load_elements<Rows, Width, Threads>(shared, tile_rows_from(all, row), begin);
    }
}

template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_load(char *shared, const struct tile_rows &from, int begin = INT32_MIN)
{
    tile_load<Rows, Width, Threads>(
        shared, tile_cursor_of<Rows, Width, Threads>(from), from, 0, begin);
}

template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_store_elements(const char *shared, const struct tile_rows &to)
{
    typedef struct tile<Rows, Width> place;
#pragma unroll 1
    for (int number = (int)ptx_thread(); number < Rows * Width; number += Threads) {
        int row = number / Width;
        int column = number % Width;
        if (row < to.rows && column < to.columns) {
            ((uint16_t *)to.first)[row * to.stride + column] =
                *(const uint16_t *)(shared + place::offset(row, column));
        }
    }
}

/* Copies a tile's existing elements to global memory, after a barrier behind its last write. */
template <int Rows, int Width, int Threads>
PTX_FUNCTION void tile_store(const char *shared, const struct tile_rows &to)
{
    typedef struct tile<Rows, Width> place;
    static const int step = tile_share<Rows, Width, Threads>::step;
    int row = (int)ptx_thread() / place::chunks;
    int column = (int)ptx_thread() % place::chunks * 8;
    if (!to.aligned || to.columns % 8 != 0) {
        tile_store_elements<Rows, Width, Threads>(shared, to);
        return;
    }
    const char *source = shared + place::offset(row, column);
    char *target = to.first + (row * to.stride + column) * 2;
#pragma unroll
    for (int i = 0; i < Rows / step; i++) {
#pragma unroll
        for (int page = 0; page < Width / place::page_columns; page++) {
            int at = column + page * place::page_columns;
            if (row + i * step < to.rows && at < to.columns) {
                ptx_store_16(target + page * place::page_columns * 2,
                    ptx_load_16(source + page * place::page_bytes + i * step * place::row_bytes));
            }
        }
        target += to.stride * (step * 2);
    }
}

/*
 * Operands of D = A B from tiles, 16 columns of the summed dimension at a time.
 *
 * A (m x k) from a tile whose rows are m, or whose rows are k (transposed). B (k x n) for 16 n's, words
 * 0 and 1 being the first eight's operand, from a tile whose rows are n, or whose rows are k
 * (transposed). m, n and k are multiples of 16.
 */
template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_a(uint32_t shared, int m, int k)
{
    typedef struct tile<Rows, Width> place;
    int lane = (int)ptx_thread() & 31;
    return ptx_load_matrices(place::from_lane(place::lane(shared, lane & 15, lane >> 4), m, k));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_a_transposed(uint32_t shared, int m, int k)
{
    typedef struct tile<Rows, Width> place;
    int lane = (int)ptx_thread() & 31;
    int row = (lane & 7) + (lane >> 4) * 8;
    return ptx_load_matrices_transposed(
        place::from_lane(place::lane(shared, row, lane >> 3 & 1), k, m));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_b(uint32_t shared, int n, int k)
{
    typedef struct tile<Rows, Width> place;
    int lane = (int)ptx_thread() & 31;
    int row = (lane & 7) + (lane >> 4) * 8;
    return ptx_load_matrices(place::from_lane(place::lane(shared, row, lane >> 3 & 1), n, k));
}

template <int Rows, int Width>
PTX_FUNCTION struct ptx_words4 tile_b_transposed(uint32_t shared, int n, int k)
{
    typedef struct tile<Rows, Width> place;
    int lane = (int)ptx_thread() & 31;
    return ptx_load_matrices_transposed(
        place::from_lane(place::lane(shared, lane & 15, lane >> 4), k, n));
}

/* Two neighbours of an accumulator, rounded, into a tile; column is even. */
PTX_FUNCTION void tile_put(char *element, uint32_t pair)
{
    *(uint32_t *)element = pair;
}
