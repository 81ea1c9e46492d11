/*
 * Tests of the daemon on a GPU: each runs in a process of its own, with a daemon of its own.
 *
 * The functions end the process with a line on stderr if something is not as it must be.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "daemon.h"
#include "service_process.h"

struct service_test {
    const char *name;
    void (*run)(void);
    bool alone; /* makes a process die inside a kernel: not beside others under MPS */
};

/* The tests of a file, up to one without a name. */
extern const struct service_test service_memory_tests[];
extern const struct service_test service_handle_tests[];
extern const struct service_test service_order_tests[];
extern const struct service_test service_fault_tests[];
extern const struct service_test service_load_tests[];
extern const struct service_test service_user_tests[];

#define OK(call) service_expect((call), ATTND_OK, #call, __FILE__, __LINE__)
#define REFUSED(call, status) service_expect((call), (status), #call, __FILE__, __LINE__)

void service_expect(enum attnd_status status, enum attnd_status expected, const char *call,
    const char *file, int line);

/* Ends a test that cannot run here. */
_Noreturn void service_skip(const char *why);

/* A daemon on GPU 0 with generous limits. */
void service_start(struct daemon *daemon);
void service_stop(struct daemon *daemon);

struct attnd *service_open(const struct daemon *daemon);
struct attnd_stats service_stats(struct attnd *client);

struct process service_trainer(
    const struct daemon *daemon, const char *mode, uint64_t seed, uint64_t count);
void service_line(struct process *process, char *line, size_t capacity);
void service_say(struct process *process); /* a line, whatever it is */

/* Waits until the process says that something is done that it began at that time or later. */
void service_goes_on(struct process *process, uint64_t since_ns);
void service_succeed(struct process *process, const char *who);
