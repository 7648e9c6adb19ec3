/* How kernels are launched. In: a kernel; out: its launches, with the geometry of their grids. Everything follows from shapes
 * and the target.
 *
 *   points  maps, concatenations: a grid-stride loop over the results, a thread for each vector of them */
#include "gemm.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- targets ---- */

bool cuda_target(const char *name, CudaTarget *t) {
  static const struct {
    const char *name;
    CudaMath math;
  } math[] = {{"", CUDA_F32}, {":f32", CUDA_F32}, {":tf32", CUDA_TF32}, {":bf16", CUDA_BF16}};
  char *end = NULL;
  long sm = name && !strncmp(name, "cuda:sm_", 8) ? strtol(name + 8, &end, 10) : 0;
  for (size_t i = 0; sm >= 75 && sm < 1000 && i < sizeof math / sizeof *math; i++)
    if (!strcmp(end, math[i].name)) {
      *t = (CudaTarget){(int)sm, math[i].math};
      return true;
    }
  err_set(E_GEN_002, "target %s: not a CUDA architecture from sm_75 on",
          quoted(name ? name : "cuda"));
  err_help(
      "Write it like \"cuda:sm_80\"; \":tf32\" or \":bf16\" behind it lets matrix products round "
      "their inputs.");
  return false;
}

/* ---- launches ---- */

typedef struct Planning {
  Arena *a;
  Kernel *k;
  const CudaTarget *t;
  CudaPlan *plan;
  uint64_t key; /* of the kernel's code */
} Planning;

/* "conv2d_relu_0123456789abcdef": without the kernel's number, so that equal code has one name. */
static const char *entry_name(Planning *p, int launch) {
  const char *s = p->k->name;
  size_t number = *s == 'k' ? strspn(s + 1, "0123456789") : 0;
  if (number && s[1 + number] == '_') s += 2 + number;
  uint64_t h = hash_bytes(p->key, &launch, sizeof launch);
  char *name = arena_fmt(p->a, "%s_%016llx", *s ? s : "kernel", (unsigned long long)h);
  for (char *c = name; *c; c++)
    if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", *c)) *c = '_';
  if (*name >= '0' && *name <= '9') *name = '_';
  return name;
}

/* A launch whose arguments are all buffers and the run. */
static CudaStage *launch(Planning *p, CudaForm form, LoopPart part, int64_t blocks, int threads) {
  CudaPlan *plan = p->plan;
  Kernel *k = p->k;
  CudaLaunch *l = &plan->launch[plan->n];
  CudaStage *s = arena_new_of(p->a, CudaStage);
  *s = (CudaStage){.form = form, .part = part};
  int n = k->inputs.n + k->outputs.n + (plan->workspace > 0);
  *l = (CudaLaunch){.entry = entry_name(p, plan->n),
                    .grid = {(uint32_t)blocks, 1, 1},
                    .block = {(uint32_t)threads, 1, 1},
                    .n_args = n + 1,
                    .args = arena_array(p->a, CudaArg, n + 1),
                    .stage = s};
  for (int i = 0; i < n; i++) l->args[i] = (CudaArg){CUDA_BUF, i, 0};
  l->args[n].kind = CUDA_RUN;
  plan->n++;
  return s;
}

static Gen *nests_of(Planning *p, LoopPart part) {
  Gen *g = arena_new_of(p->a, Gen);
  *g = (Gen){.a = p->a, .k = p->k, .part = part, .gpu = true};
  return g;
}

int cuda_points_vector(Gen *g, const Nest *t) {
  enum { FEW = 8192 }; /* threads that are more use than vectors */
  if (t->n_out == 0 || (t->red && !t->unroll)) return 1;
  int v = cuda_vector(g, t, &t->out[t->n_out - 1]);
  return t->rows / v < FEW ? 1 : v;
}

enum { MOST_BOX = 2048 /* points */ };

static int64_t most_blocks(int64_t n) { return n < CUDA_MOST_BLOCKS ? n : CUDA_MOST_BLOCKS; }

/* As few blocks as a device is busy with, of so many points of sums. */
static int64_t least_blocks(int64_t points) {
  enum { SMALL = 1 << 16, BUSY = 132 };
  return points <= SMALL ? 1 : BUSY;
}

/* What blocks of neighbouring points, or boxes, copy; NULL: nothing. */
static const CudaSpans *point_spans(Gen *g, const Nest *t) {
  const CudaSpans *flat = cuda_spans(g, t, cuda_points_vector(g, t)),
                  *boxes = cuda_boxes(g, t, MOST_BOX, least_blocks(t->rows));
  return boxes && (!flat || boxes->sectors < 0.95 * flat->sectors) ? boxes : flat;
}

static int64_t point_blocks(Gen *g, const Nest *t, const CudaSpans *spans) {
  if (spans && spans->boxes) return cuda_box_blocks(t, spans);
  return div_up(t->rows, spans ? spans->points : cuda_points_vector(g, t) * CUDA_THREADS);
}

static bool plan_points(Planning *p, LoopPart part, const CudaGemm *sums) {
  Gen *g = nests_of(p, part);
  int64_t blocks = 0;
  const CudaSpans *spans = NULL;
  for (int i = 0; i < nest_n(p->k, part); i++) {
    Nest t;
    nest_plan(g, i, &t);
    spans = sums ? NULL : point_spans(g, &t);
    if (spans) cuda_reorder(&t, spans);
    int64_t n = point_blocks(g, &t, spans);
    if (n > blocks) blocks = n;
  }
  if (!blocks) return true;
  CudaStage *s = launch(p, CUDA_POINTS, part, most_blocks(blocks), CUDA_THREADS);
  s->gemm = sums;
  s->spans = spans;
  return true;
}

/* Of input and result of a transpose by tiles, whose rows begin anywhere. */
static double tile_sectors(const Nest *t, const CudaStage *s, int bytes) {
  double per = 32 / bytes, n = 0;
  for (int i = 0; i < 2; i++) {
    int64_t ext = t->out[i ? s->b : s->a].ext, size = i ? s->size_b : s->size_a;
    double row = (double)ext / (double)div_up(ext, size);
    n += ext % (int64_t)per ? 1 / per + (1 - 1 / per) / row : 1 / per;
  }
  return n * (double)t->rows;
}

static bool plan_tiles(Planning *p, Gen *g, const Nest *t) {
  CudaStage tile = {.form = CUDA_TILES, .part = g->part};
  const CudaSpans *spans = point_spans(g, t);
  int bytes = dtype_info[t->roots.v[0].n->dtype].size;
  bool small = spans && !spans->boxes && spans->box > 1 && spans->points % spans->box == 0;
  if (t->rows == 0 || small || !cuda_transposes(g, t, &tile) ||
      (spans && spans->boxes && spans->sectors < 0.95 * tile_sectors(t, &tile, bytes)))
    return plan_points(p, g->part, NULL);
  int64_t ea = t->out[tile.a].ext, eb = t->out[tile.b].ext;
  int64_t blocks = div_up(ea, tile.size_a) * div_up(eb, tile.size_b) * (t->rows / ea / eb);
  *launch(p, CUDA_TILES, g->part, most_blocks(blocks), CUDA_THREADS) = tile;
  return true;
}

/* ---- reductions ---- */

enum {
  MOST_TEAM = 512,
  MANY_THREADS = 132 * 1024,
  LEAST_POINTS = 8 /* of a lane */,
  SMALL = 1 << 16 /* points that few blocks do soon enough */
};

/* Neighbouring threads are of one team where the summed axis is contiguous, else of different teams. */
static void team_shape(Gen *g, const Nest *t, CudaStage *s) {
  const Axis *sum = t->n_sum ? &t->sum[t->n_sum - 1] : NULL,
             *out = t->n_out ? &t->out[t->n_out - 1] : NULL;
  s->columns = t->columns && out;
  s->vec = s->columns || t->n_sums < 128 ? 1 : cuda_vector(g, t, sum);
  s->lanes = s->teams = 1;
  int64_t points = t->n_sums / s->vec;
  int least = s->columns ? 1 : 32, width = s->columns ? 32 : 1;
  while (s->columns && s->teams < width && s->teams < t->rows) s->teams *= 2;
  while (s->lanes < least && s->lanes < points) s->lanes *= 2;
  while (s->lanes * s->teams < MOST_TEAM && points >= LEAST_POINTS * s->lanes &&
         t->rows * s->lanes < MANY_THREADS)
    s->lanes *= 2;
  while (!s->columns && s->teams * s->lanes < CUDA_THREADS && s->teams < t->rows) s->teams *= 2;
  while (s->columns && s->teams * s->lanes < CUDA_THREADS / 2 && s->teams < t->rows) s->teams *= 2;
  while (s->teams * s->lanes < 32) s->teams *= 2;
}

/* Rows that a block copies, without vectors: of `teams` or fewer, or more if they lie between one another. */
static void team_spans(Gen *g, const Nest *t, CudaStage *s) {
  int unit = cuda_team_unit(t), most = unit * (unit < s->teams ? s->teams / unit : 1);
  bool up = false;
  for (int teams = most; unit <= MOST_TEAM && !s->spans; teams = up ? 2 * teams : teams / 2) {
    if (!up && (teams == 0 || teams % unit)) up = true, teams = 2 * most;
    if (teams > MOST_TEAM || (up && !s->columns)) break;
    int lanes = s->lanes;
    while (lanes > 1 && lanes * teams > MOST_TEAM) lanes /= 2;
    s->spans = cuda_team_spans(g, t, teams, lanes * teams, true, 0);
    if (s->spans) s->lanes = lanes, s->teams = teams, s->vec = 1;
  }
  int64_t chunk = s->columns && t->rows * t->n_sums <= SMALL ? t->sum[0].ext : 0;
  for (; chunk > 1 && most <= MOST_TEAM && !s->spans; chunk = (chunk + 1) / 2) {
    int lanes = s->lanes;
    while (lanes > 1 && lanes * most > MOST_TEAM) lanes /= 2;
    s->spans = cuda_team_spans(g, t, most, lanes * most, true, chunk);
    if (s->spans) s->lanes = lanes, s->teams = most;
  }
  if (!s->spans) s->spans = cuda_team_spans(g, t, s->teams, s->lanes * s->teams, false, 0);
}

/* Blocks that are boxes of rows: a team for each, and teams to fill warps. Sums of products have half as
 * many blocks as without, or more, and nothing is copied if neighbouring rows in place are fewer sectors. */
static void team_boxes(Gen *g, const Nest *t, CudaStage *s) {
  int64_t least = least_blocks(t->rows * t->n_sums);
  if (t->contract && least > t->rows / s->teams / 2) least = t->rows / s->teams / 2;
  const CudaSpans *flat = s->spans && s->spans->lines ? s->spans : NULL,
                  *boxes = cuda_boxes(g, t, MOST_TEAM, least);
  double before = flat                        ? flat->sectors
                  : t->contract && s->columns ? cuda_sectors_in_place(g, t)
                                              : INFINITY;
  if (!boxes || boxes->sectors >= 0.95 * before) return;
  s->teams = (int)boxes->points;
  s->vec = 1;
  while (s->lanes > 1 && s->lanes * s->teams > MOST_TEAM) s->lanes /= 2;
  while (2 * s->lanes * s->teams <= CUDA_THREADS && LEAST_POINTS * s->lanes <= t->n_sums)
    s->lanes *= 2;
  while (s->lanes * s->teams % 32 || s->lanes * s->teams < boxes->points + CUDA_SECTOR) s->teams++;
  CudaSpans *same = arena_dup(g->a, boxes, sizeof *boxes);
  same->threads = s->lanes * s->teams;
  s->spans = same;
}

/* Are all reads of a matrix in which sums go along columns its elements, or one for a column? */
static bool reads_columns(Gen *g, const Nest *t, int *bytes) {
  CudaAccesses all = {0};
  bool plain = cuda_accesses(g, t, &all);
  for (int i = 0; i < all.n && plain; i++) {
    const CudaAccess *x = &all.v[i];
    const Axis *columns = &t->out[t->n_out - 1];
    int64_t along, down;
    plain = x->known && cuda_axis_step(t, columns, x->step, &along) &&
            cuda_axis_step(t, &t->sum[0], x->step, &down) &&
            (down == 0 || (along == 1 && down == columns->ext));
    if (x->bytes < *bytes) *bytes = x->bytes;
  }
  for (int r = 0; r < t->roots.n; r++) {
    int size = dtype_info[t->roots.v[r].n->dtype].size;
    if (size < *bytes) *bytes = size;
  }
  return plain;
}

/* Columns of a matrix, or of each of a stack, whose rows begin anywhere: a block has all of a matrix, and as many lanes as make
 * whole sectors, so that its threads always do neighbouring elements, each of its own column. */
static void whole_rows(Gen *g, const Nest *t, CudaStage *s) {
  enum { MOST_THREADS = 768, MOST_POINTS = 1 << 14 /* if there were blocks for many processors */ };
  if ((s->spans && (s->spans->lines || s->spans->boxes)) || !s->columns || t->contract ||
      t->n_out > 2 || t->n_sum != 1)
    return;
  const Axis *out = &t->out[t->n_out - 1];
  int64_t columns = out->ext, points = columns * t->n_sums;
  int bytes = 8, lanes = 1;
  if (columns > 2 * s->teams && points > MOST_POINTS) return;
  if (t->sum[0].last > out->first || columns > MOST_THREADS || points > SMALL ||
      !reads_columns(g, t, &bytes) || columns * bytes % CUDA_SECTOR == 0)
    return;
  while (columns * lanes * bytes % CUDA_SECTOR) lanes *= 2;
  while (2 * columns * lanes <= MOST_TEAM && LEAST_POINTS * lanes <= t->n_sums) lanes *= 2;
  if (columns * lanes > MOST_THREADS) return;
  s->teams = (int)columns;
  s->lanes = lanes;
  s->spans = cuda_team_spans(g, t, s->teams, s->lanes * s->teams, false, 0);
}

static bool plan_teams(Planning *p, Gen *g, const Nest *t) {
  CudaStage shape = {0};
  if (t->rows == 0) return true;
  team_shape(g, t, &shape);
  team_spans(g, t, &shape);
  team_boxes(g, t, &shape);
  whole_rows(g, t, &shape);
  int64_t blocks = shape.spans && shape.spans->boxes ? cuda_box_blocks(t, shape.spans)
                                                     : div_up(t->rows, shape.teams);
  CudaStage *s = launch(p, CUDA_TEAMS, g->part, most_blocks(blocks), shape.lanes * shape.teams);
  s->vec = shape.vec;
  s->lanes = shape.lanes;
  s->teams = shape.teams;
  s->columns = shape.columns;
  s->spans = shape.spans;
  return true;
}

static bool plan_nest(Planning *p, LoopPart part) {
  Gen *g = nests_of(p, part);
  Nest t;
  const CudaSpans *join = p->k->kind == K_CONCAT ? cuda_join_spans(g) : NULL;
  if (join) {
    int64_t blocks = div_up(node_numel(p->k->core), join->points);
    launch(p, CUDA_JOINS, part, most_blocks(blocks), CUDA_THREADS)->spans = join;
    return true;
  }
  if (nest_n(p->k, part) > 1) return plan_points(p, part, NULL);
  nest_plan(g, 0, &t);
  if (t.red && !t.unroll) return plan_teams(p, g, &t);
  return t.roots.n && !t.red && p->k->kind == K_LOOP ? plan_tiles(p, g, &t)
                                                     : plan_points(p, part, NULL);
}

/* ---- scatter, sort ---- */

static bool stored(const Planning *p) {
  int64_t step[3];
  for (int i = 0; i < p->k->core->n_in; i++)
    if (kernel_input(p->k, p->k->core->in[i]) < 0 &&
        (p->k->kind != K_SCATTER || i != 1 || kernel_index(p->k, step) < 0))
      return err_set(E_GEN_002, "kernel %s: an operand is not stored", quoted(p->k->name));
  return true;
}

/* As many classes as give enough threads; each reads all indices of its column. */
static bool plan_scatter(Planning *p) {
  enum { ENOUGH = 1 << 16, MOST_CLASSES = 4096 };
  const Node *n = p->k->core;
  int64_t columns = n->dims[n->i] ? node_numel(n) / n->dims[n->i] : 0, classes = 1;
  if (!stored(p)) return false;
  while (classes < n->dims[n->i] && classes < MOST_CLASSES && columns * classes < ENOUGH)
    classes *= 2;
  if (columns)
    launch(p, CUDA_SCATTER, LOOP_MAIN, most_blocks(div_up(columns * classes, CUDA_THREADS)),
           CUDA_THREADS)
        ->classes = classes;
  return true;
}

int64_t cuda_sort_blocks(const Node *n, int64_t run) {
  int64_t length = n->dims[n->rank - 1], rows = node_numel(n) / length;
  return length <= run ? div_up(rows, run / length) : rows * div_up(length, run);
}

/* Runs, then merges between the workspace and the output, the last one into the output. The workspace holds indices, and keys
 * twice, which a merge reads and, if another one follows, writes. */
static bool plan_sort(Planning *p) {
  const Node *n = p->k->core;
  int64_t length = n->dims[n->rank - 1], all = node_numel(n), run = CUDA_RUN_SIZE;
  int64_t indices = div_up(all * 8, CUDA_SECTOR) * CUDA_SECTOR,
          keys = div_up(all * dtype_info[n->in[0]->dtype].size, CUDA_SECTOR) * CUDA_SECTOR;
  int merges = 0, out = p->k->inputs.n, work = p->k->inputs.n + p->k->outputs.n;
  if (!stored(p)) return false;
  while (run << merges < length) merges++;
  if (merges) p->plan->workspace = indices + (merges > 1 ? 2 : 1) * keys;
  for (int i = 0; i <= merges && all; i++) {
    CudaStage *s = launch(p, i ? CUDA_MERGE : CUDA_RUNS, LOOP_MAIN,
                          most_blocks(cuda_sort_blocks(n, run)), CUDA_THREADS);
    s->run = i ? run << (i - 1) : run;
    s->to = (merges - i) % 2 ? work : out;
    s->from = (merges - i) % 2 ? out : work;
    s->keys_to = i < merges ? indices + i % 2 * keys : -1;
    s->keys_from = i ? indices + (i - 1) % 2 * keys : -1;
  }
  return true;
}

/* ---- kinds of kernels ---- */

typedef bool PlanFn(Planning *p);

static bool plan_loop(Planning *p) { return plan_nest(p, LOOP_MAIN); }

static void launch_product(Planning *p, const CudaGemm *m) {
  int64_t blocks = m->side[0].blocks * m->side[1].blocks * m->batch.total * m->splits;
  if (m->splits > 1)
    p->plan->workspace = m->splits * cuda_gemm_part(m) * dtype_info[m->tile->type].size;
  CudaStage *s = launch(p, CUDA_GEMM, LOOP_EPILOGUE, blocks, m->threads);
  p->plan->launch[p->plan->n - 1].shared = (uint32_t)cuda_gemm_shared(m);
  s->gemm = m;
}

/* What follows the sums that a library leaves in the workspace. */
static bool plan_behind_library(Planning *p) {
  CudaGemm *sums = arena_new_of(p->a, CudaGemm);
  CudaTiling *tile = arena_new_of(p->a, CudaTiling);
  if (p->k->choice & CUDA_WHOLE) return true;
  tile->type = p->k->core->dtype;
  *sums = (CudaGemm){.core = p->k->core, .tile = tile, .splits = 1, .groups = 1};
  p->plan->workspace = 1;
  plan_points(p, LOOP_EPILOGUE, sums);
  return true;
}

/* A launch for each class of results; with a split sum two: the parts, then their sum in order and what follows. */
static bool plan_contract(Planning *p) {
  if (p->k->choice) return plan_behind_library(p);
  Gen *g = nests_of(p, LOOP_EPILOGUE);
  int n = cuda_gemm_classes(p->k->core);
  const CudaGemm **m = arena_array(p->a, const CudaGemm *, n);
  for (int i = 0; i < n; i++)
    if (!(m[i] = cuda_gemm_plan(g, p->t, i))) return plan_nest(p, LOOP_CONTRACT);
  for (int i = 0; i < n; i++) launch_product(p, m[i]);
  return m[0]->splits == 1 || plan_points(p, LOOP_EPILOGUE, m[0]);
}

static bool plan_call(Planning *p) {
  p->plan->on_host = true;
  return stored(p);
}

static PlanFn *const plans[] = {
    [K_LOOP] = plan_loop,       [K_CONCAT] = plan_loop, [K_CONTRACT] = plan_contract,
    [K_SCATTER] = plan_scatter, [K_SORT] = plan_sort,   [K_CALL] = plan_call};

/* Known once memory is planned, which does not let a CHECK follow such a kernel. */
static bool writes_state(const Kernel *k) {
  for (int i = 0; i < k->outputs.n; i++) {
    const Buffer *b = k->outputs.v[i]->buf;
    if (b && b->kind == B_STATE) return true;
  }
  return false;
}

CudaPlan *cuda_plan(Arena *a, const Kernel *k, const CudaTarget *t) {
  enum { MOST_LAUNCHES = 40 };
  Planning p = {.a = a, .k = (Kernel *)k, .t = t, .plan = arena_new_of(a, CudaPlan)};
  Str key;
  str_init(&key, a);
  cuda_key(p.k, &key);
  bool guarded = writes_state(k);
  p.key = hash_bytes((uint64_t)guarded + (k->choice ? 2 : 0), key.s, key.n);
  p.plan->launch = arena_array(a, CudaLaunch, MOST_LAUNCHES);
  if (!plans[k->kind](&p)) return NULL;
  for (int i = 0; i < p.plan->n; i++) p.plan->launch[i].guarded = guarded;
  return p.plan;
}
