#include "fake_backend.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "job.h"

static const char family_tags[4];

static struct fake_backend *fake_of(struct backend *backend)
{
    return (struct fake_backend *)(void *)backend;
}

static const char *judge_slice(const struct fake_backend *fake, const struct group *group, size_t i)
{
    const struct attn_slice *slice = &group->slice[i];
    const struct job *job = group->job[i];
    const unsigned char *begin = fake->backend.workspace;
    const unsigned char *at = slice->workspace;
    if (job->direction != group->direction || job->family != group->family ||
        job->group_key != group->key) {
        return "a group mixes keys";
    }
    if (slice->problem != &job->problem) {
        return "a slice is not of its job";
    }
    if (job->error.status != WIRE_OK) {
        return "a job with an error runs";
    }
    if (slice->begin != job->next_tile || slice->end <= slice->begin || slice->end > job->tiles) {
        return "a slice does not follow the one before";
    }
    if (job->workspace_bytes > 0 &&
        (at < begin || at + job->workspace_bytes > begin + fake->backend.workspace_bytes)) {
        return "a workspace lies outside the backend's";
    }
    return NULL;
}

static const char *judge_pair(const struct job *a, const struct job *b, bool one_group)
{
    const unsigned char *at = a->workspace;
    const unsigned char *other = b->workspace;
    if (a == b) {
        return "a job runs twice at a time";
    }
    if (a->session == b->session && a->lane == b->lane &&
        (!one_group || a->array_first != b->array_first)) {
        return "jobs of a lane run together that must not";
    }
    if (a->workspace_bytes > 0 && b->workspace_bytes > 0 && at < other + b->workspace_bytes &&
        other < at + a->workspace_bytes) {
        return "workspaces overlap";
    }
    return NULL;
}

static const char *judge_against(const struct group *group, const struct group *other)
{
    for (size_t i = 0; i < group->members; i++) {
        for (size_t j = 0; j < (group == other ? i : other->members); j++) {
            const char *fault = judge_pair(group->job[i], other->job[j], group == other);
            if (fault != NULL) {
                return fault;
            }
        }
    }
    return NULL;
}

static const char *judge_marks(const struct group *group)
{
    for (size_t i = 0; i < group->marks; i++) {
        for (size_t j = 0; j < i; j++) {
            if (group->mark[i].word == group->mark[j].word) {
                return "a word is marked twice";
            }
        }
    }
    return group->marks > group->members ? "a group marks more lanes than it has members" : NULL;
}

static const char *judge(const struct fake_backend *fake, const struct group *group)
{
    const char *fault = judge_against(group, group);
    if (group->members == 0 || group->members > GROUP_MAX_MEMBERS) {
        return "a group has no members or too many";
    }
    if (fake->runs + fake->ends >= fake->backend.max_groups) {
        return "too many groups run";
    }
    for (size_t i = 0; i < group->members && fault == NULL; i++) {
        fault = judge_slice(fake, group, i);
    }
    for (size_t i = 0; i < fake->runs && fault == NULL; i++) {
        fault = judge_against(group, fake->running[i]);
    }
    return fault != NULL ? fault : judge_marks(group);
}

static void end(struct fake_backend *fake, struct group *group, enum wire_status status)
{
    for (size_t i = 0; status == WIRE_OK && i < group->marks; i++) {
        atomic_store((_Atomic uint32_t *)group->mark[i].word, group->mark[i].value);
    }
    fake->ended[fake->ends] = group;
    fake->ended_status[fake->ends++] = status;
}

static enum wire_status submit(struct backend *backend, struct group *group)
{
    struct fake_backend *fake = fake_of(backend);
    pthread_mutex_lock(&fake->lock);
    enum wire_status status = fake->refuse;
    const char *fault = judge(fake, group);
    if (fake->fault == NULL) {
        fake->fault = fault;
    }
    if (status == WIRE_OK && fake->at_once) {
        fake->submitted++;
        end(fake, group, WIRE_OK);
    } else if (status == WIRE_OK) {
        fake->submitted++;
        fake->running[fake->runs++] = group;
    }
    pthread_mutex_unlock(&fake->lock);
    return status;
}

static struct group *poll_ended(struct backend *backend, enum wire_status *status)
{
    struct fake_backend *fake = fake_of(backend);
    struct group *group = NULL;
    pthread_mutex_lock(&fake->lock);
    if (fake->ends > 0 && !fake->holds_ends) {
        group = fake->ended[--fake->ends];
        *status = fake->ended_status[fake->ends];
    }
    pthread_mutex_unlock(&fake->lock);
    return group;
}

static void look(struct backend *backend)
{
    struct fake_backend *fake = fake_of(backend);
    pthread_mutex_lock(&fake->lock);
    if (fake->runs + fake->ends > 0) {
        fake->fault = "looked at while groups run";
    }
    fake->looks++;
    pthread_mutex_unlock(&fake->lock);
}

static const struct backend_ops fake_ops = {.submit = submit, .poll = poll_ended, .look = look};

const struct attn_family *fake_family(unsigned number)
{
    return (const struct attn_family *)(const void *)&family_tags[number];
}

void fake_backend_init(struct fake_backend *fake, unsigned max_groups, uint64_t workspace_bytes)
{
    *fake = (struct fake_backend){
        .backend =
            {
                .ops = &fake_ops,
                .device_kind = WIRE_DEVICE_CPU,
                .max_groups = max_groups,
                .flops_per_second = 1e9,
                .workspace_bytes = workspace_bytes,
            },
    };
    fake->backend.workspace = aligned_alloc(256, (workspace_bytes / 256 + 1) * 256);
    pthread_mutex_init(&fake->lock, NULL);
}

void fake_backend_finish(struct fake_backend *fake)
{
    pthread_mutex_destroy(&fake->lock);
    free(fake->backend.workspace);
}

size_t fake_backend_running(struct fake_backend *fake)
{
    pthread_mutex_lock(&fake->lock);
    size_t runs = fake->runs;
    pthread_mutex_unlock(&fake->lock);
    return runs;
}

struct group *fake_backend_group(struct fake_backend *fake, size_t index)
{
    pthread_mutex_lock(&fake->lock);
    struct group *group = index < fake->runs ? fake->running[index] : NULL;
    pthread_mutex_unlock(&fake->lock);
    return group;
}

void fake_backend_complete(struct fake_backend *fake, size_t index, enum wire_status status)
{
    pthread_mutex_lock(&fake->lock);
    struct group *group = fake->running[index];
    fake->runs--;
    for (size_t i = index; i < fake->runs; i++) {
        fake->running[i] = fake->running[i + 1];
    }
    end(fake, group, status);
    pthread_mutex_unlock(&fake->lock);
}

unsigned fake_backend_looks(struct fake_backend *fake)
{
    pthread_mutex_lock(&fake->lock);
    unsigned looks = fake->looks;
    pthread_mutex_unlock(&fake->lock);
    return looks;
}

const char *fake_backend_fault(struct fake_backend *fake)
{
    pthread_mutex_lock(&fake->lock);
    const char *fault = fake->fault;
    pthread_mutex_unlock(&fake->lock);
    return fault;
}
