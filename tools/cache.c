/* cache: what the disk cache holds. In: the environment, which says where it is. Out: folder, entries, bytes. */
#include "tools.h"

static void print_text(const CacheInfo *c) {
  const char *state = !c->dir ? "off" : c->usable ? "on" : "unused: others may write to the folder";
  printf("folder   %s\nstate    %s\n", c->dir ? c->dir : "none", state);
  printf("entries  %d\n", c->entries);
  printf("bytes    %s\n", grouped(c->bytes));
  printf("limit    %s\n", grouped(c->limit));
}

static void print_json(const CacheInfo *c, Arena *a) {
  Str s;
  str_init(&s, a);
  str_json(c->dir ? c->dir : "", &s);
  printf("{\"folder\": %s, \"usable\": %s, \"entries\": %d, \"bytes\": %lld, \"limit\": %lld}\n",
         c->dir ? s.s : "null", c->dir && c->usable ? "true" : "false", c->entries,
         (long long)c->bytes, (long long)c->limit);
}

int verb_cache(int argc, char **argv) {
  bool clear = false, json = false;
  Flag flags[] = {{"--clear", FLAG_BOOL, &clear, NULL, "remove all entries first"},
                  {"--json", FLAG_BOOL, &json, NULL, "as JSON"},
                  {0}};
  Usage u = {"[--clear] [--json]", "What the disk cache of compiled code and packed filters holds.",
             0, 0, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  Arena *a = arena_new();
  if (clear) cache_clear(a);
  CacheInfo c = cache_info(a);
  if (json)
    print_json(&c, a);
  else
    print_text(&c);
  arena_free(a);
  return 0;
}
