/* kiln: the command line. Picks the verb; global flags may stand before it:
 *   --plugin LIB.so        load custom operators (repeatable)
 *   --error-format json    errors as one JSON object on stderr */
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
  fprintf(to, "\n`kiln VERB --help` or `kiln help VERB` says what a verb takes.\n");
}

static int unknown_verb(const char *name) {
  const char *names[N_VERBS];
  for (int i = 0; i < N_VERBS; i++) names[i] = verbs[i].name;
  const char *near = name_nearest(name, N_VERBS, names);
  return near ? usage_error("unknown verb %s; did you mean %s?", quoted(name), near)
              : usage_error("unknown verb %s; `kiln --help` lists them", quoted(name));
}

/* A file that is opened later must not become one of the standard streams where these are closed. */
static void hold_streams(void) {
  int fd;
  do fd = open("/dev/null", O_RDONLY);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

int arguments_before_verb;

/* The section on verbs of docs/kiln.1. */
static void print_manual(void) {
  help_as_manual = true;
  puts(".SH VERBS");
  for (int i = 0; i < N_VERBS; i++)
    verbs[i].run(2, (char *[]){(char *)verbs[i].name, "--help", NULL});
}

static int run_verb(int argc, char **argv) {
  const char *name = argv[0];
  bool help = !strcmp(name, "help");
  if (!strcmp(name, "--help") || !strcmp(name, "-h") || (help && argc == 1))
    return print_help(stdout), 0;
  if (!strcmp(name, "--version")) return printf("kiln %s\n", KILN_VERSION), 0;
  if (help && !strcmp(argv[1], "--manual")) return print_manual(), 0;
  if (help) return run_verb(2, (char *[]){argv[1], "--help", NULL});
  for (int v = 0; v < N_VERBS; v++)
    if (!strcmp(name, verbs[v].name)) return verbs[v].run(argc, argv);
  if (*name == '-')
    return usage_error("unknown flag %s; --plugin and --error-format may stand before the verb",
                       quoted(name));
  return unknown_verb(name);
}

int main(int argc, char **argv) {
  int i = 1;
  hold_streams();
  find_error_format(argc, argv);
  signal(SIGXFSZ, SIG_IGN); /* a write over the limit of ulimit -f fails like one on a full disk */
  while (i < argc) {
    const char *plugin = NULL;
    int took = error_format(argc, argv, i);
    if (!took) took = global_flag(argc, argv, i, "--plugin", "LIB.so", &plugin);
    if (took < 0) return 2;
    if (!took) break;
    if (plugin && !kl_load_plugin(plugin)) return report();
    i += took;
  }
  if (i >= argc) return print_help(stderr), 2;
  arguments_before_verb = i - 1;
  int rc = run_verb(argc - i, argv + i);
  if ((fflush(stdout) != 0 || ferror(stdout)) && !rc) {
    err_set(E_IO_002, "standard output cannot be written");
    rc = report();
  }
  return rc;
}
