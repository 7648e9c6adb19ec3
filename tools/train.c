/* train: epochs over a data set, from startup and main programs.
 *
 * In: programs, data, and how long. Out: a line per epoch on stdout, progress on stderr, event files, checkpoints and the
 * final parameters (DIR/params.pdiparams). The order of an epoch is a Fisher-Yates shuffle drawn by Philox from
 * (seed, epoch), so that a resumed run goes on exactly where it stopped: the checkpoint keeps epoch, row and the sums
 * of the metrics so far. */
#include "tools.h"
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

enum { STARTED = 2 };
typedef struct Started {
  Tensor *out;
  int64_t rows;
} Started; /* a step whose results may not be there yet */

typedef struct Train {
  const char *startup, *params, *main, *test, *fetch, *save, *resume, *log;
  List feeds, test_feeds;
  int64_t batch, epochs, steps, seed, threads, save_every;
  bool shuffle, drop_last;
  ExecOptions exec;
  /* state */
  Program *p, *t;
  Scope *scope;
  Executor *run;
  Dataset data, tests;
  Arena *arena;
  EventLog *events;
  int n_fetch, n_test;
  const char **names, **test_names;
  int64_t epoch, row, step, epochs_planned;
  Started started[STARTED]; /* step s in place s % STARTED */
  int64_t taken;            /* steps whose results are in the sums */
  double *sums, *last, *means;
  Tensor *test_out;
  const char **tags, **test_tags; /* of event files */
  int64_t rows_done, order_epoch;
  int64_t *order;
  Progress progress;
} Train;

/* ---- the order of rows ---- */

static uint64_t draw(uint64_t seed, uint64_t epoch, uint64_t i, uint64_t below) {
  uint32_t out[4];
  philox((uint32_t[4]){(uint32_t)i, (uint32_t)(i >> 32), (uint32_t)epoch, 0x5eedu},
         (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, out);
  return ((uint64_t)out[1] << 32 | out[0]) % below;
}

static void make_order(Train *t) {
  int64_t n = t->data.rows;
  if (!t->shuffle || (t->order && t->order_epoch == t->epoch)) return;
  if (!t->order) t->order = arena_array(t->arena, int64_t, n + 1);
  for (int64_t i = 0; i < n; i++) t->order[i] = i;
  for (int64_t i = n - 1; i > 0; i--) {
    int64_t j = (int64_t)draw((uint64_t)t->seed, (uint64_t)t->epoch, (uint64_t)i, (uint64_t)i + 1);
    int64_t v = t->order[i];
    t->order[i] = t->order[j];
    t->order[j] = v;
  }
  t->order_epoch = t->epoch;
}

/* ---- one run ---- */

static bool add_metrics(const char *const *names, int n, Tensor *out, int64_t rows, double *sums,
                        double *last) {
  bool ok = true;
  for (int i = 0; i < n; i++) {
    if (ok && tensor_numel(&out[i]) != 1) {
      ok = err_set(E_RUN_002, "%s is %s, not one number", quoted(names[i]),
                   shape_text(out[i].dtype, out[i].rank, out[i].dims));
      err_help("fetch means or sums, such as the loss that is minimised");
    }
    if (ok) {
      double v = tensor_get(&out[i], 0);
      sums[i] += v * (double)rows;
      if (last) last[i] = v;
    }
    mem_free(out[i].data);
  }
  return ok;
}

static bool test_batch(Train *t, int64_t begin, int64_t end, double *sums) {
  Feed feeds[LIST_MAX];
  Tensor *out = t->test_out;
  memset(out, 0, sizeof *out * (size_t)t->n_test);
  dataset_batch(&t->tests, NULL, begin, end, feeds);
  return exec_run(t->run, t->scope, t->t, t->tests.n, feeds, t->n_test, t->test_names, out) &&
         add_metrics(t->test_names, t->n_test, out, end - begin, sums, NULL);
}

static bool evaluate(Train *t, double *means) {
  int64_t batch = t->batch;
  memset(means, 0, sizeof *means * (size_t)t->n_test);
  for (int64_t at = 0; at < t->tests.rows; at += batch) {
    int64_t end = at + batch < t->tests.rows ? at + batch : t->tests.rows;
    if (!test_batch(t, at, end, means)) return false;
  }
  for (int i = 0; i < t->n_test; i++) means[i] /= (double)(t->tests.rows ? t->tests.rows : 1);
  return true;
}

/* ---- checkpoints ---- */

static bool save_checkpoint(Train *t) {
  Str s;
  str_init(&s, t->arena);
  str_fmt(&s,
          "epoch %" PRId64 "\nrow %" PRId64 "\nstep %" PRId64 "\nrows %" PRId64 "\nseed %" PRId64
          "\nshuffle %d\nbatch %" PRId64 "\ndata %" PRId64 "\nsums",
          t->epoch, t->row, t->step, t->rows_done, t->seed, t->shuffle, t->batch, t->data.rows);
  for (int i = 0; i < t->n_fetch; i++) str_fmt(&s, " %s %a", t->names[i], t->sums[i]);
  str_add(&s, "\n");
  return checkpoint_save(t->save, t->scope, t->p, exec_step(t->run), t->exec.seed, s.s);
}

/* The sums of an epoch that was left in the middle; other metrics than were saved start here. */
static void resume_sums(Train *t, const char *text) {
  int i = 0, used = 0;
  for (; i < t->n_fetch; i++, text += used) {
    size_t n = strlen(t->names[i]);
    if (*text != ' ' || strncmp(text + 1, t->names[i], n) != 0) break;
    text += 1 + n;
    if (sscanf(text, " %la%n", &t->sums[i], &used) != 1) break;
  }
  if (i == t->n_fetch && *text == '\n') return;
  memset(t->sums, 0, sizeof *t->sums * (size_t)t->n_fetch);
  t->rows_done = 0;
}

static bool resume(Train *t) {
  uint64_t step, seed;
  char *extra;
  int shuffle, used = 0;
  int64_t want_seed = t->seed, want_batch = t->batch, rows;
  bool want_shuffle = t->shuffle;
  if (!checkpoint_load(t->resume, t->scope, t->p, &step, &seed, &extra, t->arena)) return false;
  if (sscanf(extra,
             "epoch %" SCNd64 " row %" SCNd64 " step %" SCNd64 " rows %" SCNd64 " seed %" SCNd64
             " shuffle %d batch %" SCNd64 " data %" SCNd64 " sums%n",
             &t->epoch, &t->row, &t->step, &t->rows_done, &t->seed, &shuffle, &t->batch, &rows,
             &used) != 8 ||
      !used)
    return err_set(E_CKP_001, "the checkpoint was not saved by kiln train");
  if (t->seed != want_seed || t->batch != want_batch || shuffle != want_shuffle ||
      rows != t->data.rows) {
    err_set(E_CKP_001,
            "the checkpoint was saved with --seed %" PRId64 " --batch %" PRId64 "%s and %" PRId64
            " rows",
            t->seed, t->batch, shuffle ? " --shuffle" : "", rows);
    err_help(
        "resume with the same data, seed, batch and shuffling, so that training goes on exactly");
    return false;
  }
  if (t->epoch < 0 || t->epoch >= INT64_MAX || t->row < 0 || t->row > rows || t->step < 0 ||
      t->rows_done < 0 || t->rows_done > rows)
    return err_set(E_CKP_001,
                   "the checkpoint names no place in the data: epoch %" PRId64 ", row %" PRId64
                   ", %" PRId64 " rows done of %" PRId64,
                   t->epoch, t->row, t->rows_done, rows);
  resume_sums(t, extra + used);
  exec_set_step(t->run, step);
  exec_options(t->run)->seed = t->exec.seed = seed;
  fprintf(stderr, "resumed at epoch %" PRId64 ", step %" PRId64 "\n", t->epoch + 1, t->step);
  return true;
}

/* ---- epochs ---- */

static void show_progress(Train *t, const double *last, double seconds, int64_t rows) {
  if (!t->progress.on) return;
  char text[256];
  int n = snprintf(text, sizeof text, "epoch %lld/%lld", (long long)t->epoch + 1,
                   (long long)t->epochs_planned);
  for (int i = 0; i < t->n_fetch && n < 120; i++)
    n += snprintf(text + n, sizeof text - (size_t)n, " %.40s %.4g", t->names[i], last[i]);
  snprintf(text + n, sizeof text - (size_t)n, " %s img/s",
           grouped((int64_t)((double)rows / (seconds > 0 ? seconds : 1))));
  progress_show(&t->progress, t->row, t->data.rows, text);
}

/* What the oldest step that was started says, once the device is done with it. */
static bool take_step(Train *t, double t0) {
  Started *s = &t->started[t->taken % STARTED];
  double *last = t->last;
  if (!exec_finish(t->run, (int)(t->step - t->taken) - 1)) return false;
  t->taken++;
  bool ok = add_metrics(t->names, t->n_fetch, s->out, s->rows, t->sums, last);
  t->rows_done += s->rows;
  for (int i = 0; ok && i < t->n_fetch; i++)
    events_scalar(t->events, t->tags[i], t->taken, last[i]);
  if (ok) show_progress(t, last, wall_seconds() - t0, t->rows_done);
  return ok;
}

/* On a GPU a step's results are taken when the next one has been handed over. */
static bool take_steps(Train *t, int left, double t0) {
  while (t->step - t->taken > left)
    if (!take_step(t, t0)) return false;
  return true;
}

static bool train_step(Train *t, double t0) {
  int64_t end = t->row + t->batch < t->data.rows ? t->row + t->batch : t->data.rows;
  Started *s = &t->started[t->step % STARTED];
  Feed feeds[LIST_MAX];
  dataset_batch(&t->data, t->order, t->row, end, feeds);
  memset(s->out, 0, sizeof *s->out * (size_t)t->n_fetch);
  s->rows = end - t->row;
  if (!exec_start(t->run, t->scope, t->p, t->data.n, feeds, t->n_fetch, t->names, s->out))
    return false;
  t->row = end;
  t->step++;
  bool save = t->save && t->save_every && t->step % t->save_every == 0;
  return take_steps(t, save || !exec_under_way(t->run) ? 0 : STARTED - 1, t0) &&
         (!save || save_checkpoint(t));
}

static bool report_epoch(Train *t, double seconds, int64_t rows_timed) {
  double *means = t->means;
  progress_clear(&t->progress);
  printf("epoch %lld/%lld", (long long)t->epoch + 1, (long long)t->epochs_planned);
  for (int i = 0; i < t->n_fetch; i++)
    printf(" %s %.4f", t->names[i], t->sums[i] / (double)(t->rows_done ? t->rows_done : 1));
  if (t->t) {
    if (!evaluate(t, means)) return printf("\n"), false;
    for (int i = 0; i < t->n_test; i++) {
      printf(" test_%s %.4f", t->test_names[i], means[i]);
      events_scalar(t->events, t->test_tags[i], t->step, means[i]);
    }
  }
  printf(" %s img/s\n", grouped((int64_t)((double)rows_timed / (seconds > 0 ? seconds : 1))));
  fflush(stdout);
  return true;
}

static void next_epoch(Train *t) {
  t->epoch++;
  t->row = t->rows_done = 0;
  memset(t->sums, 0, sizeof *t->sums * (size_t)t->n_fetch);
}

static bool run_epochs(Train *t) {
  int64_t whole = t->data.rows - t->data.rows % t->batch;
  int64_t stop = t->drop_last ? whole : t->data.rows;
  if (stop == 0)
    return err_set(E_DAT_001, "%lld rows make no batch of %lld", (long long)t->data.rows,
                   (long long)t->batch);
  int64_t per_epoch = (stop + t->batch - 1) / t->batch;
  t->taken = t->step;
  t->epochs_planned = t->steps ? (t->steps + per_epoch - 1) / per_epoch : t->epochs;
  while (t->epoch < t->epochs_planned && (!t->steps || t->step < t->steps)) {
    make_order(t);
    double t0 = wall_seconds();
    int64_t before = t->rows_done;
    while (t->row < stop && (!t->steps || t->step < t->steps))
      if (!train_step(t, t0)) return false;
    if (!take_steps(t, 0, t0)) return false;
    if (!report_epoch(t, wall_seconds() - t0, t->rows_done - before)) return false;
    if (t->row >= stop) next_epoch(t); /* else the steps end here, and a resumed run goes on here */
  }
  return true;
}

/* ---- set-up ---- */

static bool has_var(const Program *p, const char *name) {
  return block_var(p->blocks.v[0], name) != NULL;
}

/* What a model needs to be used: the variables of the test program, without the optimiser's state. */
static Program *model_of(const Train *t) { return t->t ? t->t : prog_clone_for_test(t->p); }

/* The startup program, or values from a file: of all persistable variables, or, after the startup program, of the model's. */
static bool initialise(Train *t, const Program *startup) {
  if (startup && !exec_run(t->run, t->scope, startup, 0, NULL, 0, NULL, NULL)) return false;
  if (!t->params) return true;
  Program *p = startup ? model_of(t) : t->p;
  bool ok = p && scope_load_params(t->scope, p, t->params);
  if (p != t->p && p != t->t) prog_free(p);
  return ok;
}

/* Checkpoints of another run must not mix with ours: the newest one counts. */
static bool may_save(const Train *t) {
  struct stat save, from;
  bool same = t->resume && !stat(t->save, &save) && !stat(t->resume, &from) &&
              save.st_dev == from.st_dev && save.st_ino == from.st_ino;
  if (same || !checkpoint_exists(t->save)) return true;
  err_set(E_CKP_002, "%s holds checkpoints of another run", quoted(t->save));
  err_help("go on with that run by --resume %s, save into another folder, or remove them", t->save);
  return false;
}

/* What is reported, and by which of the programs. */
static void choose_metrics(Train *t) {
  split_names(t->arena, t->fetch, &t->n_fetch, &t->names);
  int n = t->n_fetch + 1;
  for (int i = 0; i < STARTED; i++) t->started[i].out = arena_array(t->arena, Tensor, n);
  t->test_out = arena_array(t->arena, Tensor, n);
  t->sums = arena_array(t->arena, double, n);
  t->last = arena_array(t->arena, double, n);
  t->means = arena_array(t->arena, double, n);
  t->tags = arena_array(t->arena, const char *, n);
  t->test_tags = arena_array(t->arena, const char *, n);
  t->test_names = arena_array(t->arena, const char *, n);
  for (int i = 0; i < t->n_fetch; i++) {
    t->tags[i] = arena_fmt(t->arena, "train/%s", t->names[i]);
    if (!t->t || !has_var(t->t, t->names[i])) continue;
    t->test_tags[t->n_test] = arena_fmt(t->arena, "test/%s", t->names[i]);
    t->test_names[t->n_test++] = t->names[i];
  }
}

static bool open_all(Train *t) {
  Program *startup = t->startup ? prog_load(t->startup) : NULL;
  bool ok = (startup || !t->startup) && (t->p = prog_load(t->main)) &&
            dataset_open(&t->data, t->p, &t->feeds);
  if (ok && t->test)
    ok = (t->t = prog_load(t->test)) && dataset_open(&t->tests, t->t, &t->test_feeds);
  if (ok && t->test && !t->tests.rows)
    ok = err_set(E_DAT_001, "%s has no rows", quoted(t->tests.col[0].file));
  if (ok) choose_metrics(t);
  ok = ok && (t->run = exec_new(&t->exec)) && initialise(t, startup);
  if (ok && t->log) ok = (t->events = events_open(t->log)) != NULL;
  if (ok && t->save) ok = vfs_mkdirs(t->save) && may_save(t);
  if (ok && t->resume) ok = resume(t);
  prog_free(startup);
  return ok;
}

static bool save_params(Train *t) {
  Program *p = model_of(t);
  bool ok =
      p && scope_save_params(t->scope, p, arena_fmt(t->arena, "%s/params.pdiparams", t->save));
  if (p != t->t) prog_free(p);
  return ok;
}

static bool train(Train *t) {
  t->arena = arena_new();
  t->scope = scope_new();
  progress_start(&t->progress);
  bool ok = open_all(t) && run_epochs(t);
  progress_clear(&t->progress);
  if (ok && t->save) ok = save_checkpoint(t) && save_params(t);
  if (ok && t->exec.profile) exec_profile_print(t->run, NULL, stdout, false);
  exec_free(t->run);
  events_close(t->events);
  if (t->data.arena) dataset_close(&t->data);
  if (t->tests.arena) dataset_close(&t->tests);
  prog_free(t->p);
  prog_free(t->t);
  scope_free(t->scope);
  arena_free(t->arena);
  return ok;
}

int verb_train(int argc, char **argv) {
  Train t = {.batch = 64, .epochs = 1, .seed = 1, .fetch = ""};
  Flag flags[] = {
      {"--startup", FLAG_TEXT, &t.startup, "S", "the program that initialises"},
      {"--params", FLAG_TEXT, &t.params, "FILE",
       "start from a .pdiparams file of the main program; with --startup, of the test program"},
      {"--main", FLAG_TEXT, &t.main, "M", "the program that trains"},
      {"--test", FLAG_TEXT, &t.test, "T", "a program to evaluate after each epoch"},
      {"--feed", FLAG_LIST, &t.feeds, "NAME=FILE",
       "training data: .npy, .npz, IDX, also gzipped; [:scale=A][:shift=B][:lod=0,3,...]"},
      {"--test-feed", FLAG_LIST, &t.test_feeds, "NAME=FILE", "data for --test"},
      {"--batch", FLAG_COUNT, &t.batch, "N", "rows per step (64)"},
      {"--epochs", FLAG_COUNT, &t.epochs, "N", "passes over the data (1)"},
      {"--steps", FLAG_COUNT, &t.steps, "N", "stop after this many steps instead"},
      {"--fetch", FLAG_TEXT, &t.fetch, "A,B", "metrics to report: variables of one element"},
      {"--shuffle", FLAG_BOOL, &t.shuffle, NULL, "a new order of rows each epoch"},
      {"--drop-last", FLAG_BOOL, &t.drop_last, NULL, "skip a last, smaller batch"},
      {"--seed", FLAG_INT, &t.seed, "N",
       "of shuffling, and of random operators without a seed (1)"},
      {"--threads", FLAG_COUNT, &t.threads, "N",
       "threads (all cores); results do not depend on it"},
      DEVICE_FLAGS(t.exec),
      {"--save", FLAG_TEXT, &t.save, "DIR", "checkpoints and, at the end, params.pdiparams"},
      {"--save-every", FLAG_COUNT, &t.save_every, "STEPS", "a checkpoint every so many steps"},
      {"--resume", FLAG_TEXT, &t.resume, "DIR", "go on from the newest complete checkpoint"},
      {"--log", FLAG_TEXT, &t.log, "DIR", "TensorBoard event files"},
      {"--check-nan", FLAG_BOOL, &t.exec.check_nan, NULL,
       "stop at the first operator that makes a NaN or infinity"},
      {"--interpret", FLAG_BOOL, &t.exec.interpret, NULL,
       "the plain interpreter instead of generated code"},
      {"--max-steps", FLAG_COUNT, &t.exec.max_steps, "N",
       "of one loop, after which it counts as endless (100000000)"},
      {"--memory-budget", FLAG_BYTES, &t.exec.memory_budget, "BYTES",
       "compute values again until the plan fits; K, M, G"},
      ALGORITHM_FLAGS(t.exec),
      {"--profile", FLAG_BOOL, &t.exec.profile, NULL, "times per operator and kernel, at the end"},
      {"--trace", FLAG_TEXT, &t.exec.trace, "FILE", "a Chrome trace"},
      {0}};
  Usage u = {
      "--startup S --main M --feed NAME=FILE ... --epochs N [--test T --test-feed NAME=FILE ...]",
      "Trains from serialized programs, and reports a line per epoch.", 0, 0, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!t.main || !(t.startup || t.params))
    return usage_error("train: --main is needed, and --startup or --params");
  if (!t.feeds.n) return usage_error("train: --feed is needed");
  if (!t.test != !t.test_feeds.n) return usage_error("train: --test and --test-feed go together");
  if (t.save_every && !t.save) return usage_error("train: --save-every needs --save DIR");
  if (t.batch < 1) return usage_error("train: --batch must be positive");
  t.exec.threads = (int)t.threads;
  t.exec.seed = (uint64_t)t.seed;
  return train(&t) ? 0 : report();
}
