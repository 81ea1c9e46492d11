/* The suites of gpu_tests; argv[0] is the suite's name. Each returns an exit status. */
#pragma once

/* [--mps] [NAME...]: the daemon with real processes; tests whose names begin so, or all. */
int service_main(int argc, char **argv);

/* [--family NAME] [--repeats N] [PART...]: stress of a kernel family. */
int kernels_main(int argc, char **argv);

/* ADDRESS SEED COUNT [CASE]: random problems through a running daemon. */
int draws_main(int argc, char **argv);
