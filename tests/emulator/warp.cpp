#include <math.h>
#include <string.h>

#include "machine.h"
#include "numbers.h"

namespace {
const int lanes = 32;

void shuffle(
    enum machine_operation operation, struct machine_part *const parts[lanes], uint32_t parameter)
{
    uint64_t values[lanes];

    for (int lane = 0; lane < lanes; lane++) {
        values[lane] = parts[lane]->value;
    }
    for (int lane = 0; lane < lanes; lane++) {
        int up = lane - static_cast<int>(parameter);
        int from = operation == MACHINE_SHUFFLE_XOR ? lane ^ static_cast<int>(parameter) : up;
        parts[lane]->value = values[from < 0 || from >= lanes ? lane : from];
    }
}

void vote(struct machine_part *const parts[lanes])
{
    uint64_t all = 1;

    for (int lane = 0; lane < lanes; lane++) {
        all &= parts[lane]->value;
    }
    for (int lane = 0; lane < lanes; lane++) {
        parts[lane]->value = all;
    }
}

/* Lane l gets elements 2 (l % 4) and the next of row l / 4, of column l / 4 if transposed. */
void load_matrices(struct machine_part *const parts[lanes], const char *shared, bool transposed)
{
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t rows[8][8];
        for (int row = 0; row < 8; row++) {
            memcpy(rows[row], shared + parts[8 * matrix + row]->parameter, sizeof rows[row]);
        }
        for (int lane = 0; lane < lanes; lane++) {
            int along = 2 * (lane % 4);
            int across = lane / 4;
            uint16_t low = transposed ? rows[along][across] : rows[across][along];
            uint16_t high = transposed ? rows[along + 1][across] : rows[across][along + 1];
            parts[lane]->words[matrix] = low | static_cast<uint32_t>(high) << 16;
        }
    }
}

float number(enum machine_operation operation, uint32_t word, int half)
{
    uint16_t bits = static_cast<uint16_t>(word >> 16 * half);

    return operation == MACHINE_MULTIPLY_FP16 ? float_of_fp16(bits) : float_of_bf16(bits);
}

struct matrices {
    float a[16][16];
    float b[16][8];
    float d[16][8];
};

void gather(
    enum machine_operation operation, struct machine_part *const parts[lanes], struct matrices *m)
{
    for (int lane = 0; lane < lanes; lane++) {
        const struct machine_part *part = parts[lane];
        int row = lane / 4;
        int column = 2 * (lane % 4);
        for (int half = 0; half < 2; half++) {
            m->a[row][column + half] = number(operation, part->words[0], half);
            m->a[row + 8][column + half] = number(operation, part->words[1], half);
            m->a[row][column + 8 + half] = number(operation, part->words[2], half);
            m->a[row + 8][column + 8 + half] = number(operation, part->words[3], half);
            m->b[column + half][row] = number(operation, part->b[0], half);
            m->b[column + 8 + half][row] = number(operation, part->b[1], half);
            m->d[row][column + half] = part->sums[half];
            m->d[row + 8][column + half] = part->sums[2 + half];
        }
    }
}

float toward_zero(double x)
{
    float nearest = static_cast<float>(x);
    bool beyond = isfinite(nearest) && fabs(static_cast<double>(nearest)) > fabs(x);

    return beyond ? float_of_bits(bits_of_float(nearest) - 1) : nearest;
}

/* As matrix units do: exact products, eight of which are added to a sum before that is cut. */
void multiply_eight(struct matrices *m, int row, int first)
{
    double sums[8];

    for (int j = 0; j < 8; j++) {
        sums[j] = static_cast<double>(m->d[row][j]);
    }
    for (int k = first; k < first + 8; k++) {
        for (int j = 0; j < 8; j++) {
            sums[j] += static_cast<double>(m->a[row][k]) * static_cast<double>(m->b[k][j]);
        }
    }
    for (int j = 0; j < 8; j++) {
        m->d[row][j] = toward_zero(sums[j]);
    }
}

void multiply(enum machine_operation operation, struct machine_part *const parts[lanes])
{
    struct matrices m;

    gather(operation, parts, &m);
    for (int i = 0; i < 16; i++) {
        multiply_eight(&m, i, 0);
        multiply_eight(&m, i, 8);
    }
    for (int lane = 0; lane < lanes; lane++) {
        for (int half = 0; half < 2; half++) {
            parts[lane]->sums[half] = m.d[lane / 4][2 * (lane % 4) + half];
            parts[lane]->sums[2 + half] = m.d[lane / 4 + 8][2 * (lane % 4) + half];
        }
    }
}
} // namespace

void warp_together(
    enum machine_operation operation, struct machine_part *const parts[lanes], const char *shared)
{
    switch (operation) {
    case MACHINE_SHUFFLE_XOR:
    case MACHINE_SHUFFLE_UP:
        shuffle(operation, parts, parts[0]->parameter);
        break;
    case MACHINE_ALL:
        vote(parts);
        break;
    case MACHINE_LOAD_MATRICES:
    case MACHINE_LOAD_TRANSPOSED:
        load_matrices(parts, shared, operation == MACHINE_LOAD_TRANSPOSED);
        break;
    case MACHINE_MULTIPLY_FP16:
    case MACHINE_MULTIPLY_BF16:
        multiply(operation, parts);
        break;
    default:
        break;
    }
}
