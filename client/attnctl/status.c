#include "status.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

static const char *device_name(enum attnd_device device)
{
    switch (device) {
    case ATTND_DEVICE_CPU:
        return "cpu";
    case ATTND_DEVICE_CUDA:
        return "cuda";
    default:
        return "unknown";
    }
}

static const char *mps_name(enum attnd_mps mps)
{
    switch (mps) {
    case ATTND_MPS_ON:
        return "on";
    case ATTND_MPS_OFF:
        return "off";
    default:
        return "unknown";
    }
}

static void join_families(const struct attnd_info *info, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < info->families && used < bytes; i++) {
        used +=
            (size_t)snprintf(text + used, bytes - used, "%s%s", i > 0 ? ", " : "", info->family[i]);
    }
}

/* "512 B", "1.5 GiB" */
static const char *bytes_text(uint64_t bytes, char text[32])
{
    static const char *const UNITS[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double number = (double)bytes;
    size_t unit = 0;
    while (number >= 1024.0 && unit + 1 < sizeof UNITS / sizeof UNITS[0]) {
        number /= 1024.0;
        unit++;
    }
    (void)snprintf(text, 32, unit > 0 ? "%.1f %s" : "%.0f %s", number, UNITS[unit]);
    return text;
}

static void print_head(const struct facts_daemon *daemon)
{
    const struct attnd_info *info = &daemon->info;
    char families[ATTND_MAX_FAMILIES * 66];
    uint64_t seconds = daemon->stats.uptime_ns / UINT64_C(1000000000);
    join_families(info, families, sizeof families);
    printf("attnd %s in %s\n", info->daemon_version, daemon->directory);
    printf("  %-16s %u, up %" PRIu64 "d %02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 "\n", "pid",
        (unsigned)info->pid, seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    printf("  %-16s %s\n", "device", info->device_name);
    if (info->has_uuid) {
        char uuid[DOCTOR_UUID];
        doctor_print_uuid(info->device_uuid, uuid);
        printf("  %-16s %s\n", "uuid", uuid);
    }
    if (info->device == ATTND_DEVICE_CUDA) {
        printf("  %-16s %s\n", "driver", info->driver[0] != '\0' ? info->driver : "unknown");
        printf("  %-16s %s\n", "mps", mps_name(info->mps));
    }
    printf("  %-16s %s\n", "families", families);
}

static void print_counts(const struct facts_daemon *daemon)
{
    const struct attnd_info *info = &daemon->info;
    const struct attnd_counters *count = &daemon->stats.daemon;
    char size[32];
    printf("  %-16s %" PRIu64 " of %u, this one included\n", "clients", daemon->stats.clients,
        (unsigned)info->max_sessions);
    printf("  %-16s %" PRIu64 " ended, %" PRIu64 " of them failed, %" PRIu64 " in flight\n",
        "requests", count->requests, count->failed, count->in_flight);
    printf("  %-16s %" PRIu64, "groups", count->groups);
    if (count->groups > 0) {
        printf(", of %.2f requests on average", (double)count->requests / (double)count->groups);
    }
    printf("\n");
    printf("  %-16s %" PRIu64 "\n", "plans", count->plans);
    printf("  %-16s %" PRIu64 " regions, %s\n", "memory", count->regions,
        bytes_text(count->region_bytes, size));
}

static void print_limits(const struct attnd_info *info)
{
    char region[32];
    char user[32];
    char workspace[32];
    printf("  %-16s %u in flight, %u plans, %u regions, %s; a user %u clients, %s; workspace %s\n",
        "limits", (unsigned)info->in_flight, (unsigned)info->max_plans, (unsigned)info->max_regions,
        bytes_text(info->region_bytes, region), (unsigned)info->max_sessions_per_uid,
        bytes_text(info->region_bytes_per_uid, user), bytes_text(info->workspace_bytes, workspace));
}

static void json_counters(struct json *json, const struct attnd_counters *counters)
{
    json_open(json, "counters", '{');
    json_whole(json, "requests", counters->requests);
    json_whole(json, "failed", counters->failed);
    json_whole(json, "groups", counters->groups);
    json_whole(json, "group_members", counters->group_members);
    json_whole(json, "regions", counters->regions);
    json_whole(json, "region_bytes", counters->region_bytes);
    json_whole(json, "plans", counters->plans);
    json_whole(json, "in_flight", counters->in_flight);
    json_close(json, '}');
}

static void json_limits(struct json *json, const struct attnd_info *info)
{
    json_open(json, "limits", '{');
    json_whole(json, "max_sessions", info->max_sessions);
    json_whole(json, "max_sessions_per_uid", info->max_sessions_per_uid);
    json_whole(json, "in_flight", info->in_flight);
    json_whole(json, "max_plans", info->max_plans);
    json_whole(json, "max_regions", info->max_regions);
    json_whole(json, "region_bytes", info->region_bytes);
    json_whole(json, "region_bytes_per_uid", info->region_bytes_per_uid);
    json_whole(json, "workspace_bytes", info->workspace_bytes);
    json_close(json, '}');
}

static void json_device(struct json *json, const struct attnd_info *info)
{
    char uuid[DOCTOR_UUID];
    doctor_print_uuid(info->device_uuid, uuid);
    json_open(json, "device", '{');
    json_text(json, "kind", device_name(info->device));
    json_text(json, "name", info->device_name);
    json_text(json, "uuid", info->has_uuid ? uuid : NULL);
    json_text(json, "driver", info->driver[0] != '\0' ? info->driver : NULL);
    json_text(json, "mps", mps_name(info->mps));
    json_bool(json, "checks_exporter", info->checks_exporter);
    json_bool(json, "one_ipc_user", info->one_ipc_user);
    json_open(json, "families", '[');
    for (uint32_t i = 0; i < info->families; i++) {
        json_text(json, NULL, info->family[i]);
    }
    json_close(json, ']');
    json_close(json, '}');
}

static void print_json(const struct facts_daemon *daemon)
{
    const struct attnd_info *info = &daemon->info;
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "address", daemon->directory);
    json_text(&json, "version", info->daemon_version);
    json_open(&json, "protocol", '[');
    json_whole(&json, NULL, info->protocol_major);
    json_whole(&json, NULL, info->protocol_minor);
    json_close(&json, ']');
    json_whole(&json, "pid", info->pid);
    json_number(&json, "uptime_seconds", (double)daemon->stats.uptime_ns * 1e-9);
    json_device(&json, info);
    json_whole(&json, "clients", daemon->stats.clients);
    json_counters(&json, &daemon->stats.daemon);
    json_limits(&json, info);
    json_close(&json, '}');
}

static void print_finding(const struct doctor_finding *finding)
{
    static const char *const COLOURS[] = {"\033[32m", "\033[33m", "\033[31m"};
    bool terminal = isatty(STDOUT_FILENO) == 1;
    printf("%s%-4s%s  %-18s %s\n", terminal ? COLOURS[finding->level] : "",
        doctor_level_name(finding->level), terminal ? "\033[0m" : "", finding->name, finding->text);
    if (finding->advice[0] != '\0') {
        printf("%25s-> %s\n", "", finding->advice);
    }
}

static void print_findings_json(const struct doctor *doctor)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "worst", doctor_level_name(doctor_worst(doctor)));
    json_open(&json, "findings", '[');
    for (size_t i = 0; i < doctor->count; i++) {
        const struct doctor_finding *finding = &doctor->finding[i];
        json_open(&json, NULL, '{');
        json_text(&json, "name", finding->name);
        json_text(&json, "level", doctor_level_name(finding->level));
        json_text(&json, "text", finding->text);
        json_text(&json, "advice", finding->advice[0] != '\0' ? finding->advice : NULL);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

void status_print(const struct facts_daemon *daemon, bool json)
{
    if (json) {
        print_json(daemon);
        return;
    }
    print_head(daemon);
    print_counts(daemon);
    print_limits(&daemon->info);
}

void status_print_findings(const struct doctor *doctor, bool json)
{
    if (json) {
        print_findings_json(doctor);
        return;
    }
    for (size_t i = 0; i < doctor->count; i++) {
        print_finding(&doctor->finding[i]);
    }
}

void status_print_failure(const struct facts_daemon *daemon)
{
    struct json json = {.file = stdout};
    json_open(&json, NULL, '{');
    json_text(&json, "address", daemon->directory);
    json_text(&json, "error", attnd_status_name(daemon->status));
    json_text(&json, "message", daemon->message);
    json_close(&json, '}');
}
