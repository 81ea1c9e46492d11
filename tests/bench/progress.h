/*
 * What the program is at, on standard error: at once on a terminal, else every ten seconds at most.
 * The main thread alone.
 */
#pragma once

/* What all later notes belong to: case `number` of `count`. */
void progress_case(int number, int count, const char *what);

__attribute__((format(printf, 1, 2))) void progress_show(const char *format, ...);

/* Takes the note off a terminal, before something else is written. */
void progress_clear(void);
