/* attnctl's judgement: facts are planted, and each finding must come at its level and no other change. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "doctor.h"

#define GIB (UINT64_C(1) << 30)

/* A machine without a GPU, whose CPU daemon answers. */
static struct facts cpu_machine(void)
{
    struct facts facts = {
        .process = {.uid = 1000, .gid = 1000, .descriptors = 1024},
        .machine = {.memory_free = 8 * GIB,
            .shm = true,
            .shm_bytes = 4 * GIB,
            .shm_free = 4 * GIB,
            .systemd = true,
            .unit_file = "/lib/systemd/system/attnd@.service"},
        .daemon = {.directory = "/run/attnd/cpu",
            .asked_for = true,
            .directory_exists = true,
            .directory_mode = 0750,
            .directory_uid = 990,
            .directory_gid = 990,
            .directory_enters = true,
            .in_group = true,
            .socket_exists = true,
            .status = ATTND_OK,
            .has_stats = true,
            .has_info = true,
            .has_peer = true,
            .peer_pid = 77,
            .peer_uid = 990,
            .descriptors = 65536,
            .same_ipc = FACTS_YES,
            .same_network = FACTS_YES,
            .unit = "attnd@cpu.service"},
    };
    struct attnd_info *info = &facts.daemon.info;
    info->device = ATTND_DEVICE_CPU;
    info->pid = 77;
    info->max_sessions = 64;
    info->families = 1;
    (void)strcpy(info->device_name, "cpu, 2 threads");
    (void)strcpy(info->family[0], "cpu");
    return facts;
}

/* One with an H200, and its daemon. */
static struct facts gpu_machine(void)
{
    struct facts facts = cpu_machine();
    facts.machine.nvidia_device = true;
    facts.machine.nvidia_device_opens = true;
    (void)strcpy(facts.machine.module_version, "580.82.07");
    facts.cuda = (struct facts_cuda){.library = true, .version = 13000, .gpus = 1};
    facts.cuda.gpu[0] = (struct facts_gpu){.name = "NVIDIA H200",
        .uuid = {1, 2, 3},
        .major = 9,
        .block_bytes = 227 * 1024,
        .memory_bytes = 139 * GIB};
    struct attnd_info *info = &facts.daemon.info;
    info->device = ATTND_DEVICE_CUDA;
    info->mps = ATTND_MPS_OFF;
    info->checks_exporter = true;
    info->one_ipc_user = true;
    memcpy(info->device_uuid, facts.cuda.gpu[0].uuid, sizeof info->device_uuid);
    (void)strcpy(info->device_name, "NVIDIA H200");
    (void)strcpy(info->family[0], "sm80");
    return facts;
}

static const struct doctor_finding *find(const struct doctor *doctor, const char *name)
{
    for (size_t i = 0; i < doctor->count; i++) {
        if (strcmp(doctor->finding[i].name, name) == 0) {
            return &doctor->finding[i];
        }
    }
    return NULL;
}

/* Exactly this finding is not ok, it says `part`, and says what to do. */
static void expect_only(
    const struct facts *facts, const char *name, enum doctor_level level, const char *part)
{
    static struct doctor doctor;
    doctor_judge(facts, &doctor);
    const struct doctor_finding *finding = find(&doctor, name);
    cr_assert_not_null(finding, "there is no finding %s", name);
    cr_assert_eq(finding->level, level, "%s: %s", name, finding->text);
    cr_assert_not_null(strstr(finding->text, part), "%s says: %s", name, finding->text);
    cr_assert(level == DOCTOR_OK || finding->advice[0] != '\0', "%s says not what to do", name);
    for (size_t i = 0; i < doctor.count; i++) {
        const struct doctor_finding *other = &doctor.finding[i];
        cr_assert(
            other == finding || other->level == DOCTOR_OK, "%s: %s", other->name, other->text);
    }
    cr_assert_eq(doctor_worst(&doctor), level);
}

Test(attnctl_doctor, a_good_cpu_machine_has_no_finding_and_no_word_of_gpus)
{
    static struct doctor doctor;
    struct facts facts = cpu_machine();
    doctor_judge(&facts, &doctor);
    cr_assert_eq(doctor_worst(&doctor), DOCTOR_OK);
    cr_assert_null(find(&doctor, "gpu"));
    cr_assert_null(find(&doctor, "mps"));
    cr_assert_not_null(find(&doctor, "families"));
    cr_assert_not_null(strstr(find(&doctor, "driver")->text, "no NVIDIA driver"));
}

Test(attnctl_doctor, a_good_gpu_machine_has_no_finding_and_says_what_it_has)
{
    static const char *const NAMES[] = {"driver", "gpu", "memory", "directory", "daemon", "unit",
        "descriptors", "daemon-descriptors", "families", "device", "mps", "handles", "namespaces",
        "connections"};
    static struct doctor doctor;
    struct facts facts = gpu_machine();
    doctor_judge(&facts, &doctor);
    cr_assert_eq(doctor_worst(&doctor), DOCTOR_OK);
    cr_assert_eq(doctor.count, sizeof NAMES / sizeof NAMES[0]);
    for (size_t i = 0; i < doctor.count; i++) {
        cr_assert_not_null(find(&doctor, NAMES[i]), "%s", NAMES[i]);
    }
    const char *gpu = find(&doctor, "gpu")->text;
    cr_assert_not_null(strstr(gpu, "GPU-01020300-0000-0000-0000-000000000000"), "%s", gpu);
    cr_assert_not_null(strstr(gpu, "9.0"), "%s", gpu);
    cr_assert_not_null(strstr(find(&doctor, "driver")->text, "CUDA 13.0, version 580.82.07"));
    cr_assert_not_null(strstr(find(&doctor, "mps")->text, "off:"));
}

Test(attnctl_doctor, the_driver_is_judged)
{
    struct facts facts = gpu_machine();
    facts.cuda.version = 11040;
    expect_only(&facts, "driver", DOCTOR_BAD, "CUDA 11.4");
    facts = cpu_machine();
    facts.cuda = (struct facts_cuda){.library = true, .error = 803, .error_name = "SOME_NAME"};
    facts.cuda.version = 13000;
    expect_only(&facts, "driver", DOCTOR_BAD, "SOME_NAME (803)");
    facts = cpu_machine();
    facts.machine.nvidia_device = true;
    facts.machine.nvidia_device_opens = true;
    static struct doctor doctor;
    doctor_judge(&facts, &doctor);
    cr_assert_eq(find(&doctor, "driver")->level, DOCTOR_BAD);
    cr_assert_eq(find(&doctor, "gpu")->level, DOCTOR_WARN);
}

Test(attnctl_doctor, each_gpu_is_judged)
{
    struct facts facts = gpu_machine();
    facts.cuda.gpus = 2;
    facts.cuda.gpu[1] = (struct facts_gpu){.name = "Old", .uuid = {9}, .major = 7, .minor = 5};
    static struct doctor doctor;
    doctor_judge(&facts, &doctor);
    cr_assert_eq(doctor.finding[1].level, DOCTOR_OK);
    cr_assert_eq(doctor.finding[2].level, DOCTOR_WARN);
    cr_assert_not_null(strstr(doctor.finding[2].text, "7.5"));
    facts.cuda.gpu[1].major = 8;
    facts.cuda.gpu[1].minor = 9;
    facts.cuda.gpu[1].block_bytes = 99 * 1024;
    doctor_judge(&facts, &doctor);
    cr_assert_eq(doctor.finding[2].level, DOCTOR_WARN);
    cr_assert_not_null(strstr(doctor.finding[2].text, "8.9, gives a block 99 KiB"));
    facts.cuda.gpu[1].block_bytes = 163 * 1024;
    doctor_judge(&facts, &doctor);
    cr_assert_eq(doctor.finding[2].level, DOCTOR_OK);
    facts = gpu_machine();
    facts.cuda.gpu[0].compute_mode = FACTS_COMPUTE_PROHIBITED;
    expect_only(&facts, "gpu", DOCTOR_BAD, "no process");
    facts.cuda.gpu[0].compute_mode = FACTS_COMPUTE_EXCLUSIVE;
    expect_only(&facts, "gpu", DOCTOR_BAD, "one process");
    facts.process.mps_control = true;
    facts.daemon.info.mps = ATTND_MPS_ON;
    expect_only(&facts, "gpu", DOCTOR_OK, "H200");
}

Test(attnctl_doctor, gpus_that_are_not_seen_are_explained)
{
    struct facts facts = cpu_machine();
    facts.cuda = (struct facts_cuda){.library = true, .version = 13000};
    facts.machine.nvidia_device = true;
    expect_only(&facts, "gpu", DOCTOR_BAD, "/dev/nvidiactl");
    facts.machine.nvidia_device_opens = true;
    expect_only(&facts, "gpu", DOCTOR_WARN, "no GPU");
    (void)strcpy(facts.process.visible_devices, "7");
    expect_only(&facts, "gpu", DOCTOR_WARN, "CUDA_VISIBLE_DEVICES=7");
}

Test(attnctl_doctor, memory_is_judged)
{
    struct facts facts = cpu_machine();
    facts.machine.memory_free = GIB / 2;
    expect_only(&facts, "memory", DOCTOR_WARN, "512 MiB");
    facts.machine.memory_free = UINT64_MAX;
    facts.machine.shm = false;
    expect_only(&facts, "memory", DOCTOR_OK, "no /dev/shm");
}

Test(attnctl_doctor, the_directory_is_judged)
{
    struct facts facts = cpu_machine();
    facts.daemon.directory_mode = 0777;
    expect_only(&facts, "directory", DOCTOR_BAD, "0777");
    facts = cpu_machine();
    facts.daemon.directory_uid = 1234;
    expect_only(&facts, "directory", DOCTOR_WARN, "1234");
    facts = cpu_machine();
    facts.daemon.directory_enters = false;
    facts.daemon.in_group = false;
    expect_only(&facts, "directory", DOCTOR_BAD, "user 1000 may not enter");
    /* To be named in allow-uid does not open the directory. */
    facts.daemon.status = ATTND_PERMISSION_DENIED;
    facts.daemon.has_info = false;
    static struct doctor doctor;
    doctor_judge(&facts, &doctor);
    cr_assert_not_null(strstr(find(&doctor, "directory")->advice, "RuntimeDirectoryMode"));
    cr_assert_not_null(strstr(find(&doctor, "daemon")->advice, "RuntimeDirectoryMode"));
    facts.daemon.directory_enters = true;
    doctor_judge(&facts, &doctor);
    cr_assert_not_null(strstr(find(&doctor, "daemon")->advice, "allow-uid"));
    cr_assert_null(strstr(find(&doctor, "daemon")->advice, "RuntimeDirectoryMode"));
}

static struct facts refused(enum attnd_status status)
{
    struct facts facts = cpu_machine();
    facts.daemon.status = status;
    facts.daemon.has_info = false;
    facts.daemon.has_stats = false;
    (void)strcpy(facts.daemon.message, "the reason");
    return facts;
}

Test(attnctl_doctor, why_no_session_opened_is_said)
{
    static const struct {
        enum attnd_status status;
        enum doctor_level level;
        const char *part;
    } CASES[] = {{ATTND_DISCONNECTED, DOCTOR_BAD, "no daemon answers: the reason"},
        {ATTND_TIMED_OUT, DOCTOR_BAD, "no daemon answers: the reason"},
        {ATTND_PERMISSION_DENIED, DOCTOR_BAD, "user 1000 is refused: the reason"},
        {ATTND_VERSION_MISMATCH, DOCTOR_BAD, "another version: the reason"},
        {ATTND_RESOURCE_EXHAUSTED, DOCTOR_BAD, "no room for one more client: the reason"},
        {ATTND_DRAINING, DOCTOR_WARN, "about to end: the reason"},
        {ATTND_UNSUPPORTED, DOCTOR_BAD, "the reason (UNSUPPORTED)"}};

    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct facts facts = refused(CASES[i].status);
        expect_only(&facts, "daemon", CASES[i].level, CASES[i].part);
    }
    struct facts facts = refused(ATTND_DISCONNECTED);
    facts.daemon.asked_for = false;
    expect_only(&facts, "daemon", DOCTOR_WARN, "no daemon answers");
}

Test(attnctl_doctor, who_starts_the_daemon_is_judged)
{
    struct facts facts = cpu_machine();
    facts.daemon.unit[0] = '\0';
    expect_only(&facts, "unit", DOCTOR_WARN, "not started by it");
    facts.machine.unit_file[0] = '\0';
    expect_only(&facts, "unit", DOCTOR_WARN, "not installed");
    facts.machine.systemd = false;
    expect_only(&facts, "unit", DOCTOR_OK, "no systemd");
}

Test(attnctl_doctor, descriptors_of_both_sides_are_judged)
{
    struct facts facts = cpu_machine();
    facts.process.descriptors = 100;
    expect_only(&facts, "descriptors", DOCTOR_WARN, "100");
    facts.process.descriptors = 40;
    expect_only(&facts, "descriptors", DOCTOR_BAD, "40");
    facts = cpu_machine();
    facts.daemon.descriptors = 300;
    expect_only(&facts, "daemon-descriptors", DOCTOR_WARN, "64 clients take about 320");
}

Test(attnctl_doctor, the_daemons_device_and_kernels_are_judged)
{
    struct facts facts = gpu_machine();
    facts.daemon.info.device_uuid[0]++;
    expect_only(&facts, "device", DOCTOR_BAD, "not seen from here");
    facts = gpu_machine();
    (void)strcpy(facts.daemon.info.family[0], "cpu");
    expect_only(&facts, "families", DOCTOR_BAD, "only cpu");
    facts = cpu_machine();
    facts.daemon.info.families = 0;
    expect_only(&facts, "families", DOCTOR_BAD, "no kernels");
}

Test(attnctl_doctor, mps_is_judged_from_both_sides)
{
    struct facts facts = gpu_machine();
    facts.process.mps_control = true;
    expect_only(&facts, "mps", DOCTOR_WARN, "would use MPS");
    facts.daemon.info.mps = ATTND_MPS_ON;
    expect_only(&facts, "mps", DOCTOR_OK, "on:");
    facts.process.mps_control = false;
    expect_only(&facts, "mps", DOCTOR_WARN, "no MPS is found from here");
    facts.daemon.info.mps = ATTND_MPS_UNKNOWN;
    expect_only(&facts, "mps", DOCTOR_OK, "cannot find out");
}

Test(attnctl_doctor, who_may_pass_handles_is_judged)
{
    struct facts facts = gpu_machine();
    expect_only(&facts, "handles", DOCTOR_OK, "(ipc-users = one)");
    facts.daemon.info.one_ipc_user = false;
    expect_only(&facts, "handles", DOCTOR_OK, "(ipc-users = any)");
    facts.daemon.info.checks_exporter = false;
    expect_only(&facts, "handles", DOCTOR_BAD, "user 1000");
    facts.process.uid = facts.daemon.peer_uid;
    expect_only(&facts, "handles", DOCTOR_OK, "which this is");
}

Test(attnctl_doctor, namespaces_are_judged)
{
    struct facts facts = gpu_machine();
    facts.daemon.peer_pid = 4077;
    expect_only(&facts, "namespaces", DOCTOR_BAD, "77 to itself and 4077 from here");
    facts = gpu_machine();
    facts.daemon.same_ipc = FACTS_NO;
    expect_only(&facts, "namespaces", DOCTOR_WARN, "another IPC namespace");
    facts.daemon.same_ipc = FACTS_UNKNOWN;
    facts.daemon.same_network = FACTS_NO;
    expect_only(&facts, "namespaces", DOCTOR_WARN, "another network namespace");
    facts.daemon.same_network = FACTS_UNKNOWN;
    expect_only(&facts, "namespaces", DOCTOR_OK, "cannot be seen");
}

Test(attnctl_doctor, queues_to_the_device_are_judged)
{
    static const struct {
        const char *value; /* NULL: not set */
        bool mps;
        enum doctor_level level;
        const char *part;
    } CASES[] = {
        {NULL, false, DOCTOR_OK, "more than 7 streams"},
        {"32", false, DOCTOR_OK, "is 32"},
        {"1", false, DOCTOR_WARN, "with 1 waiting"},
        {"0", false, DOCTOR_WARN, "does not take"},
        {"33", false, DOCTOR_WARN, "does not take"},
        {"8x", false, DOCTOR_WARN, "does not take"},
        {"", false, DOCTOR_WARN, "does not take"},
        {NULL, true, DOCTOR_OK, "more than 3 streams"},
        {"3", true, DOCTOR_WARN, "with 3 waiting"},
        {"8", true, DOCTOR_OK, "is 8"},
        {"16", true, DOCTOR_WARN, "as many 7 find room"},
        {"32", true, DOCTOR_WARN, "as many 3 find room"},
        {"33", true, DOCTOR_WARN, "does not take"},
    };

    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct facts facts = gpu_machine();
        facts.process.max_connections_set = CASES[i].value != NULL;
        (void)strcpy(facts.process.max_connections, CASES[i].value ? CASES[i].value : "");
        facts.process.mps_control = CASES[i].mps;
        facts.daemon.info.mps = CASES[i].mps ? ATTND_MPS_ON : ATTND_MPS_OFF;
        expect_only(&facts, "connections", CASES[i].level, CASES[i].part);
    }
}
