/* A loop nest that is being emitted: what loop.c and the nests of CUDA share (point.c). */
#ifndef KILN_LOOP_H
#define KILN_LOOP_H
#include "gen.h"

enum { MAX_ACCS = 64 };

typedef struct Acc {
  Node *n;
  int sweep;
} Acc;

typedef struct Work {
  Gen *g;
  Nest *t;
  Aff out[KL_LOOPS], sum[KL_LOOPS]; /* where each loop stands */
  int n_acc, n_sweep;
  Acc acc[MAX_ACCS];
  int store_sweep[256];
  Val lo, hi; /* inner loop over results: bounds, NULL = 0 and the extent */
  int phases; /* points of one iteration of the inner loop */
  int n_cut;
  int64_t cut[GEN_CUTS + 2]; /* in iterations: 0 = cut[0] < ... < cut[n_cut-1] = all */
} Work;

/* The index in the domain, or of its row: summed dimensions at 0 (those of a contraction left out). */
Index domain_index(const Work *w, bool row);
void root_index(Gen *g, const Nest *t, const Root *r, const Index *ix, Index *out);
void store_root(Work *w, const Root *r, Val v, const Index *ix);
/* Everything that the sweep does at `phases` points of the loop in `slot`, from `first` on: all loads, then all stores. */
void do_points(Work *w, Aff *slot, const Aff *first, int phases);
void init_accs(Work *w, void *user);
Val stack_slot(Work *w, LLVMTypeRef t); /* at the function's entry */
/* Where the accumulator, or the one of the row's column, is. */
Val acc_slot(Work *w, Val base, LLVMTypeRef type, const Index *row);
void store_rows(Work *w, void *user); /* the results that are one value for each row */
void plan_sweeps(Work *w);

#endif
