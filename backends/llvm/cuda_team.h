/* What the generators of reductions share. */
#ifndef KILN_CUDA_TEAM_H
#define KILN_CUDA_TEAM_H
#include "cuda_gen.h"

/* A thread's place in the team that does its row of results. */
typedef struct Team {
  Work *w;
  const CudaStage *s;
  int threads;
  Aff lane, team;
  Val lane_v, team_v, tid;
  CudaCopies *copies;
  Aff first; /* row of the block */
  Val n;     /* rows of the block */
} Team;

/* cuda_combine.c */
/* The accumulators of a sweep: what the lanes have becomes what their team has, in every lane. */
void team_combine(Team *m, int sweep);
/* All accumulators move between the threads of the block: this one gets those of row `at`. mine: it has its team's to give. */
void team_hand_over(Team *m, Val mine, Val at);

#endif
