/* The log's lines, as a terminal, a file and journald want them. */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

static char path[] = "/tmp/attnd-log-XXXXXX";

/* From here on stderr is a file. */
static int redirect(void)
{
    int saved = dup(STDERR_FILENO);
    int fd = mkstemp(path);
    cr_assert(saved >= 0 && fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    (void)close(fd);
    return saved;
}

static void restore(int saved, char *text, size_t capacity)
{
    cr_assert(dup2(saved, STDERR_FILENO) >= 0);
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file);
    text[fread(text, 1, capacity - 1, file)] = '\0';
    (void)fclose(file);
    (void)remove(path);
}

Test(log, names_the_level_and_drops_what_is_less_urgent)
{
    char text[512];
    (void)unsetenv("JOURNAL_STREAM");
    int saved = redirect();
    log_init(LOG_LEVEL_WARNING);
    log_info("not %s", "this");
    log_warning("this %d", 1);
    log_error("and this");
    restore(saved, text, sizeof text);
    cr_assert_str_eq(text, "attnd: warning: this 1\nattnd: error: and this\n");
}

Test(log, has_journald_prefixes_only_if_stderr_is_the_journal)
{
    char text[512];
    char stream[64];
    struct stat status;
    int saved = redirect();
    cr_assert_eq(fstat(STDERR_FILENO, &status), 0);
    (void)snprintf(
        stream, sizeof stream, "%ju:%ju", (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
    cr_assert_eq(setenv("JOURNAL_STREAM", stream, 1), 0);
    log_init(LOG_LEVEL_INFO);
    log_info("to the journal");
    cr_assert_eq(setenv("JOURNAL_STREAM", "1:1", 1), 0);
    log_init(LOG_LEVEL_INFO);
    log_info("elsewhere");
    restore(saved, text, sizeof text);
    cr_assert_str_eq(text, "<6>to the journal\nattnd: info: elsewhere\n");
}

Test(log, cuts_a_long_line_and_still_ends_it)
{
    char text[4096];
    char longer[2000];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    (void)unsetenv("JOURNAL_STREAM");
    int saved = redirect();
    log_init(LOG_LEVEL_INFO);
    log_info("%s", longer);
    log_info("next");
    restore(saved, text, sizeof text);
    char *end = strchr(text, '\n');
    cr_assert_not_null(end);
    cr_assert_str_eq(end, "\nattnd: info: next\n");
    cr_assert_gt(end - text, 900);
}
