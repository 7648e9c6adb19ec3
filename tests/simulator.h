/* For tests that run on tests/cudasim, the simulator of the CUDA driver. */
#ifndef KILN_TESTS_SIMULATOR_H
#define KILN_TESTS_SIMULATOR_H
#include <stdbool.h>

/* Starts this program again with the simulator, which lies in cudasim/ beside it, first in the library path. Returns in that
 * second program; false: it cannot be started. */
bool simulator(char *argv[]);
bool simulator_libraries(char *argv[]); /* also of cuBLASLt and cuDNN */
/* The exit code of fn in a process with these settings ("NAME=VALUE", then NULL): the simulator reads them when it is opened.
 * 128 and more: killed by a signal. */
int in_process(const char *const *settings, int (*fn)(const void *), const void *arg);
#endif
