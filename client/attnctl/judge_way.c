#include <inttypes.h>

#include "judge.h"

enum {
    FEW_DESCRIPTORS = 64, /* a client needs about half of that for itself */
    ENOUGH_DESCRIPTORS = 256,
    PER_SESSION = 4, /* descriptors that the daemon holds for a client: two sockets, pidfd, spare */
    OF_DAEMON = 64,
};

/* The unit opens its directory to its group alone; allow-uid opens the daemon, not the directory. */
static const char ENTER_ADVICE[] =
    "add the user to the directory's group (\"usermod -aG attnd USER\") and log in again; where "
    "users outside of it are named in allow-uid, set RuntimeDirectoryMode=0755 by \"systemctl "
    "edit\"";

static const char *permission_advice(const struct facts_daemon *daemon)
{
    if (!daemon->directory_enters) {
        return ENTER_ADVICE;
    }
    return daemon->in_group
               ? "see allow-uid and allow-gid in the daemon's attnd.conf"
               : "add the user to the directory's group (\"usermod -aG attnd USER\") and log in "
                 "again, or name it in the daemon's allow-uid";
}

static void judge_directory(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_daemon *daemon = &facts->daemon;
    if (!daemon->directory_exists) {
        return; /* which the next finding says */
    }
    unsigned mode = daemon->directory_mode;
    if ((mode & 0002U) != 0) {
        judge_add(doctor, "directory", DOCTOR_BAD,
            "\"chmod o-w\" it: whoever may write there can take the "
            "daemon's place",
            "%s may be written by everybody (mode %04o)", daemon->directory, mode);
    } else if (daemon->has_peer && daemon->directory_uid != daemon->peer_uid &&
               daemon->directory_uid != 0) {
        judge_add(doctor, "directory", DOCTOR_WARN, "let the daemon's user own its directory",
            "%s belongs to user %u, but user %u serves there", daemon->directory,
            (unsigned)daemon->directory_uid, (unsigned)daemon->peer_uid);
    } else if (!daemon->directory_enters) {
        judge_add(doctor, "directory", DOCTOR_BAD, ENTER_ADVICE,
            "user %u may not enter %s (mode %04o, user %u, group %u)", (unsigned)facts->process.uid,
            daemon->directory, mode, (unsigned)daemon->directory_uid,
            (unsigned)daemon->directory_gid);
    } else {
        judge_add(doctor, "directory", DOCTOR_OK, "", "%s, mode %04o, user %u, group %u",
            daemon->directory, mode, (unsigned)daemon->directory_uid,
            (unsigned)daemon->directory_gid);
    }
}

static void judge_connection(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_daemon *daemon = &facts->daemon;
    switch (daemon->status) {
    case ATTND_OK:
        judge_add(doctor, "daemon", DOCTOR_OK, "",
            "attnd %s answers, pid %u, on %s; user %u may use it", daemon->info.daemon_version,
            (unsigned)daemon->info.pid, daemon->info.device_name, (unsigned)facts->process.uid);
        break;
    case ATTND_DISCONNECTED:
    case ATTND_TIMED_OUT:
        judge_add(doctor, "daemon", daemon->asked_for ? DOCTOR_BAD : DOCTOR_WARN,
            "start it (\"systemctl start attnd@cpu\" or attnd@cuda), or name its directory with "
            "--address; if it runs and is silent, see its log",
            "no daemon answers: %s", daemon->message);
        break;
    case ATTND_PERMISSION_DENIED:
        judge_add(doctor, "daemon", DOCTOR_BAD, permission_advice(daemon), "user %u is refused: %s",
            (unsigned)facts->process.uid, daemon->message);
        break;
    case ATTND_VERSION_MISMATCH:
        judge_add(doctor, "daemon", DOCTOR_BAD, "install daemon and library of one version",
            "the daemon speaks another version: %s", daemon->message);
        break;
    case ATTND_RESOURCE_EXHAUSTED:
        judge_add(doctor, "daemon", DOCTOR_BAD,
            "end clients, or raise max-sessions or max-sessions-per-uid in the daemon's attnd.conf",
            "there is no room for one more client: %s", daemon->message);
        break;
    case ATTND_DRAINING:
        judge_add(doctor, "daemon", DOCTOR_WARN, "wait until it has been started again",
            "the daemon is about to end: %s", daemon->message);
        break;
    default:
        judge_add(doctor, "daemon", DOCTOR_BAD, "see the daemon's log",
            "the daemon refuses: %s (%s)", daemon->message, attnd_status_name(daemon->status));
    }
}

static void judge_unit(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_machine *machine = &facts->machine;
    if (facts->daemon.unit[0] != '\0') {
        judge_add(doctor, "unit", DOCTOR_OK, "", "the daemon runs as %s", facts->daemon.unit);
    } else if (!machine->systemd) {
        judge_add(
            doctor, "unit", DOCTOR_OK, "", "no systemd here: nothing starts a daemon that ended");
    } else if (machine->unit_file[0] == '\0') {
        judge_add(doctor, "unit", DOCTOR_WARN,
            "\"cmake --install\" puts it there; then \"systemctl daemon-reload\"",
            "attnd@.service is not installed: nothing starts a daemon that ended");
    } else if (facts->daemon.has_peer) {
        judge_add(doctor, "unit", DOCTOR_WARN,
            "\"systemctl enable --now attnd@cpu\", or attnd@cuda",
            "%s is there, but the daemon was not started by it", machine->unit_file);
    } else {
        judge_add(doctor, "unit", DOCTOR_OK, "", "%s is there", machine->unit_file);
    }
}

static void judge_descriptors(const struct facts *facts, struct doctor *doctor)
{
    uint64_t own = facts->process.descriptors;
    const struct facts_daemon *daemon = &facts->daemon;
    if (own < ENOUGH_DESCRIPTORS) {
        judge_add(doctor, "descriptors", own < FEW_DESCRIPTORS ? DOCTOR_BAD : DOCTOR_WARN,
            "raise it: \"ulimit -n 1024\", or LimitNOFILE= of the trainer's unit",
            "a process started from here may have %" PRIu64 " descriptors open", own);
    } else {
        judge_add(doctor, "descriptors", DOCTOR_OK, "",
            "a process started from here may have %" PRIu64 " descriptors open", own);
    }
    if (daemon->descriptors == 0 || !daemon->has_info) {
        return;
    }
    uint64_t needed = (uint64_t)daemon->info.max_sessions * PER_SESSION + OF_DAEMON;
    bool enough = daemon->descriptors >= needed;
    judge_add(doctor, "daemon-descriptors", enough ? DOCTOR_OK : DOCTOR_WARN,
        enough ? "" : "raise the hard limit: LimitNOFILE= of the unit, or lower max-sessions",
        "the daemon may have %" PRIu64 " open; %u clients take about %" PRIu64, daemon->descriptors,
        (unsigned)daemon->info.max_sessions, needed);
}

void judge_way(const struct facts *facts, struct doctor *doctor)
{
    judge_directory(facts, doctor);
    judge_connection(facts, doctor);
    judge_unit(facts, doctor);
    judge_descriptors(facts, doctor);
}
