/* Diagnostics: one error per thread, its code from errors.def, its text in parts (summary, where, notes, help).
 * The text goes out as lines for people or as one JSON object; bytes that could confuse a terminal are escaped. */
#include "ir.h"
#include <string.h>

typedef struct ErrInfo {
  const char *name, *summary, *text;
} ErrInfo;

static const ErrInfo err_info[E_N] = {
    {"", "", ""},
#define ERR(family, number, summary, text) {"E-" #family "-" #number, summary, text},
#include "errors.def"
#undef ERR
};

static _Thread_local Diag diag;
static _Thread_local char buffers[8][512];
static _Thread_local unsigned next_buffer;

const char *err_name(ErrCode c) { return c < E_N ? err_info[c].name : ""; }
const char *err_summary(ErrCode c) { return c < E_N ? err_info[c].summary : ""; }
const char *err_text(ErrCode c) { return c < E_N ? err_info[c].text : ""; }

ErrCode err_find(const char *name) {
  for (int c = 1; c < E_N; c++)
    if (!strcmp(err_info[c].name, name)) return (ErrCode)c;
  return E_NONE;
}

/* text_vfmt that marks what it had to cut off. */
static void put(char *to, size_t size, const char *fmt, va_list ap) {
  int n = text_vfmt(to, size, fmt, ap);
  if (n < 0) *to = 0;
  if (n >= (int)size && size > 4) memcpy(to + size - 4, "...", 4);
}

bool err_set(ErrCode c, const char *fmt, ...) {
  if (diag.code != E_NONE) return false;
  diag = (Diag){.code = c};
  va_list ap;
  va_start(ap, fmt);
  put(diag.summary, sizeof diag.summary, fmt, ap);
  va_end(ap);
  return false;
}

void err_where(const char *fmt, ...) {
  if (diag.code == E_NONE) return;
  char old[sizeof diag.where];
  memcpy(old, diag.where, sizeof old);
  va_list ap;
  va_start(ap, fmt);
  put(diag.where, sizeof diag.where, fmt, ap);
  va_end(ap);
  size_t n = strlen(diag.where);
  if (!strncmp(old, diag.where, n) && (!old[n] || old[n] == ',')) /* said already */
    memcpy(diag.where, old, sizeof old);
  else if (*old)
    snprintf(diag.where + n, sizeof diag.where - n, ", %s", old);
}

void err_note(const char *fmt, ...) {
  if (diag.code == E_NONE) return;
  size_t n = strlen(diag.notes);
  if (n + 8 >= sizeof diag.notes) return;
  if (n) diag.notes[n++] = '\n';
  va_list ap;
  va_start(ap, fmt);
  put(diag.notes + n, sizeof diag.notes - n, fmt, ap);
  va_end(ap);
}

void err_help(const char *fmt, ...) {
  if (diag.code == E_NONE) return;
  va_list ap;
  va_start(ap, fmt);
  put(diag.help, sizeof diag.help, fmt, ap);
  va_end(ap);
}

bool err_any(void) { return diag.code != E_NONE; }
const Diag *err_get(void) { return diag.code == E_NONE ? NULL : &diag; }
void err_put(const Diag *d) { diag = *d; }
void err_clear(void) { diag = (Diag){0}; }

/* Bytes of the well-formed UTF-8 character at s, 0 if there is none (overlong forms, surrogates and C1 controls count
 * as none). */
int utf8_len(const unsigned char *s) {
  if (s[0] < 0x80) return 1;
  int n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
          : (s[0] & 0xf0) == 0xe0       ? 3
          : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                        : 0;
  uint32_t c = n ? s[0] & (0xff >> (n + 1)) : 0;
  for (int i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0;
    c = c << 6 | (s[i] & 0x3f);
  }
  static const uint32_t least[5] = {0, 0, 0xa0, 0x800, 0x10000};
  return n && c >= least[n] && c <= 0x10ffff && !(c >= 0xd800 && c < 0xe000) ? n : 0;
}

/* The text of a diagnostic: control bytes and malformed UTF-8 as \xNN, continuation lines indented. */
static void print_text(FILE *to, const char *s, const char *indent) {
  for (const unsigned char *p = (const unsigned char *)s; *p;) {
    int n = utf8_len(p);
    if (*p == '\n')
      fprintf(to, "\n%s", indent), p++;
    else if (!n || *p < 0x20 || *p == 0x7f)
      fprintf(to, "\\x%02x", *p++);
    else
      fwrite(p, 1, (size_t)n, to), p += n;
  }
}

/* s (up to end, or all of it) as a JSON string; malformed UTF-8 becomes U+FFFD. */
static void print_json(FILE *to, const char *s, const char *end) {
  fputc('"', to);
  for (const unsigned char *p = (const unsigned char *)s; *p && (const char *)p != end;) {
    int n = utf8_len(p);
    if (*p == '"' || *p == '\\')
      fprintf(to, "\\%c", *p++);
    else if (*p < 0x20 || *p == 0x7f)
      fprintf(to, "\\u%04x", *p++);
    else if (!n)
      fputs("\\ufffd", to), p++;
    else
      fwrite(p, 1, (size_t)n, to), p += n;
  }
  fputc('"', to);
}

static void print_diag_json(FILE *to, const Diag *d) {
  fprintf(to, "{\"code\": \"%s\", \"summary\": ", err_name(d->code));
  print_json(to, d->summary, NULL);
  fputs(", \"where\": ", to);
  print_json(to, d->where, NULL);
  fputs(", \"notes\": [", to);
  for (const char *s = d->notes, *end; *s; s = *end ? end + 1 : end) {
    end = strchr(s, '\n');
    if (!end) end = s + strlen(s);
    if (s != d->notes) fputs(", ", to);
    print_json(to, s, end);
  }
  fputs("], \"help\": ", to);
  print_json(to, d->help, NULL);
  fputs("}\n", to);
}

void err_print(FILE *to, bool json) {
  const Diag *d = err_get();
  if (!d) return;
  if (json) {
    print_diag_json(to, d);
    return;
  }
  fprintf(to, "error[%s]: ", err_name(d->code));
  print_text(to, d->summary, "      ");
  fputc('\n', to);
  static const struct {
    size_t at;
    const char *lead, *indent;
  } parts[] = {{offsetof(Diag, where), "  --> ", "      "},
               {offsetof(Diag, notes), "      ", "      "},
               {offsetof(Diag, help), "  help: ", "        "}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    const char *s = (const char *)d + parts[i].at;
    if (!*s) continue;
    fputs(parts[i].lead, to);
    print_text(to, s, parts[i].indent);
    fputc('\n', to);
  }
}

static char *buffer(void) { return buffers[next_buffer++ % 8]; }

const char *quoted(const char *s) {
  char *b = buffer(), *o = b;
  *o++ = '"';
  const unsigned char *p = (const unsigned char *)(s ? s : "");
  for (int shown = 0; *p; shown++) {
    if (shown == 80) {
      memcpy(o, "...", 3);
      o += 3;
      break;
    }
    int n = utf8_len(p);
    if (*p == '"' || *p == '\\')
      *o++ = '\\', *o++ = (char)*p++;
    else if (!n || *p < 0x20 || *p == 0x7f)
      o += sprintf(o, "\\x%02x", *p++);
    else
      while (n--) *o++ = (char)*p++;
  }
  memcpy(o, "\"", 2);
  return b;
}

static void put_dims(char *o, const char *end, int rank, const int64_t *dims) {
  int n = snprintf(o, (size_t)(end - o), "[");
  for (int i = 0; i < rank && end - (o + n) > 32; i++)
    n += snprintf(o + n, (size_t)(end - o - n), "%s%lld", i ? ", " : "", (long long)dims[i]);
  snprintf(o + n, (size_t)(end - o - n), "]");
}

const char *dims_text(int rank, const int64_t *dims) {
  char *b = buffer();
  put_dims(b, b + sizeof buffers[0], rank, dims);
  return b;
}

const char *shape_text(DType t, int rank, const int64_t *dims) {
  char *b = buffer();
  int n = sprintf(b, "%s ", dtype_info[t <= DT_N ? t : DT_N].name);
  put_dims(b + n, b + sizeof buffers[0], rank, dims);
  return b;
}
