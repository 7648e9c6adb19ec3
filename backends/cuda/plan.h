/* What planning tells the generator about a launch. Private to plan*.c and backends/llvm/cuda_*.c. */
#ifndef KILN_CUDA_PLAN_H
#define KILN_CUDA_PLAN_H
#include "../llvm/gen.h"
#include "cuda.h"

typedef enum CudaForm {
  CUDA_POINTS,  /* a thread for each vector of results */
  CUDA_TILES,   /* the same through a tile of shared memory: transposes */
  CUDA_GEMM,    /* a block for each tile of a matrix product */
  CUDA_TEAMS,   /* a team of threads of one block for each row of results, which it reduces */
  CUDA_SCATTER, /* a thread for each column and residue class of the indices */
  CUDA_RUNS,    /* sorting: the order inside runs, by counting */
  CUDA_MERGE    /* sorting: pairs of runs become one */
} CudaForm;

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
      *gemm;       /* GEMM; POINTS of LOOP_EPILOGUE: what left its sums in the workspace */
  int64_t classes; /* SCATTER: residue classes, a power of two */
  int64_t run;     /* RUNS, MERGE: elements of a run */
  int from, to;    /* MERGE, RUNS: buffers of indices; 8 bytes each */
};

enum {
  CUDA_THREADS = 256,
  CUDA_MOST_BLOCKS = 4224, /* 8 for each of 132 processors */
  CUDA_TILE = 32,
  CUDA_RUN_SIZE = 256
};

/* access.c */
typedef struct CudaAccess {
  int input, bytes;
  bool known;
  int64_t step[KL_LOOPS]; /* elements between neighbours of each loop of the domain */
} CudaAccess;
typedef VEC(CudaAccess) CudaAccesses;
void cuda_accesses(Gen *g, const Nest *t, CudaAccesses *out);
/* How many neighbouring points along the axis (NULL: none) are worth doing at once: 1, 2 or 4. */
int cuda_vector(Gen *g, const Nest *t, const Axis *x);
/* Is an input contiguous along axis s->a of the results while the outputs are along another, s->b? Then also the tile. */
bool cuda_transposes(Gen *g, const Nest *t, CudaStage *s);

/* plan.c */
/* The vector of points of a nest. */
int cuda_points_vector(Gen *g, const Nest *t);

#endif
