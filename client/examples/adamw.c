#include "adamw.h"

static const double BETA1 = 0.9;
static const double BETA2 = 0.99; /* short runs: 0.999 would remember the first steps too long */

bool adamw_init(struct adamw *adamw, struct device *device, size_t count)
{
    *adamw = (struct adamw){.device = device, .mean_weight = 1.0, .squares_weight = 1.0};
    adamw->mean = device->ops->allocate(device, count * sizeof(*adamw->mean));
    adamw->squares = device->ops->allocate(device, count * sizeof(*adamw->squares));
    return adamw->mean != NULL && adamw->squares != NULL;
}

void adamw_finish(struct adamw *adamw)
{
    if (adamw->device != NULL) {
        adamw->device->ops->release(adamw->device, adamw->mean);
        adamw->device->ops->release(adamw->device, adamw->squares);
    }
    *adamw = (struct adamw){0};
}

bool adamw_begin(struct adamw *adamw, const float *gradient, size_t count, float rate,
    float longest, struct adamw_step *step)
{
    double length;
    if (!adamw->device->ops->length(adamw->device, gradient, count, &length)) {
        return false;
    }
    adamw->mean_weight *= BETA1;
    adamw->squares_weight *= BETA2;
    float clip = length > (double)longest ? longest / (float)length : 1.0F;
    *step = (struct adamw_step){.rate = rate, .clip = clip};
    return true;
}

/* NOLINTBEGIN(readability-non-const-parameter): values are moved through the description */
void adamw_move(const struct adamw *adamw, const struct adamw_step *step,
    const struct adamw_piece *piece, const float *gradient, float *values)
{
    struct layer_adamw move = {
        .gradient = gradient + piece->first,
        .values = values + piece->first,
        .mean = adamw->mean + piece->first,
        .squares = adamw->squares + piece->first,
        .count = piece->count,
        .beta1 = (float)BETA1,
        .beta2 = (float)BETA2,
        .mean_scale = (float)(1.0 / (1.0 - adamw->mean_weight)),
        .squares_scale = (float)(1.0 / (1.0 - adamw->squares_weight)),
        .rate = step->rate,
        .clip = step->clip,
        .decay = piece->decay,
    };
    adamw->device->ops->adamw(adamw->device, &move);
}

/* NOLINTEND(readability-non-const-parameter) */
