/*
 * Stacks that take turns in one thread, for the threads of a block. A fiber runs one function with
 * one large argument that lies at the top of its stack, where the calling convention has it.
 */
#pragma once

#include <stddef.h>

struct fiber {
    void *stack_pointer; /* while it does not run */
    void *fake_stack;    /* AddressSanitizer's */
    char *stack;         /* lowest address of it */
    size_t stack_bytes;
    char *arguments; /* just above the stack; NULL: the stack that the thread came with */
};

/* For a function whose argument has at most so many bytes. */
void fiber_create(struct fiber *fiber, size_t argument_bytes);
void fiber_destroy(struct fiber *fiber, size_t argument_bytes);

/* The calling thread's own stack, to return to. */
void fiber_adopt(struct fiber *fiber);

/* The next switch to the fiber begins the function: its argument is what lies at `arguments`. */
void fiber_begin(struct fiber *fiber, void (*function)(void));

/* Stops running `from` and runs `to`; returns when somebody switches back. */
void fiber_switch(struct fiber *from, struct fiber *to);

/* Called on the fiber's stack when its function has returned: has to switch away for good. */
[[noreturn]] void fiber_returned(void);

/* The switch away for good. */
[[noreturn]] void fiber_leave(struct fiber *from, struct fiber *to);
