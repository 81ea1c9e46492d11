#include "choose.h"

bool choose_fits(const struct backend *backend, const struct attn_family *family)
{
    return (int)attn_family_device(family) == (int)backend->device_kind &&
           attn_family_capability(family) <= backend->facts.capability;
}

const struct attn_family *choose_family(struct backend *backend, enum attn_direction direction,
    const struct attn_problem *problem, const char **why)
{
    *why = "there is no kernel family for this device in this build";
    for (size_t i = 0; i < attn_family_count(); i++) {
        const struct attn_family *family = attn_family_at(i);
        if (!choose_fits(backend, family)) {
            continue;
        }
        *why = attn_unsupported(family, direction, problem);
        if (*why == NULL) {
            return family;
        }
    }
    return NULL;
}
