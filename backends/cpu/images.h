/* What images.c (planning, and sums) and images_winograd.c share: convolutions over tensors with the images of the batch last. */
#ifndef KILN_IMAGES_H
#define KILN_IMAGES_H
#include "conv.h"

enum { MOST_AXIS_PARTS = 4 };

typedef struct ImagesPlan {
  int x, w; /* operands */
  int64_t images, filters, channels;
  LoopList channel_loops, filter_loops;
  int64_t x_base, x_h, x_w, x_c, size_h, size_w;
  int64_t w_base, w_kh, w_kw;
  int64_t c_h, c_w, c_o;
  int n_h, n_w;
  PartAxis h[MOST_AXIS_PARTS], v[MOST_AXIS_PARTS]; /* parts along h and w */
  int64_t at[MOST_AXIS_PARTS][MOST_AXIS_PARTS]; /* where a part's taps begin in a packed filter */
  int64_t pitch;                                /* elements of a packed filter */
  bool pack;
  int64_t rows, cuts; /* rows of positions, and into how many tasks each is cut */
  TileRow tile;
  Blocks blocks, panels; /* of filters; of images, in vectors */
  bool winograd;         /* see images_winograd.c */
  MicroSet set;
  int fn[2][3]; /* into the set: block of size+1, size; panel of size+1, size, size with a tail */
} ImagesPlan;

/* images_winograd.c: whether it serves, as p is planned by sums; then the plan is changed. */
bool images_winograd_plan(Plan *plan, ImagesPlan *p);

#endif
