/* Private to the Graph's text form: gtext.c prints, gparse.c reads. The grammar is at the head of gtext.c. */
#ifndef KILN_GTEXT_H
#define KILN_GTEXT_H
#include "ir.h"

/* The payload that stands in braces as key=value: one row per field, in printing order. */
typedef enum FieldKind {
  GF_I,     /* Node.i */
  GF_AXES,  /* Node.i as a list of bit numbers */
  GF_IA,    /* Node.ia[at] */
  GF_CODE,  /* Node.ia[at] as an error code */
  GF_CUSTOM /* Node.s: the name of the custom operator */
} FieldKind;
typedef struct GraphField {
  Prim prim;
  const char *key;
  FieldKind kind;
  int at;
} GraphField;
extern const GraphField graph_field[];
extern const int graph_field_n;

enum { GT_LIST = 64 /* constant data of more elements is printed as hex */ };

#endif
