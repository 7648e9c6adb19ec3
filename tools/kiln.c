/* kiln: the command line. Picks the verb; global flags may stand before it:
 *   --plugin LIB.so        load custom operators (repeatable)
 *   --error-format=json    errors as one JSON object on stderr */
#include "tools.h"
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const Verb verbs[] = {
#define VERB(name, summary) {#name, verb_##name, summary},
#include "verbs.def"
#undef VERB
};
enum { N_VERBS = sizeof verbs / sizeof *verbs };

static void print_help(FILE *to) {
  fprintf(to,
          "Kiln %s: compiles and runs static graphs of deep-learning programs.\n\n"
          "usage: kiln [--plugin LIB.so] [--error-format=json] VERB ARGUMENTS\n\n",
          KILN_VERSION);
  for (int i = 0; i < N_VERBS; i++) fprintf(to, "  %-9s %s\n", verbs[i].name, verbs[i].summary);
  fprintf(to, "\n`kiln VERB --help` says what a verb takes.\n");
}

static int unknown_verb(const char *name) {
  const char *names[N_VERBS];
  for (int i = 0; i < N_VERBS; i++) names[i] = verbs[i].name;
  const char *near = name_nearest(name, N_VERBS, names);
  return near ? usage_error("unknown verb %s; did you mean %s?", quoted(name), near)
              : usage_error("unknown verb %s; `kiln --help` lists them", quoted(name));
}

/* Handles one flag before the verb; returns how many arguments it took, 0 if it is none. */
static int global_flag(int argc, char **argv, int i) {
  if (error_format(argv[i])) return 1;
  if (!strncmp(argv[i], "--plugin=", 9)) return kl_load_plugin(argv[i] + 9), 1;
  if (!strcmp(argv[i], "--plugin") && i + 1 < argc) return kl_load_plugin(argv[i + 1]), 2;
  return 0;
}

/* A file that is opened later must not become one of the standard streams where these are closed. */
static void hold_streams(void) {
  int fd;
  do fd = open("/dev/null", O_RDONLY);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

static int run_verb(int argc, char **argv) {
  const char *name = argv[0];
  if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help"))
    return print_help(stdout), 0;
  if (!strcmp(name, "--version")) return printf("kiln %s\n", KILN_VERSION), 0;
  for (int v = 0; v < N_VERBS; v++)
    if (!strcmp(name, verbs[v].name)) return verbs[v].run(argc, argv);
  return unknown_verb(name);
}

int main(int argc, char **argv) {
  int i = 1;
  hold_streams();
  signal(SIGXFSZ, SIG_IGN); /* a write over the limit of ulimit -f fails like one on a full disk */
  while (i < argc) {
    int took = global_flag(argc, argv, i);
    if (err_any()) return report();
    if (!took) break;
    i += took;
  }
  if (i >= argc) return print_help(stderr), 2;
  int rc = run_verb(argc - i, argv + i);
  if ((fflush(stdout) != 0 || ferror(stdout)) && !rc) {
    err_set(E_IO_002, "standard output cannot be written");
    rc = report();
  }
  return rc;
}
