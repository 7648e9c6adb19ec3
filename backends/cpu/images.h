/* What images.c and images_grad.c (planning, and sums) share with Winograd's ways: convolutions over tensors with the images of the
 * batch last, and gradients of their filters. */
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
  bool back;             /* ... images_winograd_back.c */
  LoopList batch; /* over planes: the images, whose tiles take their place; see planes_winograd.c */
  int more_lines; /* of what is fetched: see MicroSpec */
  MicroSet set;
  int fn[2][3]; /* into the set: block of size+1, size; panel of size+1, size, size with a tail */
} ImagesPlan;

/* A spatial axis: a dimension of X, the loops of its positions and taps; -1: there is none. */
typedef struct ImagesAxis {
  int dim, pos, tap;
} ImagesAxis;
/* Which loops are what, where `positions`, outermost first, are those of the axes; false: it is not of the form. */
bool images_loops(const Facts *f, int x, const LoopList *positions, ImagesPlan *p,
                  ImagesAxis axis[2]);
void images_strides(const Facts *f, const ImagesAxis axis[2], ImagesPlan *p);

/* The tile that costs least for p's images, filters and length of sums; false: there is none. */
bool images_tile(const Plan *plan, ImagesPlan *p);
void images_want(Arena *a, ImagesPlan *p); /* its microkernels */

/* images_winograd.c, images_winograd_back.c: whether it serves, as p is planned by sums; then the plan is changed. */
bool images_winograd_plan(Plan *plan, ImagesPlan *p);
bool images_back_plan(Plan *plan, ImagesPlan *p);
/* What both need: is p of their form? Cycles of its sums, about; of `tiles` times 36 products for `vectors` of 16 images, that are
 * transformed in so many cycles per channel and filter. Phases: one that transforms the filters, and that of so many tasks. */
bool images_winograd_fits(const Facts *f, const ImagesPlan *p);
double images_sum_cycles(const ImagesPlan *p);
double images_tile_cycles(const ImagesPlan *p, double vectors, double read, double write);
void images_winograd_phases(Plan *plan, ImagesPlan *p, KernelFn *tasks, int64_t n);

/* X as windows are read from it; strides in elements. */
typedef struct Windows {
  Isa isa;
  int64_t h, w, c, size_h, size_w, channels;
} Windows;
/* The 6 x 6 positions from (y0, x0) on, zeros outside, of all channels, `channel` apart, and so many images, as 36 points
 * `step` apart. */
void images_window(const Windows *s, const float *x, int64_t y0, int64_t x0, int64_t images,
                   float *to, int64_t step, int64_t channel);

/* Tiles of 2 x 2 positions of 16 images, n that are `apart`; h, w: between rows and columns. high, wide: have they two? */
typedef struct Tiles {
  Isa isa;
  int64_t n, apart, h, w;
  bool high, wide;
} Tiles;
/* Those at x, zeros for what is not there, as 36 points `step` apart, each of all tiles. */
void images_spread(const Tiles *s, const float *x, float *to, int64_t step);

/* ---- gradients of filters ---- */

typedef struct GradAxis {
  int64_t n, taps, at, step, tap_step, size; /* X is read at `at + step*position + tap_step*tap` */
  int64_t x, d, c;                           /* strides in X, D, result (of a tap) */
} GradAxis;

typedef struct ImagesGrad {
  int x, d; /* operands */
  int64_t images, filters, channels;
  int64_t x_base, d_base, x_c, d_o, c_o, c_c;
  GradAxis h, w;
  bool fold; /* taps along w are channels */
  TileRow tile;
  Blocks rows, cols; /* of filters, of channels */
  Blocks share;      /* of the rows of positions; by Winograd's of the tiles */
  int64_t run;       /* positions of a row that are summed at once; tiles */
  int64_t together;  /* blocks of channels that stay in the cache */
  int64_t pitch;     /* elements between filters */
  bool winograd;     /* see images_winograd_filter.c */
  MicroSet set;
  int fn[2][2]; /* into the set: rows of size+1, size; columns of size+1, size */
} ImagesGrad;

bool images_grad_tile(const Plan *plan, ImagesGrad *p);
/* images_winograd_filter.c: whether it serves; then p and the plan's work are filled in, all but the microkernels. */
bool images_winograd_filter_plan(Plan *plan, ImagesGrad *p);

#endif
