/* How tests get the simulator of the CUDA driver in the place of the driver: by the library path alone. */
#include "simulator.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* more: a folder in that of the simulator, or NULL */
static bool start(char *argv[], const char *more) {
  char own[2048], path[3 * sizeof own];
  ssize_t n = readlink("/proc/self/exe", own, sizeof own - 1);
  char *slash = n > 0 ? (own[n] = 0, strrchr(own, '/')) : NULL;
  if (!slash) return false;
  *slash = 0;
  n = snprintf(path, sizeof path, "%s/cudasim", own);
  if (more) snprintf(path + n, sizeof path - (size_t)n, ":%s/cudasim/%s", own, more);
  const char *now = getenv("LD_LIBRARY_PATH");
  if (now && !strcmp(now, path)) return true;
  setenv("LD_LIBRARY_PATH", path, 1);
  execv("/proc/self/exe", argv);
  return false;
}

bool simulator(char *argv[]) { return start(argv, NULL); }
bool simulator_libraries(char *argv[]) { return start(argv, "libraries"); }

int in_process(const char *const *settings, int (*fn)(const void *), const void *arg) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    for (; *settings; settings++) putenv((char *)(uintptr_t)*settings);
    exit(fn(arg));
  }
  int status;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
