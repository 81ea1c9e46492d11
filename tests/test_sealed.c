#include "sealed.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BYTES 10000 /* no multiple of a page or a block */
#define ALL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A memfd of BYTES with `allocated` of them allocated and the given seals. */
static int make(off_t allocated, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    cr_assert(fd >= 0);
    cr_assert_eq(ftruncate(fd, BYTES), 0);
    if (allocated > 0) {
        cr_assert_eq(fallocate(fd, 0, 0, allocated), 0);
    }
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void expect_refused(int fd, uint64_t bytes, enum wire_status status, const char *sentence)
{
    struct wire_error error = {WIRE_OK, ""};

    cr_expect_not(sealed_check(fd, bytes, &error), "%s", sentence);
    cr_expect_eq(error.status, status, "%s: %s", sentence, wire_status_name(error.status));
    cr_expect(strstr(error.detail, sentence) != NULL, "\"%s\" does not say \"%s\"", error.detail,
        sentence);
    close(fd);
}

Test(sealed, what_is_created_passes_the_check_and_can_be_mapped)
{
    static const uint64_t sizes[] = {1, 511, 512, 513, 4096, 4097, BYTES, 1 << 22};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct wire_error error;
        int fd = sealed_create("test", sizes[i]);
        cr_assert(fd >= 0);
        cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        cr_expect(sealed_check(fd, sizes[i], &error), "%s", error.detail);
        unsigned char *memory = sealed_map(fd, sizes[i]);
        unsigned char *again = sealed_map(fd, sizes[i]);
        cr_assert(memory != NULL && again != NULL);
        cr_expect_eq(memory[0], 0);
        memory[sizes[i] - 1] = 42;
        cr_expect_eq(again[sizes[i] - 1], 42);
        cr_expect_eq(munmap(memory, sizes[i]), 0);
        cr_expect_eq(munmap(again, sizes[i]), 0);
        close(fd);
    }
}

Test(sealed, created_memory_keeps_its_size)
{
    int fd = sealed_create("test", BYTES);

    cr_assert(fd >= 0);
    cr_expect_neq(ftruncate(fd, 0), 0);
    cr_expect_neq(ftruncate(fd, BYTES + 1), 0);
    cr_expect_neq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    close(fd);
}

Test(sealed, impossible_sizes_are_errors_and_leak_nothing)
{
    int before = dup(0);
    close(before);

    cr_expect_eq(sealed_create("test", 0), -EINVAL);
    cr_expect_eq(sealed_create("test", UINT64_MAX), -ENOMEM);
    cr_expect_eq(sealed_create("test", INT64_MAX), -ENOMEM);
    cr_expect_eq(sealed_create("test", UINT64_C(1) << 50), -ENOMEM);
    int after = dup(0);
    cr_expect_eq(after, before);
    close(after);
}

Test(sealed, mapping_what_cannot_be_mapped_fails)
{
    cr_expect_null(sealed_map(-1, BYTES));
    cr_expect_eq(errno, EBADF);
}

Test(sealed, each_missing_seal_is_refused)
{
    expect_refused(make(BYTES, F_SEAL_GROW | F_SEAL_SEAL), BYTES, WIRE_UNSUPPORTED_MEMORY,
        "lacks F_SEAL_SHRINK");
    expect_refused(make(BYTES, F_SEAL_SHRINK | F_SEAL_SEAL), BYTES, WIRE_UNSUPPORTED_MEMORY,
        "lacks F_SEAL_GROW");
    expect_refused(make(BYTES, F_SEAL_SHRINK | F_SEAL_GROW), BYTES, WIRE_UNSUPPORTED_MEMORY,
        "lacks F_SEAL_SEAL");
    expect_refused(make(BYTES, 0), BYTES, WIRE_UNSUPPORTED_MEMORY, "lacks F_SEAL");
}

Test(sealed, a_seal_against_writing_is_refused)
{
    expect_refused(make(BYTES, ALL_SEALS | F_SEAL_WRITE), BYTES, WIRE_UNSUPPORTED_MEMORY,
        "sealed against writing");
    expect_refused(make(BYTES, ALL_SEALS | F_SEAL_FUTURE_WRITE), BYTES, WIRE_UNSUPPORTED_MEMORY,
        "sealed against writing");
}

Test(sealed, other_sizes_are_refused)
{
    expect_refused(make(BYTES, ALL_SEALS), BYTES - 1, WIRE_INVALID_ARGUMENT,
        "bytes is 9999, but the descriptor's file has 10000");
    expect_refused(make(BYTES, ALL_SEALS), BYTES + 1, WIRE_INVALID_ARGUMENT, "bytes is 10001");
    expect_refused(make(BYTES, ALL_SEALS), 0, WIRE_INVALID_ARGUMENT, "bytes is 0");
    expect_refused(make(BYTES, ALL_SEALS), UINT64_MAX, WIRE_INVALID_ARGUMENT, "bytes is");
}

Test(sealed, holes_are_refused)
{
    expect_refused(make(0, ALL_SEALS), BYTES, WIRE_UNSUPPORTED_MEMORY, "holes");
    expect_refused(make(4096, ALL_SEALS), BYTES, WIRE_UNSUPPORTED_MEMORY, "holes");

    int fd = make(BYTES, 0);
    cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096), 0);
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, ALL_SEALS), 0);
    expect_refused(fd, BYTES, WIRE_UNSUPPORTED_MEMORY, "holes");
}

Test(sealed, what_is_no_memfd_is_refused)
{
    int ends[2];

    expect_refused(-1, BYTES, WIRE_UNSUPPORTED_MEMORY, "cannot be examined");
    cr_assert_eq(pipe(ends), 0);
    expect_refused(ends[0], BYTES, WIRE_UNSUPPORTED_MEMORY, "no memfd");
    expect_refused(socket(AF_UNIX, SOCK_STREAM, 0), BYTES, WIRE_UNSUPPORTED_MEMORY, "no memfd");
    expect_refused(open("/dev/null", O_RDWR), BYTES, WIRE_UNSUPPORTED_MEMORY, "no memfd");
    expect_refused(open("/proc/self/exe", O_RDONLY), BYTES, WIRE_UNSUPPORTED_MEMORY, "no memfd");
    expect_refused(open("/dev/shm", O_RDONLY), BYTES, WIRE_UNSUPPORTED_MEMORY, "no memfd");
    close(ends[1]);

    /* A file on a mounted tmpfs has the kind, but can never be sealed. */
    char path[] = "/dev/shm/attnd-test-XXXXXX";
    int file = mkstemp(path);
    cr_assert(file >= 0);
    unlink(path);
    cr_assert_eq(posix_fallocate(file, 0, BYTES), 0);
    expect_refused(file, BYTES, WIRE_UNSUPPORTED_MEMORY, "lacks F_SEAL_SHRINK");
}

Test(sealed, huge_pages_are_refused)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);

    if (fd < 0) {
        cr_skip_test("this kernel has no hugetlbfs");
    }
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, ALL_SEALS), 0);
    expect_refused(fd, 0, WIRE_UNSUPPORTED_MEMORY, "no memfd of ordinary pages");
}

Test(sealed, a_descriptor_for_reading_alone_is_refused)
{
    int fd = make(BYTES, ALL_SEALS);
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int readable = open(path, O_RDONLY);
    cr_assert(readable >= 0);
    expect_refused(readable, BYTES, WIRE_UNSUPPORTED_MEMORY, "both reading and writing");
    close(fd);
}
