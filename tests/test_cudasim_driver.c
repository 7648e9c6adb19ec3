/* The simulated driver: streams and events in every legal order, graphs, the compiler's errors, limits, settings, calls that
 * fail, leaks, reports. */
#include "cudasim/testing.h"
#include <fcntl.h>
#include <sys/wait.h>

static const int seeds = 20;

static void open_seed(int seed) {
  char text[20];
  snprintf(text, sizeof text, "%d", seed);
  open_sim("CUDASIM_SEED", text);
}

/* ---- streams ---- */

/* One stream fills a buffer, another one copies it to the host; true: the copy saw what was filled. */
static bool handed_over(int seed, bool wait) {
  open_seed(seed);
  CUstream a, b;
  CUevent e;
  unsigned char *host;
  CUdeviceptr p = upload(&(int){0}, 4);
  assert_int_equal(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), 0);
  assert_int_equal(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING), 0);
  assert_int_equal(cuEventCreate(&e, CU_EVENT_DISABLE_TIMING), 0);
  assert_int_equal(cuMemHostAlloc((void **)&host, 4, 0), 0);
  assert_int_equal(cuMemsetD8Async(p, 7, 4, a), 0);
  assert_int_equal(cuEventRecord(e, a), 0);
  if (wait) assert_int_equal(cuStreamWaitEvent(b, e, 0), 0);
  assert_int_equal(cuMemcpyDtoHAsync(host, p, 4, b), 0);
  assert_int_equal(cuStreamSynchronize(b), 0);
  bool seen = host[0] == 7;
  assert_true(seen || host[0] == 0);
  assert_int_equal(cuEventSynchronize(e), 0);
  assert_int_equal(cuMemFreeHost(host), 0);
  assert_int_equal(cuMemFree(p), 0);
  assert_int_equal(cuEventDestroy(e), 0);
  assert_int_equal(cuStreamDestroy(a), 0);
  assert_int_equal(cuStreamDestroy(b), 0);
  close_sim();
  return seen;
}

static void missing_wait(void **state) {
  (void)state;
  int with = 0, without = 0;
  for (int s = 1; s <= seeds; s++) with += handed_over(s, true), without += handed_over(s, false);
  assert_int_equal(with, seeds);
  assert_in_range(without, 1, seeds - 1);
}

/* The default stream waits for blocking streams, and they for it. */
static void default_stream(void **state) {
  (void)state;
  for (int s = 1; s <= seeds; s++) {
    open_seed(s);
    CUstream a;
    unsigned got;
    CUdeviceptr p = upload(&(int){0}, 4);
    assert_int_equal(cuStreamCreate(&a, 0), 0);
    assert_int_equal(cuMemsetD8Async(p, 1, 4, a), 0);
    assert_int_equal(cuMemsetD8Async(p, 2, 2, NULL), 0);
    assert_int_equal(cuMemsetD8Async(p, 3, 1, a), 0);
    while (cuStreamQuery(a) == CUDA_ERROR_NOT_READY) {}
    download(&got, p, 4);
    assert_int_equal(got, 0x01010203);
    cuStreamDestroy(a), cuMemFree(p);
    close_sim();
  }
}

static void early_reuse(void **state) {
  (void)state;
  for (int s = 1; s <= seeds; s++)
    for (int early = 0; early < 2; early++) {
      open_seed(s);
      CUstream a;
      int *host, got;
      CUdeviceptr p = upload(&(int){0}, 4);
      assert_int_equal(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), 0);
      assert_int_equal(cuMemHostAlloc((void **)&host, 4, 0), 0);
      *host = 5;
      assert_int_equal(cuMemcpyHtoDAsync(p, host, 4, a), 0);
      if (!early) assert_int_equal(cuStreamSynchronize(a), 0);
      *host = 6;
      catch_messages();
      CUresult r = cuStreamSynchronize(a);
      const char *text = caught();
      assert_int_equal(r, early ? CUDA_ERROR_LAUNCH_FAILED : 0);
      assert_int_equal(early, strstr(text, "host memory was changed before the copy") != NULL);
      if (!early) download(&got, p, 4), assert_int_equal(got, 5);
      cuMemFreeHost(host), cuMemFree(p), cuStreamDestroy(a);
      close_sim();
    }
}

/* What has not arrived is not there. */
static void early_read(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUstream a;
  float *host;
  CUdeviceptr p = upload(&(float){2.5f}, 4);
  assert_int_equal(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), 0);
  assert_int_equal(cuMemHostAlloc((void **)&host, 4, 0), 0);
  *host = 1;
  assert_int_equal(cuMemcpyDtoHAsync(host, p, 4, a), 0);
  assert_true(*host != 1);
  assert_int_equal(cuStreamSynchronize(a), 0);
  assert_true(*host == 2.5f);
  cuMemFreeHost(host), cuMemFree(p), cuStreamDestroy(a);
  close_sim();
}

/* ---- graphs ---- */

static void graphs(void **state) {
  (void)state;
  for (int s = 1; s <= 5; s++) {
    open_seed(s);
    CUmodule m = load_ptx("basic.ptx");
    CUstream a, b;
    CUevent fork, join;
    CUgraph g;
    CUgraphExec x;
    float v[64];
    int n = 64;
    size_t nodes = 0;
    for (int k = 0; k < n; k++) v[k] = (float)k;
    CUdeviceptr p = upload(v, sizeof v), q = upload(v, sizeof v), r = upload(v, sizeof v);
    cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), cuStreamCreate(&b, CU_STREAM_NON_BLOCKING);
    cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING), cuEventCreate(&join, CU_EVENT_DISABLE_TIMING);
    assert_int_equal(cuStreamBeginCapture(a, 0), 0);
    assert_int_equal(start(m, "vector_add", 1, 1, 64, 1, a, (void *[]){&p, &p, &p, &n}), 0);
    assert_int_equal(cuEventRecord(fork, a), 0);
    assert_int_equal(cuStreamWaitEvent(b, fork, 0), 0);
    assert_int_equal(start(m, "vector_add", 1, 1, 64, 1, b, (void *[]){&p, &q, &q, &n}), 0);
    assert_int_equal(start(m, "vector_add", 1, 1, 64, 1, a, (void *[]){&p, &r, &r, &n}), 0);
    assert_int_equal(cuEventRecord(join, b), 0);
    assert_int_equal(cuStreamWaitEvent(a, join, 0), 0);
    assert_int_equal(start(m, "vector_add", 1, 1, 64, 1, a, (void *[]){&q, &r, &r, &n}), 0);
    assert_int_equal(cuStreamEndCapture(a, &g), 0);
    assert_int_equal(cuGraphGetNodes(g, NULL, &nodes), 0);
    assert_int_equal(nodes, 4);
    assert_int_equal(cuGraphInstantiate(&x, g, 0), 0);
    assert_int_equal(cuGraphDestroy(g), 0);
    download(v, r, sizeof v);
    assert_true(v[3] == 3); /* nothing has run */
    for (int k = 0; k < 3; k++) assert_int_equal(cuGraphLaunch(x, a), 0);
    assert_int_equal(cuStreamSynchronize(a), 0);
    download(v, r, sizeof v);
    /* p: 2 4 8, q: 3 7 15, r: (1 + 2) + 3 = 6, (6 + 4) + 7 = 17, (17 + 8) + 15 = 40 */
    for (int k = 0; k < n; k++) assert_true(v[k] == 40 * (float)k);
    assert_int_equal(cuGraphExecDestroy(x), 0);
    cuEventDestroy(fork), cuEventDestroy(join), cuStreamDestroy(a), cuStreamDestroy(b);
    cuMemFree(p), cuMemFree(q), cuMemFree(r), cuModuleUnload(m);
    close_sim();
  }
}

static void capture_rules(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUstream a, b;
  CUevent e;
  CUgraph g;
  CUdeviceptr p = upload(&(int){0}, 4), q;
  cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), cuStreamCreate(&b, CU_STREAM_NON_BLOCKING),
      cuEventCreate(&e, 0);
  assert_int_equal(cuStreamEndCapture(a, &g), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  assert_int_equal(cuStreamBeginCapture(a, 0), 0);
  assert_int_equal(cuMemAlloc(&q, 4), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  assert_int_equal(cuCtxSynchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  assert_int_equal(cuStreamSynchronize(a), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  assert_int_equal(cuStreamEndCapture(a, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  assert_int_equal(cuStreamBeginCapture(a, 0), 0);
  cuEventRecord(e, a), cuStreamWaitEvent(b, e, 0);
  assert_int_equal(cuMemsetD8Async(p, 1, 4, b), 0);
  assert_int_equal(cuStreamEndCapture(a, &g), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
  assert_int_equal(cuMemsetD8Async(p, 1, 4, b), 0);
  assert_int_equal(cuStreamSynchronize(b), 0);
  cuEventDestroy(e), cuStreamDestroy(a), cuStreamDestroy(b), cuMemFree(p);
  close_sim();
}

/* ---- the compiler ---- */

static CUresult compile(const char *text, char *log, size_t size) {
  CUmodule m;
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void *values[] = {log, (void *)size};
  *log = 0;
  catch_messages();
  CUresult r = cuModuleLoadDataEx(&m, text, 2, options, values);
  caught();
  if (!r) cuModuleUnload(m);
  return r;
}

#define PTX(body)                                                                                  \
  ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n.reg .b32 " \
  "%r<4>;\n.reg .pred %p<2>;\n"                                                                    \
  ".reg .b64 %rd<2>;\n" body "\nret;\n}\n"

static void compiler_errors(void **state) {
  (void)state;
  static const struct {
    const char *text;
    CUresult result;
    const char *says;
  } cases[] = {
      {PTX("mov.u32 %r1, %tid.x;"), 0, ""},
      {PTX("frobnicate.u32 %r1, %r2;"), CUDA_ERROR_INVALID_PTX,
       "ptx line 9: instruction `frobnicate.u32` is not known\n  frobnicate.u32 %r1, %r2;"},
      {PTX("add.f16x3 %r1, %r2, %r3;"), CUDA_ERROR_INVALID_PTX, "`add.f16x3` is not known"},
      {PTX("add.u32 %r1, %r2;"), CUDA_ERROR_INVALID_PTX, "operand 3 is missing"},
      {PTX("add.u32 %r1, %r2, %r3, %r3;"), CUDA_ERROR_INVALID_PTX, "3 operands, not 4"},
      {PTX("add.u32 %r1, %rd1, %r3;"), CUDA_ERROR_INVALID_PTX,
       "register %rd1 of type .b64 does not fit here"},
      {PTX("add.u32 %r1, %r9, %r3;"), CUDA_ERROR_INVALID_PTX, "register `%r9` is not declared"},
      {PTX("setp.xx.u32 %p1, %r1, %r2;"), CUDA_ERROR_INVALID_PTX, "comparison .xx is not known"},
      {PTX("ld.global.v3.u32 {%r1,%r2,%r3}, [%rd1];"), CUDA_ERROR_INVALID_PTX,
       "modifiers of this access"},
      {PTX("bra $nowhere;"), CUDA_ERROR_INVALID_PTX, "label $nowhere of function k is not defined"},
      {PTX("mma.sync.aligned.m1n1k1.row.col.f32.f16.f16.f32 %r1, %r1, %r1, %r1;"),
       CUDA_ERROR_INVALID_PTX, "this shape of mma is not known"},
      {PTX("{ mov.u32 %r1, 1;"), CUDA_ERROR_INVALID_PTX, "the text ends inside of function k"},
      {"", CUDA_ERROR_INVALID_PTX, "expected `.version`"},
      {".version 99.0\n.target sm_80\n", CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
       "Unsupported .version 99.0"},
      {".version 7.0\n.target sm_90\n", CUDA_ERROR_INVALID_PTX, "sm_90 on sm_80"},
      {".version 7.0\n.target sm_80\n.frob 3;\n", CUDA_ERROR_INVALID_PTX,
       "directive `.frob` is not supported"},
  };
  open_sim(NULL, NULL);
  char log[500];
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    CUresult r = compile(cases[k].text, log, sizeof log);
    if (r != cases[k].result || !strstr(log, cases[k].says))
      fail_msg("case %zu: %d, \"%s\"", k, r, log);
  }
  close_sim();
}

/* No text makes it fall: every prefix, and damaged characters. */
static void damaged_text(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  char *text = read_file("tensor.ptx"), log[500];
  size_t n = strlen(text);
  for (size_t k = 0; k < n; k += 97) {
    char *cut = strndup(text, k);
    compile(cut, log, sizeof log);
    free(cut);
    char old = text[k];
    text[k] = "{};.,[]%x0-\n"[k % 12];
    compile(text, log, sizeof log);
    text[k] = old;
  }
  free(text);
  close_sim();
}

static void linker(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUlinkState s;
  CUmodule m;
  void *cubin;
  size_t size;
  char *text = read_file("basic.ptx");
  assert_int_equal(cuLinkCreate(0, NULL, NULL, &s), 0);
  assert_int_equal(cuLinkAddData(s, CU_JIT_INPUT_PTX, text, strlen(text) + 1, "basic", 0, NULL,
                                 NULL),
                   0);
  assert_int_equal(cuLinkComplete(s, &cubin, &size), 0);
  char *copy = malloc(size);
  memcpy(copy, cubin, size);
  assert_int_equal(cuLinkDestroy(s), 0);
  assert_int_equal(cuModuleLoadData(&m, copy), 0);
  CUfunction f;
  assert_int_equal(cuModuleGetFunction(&f, m, "vector_add"), 0);
  assert_int_equal(cuModuleGetFunction(&f, m, "vector_sub"), CUDA_ERROR_NOT_FOUND);
  assert_int_equal(cuModuleUnload(m), 0);
  close_sim();
  open_sim("CUDASIM_SM", "90");
  assert_int_equal(cuModuleLoadData(&m, copy), CUDA_ERROR_NO_BINARY_FOR_GPU);
  close_sim();
  open_sim(NULL, NULL);
  copy[size / 2] ^= 1;
  assert_int_equal(cuModuleLoadData(&m, copy), CUDA_ERROR_INVALID_IMAGE);
  free(copy), free(text);
  close_sim();
}

/* ---- settings and limits ---- */

static void settings(void **state) {
  (void)state;
  int n;
  size_t left, all;
  CUdeviceptr p, q;
  void *f;
  open_sim("CUDASIM_SM", "90");
  assert_int_equal(cuDeviceGetAttribute(&n, 75, 0), 0);
  assert_int_equal(n, 9);
  assert_int_equal(cuGetProcAddress("cuMemAlloc", &f, 12000, 0, NULL), 0);
  assert_ptr_equal(f, *(void **)&cuMemAlloc);
  assert_int_equal(cuGetProcAddress("cuMemGetRich", &f, 12000, 0, NULL), CUDA_ERROR_NOT_FOUND);
  close_sim();
  open_sim("CUDASIM_MEMORY", "1M");
  assert_int_equal(cuMemAlloc(&p, 2 << 20), CUDA_ERROR_OUT_OF_MEMORY);
  assert_int_equal(cuMemAlloc(&p, 1 << 19), 0);
  assert_int_equal(cuMemGetInfo(&left, &all), 0);
  assert_int_equal(left, 1 << 19);
  assert_int_equal(cuMemAlloc(&q, (1 << 19) + 1), CUDA_ERROR_OUT_OF_MEMORY);
  assert_int_equal(cuMemFree(p), 0);
  catch_messages();
  assert_int_equal(cuMemFree(p), CUDA_ERROR_INVALID_VALUE);
  assert_int_equal(cuMemFree(p + 64), CUDA_ERROR_INVALID_VALUE);
  const char *text = caught();
  assert_non_null(strstr(text, "double free"));
  assert_non_null(strstr(text, "no allocation starts there"));
  for (int k = 0; k < 20; k++)
    assert_int_equal(cuMemAlloc(&p, 1 << 20), 0), assert_int_equal(cuMemFree(p), 0);
  close_sim();
  setenv("CUDASIM_DRIVER", "11040", 1);
  load_library();
  assert_int_equal(cuMemAlloc(&p, 4), CUDA_ERROR_NOT_INITIALIZED);
  assert_int_equal(cuInit(0), 0);
  assert_int_equal(cuMemAlloc(&p, 4), CUDA_ERROR_INVALID_CONTEXT);
  assert_int_equal(cuDriverGetVersion(&n), 0);
  assert_int_equal(n, 11040);
  dlclose(library);
  unsetenv("CUDASIM_DRIVER");
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  load_library();
  assert_int_equal(cuInit(0), CUDA_ERROR_NO_DEVICE);
  dlclose(library);
  unsetenv("CUDA_VISIBLE_DEVICES");
}

static void launch_limits(void **state) {
  (void)state;
  open_sim(NULL, NULL);
  CUmodule m = load_ptx("basic.ptx");
  CUfunction f;
  int n = 0;
  CUdeviceptr p = upload(&n, 4);
  void *params[] = {&p, &p, &p, &n};
  cuModuleGetFunction(&f, m, "vector_add");
  static const struct {
    unsigned grid[3], block[3], shared;
    const char *refused; /* with this text */
  } cases[] = {
      {{1, 1, 1}, {32, 1, 1}, 0, NULL},
      {{1, 1, 1}, {1024, 2, 1}, 0, "vector_add: a block of 1024 x 2 x 1 threads"},
      {{1, 1, 1}, {0, 1, 1}, 0, "vector_add: a block of 0 x 1 x 1 threads"},
      {{0, 1, 1}, {32, 1, 1}, 0, "vector_add: a grid of 0 x 1 x 1 blocks"},
      {{1, 65536, 1}, {32, 1, 1}, 0, "vector_add: a grid of 1 x 65536 x 1 blocks"},
      {{1, 1, 1}, {1, 1, 128}, 0, "vector_add: a block of 1 x 1 x 128 threads"},
      {{1, 1, 1}, {32, 1, 1}, 49152, NULL},
      {{1, 1, 1}, {32, 1, 1}, 49153, "49153 bytes of dynamic shared memory, at most 49152"}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    const unsigned *g = cases[k].grid, *b = cases[k].block;
    catch_messages();
    CUresult r =
        cuLaunchKernel(f, g[0], g[1], g[2], b[0], b[1], b[2], cases[k].shared, NULL, params, NULL);
    const char *text = caught(), *want = cases[k].refused;
    assert_int_equal(r, want ? CUDA_ERROR_INVALID_VALUE : 0);
    if (want ? !strstr(text, want) : *text) fail_msg("launch %zu: %s", k, text);
  }
  assert_int_equal(cuFuncSetAttribute(f, 8, 200000), CUDA_ERROR_INVALID_VALUE);
  assert_int_equal(cuFuncSetAttribute(f, 8, 160000), 0);
  assert_int_equal(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 160000, NULL, params, NULL), 0);
  assert_int_equal(cuCtxSynchronize(), 0);
  cuMemFree(p), cuModuleUnload(m);
  close_sim();
}

/* ---- calls that fail, leaks ---- */

typedef struct Small {
  CUdeviceptr p;
  CUmodule m;
  CUstream s;
} Small;

#define TRY(call)                                                                                  \
  if ((r = (call))) return r

static CUresult small_run(Small *o, const char *text) {
  CUfunction f;
  CUresult r;
  float x[4] = {1, 2, 3, 4};
  int n = 4;
  TRY(cuCtxSetCurrent(context));
  TRY(cuStreamCreate(&o->s, 0));
  TRY(cuMemAlloc(&o->p, 16));
  TRY(cuModuleLoadData(&o->m, text));
  TRY(cuModuleGetFunction(&f, o->m, "vector_add"));
  TRY(cuMemcpyHtoDAsync(o->p, x, 16, o->s));
  TRY(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, o->s, (void *[]){&o->p, &o->p, &o->p, &n}, NULL));
  TRY(cuMemcpyDtoHAsync(x, o->p, 16, o->s));
  TRY(cuStreamSynchronize(o->s));
  return x[3] == 8 ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

/* Copies, adds, copies back; gives up at the first error and releases what it has. */
static CUresult small_program(const char *text, bool forget) {
  Small o = {0};
  CUresult r, later;
  TRY(cuInit(0));
  TRY(cuDevicePrimaryCtxRetain(&context, 0));
  r = small_run(&o, text);
  if (o.m && (later = cuModuleUnload(o.m)) && !r) r = later;
  if (o.p && !forget && (later = cuMemFree(o.p)) && !r) r = later;
  if (o.s && (later = cuStreamDestroy(o.s)) && !r) r = later;
  if ((later = cuDevicePrimaryCtxRelease(0)) && !r) r = later;
  return r;
}

/* In a process of its own: the result; 97: the simulator found a leak. */
static int in_child(const char *fail, const char *text, bool forget) {
  fflush(NULL);
  pid_t child = fork();
  if (!child) {
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    setenv("CUDASIM_FAIL", fail, 1);
    setenv("CUDASIM_LEAKS", "1", 1);
    load_library();
    CUresult r = small_program(text, forget);
    dlclose(library);
    _exit(r == CUDA_ERROR_OUT_OF_MEMORY ? 2 : r == CUDA_ERROR_LAUNCH_FAILED ? 19 : r ? 1 : 0);
  }
  int status;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void failing_calls(void **state) {
  (void)state;
  char *text = read_file("basic.ptx"), fail[30];
  assert_int_equal(in_child("", text, false), 0);
  assert_int_equal(in_child("", text, true), 97);
  int n = 1;
  for (int r = 2; r; n++) {
    snprintf(fail, sizeof fail, "%d", n);
    r = in_child(fail, text, false);
    if (r != 0 && r != 2) fail_msg("call %d: exit code %d", n, r);
    snprintf(fail, sizeof fail, "%d:719", n);
    int sticky = in_child(fail, text, false);
    if (sticky != (r ? 19 : 0)) fail_msg("call %d, sticky: exit code %d", n, sticky);
  }
  assert_int_equal(n - 2, 15);
  free(text);
}

/* ---- reports ---- */

static long field(const char *report, const char *kernel, const char *name) {
  char key[100];
  snprintf(key, sizeof key, "\"name\": \"%s\"", kernel);
  const char *at = strstr(report, key);
  snprintf(key, sizeof key, "\"%s\": ", name);
  at = at ? strstr(at, key) : NULL;
  if (!at) fail_msg("%s of %s is not in the report", name, kernel);
  return atol(at + strlen(key));
}

static void reports(void **state) {
  (void)state;
  char path[] = "/tmp/test_cudasim.XXXXXX";
  close(mkstemp(path));
  open_sim("CUDASIM_REPORT", path);
  setenv("CUDASIM_REPORT", path, 1);
  CUmodule m = load_ptx("basic.ptx");
  int n = 64, quads = 1024;
  CUdeviceptr x = upload(NULL, 16384), y = upload(NULL, 16384);
  cuMemsetD32(x, 0, 4096);
  RUN(m, "transpose", 2, 2, 32, 8, &x, &y, &n, &n);
  RUN(m, "transpose_conflicts", 2, 2, 32, 8, &x, &y, &n);
  RUN(m, "vector_add4", 2, 1, 128, 1, &x, &x, &y, &quads);
  CUdeviceptr odd = x + 4;
  int few = 1000;
  RUN(m, "vector_add", 8, 1, 128, 1, &odd, &x, &y, &few);
  cuMemFree(x), cuMemFree(y), cuModuleUnload(m);
  close_sim();
  unsetenv("CUDASIM_REPORT");
  char text[10000];
  FILE *f = fopen(path, "r");
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  unlink(path);
  assert_int_equal(field(text, "transpose", "bank_conflicts"), 0);
  assert_int_equal(field(text, "transpose_conflicts", "bank_conflicts"), 4 * 32 * 31);
  assert_int_equal(field(text, "transpose", "sectors"), field(text, "transpose", "ideal_sectors"));
  assert_int_equal(field(text, "vector_add4", "requests"), 1024 / 32 * 3);
  assert_int_equal(field(text, "vector_add4", "sectors"), 1024 * 16 / 32 * 3);
  assert_int_equal(field(text, "vector_add4", "divergent"), 0);
  assert_int_equal(field(text, "vector_add", "divergent"), 1);
  assert_true(field(text, "vector_add", "sectors") > field(text, "vector_add", "ideal_sectors"));
  assert_int_equal(field(text, "transpose", "barriers"), 4 * 8);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(missing_wait),    cmocka_unit_test(default_stream),
      cmocka_unit_test(early_reuse),     cmocka_unit_test(early_read),
      cmocka_unit_test(graphs),          cmocka_unit_test(capture_rules),
      cmocka_unit_test(compiler_errors), cmocka_unit_test(damaged_text),
      cmocka_unit_test(linker),          cmocka_unit_test(settings),
      cmocka_unit_test(launch_limits),   cmocka_unit_test(failing_calls),
      cmocka_unit_test(reports),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
