#include "fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "asan.h"

namespace {
const size_t page_bytes = 4096;
const size_t stack_bytes = size_t{asan_present ? 512U : 128U} << 10;
const size_t left_bytes = 8192; /* at most, by the functions that are left at a fiber's end */

size_t whole_pages(size_t bytes)
{
    return (bytes + page_bytes - 1) / page_bytes * page_bytes;
}
} // namespace

extern "C" {
void fiber_swap(void **from, void *to);
void fiber_enter(void);

/* Called by fiber_enter. */
__attribute__((used, visibility("hidden"))) void fiber_entered(void)
{
    asan_after_switch(nullptr);
}

/* Called when the function has returned. */
__attribute__((used, visibility("hidden"))) void fiber_ended(void)
{
    fiber_returned();
}
}

/* Registers that a callee preserves go to the stack. A new fiber's function is in r12; it returns to
 * fiber_exit, and finds its argument above that address. */
__asm__(".text\n"
        ".p2align 4\n"
        ".type fiber_swap, @function\n"
        "fiber_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size fiber_swap, .-fiber_swap\n"
        ".type fiber_enter, @function\n"
        "fiber_enter:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined %rip\n"
        "    subq $8, %rsp\n"
        "    call fiber_entered\n"
        "    addq $8, %rsp\n"
        "    jmp *%r12\n"
        "    .cfi_endproc\n"
        ".size fiber_enter, .-fiber_enter\n"
        ".type fiber_exit, @function\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined %rip\n"
        "    nop\n" /* unwinders look one byte before a return address */
        "fiber_exit:\n"
        "    call fiber_ended\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size fiber_exit, .-fiber_exit\n");

extern "C" void fiber_exit(void);

void fiber_create(struct fiber *fiber, size_t argument_bytes)
{
    size_t top = whole_pages(argument_bytes);
    size_t bytes = page_bytes + stack_bytes + top;
    void *map = mmap(
        nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED || mprotect(map, page_bytes, PROT_NONE) != 0) {
        fprintf(stderr, "emulator: no memory for stacks\n");
        abort();
    }
    *fiber = {};
    fiber->stack = static_cast<char *>(map) + page_bytes;
    fiber->stack_bytes = stack_bytes;
    fiber->arguments = fiber->stack + stack_bytes;
}

void fiber_destroy(struct fiber *fiber, size_t argument_bytes)
{
    munmap(fiber->stack - page_bytes, page_bytes + stack_bytes + whole_pages(argument_bytes));
}

void fiber_adopt(struct fiber *fiber)
{
    pthread_attr_t attributes;
    void *stack = nullptr;
    size_t bytes = 0;

    if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
        abort();
    }
    pthread_attr_getstack(&attributes, &stack, &bytes);
    pthread_attr_destroy(&attributes);
    *fiber = {};
    fiber->stack = static_cast<char *>(stack);
    fiber->stack_bytes = bytes;
}

void fiber_begin(struct fiber *fiber, void (*function)(void))
{
    void **top = static_cast<void **>(static_cast<void *>(fiber->arguments));

    asan_allow(fiber->arguments - left_bytes, left_bytes);
    top[-1] = reinterpret_cast<void *>(fiber_exit);
    top[-2] = reinterpret_cast<void *>(fiber_enter);
    for (int i = 3; i <= 8; i++) {
        top[-i] = nullptr;
    }
    top[-5] = reinterpret_cast<void *>(function); /* r12 */
    fiber->stack_pointer = top - 8;
    fiber->fake_stack = nullptr;
}

void fiber_switch(struct fiber *from, struct fiber *to)
{
    asan_before_switch(&from->fake_stack, to->stack, to->stack_bytes);
    fiber_swap(&from->stack_pointer, to->stack_pointer);
    asan_after_switch(from->fake_stack);
}

void fiber_leave(struct fiber *from, struct fiber *to)
{
    asan_before_switch(nullptr, to->stack, to->stack_bytes);
    fiber_swap(&from->stack_pointer, to->stack_pointer);
    abort();
}
