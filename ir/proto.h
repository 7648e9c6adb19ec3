/* What reading (unproto.c) and writing (proto.c) of ProgramDesc files share: where the messages keep the value of each
 * attribute type and the tensor description of each kind of variable. */
#ifndef KILN_PROTO_H
#define KILN_PROTO_H
#include "ir.h"
#include "kiln.pb-c.h"

typedef enum Elem { M_I32, M_I64, M_BOOL, M_F32, M_F64, M_BYTES, M_SCALAR } Elem;
typedef struct Place {
  Elem elem;
  size_t at,
      has; /* offsets of the value and of its has-flag; for lists of the pointer and of the count */
} Place;
extern const Place pb_places[AT_N];

typedef struct KindPlace {
  int kind;
  size_t at; /* in VarType; 0: the kind has no description */
  bool lod;  /* a LoDTensorDesc rather than a TensorDesc */
} KindPlace;
const KindPlace *pb_find_kind(int kind); /* NULL: not a kind of variables */

#endif
