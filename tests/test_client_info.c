/* attnd_get_info(): what the daemon says of itself, for callers of older and newer headers. */
#include <criterion/criterion.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "attnd.h"
#include "client_set.h"
#include "daemon.h"

static struct daemon daemon_;
static struct attnd *client;

static void start(void)
{
    static const char *const ARGUMENTS[] = {
        "--max-sessions", "3", "--in-flight", "7", "--max-plans", "11", NULL};
    cr_assert(daemon_start(&daemon_, ARGUMENTS));
    client = client_open(&daemon_);
}

static void stop(void)
{
    attnd_close(client);
    cr_expect(daemon_stop(&daemon_));
}

TestSuite(client_info, .init = start, .fini = stop);

Test(client_info, the_daemon_says_what_it_is)
{
    struct attnd_info info = {.size = sizeof info};
    cr_assert_eq(attnd_get_info(client, &info), ATTND_OK, "%s", attnd_message());
    cr_assert_eq(info.size, sizeof info);
    cr_assert_eq(info.device, ATTND_DEVICE_CPU);
    cr_assert_not(info.has_uuid);
    cr_assert(info.one_ipc_user);
    cr_assert_eq(info.families, 1);
    cr_assert_str_eq(info.family[0], "cpu");
    cr_assert_eq(info.pid, (uint32_t)daemon_.pid);
    cr_assert_eq(info.protocol_major, 1);
    cr_assert_geq(info.protocol_minor, 1);
    cr_assert_eq(info.max_sessions, 3);
    cr_assert_eq(info.in_flight, 7);
    cr_assert_eq(info.max_plans, 11);
    cr_assert_gt(info.workspace_bytes, 0);
    cr_assert_str_eq(info.daemon_version, ATTND_VERSION);
    cr_assert_neq(info.device_name[0], '\0');
}

Test(client_info, an_older_callers_struct_is_not_written_past_its_end)
{
    struct attnd_info info;
    memset(&info, 0x5A, sizeof info);
    info.size = offsetof(struct attnd_info, device_uuid);
    cr_assert_eq(attnd_get_info(client, &info), ATTND_OK, "%s", attnd_message());
    cr_assert_eq(info.device, ATTND_DEVICE_CPU);
    const unsigned char *behind = info.device_uuid;
    for (size_t i = 0; i < sizeof info - info.size; i++) {
        cr_assert_eq(behind[i], 0x5A, "byte %zu", i);
    }
}

Test(client_info, a_newer_callers_struct_keeps_its_tail)
{
    struct {
        struct attnd_info info;
        unsigned char newer[32];
    } caller;

    memset(&caller, 0, sizeof caller);
    memset(caller.newer, 0x5A, sizeof caller.newer);
    caller.info.size = sizeof caller;
    cr_assert_eq(attnd_get_info(client, &caller.info), ATTND_OK, "%s", attnd_message());
    cr_assert_eq(caller.info.size, sizeof caller);
    cr_assert_eq(caller.newer[0], 0x5A);
}

Test(client_info, calls_that_make_no_sense_are_refused)
{
    struct attnd_info info = {.size = 4};
    cr_assert_eq(attnd_get_info(client, NULL), ATTND_INVALID_ARGUMENT);
    cr_assert(strstr(attnd_message(), "info is NULL"));
    cr_assert_eq(attnd_get_info(client, &info), ATTND_INVALID_ARGUMENT);
    cr_assert(strstr(attnd_message(), "info->size"));
    cr_assert_eq(attnd_get_info(NULL, &info), ATTND_INVALID_ARGUMENT);
    cr_assert(strstr(attnd_message(), "client is NULL"));
}
