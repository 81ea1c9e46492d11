/*
 * What crosses processes: devices' UUIDs, and handles of memory, which name a descriptor of the process
 * that has it. The daemon of the tests opens them.
 */
#pragma once

#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "fake_cuda.h"

#define FAKE_DEVICES 2
#define FAKE_FAULT_OFFSET UINT32_C(0xFA017)

struct fake_handle {
    uint64_t magic;
    int32_t pid;
    int32_t fd;
    uint64_t bytes;
};

#define FAKE_HANDLE_MAGIC UINT64_C(0x66616b652d6d656d)

static inline void fake_uuid(int ordinal, uint8_t uuid[16])
{
    memset(uuid, 0x5A, 16);
    uuid[15] = (uint8_t)ordinal;
}

static inline void fake_handle_make(uint8_t handle[FAKE_HANDLE_BYTES], int fd, uint64_t bytes)
{
    const struct fake_handle made = {FAKE_HANDLE_MAGIC, (int32_t)getpid(), fd, bytes};
    memset(handle, 0, FAKE_HANDLE_BYTES);
    memcpy(handle, &made, sizeof made);
}
