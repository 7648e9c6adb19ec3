/* Layouts, private to layout*.c. A node's twin has the same elements with permuted dimensions: twin.dims[i] = dims[perm[i]]. */
#ifndef KILN_LAYOUT_H
#define KILN_LAYOUT_H
#include "rewrite.h"

typedef struct Layout {
  bool set; /* false: the node's own */
  int8_t perm[KL_RANK];
  /* activations: these dimensions come last, in order; 0: perm is one of its own */
  uint32_t channels;
  bool images; /* the other way round: channels, then images, are `channels` */
} Layout;

/* layout_conv.c: a contraction as convolution. Tensors are 0, the operand that windows run over; 1, the other; 2, the
 * result. */
typedef enum Form { FORM_FORWARD, FORM_INPUT, FORM_FILTER } Form; /* itself, or a gradient */
typedef struct ConvForm {
  Form form;
  bool images;    /* see conv_form */
  int x;          /* the operand that windows run over */
  bool groups;    /* of channels, more than one */
  bool depthwise; /* a filter of its own for each channel */
  int n[3], n_sums;
  int8_t dims[3][KL_RANK], sums[KL_RANK]; /* dimensions in the order wanted; loops */
  Layout layout[3]; /* the same with the dimensions of size 1 that are left out */
} ConvForm;
/* images: the form with the images last instead of the channels. */
bool conv_form(const Graph *g, const Node *n, bool images, ConvForm *f);
/* The form with the filter in its own layout. */
void conv_keep_filter(const Node *n, ConvForm *f);
/* The contraction in this form, of operands that have the layouts wanted. The result is in its own. */
Node *conv_build(Graph *g, const Node *n, const ConvForm *f, Node *x, Node *w);
/* Do the convolutions of the graph run better with the channel last? With the images last: where channels would not fill
 * vectors, and images do. */
bool conv_pays(const Graph *g);
bool conv_images_pay(const Graph *g);

/* layout_move.c: what a layout means on the other side of a node */
/* The layout with these dimensions last; images: the last one first. */
Layout layout_channels(int rank, uint32_t channels, bool images);
bool layout_same(const Layout *a, const Layout *b, int rank);
/* From an operand to the result (down), or back; false if it does not carry over. */
bool layout_move(const Node *n, bool down, const Layout *from, Layout *to);
/* Is the reshape from x in layout a to n in layout b a reshape too? */
bool layout_reshapes(const Node *n, const Layout *a, const Layout *b);

/* layout_build.c: the Graph anew; layouts by node id */
void layout_build(Graph *g, bool images, const Layout *layouts);

#endif
