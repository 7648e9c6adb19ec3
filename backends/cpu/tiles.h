/* Tiles of the register-blocked microkernels: the table, how results are cut into tiles, what a tile costs. */
#ifndef KILN_TILES_H
#define KILN_TILES_H
#include "cpu.h"

enum { MOST_ROWS = 28, MOST_VECTORS = 8 };

typedef enum Isa {
#define ISA(id, here) ISA_##id,
#define OTHER_ISA(id) ISA_##id,
#include "tiles.def"
  ISA_NONE
} Isa;

typedef enum Form { FORM_ROWS, FORM_DOT } Form;
typedef struct TileRow {
  Isa isa;
  DType dtype;
  int lanes;
  Form form;
  int mr, nv;
} TileRow;
extern const TileRow tile_table[]; /* ends with ISA_NONE */

/* `total` in n blocks, the first `more` of them of size+1, the others of size. */
typedef struct Blocks {
  int64_t n, size, more;
} Blocks;
static inline int64_t block_size(const Blocks *b, int64_t i) { return b->size + (i < b->more); }
static inline int64_t block_start(const Blocks *b, int64_t i) {
  return i * b->size + (i < b->more ? i : b->more);
}

/* What this thread's plans are for: the machine, or the one that tiles_for was last told. ISA_NONE: no microkernels. */
Isa tile_isa(void);
void tiles_for(const char *target);              /* as in CompileOptions; NULL: this machine */
const TileRow *tile_of_form(DType t, Form form); /* the first that this machine has; NULL: none */
int64_t tile_unit(const TileRow *t); /* columns of a "vector": lanes, or 1 in the form DOT */
Blocks equal_blocks(int64_t total, int64_t largest);
Blocks vector_blocks(int64_t n, const TileRow *t); /* n columns in panels, counted in vectors */
/* Blocks of one size save code: a few more blocks are taken for it. */
Blocks row_blocks(int64_t m, const TileRow *t);
/* Of a step of k: two multiply-adds, two loads a cycle; a sum of its own every four cycles. */
double tile_cycles(double mr, double nv);
/* Of a tile of the form DOT with so many rows: `runs` sums of k, a step of which takes so long, and adding up their lanes. */
double dot_cycles(const TileRow *t, double runs, int64_t k, double rows, double step);
/* Cycles of arithmetic on that processor, over those: 2 where vectors of 64 bytes go by halves. */
double tile_halves(void);
/* Bytes of a panel of B that is packed for the tiles that follow, to stay in the L1 cache; where arithmetic takes twice as long,
 * half of it can come from the L2 cache meanwhile. */
int64_t tile_panel(void);
/* From the first to the last position that n results read, `step` apart, each at taps that are tap_step apart. */
static inline int64_t window_reach(int64_t n, int64_t step, int64_t taps, int64_t tap_step) {
  return n && taps ? step * (n - 1) + tap_step * (taps - 1) + 1 : 0;
}
/* B by columns, element (k, n) at b[n*ld + k], to rows: to[k*width + n]; elements of `size` bytes, 4 or 8. */
void pack_columns(int size, void *to, int64_t width, const void *b, int64_t ld, int64_t k,
                  int64_t n);

#endif
