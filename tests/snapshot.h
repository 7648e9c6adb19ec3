/* What stands in a folder, to see what a failed operation has left of it. */
#ifndef KILN_TESTS_SNAPSHOT_H
#define KILN_TESTS_SNAPSHOT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct File {
  char name[256];
  uint8_t *data;
  size_t n;
} File;
typedef struct Snapshot {
  int n;
  File v[32];
} Snapshot;

/* Adds the files of the folder and of the folders in it, temporary and hidden ones too. */
void snapshot_take(const char *folder, Snapshot *f);
void snapshot_drop(Snapshot *f);
const File *snapshot_file(const Snapshot *f, const char *name); /* NULL: there is none */
bool snapshot_same(const File *a, const File *b);               /* both are there, and equal */
/* Every file of `now` is that of `before`, or all that differ are those of `after`. */
bool snapshot_whole(const Snapshot *now, const Snapshot *before, const Snapshot *after);
#endif
