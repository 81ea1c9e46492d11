/*
 * The kernels of one head dim tile, for the table of their file.
 */
#pragma once

#include "backward.h"

#include "backward_columns.cuh"
#include "backward_dbias.cuh"
#include "backward_rows.cuh"

// clang-format off
#define BACKWARD_COLUMNS(width, kind, bf16, sums)                                                  \
    {(const void *)backward_columns<width, kind, bf16, sums>,                                      \
     columns_shape<width, kind, sums>::threads, columns_shape<width, kind, sums>::bytes,           \
     columns_shape<width, kind, sums>::queries, columns_shape<width, kind, sums>::keys}

#define BACKWARD_ROWS_KERNEL(width, kind, bf16)                                                    \
    {(const void *)backward_rows_own<width, kind, bf16>, rows_shape<width>::threads,               \
     rows_shape<width>::bytes, rows_shape<width>::queries, rows_shape<width>::keys}

#define BACKWARD_DBIAS(width, kind, bf16)                                                          \
    {(const void *)backward_dbias_own<width, kind, bf16>, dbias_shape<width>::threads,             \
     dbias_shape<width>::bytes, dbias_shape<width>::queries, dbias_shape<width>::keys}

#define BACKWARD_KERNELS(width)                                                                    \
    {{{{BACKWARD_COLUMNS(width, SCORE_PLAIN, false, false),                                        \
        BACKWARD_COLUMNS(width, SCORE_BIAS, false, false),                                         \
        BACKWARD_COLUMNS(width, SCORE_GENERAL, false, false)},                                     \
       {BACKWARD_COLUMNS(width, SCORE_PLAIN, true, false),                                         \
        BACKWARD_COLUMNS(width, SCORE_BIAS, true, false),                                          \
        BACKWARD_COLUMNS(width, SCORE_GENERAL, true, false)}}},                                    \
     {{BACKWARD_COLUMNS(width, SCORE_BIAS, false, true),                                           \
       BACKWARD_COLUMNS(width, SCORE_GENERAL, false, true)},                                       \
      {BACKWARD_COLUMNS(width, SCORE_BIAS, true, true),                                            \
       BACKWARD_COLUMNS(width, SCORE_GENERAL, true, true)}},                                       \
     {{BACKWARD_ROWS_KERNEL(width, SCORE_PLAIN, false),                                            \
       BACKWARD_ROWS_KERNEL(width, SCORE_GENERAL, false)},                                         \
      {BACKWARD_ROWS_KERNEL(width, SCORE_PLAIN, true),                                             \
       BACKWARD_ROWS_KERNEL(width, SCORE_GENERAL, true)}},                                         \
     {{BACKWARD_DBIAS(width, SCORE_BIAS, false), BACKWARD_DBIAS(width, SCORE_GENERAL, false)},     \
      {BACKWARD_DBIAS(width, SCORE_BIAS, true), BACKWARD_DBIAS(width, SCORE_GENERAL, true)}}}
// clang-format on
