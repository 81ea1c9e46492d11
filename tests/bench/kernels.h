/*
 * attnd-bench kernels: the rate of kernel families per shape, in this process, without a daemon.
 */
#pragma once

/* argv[0] names the subcommand. Returns the exit status. */
int kernels_main(int argc, char **argv);

extern const char kernels_summary[];
