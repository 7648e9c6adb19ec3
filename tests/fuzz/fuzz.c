/* libFuzzer's target: the readers of files. The first byte says of what form the rest is: a ProgramDesc, text, parameters, a
 * dictionary in a pickle, or a graph. Whatever comes must end in a value or in one error. See `make fuzz`. */
#include "../../ir/ir.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static bool read_program(Program *p) {
  bool ok = p && prog_verify(p) && infer_program(p, true);
  prog_free(p);
  return ok;
}

static bool read_bytes(uint8_t *b, size_t n) { return read_program(prog_decode(b, n, "fuzz")); }
static bool read_text(uint8_t *b, size_t n) {
  return read_program(prog_parse((const char *)b, n, "fuzz"));
}

static bool read_params(uint8_t *b, size_t n) {
  Arena *a = arena_new();
  Tensor t[3];
  bool ok = params_view(b, n, "fuzz", 3, NULL, t, NULL);
  if (!ok) err_clear();
  Var rows = {.name = "rows", .kind = VK_SELECTED_ROWS, .dtype = DT_NONE};
  ok = params_view_one(b, n, "fuzz", &rows, a, t, NULL) || ok;
  arena_free(a);
  return ok || err_any();
}

static bool read_pickle(uint8_t *b, size_t n) {
  Arena *a = arena_new();
  bool ok = pickle_params(b, n, "fuzz", a);
  arena_free(a);
  return ok;
}

static bool read_graph(uint8_t *b, size_t n) {
  Graph *g = graph_parse((const char *)b, n, "fuzz");
  bool ok = g;
  graph_free(g);
  return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  static bool (*const forms[])(uint8_t *, size_t) = {read_bytes, read_text, read_params,
                                                     read_pickle, read_graph};
  if (!n) return 0;
  uint8_t *copy = malloc(n); /* of its size, so that reads behind it are seen */
  memcpy(copy, bytes + 1, n - 1);
  copy[n - 1] = 0; /* text ends so */
  err_clear();
  bool ok = forms[bytes[0] % 5](copy, n - 1);
  if (!ok && !err_any()) abort();
  free(copy);
  return 0;
}
