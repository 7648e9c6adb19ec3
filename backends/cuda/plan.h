/* What planning tells the generator about a launch. Private to plan*.c and backends/llvm/cuda_*.c. */
#ifndef KILN_CUDA_PLAN_H
#define KILN_CUDA_PLAN_H
#include "../llvm/gen.h"
#include "cuda.h"

typedef enum CudaForm {
  CUDA_POINTS, /* a thread for each vector of results */
  CUDA_JOINS, /* concatenations whose parts begin anywhere, through shared memory: a thread for each result */
  CUDA_TILES,   /* the same through a tile of shared memory: transposes */
  CUDA_GEMM,    /* a block for each tile of a matrix product */
  CUDA_TEAMS,   /* a team of threads of one block for each row of results, which it reduces */
  CUDA_SCATTER, /* a thread for each column and residue class of the indices */
  CUDA_RUNS,    /* sorting: the order inside runs, by counting */
  CUDA_MERGE    /* sorting: pairs of runs become one */
} CudaForm;

/* Of a span in pieces: an axis from each index of which to the next the buffer is left out. */
typedef struct CudaPiece {
  int64_t ext, step, pitch; /* elements between neighbours in the buffer and in shared memory */
  bool cut, chunk;          /* of which a block has fewer at the ends of CudaSpans.cut, .chunk */
} CudaPiece;

/* What a block reads of a buffer, or writes to it, through shared memory: see span.c. */
typedef struct CudaSpan {
  int buffer, bytes;
  bool result; /* written */
  bool exact;  /* BOXES: nothing beside its runs is touched, which may be other blocks' */
  bool whole;  /* the same for all blocks */
  int64_t step[KL_LOOPS]; /* elements between neighbours of each axis of results; 0 in boxes */
  int64_t inner;          /* those of the last axis, also in boxes */
  int64_t lo, hi;         /* a point's elements, from its place on */
  int64_t part, part_at; /* JOINS: so many of each row of results are this buffer's, from here on */
  /* between neighbours of the sums up to the one that goes by chunks */
  int64_t chunk_step[KL_LOOPS];
  int64_t parts;        /* steps, lo and hi are in so many parts of an element */
  int64_t size, length; /* elements of the buffer, and most of a block */
  int pad;              /* after so many elements in shared memory one is left out; or 0 */
  int64_t reads;        /* elements, of a point */
  int64_t box;          /* points that read the same */
  /* BOXES: pieces of `run` neighbouring elements, outermost first; a run is shorter by so many for each index that is missing */
  int64_t run, per_cut, per_chunk;
  int n_piece;
  CudaPiece piece[KL_LOOPS];
  uint32_t uneven;      /* axes that have no one step */
  int64_t of[KL_LOOPS]; /* steps of their loops */
} CudaSpan;
enum { CUDA_SPANS = 32 };
typedef struct CudaSpans {
  int64_t points; /* of a block; rows of teams */
  int64_t box;    /* points that no block should part */
  int64_t chunk;  /* TEAMS: of the sum `chunked` that is copied at once; 0: all */
  int chunked;    /* BOXES: outside of it sums are copied index by index; else 0 */
  bool lines;     /* TEAMS: among them is what neighbouring threads read together */
  bool boxes;     /* blocks are boxes of the axes from `cut` on: see cut.c */
  int cut;
  int order[KL_LOOPS]; /* BOXES: axes of results from the outermost on */
  bool reordered;
  int64_t across; /* BOXES: indices of axis `cut` of a block */
  double sectors; /* of all blocks, about; infinite: some that should be are not copied */
  int threads, n;
  CudaSpan v[CUDA_SPANS];
} CudaSpans;

struct CudaStage {
  CudaForm form;
  LoopPart part;
  int vec;          /* TEAMS: neighbouring summed points that a thread takes at once */
  int lanes, teams; /* TEAMS: threads of a team, teams of a block */
  bool columns;     /* TEAMS: neighbouring threads are of different teams */
  int a, b;         /* TILES: axes of results along which inputs and outputs are contiguous, */
  int size_a, size_b, step_a,
      step_b; /* a tile along them; elements between neighbours in shared memory */
  const struct CudaGemm
      *gemm;              /* GEMM; POINTS of LOOP_EPILOGUE: what left its sums in the workspace */
  const CudaSpans *spans; /* POINTS, TEAMS: or NULL */
  int64_t classes;        /* SCATTER: residue classes, a power of two */
  int64_t run;            /* RUNS, MERGE: elements of a run */
  int from, to;           /* MERGE, RUNS: buffers of indices; 8 bytes each */
  int64_t keys_from, keys_to; /* MERGE, RUNS: sorted keys, bytes into the workspace; -1: none */
};

enum {
  CUDA_THREADS = 256,
  CUDA_MOST_BLOCKS = 4224, /* 8 for each of 132 processors */
  CUDA_TILE = 32,
  CUDA_SECTOR = 32, /* bytes that memory gives at once */
  CUDA_RUN_SIZE = 1024,
  CUDA_SHARED = 48 << 10 /* bytes of shared memory that every launch may have */
};
/* Shared memory of a block of teams in which they hand over sums, of at most 1024 threads; beside the spans. One sum and its place
 * always fit. */
static inline int cuda_exchange_bytes(bool columns, int teams) {
  enum { COLUMNS = 16 << 10, ROWS = 6 << 10, SUM = 16 };
  return columns ? COLUMNS : ROWS > SUM * teams ? ROWS : SUM * teams;
}

/* access.c */
enum { CUDA_WINDOWS = 6 };
typedef struct CudaAccess {
  int input, bytes;
  bool known, kept;
  int64_t step[KL_LOOPS]; /* elements between neighbours of each loop of the domain */
  /* if kept: the place is within (sum of of[l] * loop l + lo..hi) / parts; what is not by steps of whole elements is a multiple
   * of even / parts, if that is whole */
  int64_t of[KL_LOOPS], lo, hi, even, parts;
  int64_t times; /* elements that one point reads there */
  bool anywhere; /* in a window, by an index that only a run knows */
  /* lo..hi: windows that a point goes through, their steps (in parts) and extents, and the rest */
  int64_t window[CUDA_WINDOWS], window_ext[CUDA_WINDOWS], bare_lo, bare_hi;
} CudaAccess;
typedef VEC(CudaAccess) CudaAccesses;
bool cuda_accesses(Gen *g, const Nest *t, CudaAccesses *out); /* false: there may be more */
/* How many neighbouring points along the axis (NULL: none) are worth doing at once: 1, 2 or 4. */
int cuda_vector(Gen *g, const Nest *t, const Axis *x);
/* Is an input contiguous along axis s->a of the results while the outputs are along another, s->b? Then also the tile. */
bool cuda_transposes(Gen *g, const Nest *t, CudaStage *s);

/* span.c: NULL: nothing is copied. */
const CudaSpans *cuda_spans(Gen *g, const Nest *t, int vector);
/* Of a block of teams; lines: of what neighbouring threads read together, or only of the rest. */
const CudaSpans *cuda_team_spans(Gen *g, const Nest *t, int teams, int threads, bool lines,
                                 int64_t chunk);
/* Of a concatenation whose operands are stored; NULL: all their parts are whole sectors, or they are too many. */
const CudaSpans *cuda_join_spans(Gen *g);
/* cut.c: the same for blocks that are boxes; most: points of a block, or threads of teams. NULL: nothing has to be copied, or not
 * all can be. */
const CudaSpans *cuda_boxes(Gen *g, const Nest *t, int64_t most, int64_t least_blocks);
/* Sectors of a sum of products whose neighbouring threads do neighbouring rows, about, if nothing is copied. */
double cuda_sectors_in_place(Gen *g, const Nest *t);
/* Puts the axes of results into the order of boxes. */
void cuda_reorder(Nest *t, const CudaSpans *s);
/* How many blocks there are, of axes in that order. */
int64_t cuda_box_blocks(const Nest *t, const CudaSpans *boxes);
/* A block that copies lines has a multiple of so many teams: rows that are whole sectors together, or all columns. */
int cuda_team_unit(const Nest *t);

/* box.c, for cut.c: what the blocks copy whose cut `to` says; false: nothing has to be copied, or not all can be. */
typedef struct CudaBox {
  Gen *g;
  const Nest *t;
  const CudaAccesses *all;
  CudaSpans *to;
  bool *uneven; /* some input must be copied if the axes stay in order */
  int64_t most; /* points of a block, threads of teams */
} CudaBox;
bool cuda_box_spans(const CudaBox *b);

/* span.c, for box.c */
bool cuda_axis_step(const Nest *t, const Axis *x, const int64_t *step, int64_t *to);
int64_t cuda_inside(const Nest *t, int a); /* points of the axes behind a */
/* Do warps read whole sectors, or few places? s: its steps; x: one of its reads, whose places are multiples of `even`. */
bool cuda_is_even(const Nest *t, const CudaSpan *s, const CudaAccess *x, int64_t even, bool *line);
/* Are results of a point apart, of which warps write whole sectors: vectors of so many bytes each, in rows of whole sectors? */
bool cuda_is_even_apart(const Nest *t, int64_t bytes);
bool cuda_is_overwritten(const Kernel *k, const KernelInput *x);
bool cuda_may_copy(Gen *g, const Nest *t, CudaAccesses *all);

/* plan.c */
/* Blocks that sort runs of so many elements. */
int64_t cuda_sort_blocks(const Node *n, int64_t run);
/* The vector of points of a nest. */
int cuda_points_vector(Gen *g, const Nest *t);

#endif
