/* The LLVM IR of microkernels. In: a spec; out: the text of a module with one function. With vectors of the target's width:
 *   for each of the batch: for k in steps of UNROLL: B's vectors are loaded once, each element of A is broadcast and
 *   multiplied into them (llvm.fma); a loop of step 1 does the rest; then C is stored or added to.
 * The form `dot`, for B by columns: for k in steps of a vector: vectors of A's rows and B's columns are multiplied into one
 * vector of partial sums for each element of the tile; the rest of k is masked; at the end the partial sums of a row of
 * the tile are added up by halves into one vector.
 * An element of A is one load: its row's distance is a constant of the code, or in a register if one function serves all
 * (the register blocks
 * are LIBXSMM's: Heinecke et al., SC 2016; the batch-reduced form: Georganas et al., arXiv 1906.06440). */
#include "micro.h"

enum { UNROLL = FETCH_STEPS };

typedef struct Text {
  Str s;
  MicroSpec m;
  const char *elem; /* "float" */
  int bytes;        /* of an element */
  char vec[24];     /* "<16 x float>" */
} Text;

/* One line for each accumulator; $ is its name's tail "r_v". */
static void each(Text *t, const char *line) {
  char at[24];
  for (int r = 0; r < t->m.mr; r++)
    for (int v = 0; v < t->m.nv; v++) {
      snprintf(at, sizeof at, "%d_%d", r, v);
      for (const char *p = line; *p; p++)
        if (*p == '$')
          str_add(&t->s, at);
        else if (*p == '@')
          str_add(&t->s, t->vec);
        else
          str_addn(&t->s, p, 1);
    }
}

static void field(Text *t, const char *name, size_t at, const char *type) {
  str_fmt(&t->s, "  %%%s.p = getelementptr i8, ptr %%args, i64 %zu\n", name, at);
  str_fmt(&t->s, "  %%%s = load %s, ptr %%%s.p, align 8\n", name, type, name);
}

static void fields(Text *t) {
  static const struct {
    const char *name, *type;
    size_t at;
  } all[] = {
      {"a0", "ptr", offsetof(MicroArgs, a)},
      {"b0", "ptr", offsetof(MicroArgs, b)},
      {"c0", "ptr", offsetof(MicroArgs, c)},
      {"lda", "i64", offsetof(MicroArgs, lda)},
      {"ldb", "i64", offsetof(MicroArgs, ldb)},
      {"ldc", "i64", offsetof(MicroArgs, ldc)},
      {"k", "i64", offsetof(MicroArgs, k)},
      {"columns", "i64", offsetof(MicroArgs, columns)},
      {"add", "i64", offsetof(MicroArgs, add)},
      {"batch", "i64", offsetof(MicroArgs, batch)},
      {"a_step", "i64", offsetof(MicroArgs, a_step)},
      {"b_step", "i64", offsetof(MicroArgs, b_step)},
      {"cjump", "i64", offsetof(MicroArgs, cjump)},
      {"keep", "ptr", offsetof(MicroArgs, keep)},
      {"next", "ptr", offsetof(MicroArgs, next)},
      {"next_step", "i64", offsetof(MicroArgs, next_step)},
      {"fetch_c", "i64", offsetof(MicroArgs, fetch_c)},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    field(t, all[i].name, all[i].at, all[i].type);
}

/* %mask: the first `count` - less lanes. */
static void mask(Text *t, const char *count, int less) {
  int l = t->m.lanes;
  str_fmt(&t->s, "  %%left = sub i64 %s, %d\n  %%left32 = trunc i64 %%left to i32\n", count, less);
  str_fmt(&t->s, "  %%left1 = insertelement <%d x i32> poison, i32 %%left32, i32 0\n", l);
  str_fmt(&t->s,
          "  %%lefts = shufflevector <%d x i32> %%left1, <%d x i32> poison, <%d x i32> "
          "zeroinitializer\n",
          l, l, l);
  str_fmt(&t->s, "  %%mask = icmp sgt <%d x i32> %%lefts, <", l);
  for (int i = 0; i < l; i++) str_fmt(&t->s, "%si32 %d", i ? ", " : "", i);
  str_add(&t->s, ">\n");
}

static void load_vector(Text *t, const char *to, const char *ptr, bool masked) {
  if (masked)
    str_fmt(&t->s,
            "  %s = call %s @llvm.masked.load.v%df%d.p0(ptr %s, i32 %d, <%d x i1> %%mask, %s "
            "zeroinitializer)\n",
            to, t->vec, t->m.lanes, 8 * t->bytes, ptr, t->bytes, t->m.lanes, t->vec);
  else
    str_fmt(&t->s, "  %s = load %s, ptr %s, align %d\n", to, t->vec, ptr, t->bytes);
}

/* Bytes from the first row of A to row r, as far as the code knows them. */
static long long row_at(const Text *t, int r) {
  int run = t->m.run ? t->m.run : t->m.mr;
  int64_t pitch = t->m.pitch == ANY_PITCH ? 0 : t->m.pitch;
  return (r / run * t->m.jump + r % run * pitch) * t->bytes;
}

/* B's vectors of step u to where the row is kept. */
static void keep_row(Text *t, const char *loop, int u) {
  for (int v = 0; v < t->m.nv; v++) {
    str_fmt(&t->s, "  %%%s.kq%d.%d = getelementptr i8, ptr %%%s.kp%d, i64 %d\n", loop, u, v, loop,
            u, v * t->m.lanes * t->bytes);
    str_fmt(&t->s, "  store %s %%%s.b%d.%d, ptr %%%s.kq%d.%d, align %d\n", t->vec, loop, u, v, loop,
            u, v, t->bytes);
  }
  str_fmt(&t->s, "  %%%s.kp%d = getelementptr i8, ptr %%%s.kp%d, i64 %d\n", loop, u + 1, loop, u,
          t->m.nv * t->m.lanes * t->bytes);
}

/* One step of k at distance u: pre + names of the accumulators before and after; ap and bp are the loop's pointers. */
static void step(Text *t, const char *loop, int u, const char *from, const char *to) {
  Str *s = &t->s;
  char name[48], ptr[48];
  int nv = t->m.nv;
  for (int v = 0; v < nv; v++) {
    snprintf(name, sizeof name, "%%%s.b%d.%d", loop, u, v);
    snprintf(ptr, sizeof ptr, "%%%s.bq%d.%d", loop, u, v);
    str_fmt(s, "  %s = getelementptr i8, ptr %%%s.bp%d, i64 %d\n", ptr, loop, u,
            v * t->m.lanes * t->bytes);
    load_vector(t, name, ptr, t->m.tail && v == nv - 1);
  }
  if (t->m.keep) keep_row(t, loop, u);
  for (int r = 0; r < t->m.mr; r++) {
    long long at = t->m.pitch ? row_at(t, r) + u * t->bytes : r * t->bytes;
    snprintf(ptr, sizeof ptr, "%%%s.ap%d", loop, t->m.pitch ? 0 : u);
    if (t->m.pitch == ANY_PITCH && r > 0) {
      str_fmt(s, "  %%%s.ar%d.%d = getelementptr i8, ptr %s, i64 %%row%d\n", loop, u, r, ptr, r);
      snprintf(ptr, sizeof ptr, "%%%s.ar%d.%d", loop, u, r);
    }
    str_fmt(s, "  %%%s.aq%d.%d = getelementptr i8, ptr %s, i64 %lld\n", loop, u, r, ptr, at);
    str_fmt(s, "  %%%s.x%d.%d = load %s, ptr %%%s.aq%d.%d, align %d\n", loop, u, r, t->elem, loop,
            u, r, t->bytes);
    str_fmt(s, "  %%%s.y%d.%d = insertelement %s poison, %s %%%s.x%d.%d, i32 0\n", loop, u, r,
            t->vec, t->elem, loop, u, r);
    str_fmt(s,
            "  %%%s.a%d.%d = shufflevector %s %%%s.y%d.%d, %s poison, <%d x i32> zeroinitializer\n",
            loop, u, r, t->vec, loop, u, r, t->vec, t->m.lanes);
    for (int v = 0; v < nv; v++)
      str_fmt(s,
              "  %%%s%d_%d = call %s @llvm.fma.v%df%d(%s %%%s.a%d.%d, %s %%%s.b%d.%d, %s "
              "%%%s%d_%d)\n",
              to, r, v, t->vec, t->m.lanes, 8 * t->bytes, t->vec, loop, u, r, t->vec, loop, u, v,
              t->vec, from, r, v);
  }
}

static void dot_step(Text *t, const char *loop, bool masked);

/* Lines of what comes next, for the L2 cache. */
static void fetch(Text *t, const char *loop, const char *before) {
  Str *s = &t->s;
  str_fmt(s, "  %%%s.next = phi ptr [ %%%s.next, %%%s ], [ %%%s.next1, %%%s ]\n", loop, before,
          before, loop, loop);
  str_fmt(s, "  %%%s.next1 = getelementptr i8, ptr %%%s.next, i64 %%next_step\n", loop, loop);
  for (int i = 0; i < FETCH_LINES + t->m.more_lines; i++) {
    str_fmt(s, "  %%%s.line%d = getelementptr i8, ptr %%%s.next, i64 %d\n", loop, i, loop,
            i * LINE_BYTES);
    str_fmt(s, "  call void @llvm.prefetch.p0(ptr %%%s.line%d, i32 0, i32 2, i32 1)\n", loop, i);
  }
}

/* A block that repeats `count` times, advancing k by n; before: the block it comes from and its names. */
static void k_loop(Text *t, const char *loop, int n, const char *count, const char *before,
                   const char *ap, const char *bp, const char *next) {
  Str *s = &t->s;
  char line[192], from[32], to[32];
  str_fmt(s, "%s:\n  %%%s.i = phi i64 [ %s, %%%s ], [ %%%s.j, %%%s ]\n", loop, loop, count, before,
          loop, loop);
  str_fmt(s, "  %%%s.ap0 = phi ptr [ %s, %%%s ], [ %%%s.ap%d, %%%s ]\n", loop, ap, before, loop, n,
          loop);
  str_fmt(s, "  %%%s.bp0 = phi ptr [ %s, %%%s ], [ %%%s.bp%d, %%%s ]\n", loop, bp, before, loop, n,
          loop);
  if (t->m.keep)
    str_fmt(s, "  %%%s.kp0 = phi ptr [ %%%s.kp, %%%s ], [ %%%s.kp%d, %%%s ]\n", loop, before,
            before, loop, n, loop);
  snprintf(line, sizeof line, "  %%%s.0.$ = phi @ [ %%%s.c$, %%%s ], [ %%%s.%d.$, %%%s ]\n", loop,
           before, before, loop, n, loop);
  each(t, line);
  if (n == UNROLL) fetch(t, loop, before);
  if (t->m.dot) dot_step(t, loop, false);
  for (int u = 0; u < n && !t->m.dot; u++) {
    snprintf(from, sizeof from, "%s.%d.", loop, u);
    snprintf(to, sizeof to, "%s.%d.", loop, u + 1);
    step(t, loop, u, from, to);
    str_fmt(s, "  %%%s.bp%d = getelementptr i8, ptr %%%s.bp%d, i64 %%ldb\n", loop, u + 1, loop, u);
    if (!t->m.pitch)
      str_fmt(s, "  %%%s.ap%d = getelementptr i8, ptr %%%s.ap%d, i64 %%lda\n", loop, u + 1, loop,
              u);
  }
  if (t->m.pitch && !t->m.dot)
    str_fmt(s, "  %%%s.ap%d = getelementptr i8, ptr %%%s.ap0, i64 %d\n", loop, n, loop,
            n * t->bytes);
  str_fmt(s, "  %%%s.j = sub i64 %%%s.i, 1\n  %%%s.more = icmp ne i64 %%%s.j, 0\n", loop, loop,
          loop, loop);
  str_fmt(s, "  br i1 %%%s.more, label %%%s, label %%%s\n", loop, loop, next);
}

/* The end of a k loop, which may have been left out. */
static void join(Text *t, const char *block, const char *before, const char *loop, int n) {
  char line[192];
  str_fmt(&t->s, "%s:\n", block);
  if (t->m.keep)
    str_fmt(&t->s, "  %%%s.kp = phi ptr [ %%%s.kp, %%%s ], [ %%%s.kp%d, %%%s ]\n", block, before,
            before, loop, n, loop);
  snprintf(line, sizeof line, "  %%%s.c$ = phi @ [ %%%s.c$, %%%s ], [ %%%s.%d.$, %%%s ]\n", block,
           before, before, loop, n, loop);
  each(t, line);
}

/* %wN.oR: bytes from the first row of C to row r. */
static void row_of_c(Text *t, int n, int r) {
  int run = t->m.run ? t->m.run : t->m.mr;
  str_fmt(&t->s, "  %%w%d.m%d = mul i64 %%cjump, %d\n", n, r, r / run);
  str_fmt(&t->s, "  %%w%d.n%d = mul i64 %%ldc, %d\n", n, r, r % run);
  str_fmt(&t->s, "  %%w%d.o%d = add i64 %%w%d.m%d, %%w%d.n%d\n", n, r, n, r, n, r);
}

/* The vectors of the tile of C, for the L1 cache, if they are wanted: that they arrive takes no longer than the sums. */
static void fetch_tile(Text *t) {
  enum { N = 2 };
  Str *s = &t->s;
  str_add(s, "  %fetch_c.some = icmp ne i64 %fetch_c, 0\n");
  str_add(s, "  br i1 %fetch_c.some, label %fetching, label %entry\nfetching:\n");
  for (int r = 0; r < t->m.mr; r++) {
    row_of_c(t, N, r);
    str_fmt(s, "  %%s%d = getelementptr i8, ptr %%c0, i64 %%w%d.o%d\n", r, N, r);
    for (int v = 0; v < t->m.nv; v++) {
      str_fmt(s, "  %%s%d_%d = getelementptr i8, ptr %%s%d, i64 %d\n", r, v, r,
              v * t->m.lanes * t->bytes);
      str_fmt(s, "  call void @llvm.prefetch.p0(ptr %%s%d_%d, i32 1, i32 3, i32 1)\n", r, v);
    }
  }
  str_add(s, "  br label %entry\n");
}

static void store(Text *t) {
  Str *s = &t->s;
  char name[48], ptr[48];
  for (int add = 0; add < 2; add++) {
    str_fmt(s, "%s:\n", add ? "adding" : "storing");
    for (int r = 0; r < t->m.mr; r++) {
      row_of_c(t, add, r);
      for (int v = 0; v < t->m.nv; v++) {
        bool masked = t->m.tail && v == t->m.nv - 1;
        str_fmt(s, "  %%w%d.p%d_%d0 = getelementptr i8, ptr %%c0, i64 %%w%d.o%d\n", add, r, v, add,
                r);
        snprintf(ptr, sizeof ptr, "%%w%d.p%d_%d", add, r, v);
        str_fmt(s, "  %s = getelementptr i8, ptr %s0, i64 %d\n", ptr, ptr,
                v * t->m.lanes * t->bytes);
        snprintf(name, sizeof name, "%%end.c%d_%d", r, v);
        if (add) {
          char old[48];
          snprintf(old, sizeof old, "%%w.l%d_%d", r, v);
          load_vector(t, old, ptr, masked);
          str_fmt(s, "  %%w.s%d_%d = fadd %s %s, %s\n", r, v, t->vec, old, name);
          snprintf(name, sizeof name, "%%w.s%d_%d", r, v);
        }
        if (masked)
          str_fmt(
              s,
              "  call void @llvm.masked.store.v%df%d.p0(%s %s, ptr %s, i32 %d, <%d x i1> %%mask)\n",
              t->m.lanes, 8 * t->bytes, t->vec, name, ptr, t->bytes, t->m.lanes);
        else
          str_fmt(s, "  store %s %s, ptr %s, align %d\n", t->vec, name, ptr, t->bytes);
      }
    }
    str_add(s, "  ret void\n");
  }
}

/* ---- the form dot ---- */

/* One step of k: `by` bytes further; masked: the rest of k. Names as in k_loop. */
static void dot_step(Text *t, const char *loop, bool masked) {
  Str *s = &t->s;
  char name[48], ptr[48];
  for (int r = 0; r < t->m.mr; r++) {
    snprintf(name, sizeof name, "%%%s.a%d", loop, r);
    snprintf(ptr, sizeof ptr, "%%%s.aq%d", loop, r);
    str_fmt(s, "  %s = getelementptr i8, ptr %%%s.ap0, i64 %lld\n", ptr, loop,
            (long long)t->m.pitch * r * t->bytes);
    load_vector(t, name, ptr, masked);
  }
  for (int c = 0; c < t->m.nv; c++) {
    snprintf(name, sizeof name, "%%%s.b%d", loop, c);
    snprintf(ptr, sizeof ptr, "%%%s.bq%d", loop, c);
    str_fmt(s, "  %s = getelementptr i8, ptr %%%s.bp0, i64 %%ldb%d\n", ptr, loop, c);
    load_vector(t, name, ptr, masked);
    for (int r = 0; r < t->m.mr; r++)
      str_fmt(s,
              "  %%%s.1.%d_%d = call %s @llvm.fma.v%df%d(%s %%%s.a%d, %s %%%s.b%d, %s "
              "%%%s.0.%d_%d)\n",
              loop, r, c, t->vec, t->m.lanes, 8 * t->bytes, t->vec, loop, r, t->vec, loop, c,
              t->vec, loop, r, c);
  }
  int by = t->m.lanes * t->bytes;
  str_fmt(s, "  %%%s.ap1 = getelementptr i8, ptr %%%s.ap0, i64 %d\n", loop, loop, by);
  str_fmt(s, "  %%%s.bp1 = getelementptr i8, ptr %%%s.bp0, i64 %d\n", loop, loop, by);
}

/* The rest of k: one masked step. */
static void dot_rest(Text *t) {
  str_fmt(&t->s, "rest:\n  %%rest.ap0 = getelementptr i8, ptr %%ap, i64 0\n");
  str_fmt(&t->s, "  %%rest.bp0 = getelementptr i8, ptr %%bp, i64 0\n");
  each(t, "  %rest.0.$ = phi @ [ %middle.c$, %middle ]\n");
  dot_step(t, "rest", true);
  str_fmt(&t->s, "  br label %%end\n");
}

/* Groups of `group` lanes of x and y by turns, at their own places, or (moved) each its other neighbour's: the sum of the two
 * holds pairs of x in the even groups and of y in the odd ones. */
static void by_turns(Text *t, const char *to, const char *x, const char *y, int group, bool moved) {
  str_fmt(&t->s, "  %s = shufflevector %s %s, %s %s, <%d x i32> <", to, t->vec, x, t->vec, y,
          t->m.lanes);
  for (int i = 0; i < t->m.lanes; i++) {
    bool from_y = i / group % 2;
    int at = i + (moved ? from_y ? -group : group : 0) + (from_y ? t->m.lanes : 0);
    str_fmt(&t->s, "%si32 %d", i ? ", " : "", at);
  }
  str_add(&t->s, ">\n");
}

/* %sum_r: lane c is the sum of the lanes of accumulator (r, c). */
static void dot_sums(Text *t, int r) {
  char x[48], y[48], lo[48], hi[48];
  int n = t->m.nv;
  for (int group = 1, level = 0; group < t->m.lanes; group *= 2, level++, n = (n + 1) / 2)
    for (int c = 0; c < n; c += 2) {
      const char *from = level ? "sum" : "end.c";
      char tail[16] = "";
      if (level) snprintf(tail, sizeof tail, ".%d", level);
      snprintf(x, sizeof x, "%%%s%d_%d%s", from, r, c, tail);
      snprintf(y, sizeof y, "%%%s%d_%d%s", from, r, c + 1, tail);
      snprintf(lo, sizeof lo, "%%lo%d_%d.%d", r, c / 2, level);
      snprintf(hi, sizeof hi, "%%hi%d_%d.%d", r, c / 2, level);
      by_turns(t, lo, x, c + 1 < n ? y : x, group, false);
      by_turns(t, hi, x, c + 1 < n ? y : x, group, true);
      str_fmt(&t->s, "  %%sum%d_%d.%d = fadd %s %s, %s\n", r, c / 2, level + 1, t->vec, lo, hi);
    }
}

/* The rows of the tile, nv lanes of a vector each. */
static void dot_write(Text *t) {
  Str *s = &t->s;
  char name[48], ptr[48];
  int levels = 0;
  for (int l = 1; l < t->m.lanes; l *= 2) levels++;
  for (int r = 0; r < t->m.mr; r++) dot_sums(t, r);
  str_fmt(s, "  %%adds = icmp ne i64 %%add, 0\n  br i1 %%adds, label %%adding, label %%storing\n");
  for (int add = 0; add < 2; add++) {
    str_fmt(s, "%s:\n", add ? "adding" : "storing");
    for (int r = 0; r < t->m.mr; r++) {
      snprintf(ptr, sizeof ptr, "%%w%d.p%d", add, r);
      snprintf(name, sizeof name, "%%sum%d_0.%d", r, levels);
      str_fmt(s, "  %%w%d.o%d = mul i64 %%ldc, %d\n", add, r, r);
      str_fmt(s, "  %s = getelementptr i8, ptr %%c0, i64 %%w%d.o%d\n", ptr, add, r);
      if (add) {
        str_fmt(
            s,
            "  %%w.l%d = call %s @llvm.masked.load.v%df%d.p0(ptr %s, i32 %d, <%d x i1> %%cmask, %s "
            "zeroinitializer)\n",
            r, t->vec, t->m.lanes, 8 * t->bytes, ptr, t->bytes, t->m.lanes, t->vec);
        str_fmt(s, "  %%w.s%d = fadd %s %%w.l%d, %s\n", r, t->vec, r, name);
        snprintf(name, sizeof name, "%%w.s%d", r);
      }
      str_fmt(
          s, "  call void @llvm.masked.store.v%df%d.p0(%s %s, ptr %s, i32 %d, <%d x i1> %%cmask)\n",
          t->m.lanes, 8 * t->bytes, t->vec, name, ptr, t->bytes, t->m.lanes);
    }
    str_add(s, "  ret void\n");
  }
}

/* Its constants: columns' distances, the mask of a row of the tile. */
static void dot_entry(Text *t) {
  for (int c = 0; c < t->m.nv; c++) str_fmt(&t->s, "  %%ldb%d = mul i64 %%ldb, %d\n", c, c);
  str_fmt(&t->s, "  %%cmask = icmp ult <%d x i32> <", t->m.lanes);
  for (int i = 0; i < t->m.lanes; i++) str_fmt(&t->s, "%si32 %d", i ? ", " : "", i);
  str_add(&t->s, ">, <");
  for (int i = 0; i < t->m.lanes; i++) str_fmt(&t->s, "%si32 %d", i ? ", " : "", t->m.nv);
  str_add(&t->s, ">\n");
}

/* ---- the function ---- */

static void declarations(Text *t) {
  int l = t->m.lanes, bits = 8 * t->bytes;
  Str *s = &t->s;
  str_fmt(s, "declare %s @llvm.fma.v%df%d(%s, %s, %s)\n", t->vec, l, bits, t->vec, t->vec, t->vec);
  str_add(s, "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n");
  str_fmt(s, "declare %s @llvm.masked.load.v%df%d.p0(ptr, i32, <%d x i1>, %s)\n", t->vec, l, bits,
          l, t->vec);
  str_fmt(s, "declare void @llvm.masked.store.v%df%d.p0(%s, ptr, i32, <%d x i1>)\n", l, bits,
          t->vec, l);
}

/* Of one of the batch: head, [main], middle, [rest], end. */
static void batch_loop(Text *t) {
  Str *s = &t->s;
  bool dot = t->m.dot;
  int unroll = dot ? 1 : UNROLL;
  str_fmt(s, "head:\n  %%i = phi i64 [ %%batch, %%entry ], [ %%j, %%end ]\n");
  str_fmt(s, "  %%a = phi ptr [ %%a0, %%entry ], [ %%a.next, %%end ]\n");
  str_fmt(s, "  %%b = phi ptr [ %%b0, %%entry ], [ %%b.next, %%end ]\n");
  if (!dot) str_add(s, "  %head.next = phi ptr [ %next, %entry ], [ %next.end, %end ]\n");
  if (t->m.keep) str_add(s, "  %head.kp = phi ptr [ %keep, %entry ], [ %end.kp, %end ]\n");
  each(t, "  %head.c$ = phi @ [ zeroinitializer, %entry ], [ %end.c$, %end ]\n");
  str_fmt(s, "  br i1 %%main.some, label %%main, label %%middle\n");
  k_loop(t, "main", unroll, "%main.n", "head", "%a", "%b", "middle");
  join(t, "middle", "head", "main", unroll);
  if (!dot) str_add(s, "  %next.middle = phi ptr [ %head.next, %head ], [ %main.next1, %main ]\n");
  str_fmt(s, "  %%ap = phi ptr [ %%a, %%head ], [ %%main.ap%d, %%main ]\n", unroll);
  str_fmt(s, "  %%bp = phi ptr [ %%b, %%head ], [ %%main.bp%d, %%main ]\n", unroll);
  str_fmt(s, "  br i1 %%rest.some, label %%rest, label %%end\n");
  if (dot)
    dot_rest(t);
  else
    k_loop(t, "rest", 1, "%rest.n", "middle", "%ap", "%bp", "end");
  join(t, "end", "middle", "rest", 1);
  if (!dot)
    str_add(s, "  %next.end = phi ptr [ %next.middle, %middle ], [ %next.middle, %rest ]\n");
  str_fmt(s, "  %%a.next = getelementptr i8, ptr %%a, i64 %%a_step\n");
  str_fmt(s, "  %%b.next = getelementptr i8, ptr %%b, i64 %%b_step\n");
  str_fmt(s, "  %%j = sub i64 %%i, 1\n  %%more = icmp ne i64 %%j, 0\n");
  str_fmt(s, "  br i1 %%more, label %%head, label %%write\nwrite:\n");
}

void micro_text(const MicroSpec *spec, const char *symbol, Str *out) {
  Text t = {.s = *out, .m = *spec, .bytes = dtype_info[spec->dtype].size};
  Str *s = &t.s;
  int step = spec->dot ? spec->lanes : UNROLL;
  t.elem = spec->dtype == DT_FLOAT32 ? "float" : "double";
  snprintf(t.vec, sizeof t.vec, "<%d x %s>", spec->lanes, t.elem);
  declarations(&t);
  str_fmt(s, "define void @%s(ptr noalias %%args) #0 {\nfirst:\n", symbol);
  fields(&t);
  if (spec->dot)
    str_add(s, "  br label %entry\n");
  else
    fetch_tile(&t);
  str_add(s, "entry:\n");
  str_fmt(s, "  %%main.n = udiv i64 %%k, %d\n  %%main.some = icmp ne i64 %%main.n, 0\n", step);
  str_fmt(s, "  %%rest.n = and i64 %%k, %d\n  %%rest.some = icmp ne i64 %%rest.n, 0\n", step - 1);
  if (spec->dot) {
    mask(&t, "%rest.n", 0);
    dot_entry(&t);
  } else if (spec->tail)
    mask(&t, "%columns", (spec->nv - 1) * spec->lanes);
  for (int r = 1; spec->pitch == ANY_PITCH && r < spec->mr; r++)
    str_fmt(s, "  %%row%d = mul i64 %%lda, %d\n", r, r);
  str_fmt(s, "  br label %%head\n");
  batch_loop(&t);
  if (spec->dot)
    dot_write(&t);
  else {
    str_fmt(s,
            "  %%adds = icmp ne i64 %%add, 0\n  br i1 %%adds, label %%adding, label %%storing\n");
    store(&t);
  }
  str_fmt(s, "}\nattributes #0 = { nounwind \"prefer-vector-width\"=\"%d\" }\n",
          spec->lanes * t.bytes * 8);
  *out = t.s;
}
