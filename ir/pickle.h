/* Values of the closed pickle reader (pickle.c), for who makes parameters of them (statedict.c). */
#ifndef KILN_PICKLE_H
#define KILN_PICKLE_H
#include "ir.h"

typedef enum PickleKind {
  PK_MARK,
  PK_NONE,
  PK_BOOL,
  PK_INT,
  PK_FLOAT,
  PK_TEXT,
  PK_BYTES,
  PK_TUPLE,
  PK_LIST,
  PK_DICT,
  PK_GLOBAL,
  PK_DTYPE,
  PK_ARRAY,
  PK_N
} PickleKind;

typedef struct PickleValue PickleValue;
typedef struct PickleGlobal PickleGlobal;
struct PickleValue {
  PickleKind kind;
  size_t at; /* offset of the opcode that made it */
  union {
    int64_t i; /* BOOL, INT */
    double f;  /* FLOAT */
    struct {   /* TEXT, BYTES: in the file, or in the arena */
      uint8_t *bytes;
      size_t n;
    };
    struct { /* TUPLE, LIST; DICT: keys and values in turn */
      PickleValue **items;
      int n_items, cap;
    };
    const PickleGlobal *global;
    struct { /* DTYPE; ARRAY: data NULL until its state is set */
      DType dtype;
      Tensor *tensor;
    };
  };
};

/* What making a value needs; one stack machine's. */
typedef struct PickleMaker {
  Arena *a;
  size_t left; /* bytes of memory that may still be taken */
  size_t at;   /* offset of the current opcode */
} PickleMaker;
void *pickle_take(PickleMaker *m, size_t n); /* zeroed; NULL: E-MEM-002 */
PickleValue *pickle_make(PickleMaker *m, PickleKind kind);
/* Record an error with the place, and return false. */
bool pickle_here(const PickleMaker *m);
bool pickle_malformed(const PickleMaker *m, const char *what); /* E-PAR-001 */
/* E-PAR-005: "the pickle WHAT NAME" */
bool pickle_refused(const PickleMaker *m, const char *what, const char *name);

/* pickle_call.c */
struct PickleGlobal {
  const char *module, *name;
  PickleValue *(*call)(PickleMaker *m, const PickleValue *args); /* NULL: only named */
};
/* NULL: not in the subset */
const PickleGlobal *pickle_global(const uint8_t *module, size_t n_module, const uint8_t *name,
                                  size_t n_name);
bool pickle_fill(PickleMaker *m, PickleValue *array, const PickleValue *state);
bool pickle_set_order(PickleMaker *m, const PickleValue *state);
const char *pickle_kind_name(PickleKind k); /* "a dictionary" */
/* The value that the pickle makes. Memory beside the bytes: at most 24 MiB and the file's size, else E-MEM-002. What is not
 * in the subset: E-PAR-005 with its name and byte. */
PickleValue *pickle_parse(uint8_t *bytes, size_t n, Arena *a);
/* Its text as a string in the arena; NULL (error set) if it is none, or holds a NUL. */
const char *pickle_text(const PickleValue *v, const char *what, Arena *a);

#endif
