/* What the CUDA Toolkit says of the kernels of a program, and how long they should take.
 *
 * In: ptx_check [--kernels | --time] cuda:sm_NN[:MATH][,...] NAME.main.pdmodel train|infer x=SHAPE label=SHAPE. The program
 * is compiled (infer: its clone for test, which computes "out"; train: the step), for each target PTX made of its kernels, and
 *   default    assembled by ptxas (PTXAS names it): one line with what came out; exit 1 if it refuses, or if a contraction or
 *              a reduction keeps registers in memory. Kernels without products are the same in all arithmetics of an
 *              architecture: assembled for the first
 *   --kernels  the same, and a line for each entry: registers, spills, shared memory, occupancy by the toolkit's calculator
 *   --time     a table of predicted times on an H100, beside a bound
 * The predicted time of a launch is the largest of: its bytes over the bandwidth (every input and output once, and the parts
 * of split sums); the products that it does, with the padding of tiles, over the peak; its instructions over the issue
 * slots. Instructions are counted in the PTX of the entry, those of the loop over products as often as it runs; in
 * reductions they are estimated from the maps at each point. The bound is that of the kernel: bytes, and needed products. */
#include "../../backends/cuda/gemm.h"
#include "../../executor/executor.h"
#include "../../passes/passes.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if __has_include(<cuda_occupancy.h>)
#include <cuda_occupancy.h>
#define HAVE_OCCUPANCY 1
#else
#define HAVE_OCCUPANCY 0
#endif

/* H100 SXM at its boost clock. mma.sync does half of what wgmma does. */
static const double clock_hz = 1.755e9, bandwidth = 3.35e12, processors = 132, issue_slots = 4,
                    fma_rate[] = {[CUDA_F32] = 128, [CUDA_TF32] = 512, [CUDA_BF16] = 1024};

typedef struct Use {
  int registers, spills, shared; /* spills: bytes; shared: static */
  double occupancy;              /* of warps; < 0: unknown */
} Use;

typedef struct Entry {
  const Kernel *k;
  const CudaLaunch *l;
  Use use;
  int64_t count; /* launches of it */
} Entry;

/* What is known of a program for one target. */
typedef struct Check {
  Arena *a;
  Graph *g;
  CudaTarget t;
  Str ptx;
  VEC(Entry) entries;
  Map *by_name;
  int launches,
      same; /* same: launches of kernels that an earlier target of this architecture had */
} Check;

enum { MOST_TARGETS = 16 };

static const char *const form_name[] = {
    [CUDA_POINTS] = "maps",    [CUDA_JOINS] = "joins",      [CUDA_TILES] = "transposes",
    [CUDA_GEMM] = "products",  [CUDA_TEAMS] = "reductions", [CUDA_SCATTER] = "scatters",
    [CUDA_RUNS] = "sort runs", [CUDA_MERGE] = "sort merges"};
static const char *const math_name[] = {
    [CUDA_F32] = "exact", [CUDA_TF32] = "tf32", [CUDA_BF16] = "bf16"};
enum { N_FORMS = sizeof form_name / sizeof *form_name };

/* Contractions that no tile serves count among them. */
static bool is_hot(const Entry *e) {
  return e->l->stage->form == CUDA_TEAMS || e->k->kind == K_CONTRACT;
}

/* ---- compiling ---- */

static bool feed_of(Arena *a, const Program *p, const char *text, Feed *f) {
  const char *eq = strchr(text, '=');
  Tensor *t = arena_new_of(a, Tensor);
  if (!eq) return false;
  f->name = arena_strn(a, text, (size_t)(eq - text));
  const Var *v = block_var(p->blocks.v[0], f->name);
  if (!v) return false;
  t->dtype = v->dtype;
  for (const char *s = eq; *s && t->rank < KL_VAR_RANK;) {
    char *end;
    t->dims[t->rank++] = strtoll(s + 1, &end, 10);
    s = end;
  }
  f->value = t;
  return true;
}

static Executable *compile_program(Arena *a, const Program *p, bool train, int n,
                                   char *const *shapes) {
  static const char *const fetch[] = {"out", "loss"};
  Feed *feeds = arena_array(a, Feed, n + 1);
  int m = 0;
  for (int i = 0; i < n; i++)
    if (train || strncmp(shapes[i], "label=", 6)) m += feed_of(a, p, shapes[i], &feeds[m]);
  CompileRequest r = {.prog = p,
                      .n_feeds = m,
                      .feeds = feeds,
                      .n_fetch = 1,
                      .fetch = &fetch[train],
                      .target = "cuda:sm_80",
                      .no_code = true};
  return compile(&r);
}

static bool multiplies(const CudaPlan *p) {
  for (int j = 0; j < p->n; j++)
    if (p->launch[j].stage->gemm) return true;
  return false;
}

static bool plan_all(Check *c, bool seen) {
  Kernel **kernels = arena_array(c->a, Kernel *, c->g->kernels.n + 1);
  int n = 0;
  c->by_name = map_new(c->a);
  for (int i = 0; i < c->g->kernels.n; i++) {
    Kernel *k = c->g->kernels.v[i];
    const CudaPlan *p = cuda_plan(c->a, k, &c->t);
    if (!p) return false;
    if (seen && !multiplies(p)) {
      c->launches += p->n;
      c->same += p->n;
      continue;
    }
    kernels[n++] = k;
    for (int j = 0; j < p->n; j++) {
      intptr_t at = (intptr_t)map_get(c->by_name, p->launch[j].entry);
      c->launches++;
      if (at) {
        c->entries.v[at - 1].count++;
        continue;
      }
      vec_add(c->a, &c->entries, ((Entry){.k = k, .l = &p->launch[j], .count = 1}));
      map_put(c->by_name, p->launch[j].entry, (void *)(intptr_t)c->entries.n);
    }
  }
  return n == 0 || cuda_ptx(n, kernels, &c->t, &c->ptx);
}

/* ---- ptxas ---- */

static int number_before(const char *line, const char *what) {
  const char *at = strstr(line, what);
  while (at && at > line && at[-1] == ' ') at--;
  while (at && at > line && at[-1] >= '0' && at[-1] <= '9') at--;
  return at ? atoi(at) : 0;
}

static double occupancy(const Check *c, const Entry *e) {
#if HAVE_OCCUPANCY
  static const struct {
    int sm, threads;
    size_t shared, block;
  } chips[] = {{75, 1024, 64, 64},
               {80, 2048, 164, 163},
               {90, 2048, 228, 227},
               {100, 2048, 228, 227}};
  cudaOccDeviceProp p = {0};
  cudaOccDeviceState s = {.carveoutConfig = SHAREDMEM_CARVEOUT_DEFAULT};
  cudaOccFuncAttributes f = {0};
  cudaOccResult r;
  for (size_t i = 0; i < sizeof chips / sizeof *chips; i++) {
    if (c->t.sm < chips[i].sm) break;
    p.computeMajor = chips[i].sm / 10;
    p.computeMinor = chips[i].sm % 10;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = chips[i].threads;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.sharedMemPerBlock = 48 << 10;
    p.sharedMemPerMultiprocessor = chips[i].shared << 10;
    p.numSms = (int)processors;
    p.sharedMemPerBlockOptin = chips[i].block << 10;
    p.reservedSharedMemPerBlock = chips[i].sm > 75 ? 1024 : 0;
  }
  f.maxThreadsPerBlock = 1024;
  f.numRegs = e->use.registers;
  f.sharedSizeBytes = (size_t)e->use.shared;
  f.maxDynamicSharedSizeBytes = p.sharedMemPerBlockOptin - f.sharedSizeBytes;
  f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, (int)e->l->block[0], e->l->shared))
    return -1;
  return (double)r.activeBlocksPerMultiprocessor * e->l->block[0] / p.maxThreadsPerMultiprocessor;
#else
  (void)c, (void)e;
  return -1;
#endif
}

/* Fills in what ptxas reports; false: it refuses the module. */
static bool assemble(Check *c) {
  char path[] = "/tmp/kiln-ptx-XXXXXX", line[4096], name[512];
  const char *ptxas = getenv("PTXAS");
  if (c->entries.n == 0) return true;
  int fd = mkstemp(path);
  if (fd < 0 || write(fd, c->ptx.s, c->ptx.n) != (ssize_t)c->ptx.n) return false;
  close(fd);
  snprintf(line, sizeof line, "%.3000s -arch=sm_%d -v -o /dev/null %s 2>&1",
           ptxas ? ptxas : "ptxas", c->t.sm, path);
  FILE *f = popen(line, "r");
  Entry *e = NULL;
  while (f && fgets(line, sizeof line, f)) {
    if (sscanf(line, "ptxas info : Compiling entry function '%500[^']'", name) == 1) {
      intptr_t at = (intptr_t)map_get(c->by_name, name);
      e = at ? &c->entries.v[at - 1] : NULL;
    } else if (e && strstr(line, "spill")) {
      e->use.spills =
          number_before(line, "bytes spill stores") + number_before(line, "bytes spill loads");
    } else if (e && strstr(line, "registers")) {
      e->use.registers = number_before(line, "registers");
      e->use.shared = number_before(line, "bytes smem");
      e->use.occupancy = occupancy(c, e);
    } else if (strstr(line, "error") || strstr(line, "fatal")) {
      fputs(line, stderr);
    }
  }
  int rc = f ? pclose(f) : 1;
  unlink(path);
  return rc == 0;
}

static bool report(Check *c, const char *what, bool each) {
  int assembled = 0, spilled = 0, hot_spilled = 0, plain = 0;
  double least = 1, sum = 0;
  bool ok = assemble(c);
  for (int i = 0; i < c->entries.n; i++) {
    const Entry *e = &c->entries.v[i];
    assembled += e->use.registers > 0;
    spilled += e->use.spills > 0;
    hot_spilled += e->use.spills > 0 && is_hot(e);
    plain += e->k->kind == K_CONTRACT && e->l->stage->form != CUDA_GEMM && !e->l->stage->gemm;
    if (e->use.occupancy < least) least = e->use.occupancy;
    sum += e->use.occupancy;
    if (each)
      printf("%s sm_%d %s %s %d registers %d spilled %d + %u shared %u threads %.0f %%\n",
             e->l->entry, c->t.sm, math_name[c->t.math], form_name[e->l->stage->form],
             e->use.registers, e->use.spills, e->use.shared, e->l->shared, e->l->block[0],
             100 * e->use.occupancy);
  }
  printf("%-16s %-5s sm_%-3d %4d launches (%3d as before) %4d entries %4d assembled %3d spill (%d "
         "hot) %3d plain contractions occupancy %3.0f %% mean %3.0f %% least\n",
         what, math_name[c->t.math], c->t.sm, c->launches, c->same, c->entries.n, assembled,
         spilled, hot_spilled, plain, 100 * sum / (c->entries.n ? c->entries.n : 1), 100 * least);
  return ok && assembled == c->entries.n && hot_spilled == 0;
}

/* ---- predicted times ---- */

/* PTX instructions of an entry, and those of its longest loop. */
static void count_instructions(const Check *c, const char *entry, int64_t *all, int64_t *loop) {
  char *head = arena_fmt(c->a, ".entry %s(", entry);
  const char *s = strstr(c->ptx.s, head), *end = s ? strstr(s, "\n}") : NULL;
  Map *label = map_new(c->a);
  *all = *loop = 0;
  for (s = s ? strchr(s, '{') : NULL; s && s < end; s = strchr(s + 1, '\n')) {
    const char *w = s + 1 + strspn(s + 1, " \t");
    size_t n = strcspn(w, "\n");
    if (*w == '$') {
      map_put(label, arena_strn(c->a, w, strcspn(w, ":")), (void *)(intptr_t)(*all + 1));
    } else if (n && *w != '.' && *w != '/' && *w != '{' && *w != '}') {
      const char *bra = strstr(w, "bra");
      ++*all;
      if (!bra || bra >= w + n) continue;
      const char *to = strchr(bra, '$');
      intptr_t at = to ? (intptr_t)map_get(label, arena_strn(c->a, to, strcspn(to, ";"))) : 0;
      if (at && *all - at + 1 > *loop) *loop = *all - at + 1;
    }
  }
}

static double bytes_of(const Node *n) { return (double)node_numel(n) * dtype_info[n->dtype].size; }

static double kernel_bytes(const Kernel *k) {
  double sum = 0;
  for (int i = 0; i < k->inputs.n; i++) sum += bytes_of(k->inputs.v[i].node);
  for (int i = 0; i < k->outputs.n; i++) sum += bytes_of(k->outputs.v[i]);
  return sum;
}

/* Multiplications that are needed: divisions of strided windows leave out the others. */
static double needed_products(const Kernel *k) {
  const Node *c = k->core;
  double n = 1;
  if (k->kind != K_CONTRACT) return 0;
  for (int l = 0; l < c->n_loops; l++) n *= (double)c->ext[l];
  for (int x = 0; x < 2; x++)
    for (int d = 0; d < c->in[x]->rank; d++) n /= c->map[x][d].div;
  return n;
}

static double map_operations(const Kernel *k) {
  double n = 0;
  for (int i = 0; i < k->nodes.n; i++)
    n += (double)node_numel(prim_is_reduce(k->nodes.v[i]->prim) ? k->nodes.v[i]->in[0]
                                                                : k->nodes.v[i]);
  return n;
}

typedef struct Time {
  double bytes, products, issue, bound; /* seconds; bound: 0 for further launches of a kernel */
} Time;

static Time time_of(const Check *c, const Entry *e) {
  const Kernel *k = e->k;
  const CudaStage *s = e->l->stage;
  const CudaGemm *m = s->gemm;
  Time t = {0};
  int64_t all, loop;
  double part = m && m->splits > 1 ? (double)(m->splits * node_numel(k->core)) * 4 : 0;
  double blocks = (double)e->l->grid[0], warps = blocks * e->l->block[0] / 32, n;
  count_instructions(c, e->l->entry, &all, &loop);
  double rate = fma_rate[k->core && m ? m->tile->math : CUDA_F32];
  double peak = processors * rate * clock_hz, slots = processors * issue_slots * clock_hz;
  /* of a residue class: its part */
  double share =
      m && s->form == CUDA_GEMM ? (double)node_numel(m->core) / (double)node_numel(k->core) : 1;
  t.bytes = (kernel_bytes(k) * share + part) / bandwidth;
  if (s->form == CUDA_GEMM) {
    t.products = blocks * m->tile->bm * m->tile->bn / m->groups * (double)m->per * CUDA_STEP / peak;
    n = warps * ((double)(all - loop) + (double)(loop * m->per));
  } else if (s->form == CUDA_TEAMS) {
    n = 1.5 * map_operations(k) / 32;
    if (k->kind == K_CONTRACT) n += 4 * needed_products(k) / 32;
  } else {
    double threads = (double)(k->outputs.n ? node_numel(k->outputs.v[0]) : 0);
    n = warps * (double)all * fmax(1, floor(threads / 4 / (warps * 32)));
  }
  t.issue = n / slots;
  bool second = m && s->form != CUDA_GEMM;
  if (second) t.bytes = (part + bytes_of(k->outputs.v[0])) / bandwidth;
  if (!second) t.bound = share * fmax(kernel_bytes(k) / bandwidth, needed_products(k) / peak);
  return t;
}

static double largest(const Time *t) { return fmax(t->bytes, fmax(t->products, t->issue)); }

static void row(const char *what, int64_t count, const Time *t, double time) {
  printf("| %s | %lld | %.3f | %.3f | %.3f | %.3f | %.3f | %.2f |\n", what, (long long)count,
         t->bytes * 1e3, t->products * 1e3, t->issue * 1e3, time * 1e3, t->bound * 1e3,
         t->bound > 0 ? time / t->bound : 0);
}

static void print_times(const Check *c) {
  Time form[N_FORMS] = {{0}}, total = {0};
  double time[N_FORMS] = {0}, all = 0;
  int64_t count[N_FORMS] = {0}, launches = 0;
  for (int i = 0; i < c->entries.n; i++) {
    const Entry *e = &c->entries.v[i];
    Time t = time_of(c, e);
    CudaForm f = e->l->stage->form;
    double times = (double)e->count;
    for (int k = 0; k < 2; k++) {
      Time *to = k ? &total : &form[f];
      to->bytes += times * t.bytes;
      to->products += times * t.products;
      to->issue += times * t.issue;
      to->bound += times * t.bound;
    }
    time[f] += times * largest(&t);
    all += times * largest(&t);
    count[f] += e->count;
    launches += e->count;
  }
  printf("| launches | number | bytes ms | products ms | issue ms | time ms | bound ms | time / "
         "bound |\n"
         "|---|---|---|---|---|---|---|---|\n");
  for (int f = 0; f < N_FORMS; f++)
    if (count[f]) row(form_name[f], count[f], &form[f], time[f]);
  row("all", launches, &total, all);
}

/* ---- main ---- */

static int usage(void) {
  fprintf(stderr, "usage: ptx_check [--kernels|--time] cuda:sm_NN[:MATH][,...] "
                  "NAME.main.pdmodel train|infer x=SHAPE label=SHAPE\n");
  return 2;
}

static int targets_of(char *list, CudaTarget *t) {
  int n = 0;
  for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
    if (n == MOST_TARGETS || !cuda_target(name, &t[n])) return 0;
    n++;
  }
  return n;
}

static bool check_program(Arena *a, const CudaTarget *t, int n, Graph *g, const char *what,
                          const char *mode) {
  bool ok = true;
  for (int i = 0; i < n; i++) {
    Check c = {.a = a, .g = g, .t = t[i]};
    bool seen = false, time = !strcmp(mode, "--time");
    for (int j = 0; j < i; j++) seen |= t[j].sm == t[i].sm;
    str_init(&c.ptx, a);
    if (!plan_all(&c, seen && !time)) return false;
    if (time)
      print_times(&c);
    else
      ok &= report(&c, what, *mode);
  }
  return ok;
}

int main(int argc, char **argv) {
  const char *mode = argc > 1 && argv[1][0] == '-' ? *++argv : "";
  if (*mode) argc--;
  if (argc < 5) return usage();
  bool train = !strcmp(argv[3], "train"), ok = false;
  Arena *a = arena_new();
  CudaTarget t[MOST_TARGETS];
  int n = targets_of(argv[1], t);
  Program *whole = n ? prog_load(argv[2]) : NULL;
  Program *p = whole && !train ? prog_clone_for_test(whole) : whole;
  Executable *x = p ? compile_program(a, p, train, argc - 4, argv + 4) : NULL;
  if (x) {
    const char *base = strrchr(argv[2], '/');
    char *name = arena_str(a, base ? base + 1 : argv[2]);
    name[strcspn(name, ".")] = 0;
    ok = check_program(a, t, n, executable_graph(x), arena_fmt(a, "%s %s", name, argv[3]), mode);
  }
  if (err_any()) err_print(stderr, false);
  executable_free(x);
  if (p != whole) prog_free(p);
  prog_free(whole);
  arena_free(a);
  return !ok;
}
