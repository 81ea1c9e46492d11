#include "pieces.h"

#include <string.h>

#include "check.h"

static void init(struct pieces *pieces, size_t piece, size_t reserve, bool shareable)
{
    CUdeviceptr base = 0;
    *pieces = (struct pieces){
        .piece = piece, .reserved = (reserve + piece - 1) / piece * piece, .shareable = shareable};
    CU(cudaFree(NULL)); /* there is a context then */
    DRIVER(device_driver()->mem_reserve(&base, pieces->reserved, 0, 0, 0));
    pieces->base = (unsigned char *)base;
}

static void add_piece(struct pieces *pieces)
{
    const struct driver *driver = device_driver();
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes =
            pieces->shareable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    const CUmemAccessDesc access = {
        .location = properties.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    unsigned char *place = pieces->base + pieces->count * pieces->piece;
    CHECK(pieces->count < PIECES_MAX && (pieces->count + 1) * pieces->piece <= pieces->reserved);
    CUmemGenericAllocationHandle *handle = &pieces->handle[pieces->count++];
    DRIVER(driver->mem_create(handle, pieces->piece, &properties, 0));
    DRIVER(driver->mem_map((CUdeviceptr)place, pieces->piece, 0, *handle, 0));
    DRIVER(driver->mem_set_access((CUdeviceptr)place, pieces->piece, &access, 1));
    CU(cudaMemset(place, 0xff, pieces->piece));
}

/* ---- Public ---------------------------------------------------------------------------------- */

void pieces_init(struct pieces *pieces, size_t piece, size_t reserve)
{
    init(pieces, piece, reserve, true);
}

void pieces_init_private(struct pieces *pieces, size_t piece, size_t reserve)
{
    init(pieces, piece, reserve, false);
}

void pieces_grow(struct pieces *pieces, size_t bytes)
{
    while (pieces->count * pieces->piece < bytes) {
        add_piece(pieces);
    }
}

void pieces_shrink(struct pieces *pieces, size_t bytes)
{
    CU(cudaDeviceSynchronize());
    while (pieces->count > 0 && (pieces->count - 1) * pieces->piece >= bytes) {
        pieces->count--;
        unsigned char *place = pieces->base + pieces->count * pieces->piece;
        DRIVER(device_driver()->mem_unmap((CUdeviceptr)place, pieces->piece));
        DRIVER(device_driver()->mem_release(pieces->handle[pieces->count]));
    }
}

void pieces_finish(struct pieces *pieces)
{
    pieces_shrink(pieces, 0);
    DRIVER(device_driver()->mem_free((CUdeviceptr)pieces->base, pieces->reserved));
}
