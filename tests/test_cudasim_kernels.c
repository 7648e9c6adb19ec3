/* The CUDA simulator on kernels of the kinds that people write, compiled by nvcc (tests/cudasim/ptx/collective.cu): threads that work
 * together. Each result against plain C, with all checks on, so that a false alarm fails the test too. */
#include "cudasim/kernels.h"

MODULE(collective)

static void scans(void **state) {
  (void)state;
  int n = 300, x[300], want[300], got[300];
  double xd[300], wantd[300], gotd[300];
  long long xl[300], wantl[300], gotl[300];
  for (int i = 0; i < n; i++) {
    x[i] = (int)(rnd() % 1000) - 500, xd[i] = x[i] * 0.25, xl[i] = (long long)x[i] * (1ll << 33);
    want[i] = x[i] + (i ? want[i - 1] : 0), wantd[i] = want[i] * 0.25,
    wantl[i] = (long long)want[i] * (1ll << 33);
  }
  CUdeviceptr a = upload(x, sizeof x), b = upload(xd, sizeof xd), c = upload(xl, sizeof xl),
              ya = upload(NULL, sizeof x), yb = upload(NULL, sizeof xd),
              yc = upload(NULL, sizeof xl);
  LAUNCH("scan_int", 1, 320, &a, &ya, &n);
  LAUNCH("scan_double", 1, 320, &b, &yb, &n);
  LAUNCH("scan_ll", 1, 320, &c, &yc, &n);
  download(got, ya, sizeof got), download(gotd, yb, sizeof gotd), download(gotl, yc, sizeof gotl);
  assert_memory_equal(got, want, sizeof want);
  assert_memory_equal(gotd, wantd, sizeof wantd);
  assert_memory_equal(gotl, wantl, sizeof wantl);
  RELEASE(a, b, c, ya, yb, yc);
}

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void sorting(void **state) {
  (void)state;
  int n = 512;
  float x[512], got[512];
  CUdeviceptr d = floats(x, n);
  launch("bitonic", 1, 128, 4 * 512, (void *[]){&d, &n});
  download(got, d, sizeof got);
  qsort(x, 512, 4, by_value);
  assert_memory_equal(got, x, sizeof x);
  RELEASE(d);
}

static void rows(void **state) {
  (void)state;
  int n = 500, cols = 150, quads = 100;
  float x[600], got[600], want[600], g[150], b[150], sum = 0;
  CUdeviceptr dx = floats(x, 600), dy = upload(NULL, sizeof x), dg = floats(g, 150),
              db = floats(b, 150);
  LAUNCH("stencil", 4, 128, &dx, &dy, &n);
  download(got, dy, 2000);
  for (int i = 0; i < n; i++) {
    want[i] = 0;
    for (int o = -3; o <= 3; o++) want[i] += i + o >= 0 && i + o < n ? x[i + o] : 0;
  }
  near(got, want, n, 1e-6, "stencil");
  LAUNCH("softmax", 4, 96, &dx, &dy, &cols);
  download(got, dy, sizeof got);
  for (int r = 0; r < 4; r++) {
    double most = -1e9, s = 0;
    for (int i = 0; i < cols; i++) most = fmax(most, (double)x[r * cols + i]);
    for (int i = 0; i < cols; i++) s += exp((double)x[r * cols + i] - most);
    for (int i = 0; i < cols; i++)
      want[r * cols + i] = (float)(exp((double)x[r * cols + i] - most) / s);
  }
  near(got, want, 600, 1e-6, "softmax");
  LAUNCH("layer_norm", 4, 64, &dx, &dg, &db, &dy, &cols);
  download(got, dy, sizeof got);
  for (int r = 0; r < 4; r++) {
    double m = 0, v = 0;
    for (int i = 0; i < cols; i++) m += (double)x[r * cols + i] / cols;
    for (int i = 0; i < cols; i++) v += pow((double)x[r * cols + i] - m, 2) / cols;
    for (int i = 0; i < cols; i++)
      want[r * cols + i] =
          (float)(((double)x[r * cols + i] - m) / sqrt(v + 1e-5) * (double)g[i] + (double)b[i]);
  }
  near(got, want, 600, 2e-6, "layer_norm");
  CUdeviceptr o = zeros(4), o2 = zeros(8);
  double both = 0;
  LAUNCH("dot", 3, 64, &dx, &dx, &o, &o2, &quads);
  download(&sum, o, 4), download(&both, o2, 8);
  double exact = 0;
  for (int i = 0; i < 400; i++) exact += (double)x[i] * (double)x[i];
  assert_true(fabs((double)sum / exact - 1) < 1e-6 && fabs(both / exact - 1) < 1e-6);
  RELEASE(dx, dy, dg, db, o, o2);
}

static void voting(void **state) {
  (void)state;
  int n = 60, x[64] = {0}, got[64][8], r[64][4];
  for (int i = 0; i < n; i++) x[i] = (int)(rnd() % 12);
  x[3] = 7;
  CUdeviceptr d = upload(x, sizeof x), y = upload(NULL, sizeof got);
  LAUNCH("votes2", 1, 64, &d, &y, &n);
  download(got, y, sizeof got);
  int odd = 0;
  for (int i = 0; i < 64; i++) odd += x[i] & 1;
  for (int i = 0; i < 64; i++) {
    unsigned same = 0, ballot = 0;
    for (int l = 0; l < 32; l++) {
      same |= (unsigned)(x[i / 32 * 32 + l] == x[i]) << l;
      ballot |= (unsigned)(x[i / 32 * 32 + l] > 5) << l;
    }
    unsigned first = (unsigned)__builtin_ctz(ballot),
             second = (unsigned)__builtin_ctz(ballot & (ballot - 1));
    const int want[8] = {1,
                         1,
                         odd,
                         (int)same,
                         (int)ballot,
                         0,
                         (int)(first + 1 + second),
                         __builtin_popcount(ballot) + 1};
    if (got[i][0] != 1 && got[i][0]) got[i][0] = 1;
    for (int k = 0; k < 8; k++)
      if (got[i][k] != want[k]) fail_msg("votes2[%d][%d]: %d, not %d", i, k, got[i][k], want[k]);
  }
  LAUNCH("reduxes", 1, 32, &d, &y);
  download(r, y, sizeof(int[32][4]));
  int sum = 0, most = 0, least = 100, bits = 0;
  for (int i = 0; i < 32; i++)
    sum += x[i], most = x[i] > most ? x[i] : most, least = x[i] < least ? x[i] : least,
                 bits ^= x[i];
  for (int i = 0; i < 32; i++)
    assert_true(r[i][0] == sum && r[i][1] == most && r[i][2] == least && r[i][3] == bits);
  RELEASE(d, y);
}

static void groups(void **state) {
  (void)state;
  int n = 64, tiles = 5, count = 3000;
  float x[64 * 20], y[64], want[64], got[128], *big = malloc(3000 * 4), out;
  CUdeviceptr dx = floats(x, 64 * 20), dy = zeros(512), df = floats(big, 3000),
              part = upload(NULL, 4 * 11), o = upload(NULL, 4);
  LAUNCH("coop", 1, 64, &dx, &dy, &n);
  download(got, dy, sizeof got);
  for (int i = 0; i < 8; i++) {
    float s = 0, m = -1e9f;
    for (int k = 0; k < 8; k++) s += x[8 * i + k], m = fmaxf(m, x[8 * i + k]);
    y[i] = s + m;
  }
  near(got, y, 8, 1e-6, "coop");
  assert_true(got[100] == 32);
  LAUNCH("pipe", 1, 64, &dx, &dy, &tiles);
  download(got, dy, 256);
  for (int t = 0; t < 64; t++) {
    want[t] = 0;
    for (int k = 0; k < tiles; k++)
      for (int e = 0; e < 4; e++)
        want[t] += (k == 3 && e == 3 ? 0 : x[256 * k + 4 * (63 - t) + e]) * (float)(e + 1);
  }
  near(got, want, 64, 1e-5, "pipe");
  LAUNCH("last_block", 11, 128, &df, &part, &o, &count);
  download(&out, o, 4);
  double s = 0;
  for (int i = 0; i < 3000; i++) s += (double)big[i];
  near(&out, &(float){(float)s}, 1, 1e-5, "last_block");
  free(big);
  RELEASE(dx, dy, df, part, o);
}

static void compare_and_swap(void **state) {
  (void)state;
  int n = 200;
  float x[200], f[2] = {0, 0};
  unsigned most = ~0u;
  memcpy(&f[1], &most, 4);
  double d[2] = {0, 0};
  uint64_t best = 0, want = 0;
  uint16_t h, b, us;
  uint16_t h2[2];
  CUdeviceptr dx = floats(x, n), df = upload(f, 8), db = zeros(8), dh = zeros(4), dh2 = zeros(4),
              dbf = zeros(4), dd = upload(d, 16), dus = zeros(4);
  LAUNCH("cas_loops", 4, 64, &df, &db, &dx, &dh, &dh2, &dbf, &dd, &dus, &n);
  download(f, df, 8), download(&best, db, 8), download(&h, dh, 2), download(h2, dh2, 4),
      download(&b, dbf, 2), download(d, dd, 16), download(&us, dus, 2);
  double s = 0;
  for (int i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], 4);
    uint64_t v = (uint64_t)bits << 32 | (uint32_t)i;
    s += (double)x[i], want = v > want ? v : want;
  }
  near(f, &(float){(float)s}, 1, 1e-4, "cas_add");
  unsigned least;
  memcpy(&least, &f[1], 4);
  assert_true(best == want && half_of(h) == 200 && half_of(h2[0]) == 200 && half_of(h2[1]) == 400);
  assert_true(b == 0x4348 && d[0] == 100 && least == 0 && us > 0 && us <= 200);
  int64_t last;
  memcpy(&last, &d[1], 8);
  assert_int_equal(last, 199);
  RELEASE(dx, df, db, dh, dh2, dbf, dd, dus);
}

int main(void) {
  const struct CMUnitTest tests[] = {IN(collective, scans),  IN(collective, sorting),
                                     IN(collective, rows),   IN(collective, voting),
                                     IN(collective, groups), IN(collective, compare_and_swap)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
