#include "adamw.h"

#include <math.h>
#include <stdlib.h>

static const double BETA1 = 0.9;
static const double BETA2 = 0.99; /* short runs: 0.999 would remember the first steps too long */

bool adamw_init(struct adamw *adamw, size_t count)
{
    *adamw = (struct adamw){.count = count, .mean_weight = 1.0, .squares_weight = 1.0};
    adamw->mean = calloc(count, sizeof(*adamw->mean));
    adamw->squares = calloc(count, sizeof(*adamw->squares));
    if (adamw->mean == NULL || adamw->squares == NULL) {
        adamw_finish(adamw);
        return false;
    }
    return true;
}

void adamw_finish(struct adamw *adamw)
{
    free(adamw->mean);
    free(adamw->squares);
    *adamw = (struct adamw){0};
}

struct adamw_step adamw_begin(struct adamw *adamw, const float *gradient, float rate, float longest)
{
    double squares = 0.0;
    for (size_t i = 0; i < adamw->count; i++) {
        squares += (double)gradient[i] * (double)gradient[i];
    }
    float length = (float)sqrt(squares);
    adamw->mean_weight *= BETA1;
    adamw->squares_weight *= BETA2;
    return (struct adamw_step){.rate = rate, .clip = length > longest ? longest / length : 1.0F};
}

void adamw_move(const struct adamw *adamw, const struct adamw_step *step,
    const struct adamw_piece *piece, const float *gradient, float *values)
{
    const float beta1 = (float)BETA1;
    const float beta2 = (float)BETA2;
    const float epsilon = 1e-8F;
    float mean_scale = (float)(1.0 / (1.0 - adamw->mean_weight));
    float squares_scale = (float)(1.0 / (1.0 - adamw->squares_weight));
    for (size_t i = piece->first; i < piece->first + piece->count; i++) {
        float g = gradient[i] * step->clip;
        float mean = beta1 * adamw->mean[i] + (1.0F - beta1) * g;
        float square = beta2 * adamw->squares[i] + (1.0F - beta2) * g * g;
        adamw->mean[i] = mean;
        adamw->squares[i] = square;
        float move = mean * mean_scale / (sqrtf(square * squares_scale) + epsilon);
        values[i] -= step->rate * (move + piece->decay * values[i]);
    }
}
