/* What the files of the scope share.
 *
 * A variable is kept in the layout in which programs compute with it (Node.ia of STATE): the first run permutes it, and from
 * then on nobody does. What only reads gets a copy in its layout beside, what writes changes the variable's own: then the
 * copies go, so that no two forms of a variable are ever at odds. To the outside its dimensions are in their own order; for
 * who asks for the elements there is a copy in that order, made when asked for. Forms may be in the memory of a device: a
 * variable that a device has written is copied to the host when it is looked at there. A form on a device that is no
 * longer right keeps its memory for the next copy, so that addresses stay.
 *
 * Large tensors of a parameter file stay where the file is mapped: pages come in when they are read, and become the scope's
 * own when they are written. Those that are not aligned there are copied when somebody wants their elements. A mapping goes
 * with the last tensor in it. */
#ifndef KILN_SCOPE_H
#define KILN_SCOPE_H
#include "internal.h"
#include <pthread.h>
#include <stdatomic.h>

typedef struct Mapping {
  uint8_t *data;
  size_t n;
  int live; /* tensors in it */
  struct Mapping *next;
} Mapping;

/* The elements in a layout. */
typedef struct Form {
  int64_t layout[KL_VAR_RANK];
  Device *device; /* whose memory the data is in; NULL: the host's */
  bool old;       /* the elements are of an earlier value */
  bool raw;       /* only of the own form: in a file, not aligned */
  void *data;     /* NULL: none */
  struct Form *next;
} Form;

typedef struct Entry {
  Tensor shown;     /* to the outside; its data is that of a form, or `stale`, or NULL */
  bool pinned;      /* shown.data may still be read out there */
  void *stale;      /* pinned elements of an earlier value: their memory stays */
  Form own;         /* data NULL: the variable has no value */
  Form *copies;     /* in other layouts, of equal value; each of mem_alloc */
  uint64_t version; /* differs for every value of every variable of the process */
  uint64_t origin;  /* where the value was read from; 0: from nowhere that will be found again */
} Entry;

struct kl_scope {
  Arena *arena;
  Mapping *mappings;
  Map *by_name;  /* name -> Entry*; removed variables keep their (empty) Entry for reuse */
  uint64_t lods; /* see scope_lods */
  atomic_uint_least64_t changes;
  pthread_mutex_t lock;
};

/* form.c. Of a scope that others may use, its lock is held. */
void mapping_free(Mapping *m);
/* The pages of a file that lie inside a tensor that has been copied need not stay. */
void mapping_drop_pages(const Tensor *t);
void form_set_layout(Form *f, int rank, const int64_t *layout); /* NULL: the variable's own order */
/* The form that has the elements there; NULL: none has. */
Form *entry_form(Entry *e, const Device *d, const int64_t *layout);
/* The same, made from the others. */
Form *entry_copy(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool);
/* Any form that the host can read; what only a device has is copied. */
Form *entry_on_host(Entry *e);
/* A host form's elements in another layout. */
void entry_permute(const Entry *e, const Form *f, const int64_t *layout, void *to, Pool *pool);
/* The one form that is left is in this layout. */
void entry_keep(Scope *s, Entry *e, Device *d, const int64_t *layout, Pool *pool);
void entry_align(Scope *s, Entry *e);       /* the own form becomes one that can be read */
void entry_drop_copies(Scope *s, Entry *e); /* those on a device stay as old ones */
void entry_clear(Scope *s, Entry *e);       /* the variable has no value then */

#endif
