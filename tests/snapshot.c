/* See snapshot.h. */
#include "snapshot.h"
#include "../ir/ir.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Names begin with prefix. */
static void take(const char *folder, const char *prefix, Snapshot *f) {
  DIR *d = opendir(folder);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    char path[600];
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    snprintf(path, sizeof path, "%.300s/%s", folder, e->d_name);
    assert_true(f->n < 32);
    if (vfs_is_dir(path)) {
      char inner[256];
      snprintf(inner, sizeof inner, "%.40s%.200s/", prefix, e->d_name);
      take(path, inner, f);
      continue;
    }
    File *to = &f->v[f->n];
    snprintf(to->name, sizeof to->name, "%.50s%.200s", prefix, e->d_name);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    to->data = malloc(1 << 20);
    to->n = fread(to->data, 1, 1 << 20, in);
    fclose(in);
    f->n++;
  }
  closedir(d);
}

void snapshot_take(const char *folder, Snapshot *f) { take(folder, "", f); }

void snapshot_drop(Snapshot *f) {
  while (f->n) free(f->v[--f->n].data);
}

const File *snapshot_file(const Snapshot *f, const char *name) {
  for (int i = 0; i < f->n; i++)
    if (!strcmp(f->v[i].name, name)) return &f->v[i];
  return NULL;
}

bool snapshot_same(const File *a, const File *b) {
  return a && b && a->n == b->n && !memcmp(a->data, b->data, a->n);
}

bool snapshot_whole(const Snapshot *now, const Snapshot *before, const Snapshot *after) {
  bool old = now->n == before->n, new = now->n == after->n;
  for (int i = 0; i < now->n; i++) {
    old = old && snapshot_same(&now->v[i], snapshot_file(before, now->v[i].name));
    new = new &&snapshot_same(&now->v[i], snapshot_file(after, now->v[i].name));
  }
  return old || new;
}
