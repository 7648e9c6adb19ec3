# Kiln. `make demo` and `make test` do all set-up on a fresh Debian 12 machine; `make help` lists the rest.
# B is the build folder, SAN=1 builds with AddressSanitizer and UBSan into build/san.
SAN     ?=
B       ?= build$(if $(SAN),/san)
CC      ?= gcc
PREFIX  ?= /usr/local
VERSION := 0.1.0
LLVM    ?= /usr/lib/llvm-19
CUDA    ?= /usr/local/cuda
OPT     ?= $(if $(SAN),-O1,-O2)
WARN    := -Wall -Wextra -Wpedantic -Werror
CFLAGS  += -std=c17 -g $(OPT) $(WARN) -fPIC -fvisibility=hidden -ffp-contract=off -D_GNU_SOURCE \
           -DKILN_VERSION='"$(VERSION)"' -I$(B)/gen -I$(LLVM)/include -MMD -MP \
           $(if $(SAN),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
LDLIBS  += -lprotobuf-c -lz -lm -lpthread -ldl
comma   := ,

# The module of code generation; the rest plans without LLVM.
GEN_SRC  := $(filter-out %/nest.c %/merge.c %/stencil.c,$(wildcard backends/llvm/*.c))
LIB_SRC  := $(filter-out $(GEN_SRC),$(wildcard ir/*.c ir/ops/*.c passes/*.c executor/*.c backends/*/*.c frontend/*.c))
TOOL_SRC := $(wildcard tools/*.c)
TEST_SRC := $(wildcard tests/test_*.c)
HELP_SRC := $(filter-out $(TEST_SRC) tests/plan_check.c,$(wildcard tests/*.c))
EX_SRC   := $(wildcard frontend/examples/*.c)
PB       := $(B)/gen/kiln.pb-c.c
LIB_OBJ  := $(LIB_SRC:%.c=$(B)/%.o) $(PB:.c=.o)
GEN_OBJ  := $(GEN_SRC:%.c=$(B)/%.o)
# What generated code depends on: its hash keeps the program, the module and the disk cache together.
ID       := $(B)/gen/build_id.h
KEPT_ID  := $(B)/gen/kept_id.h
KEPT_SRC := $(wildcard backends/cpu/*)
ID_SRC   := $(filter-out %/driver.c %/driver.def %/driver.h %/device.c %/device.h %/module.c %/run.c %/call.c %/library.c %/library.def %/library.h %/foreign.h %/shape.c %/choice.c %/cublas.c %/cudnn.c,$(wildcard backends/llvm/* backends/code/* backends/cuda/* ir/*.def)) backends/backend.h ir/base.h ir/graph.h ir/kernel.h
TESTS    := $(TEST_SRC:tests/%.c=$(B)/tests/%)
BENCHES  := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))
SIM_SRC  := $(wildcard tests/cudasim/*.c)
SIM      := $(B)/tests/cudasim/libcuda.so.1
SIM_LIBS := $(B)/tests/cudasim/libcublasLt.so.13 $(B)/tests/cudasim/libcudnn.so.9
PLUGINS  := $(filter frontend/examples/custom_%,$(EX_SRC))
EXAMPLES := $(patsubst frontend/examples/%.c,$(B)/examples/%,$(filter-out $(PLUGINS),$(EX_SRC))) \
            $(PLUGINS:frontend/examples/%.c=$(B)/examples/%.so)

.PHONY: all help demo test check check-ptx check-traffic bless bench peers-test fuzz loc install deps-build deps-test clean
.SECONDARY:
all: $(B)/kiln $(B)/libkiln.so $(B)/libkiln.a $(B)/libkiln-codegen.so $(EXAMPLES)

help:
	@sed -n 's/^#: //p' Makefile

#: make all       build kiln, libkiln.so, libkiln.a and the examples into build/
#: make demo      install what is missing, build, train LeNet-5 on Fashion-MNIST, show the result
#: make test      install what is missing, build (also with sanitizers), run all tests
#: make check     house rules: includes, formatting, warnings with gcc and clang, sizes
#: make check-cudasim   compare the CUDA simulator with the toolkit's header, make its PTX anew with nvcc
#: make check-traffic  sectors of memory that the networks' CUDA kernels touch on the simulator, over the least
#: make check-ptx assemble the networks' CUDA kernels with ptxas: registers, spills, shared memory, occupancy
#: make bless     rewrite the expected output of the golden tests
#: make docs      rewrite the pages that come from the tables: operators, error codes, flags
#: make bench     compare the speed with the peers (prepares them in .venv), about 25 minutes
#: make peers-test   compare operators, training and files with PaddlePaddle (prepares it in .venv), about 10 minutes; tests/peers/run.sh runs parts
#: make fuzz      libFuzzer on the readers of files (clang), SECONDS=60
#: make install   PREFIX=/usr/local DESTDIR=
deps-build:
	@tools/deps.sh build
deps-test:
	@tools/deps.sh test

demo: deps-build
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@tools/demo.sh $(B)

test: deps-test
	@$(MAKE) --no-print-directory -s -j$$(nproc) check
	@$(MAKE) --no-print-directory -s -j$$(nproc) all tests
	@$(MAKE) --no-print-directory -s -j$$(nproc) SAN=1 all tests
	@tests/run.sh build build/san

.PHONY: tests benches
tests: $(TESTS) $(SIM) $(SIM_LIBS) $(B)/tests/plan_check $(B)/bench/nets $(B)/bench/ptx_check all
benches: $(BENCHES)

check: deps-test
	@tests/check.sh

# Needs the CUDA toolkit: nothing else does.
SIM_API  := $(patsubst %,tests/cudasim/%.c,driver driver_mem driver_module stream graph report procs libraries/cublaslt libraries/cudnn)
.PHONY: check-cudasim
check-cudasim: $(patsubst %.cu,%.ptx,$(wildcard tests/cudasim/ptx/*.cu)) tests/cudasim/ptx/faults_debug.ptx
	@for f in $(SIM_API); do $(CC) -std=c17 -fsyntax-only -Wall -D_GNU_SOURCE -DCUDASIM_TOOLKIT -I$(CUDA)/include $$f || exit 1; done
	@{ printf '#include <cublasLt.h>\n#include <cudnn.h>\n'; \
	  printf '_Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == 96 && sizeof(cudnnConvolutionFwdAlgoPerf_t) == 48, "");\n'; \
	  sed -n 's/^ *\(CU[A-Z0-9_]*\) = \([0-9]*\).*/_Static_assert(\1 == \2, "");/p' backends/cuda/library.h; } | \
	  $(CC) -std=c17 -fsyntax-only -I$(CUDA)/include -x c -
	@nm -D --defined-only $(CUDA)/lib64/stubs/libcuda.so | awk '{print $$3}' | LC_ALL=C sort >$(B)/cuda_names
	@sed -n 's/^PROC(.*, \(.*\))/\1/p' tests/cudasim/procs.def | LC_ALL=C sort -u | LC_ALL=C comm -23 - $(B)/cuda_names | sed 's/^/not in the driver: /'
tests/cudasim/ptx/%_debug.ptx: tests/cudasim/ptx/%.cu
	$(CUDA)/bin/nvcc -G -arch=compute_80 -ptx -o $@ $<
tests/cudasim/ptx/%.ptx: tests/cudasim/ptx/%.cu
	$(CUDA)/bin/nvcc -O3 -arch=compute_80 -ptx -o $@ $<
check-ptx: deps-test
	@$(MAKE) --no-print-directory -s -j$$(nproc) all $(B)/bench/nets $(B)/bench/ptx_check
	@tests/check_ptx.sh $(B) all
check-traffic: deps-test
	@$(MAKE) --no-print-directory -s -j$$(nproc) all $(SIM_LIBS) $(SIM) $(B)/bench/nets
	@tests/check_traffic.sh $(B) all

bless: tests
	@KILN_BLESS=1 $(B)/tests/test_golden

.PHONY: docs
docs: $(B)/kiln
	@$(B)/kiln ops --markdown > docs/operators.md
	@$(B)/kiln explain --markdown > docs/errors.md
	@{ sed '/^\.SH VERBS/,$$d' docs/kiln.1; $(B)/kiln help --manual; sed -n '/^\.SH EXIT STATUS/,$$p' docs/kiln.1; } > $(B)/kiln.1
	@mv $(B)/kiln.1 docs/kiln.1

bench: deps-build
	@$(MAKE) --no-print-directory -s -j$$(nproc) all benches
	@tests/bench/run.sh $(B)

peers-test: deps-build
	@$(MAKE) --no-print-directory -s -j$$(nproc) all $(B)/peers/nets
	@tests/peers/run.sh $(B)

fuzz: deps-build
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@tests/fuzz/run.sh $(or $(SECONDS),60)

loc:
	@for d in ir passes executor backends frontend tools tests; do \
	  printf '%-10s %6d\n' $$d $$(git ls-files $$d | grep -E '\.(c|h|def|proto|sh)$$' | xargs cat | wc -l); done

$(B)/gen/%.pb-c.c: ir/%.proto
	@mkdir -p $(@D)
	protoc-c --proto_path=ir --c_out=$(@D) $<
$(PB:.c=.o): $(PB)
	$(CC) $(CFLAGS) -w -c -o $@ $<
$(ID): $(ID_SRC)
	@mkdir -p $(@D)
	@id=$$(cat $(sort $(ID_SRC)) $(LLVM)/include/llvm/Config/llvm-config.h | sha256sum | cut -c1-16); \
	  echo "#define KILN_BUILD_ID \"$(VERSION)-$$id\"" > $@
$(KEPT_ID): $(KEPT_SRC)
	@mkdir -p $(@D)
	@id=$$(cat $(sort $(KEPT_SRC)) | sha256sum | cut -c1-16); echo "#define KILN_KEPT_ID \"$$id\"" > $@
$(B)/%.o: %.c | $(PB) $(ID) $(KEPT_ID)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<
$(B)/libkiln.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^
$(B)/libkiln.so.0: $(LIB_OBJ)
	$(CC) $(CFLAGS) -shared -Wl,-soname,libkiln.so.0 -o $@ $^ $(LDLIBS)
$(B)/libkiln.so: $(B)/libkiln.so.0
	ln -sf libkiln.so.0 $@
$(B)/libkiln-codegen.so: $(GEN_OBJ) $(B)/libkiln.a
	$(CC) $(CFLAGS) -shared -Wl,--exclude-libs,ALL -Wl,--gc-sections -o $@ $^ -L$(LLVM)/lib -lLLVM-19 -lm -lpthread
$(B)/kiln: $(TOOL_SRC:%.c=$(B)/%.o) $(B)/libkiln.a
	$(CC) $(CFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(B)/tests/%: $(B)/tests/%.o $(HELP_SRC:%.c=$(B)/%.o) $(B)/libkiln.a
	$(CC) $(CFLAGS) -rdynamic -o $@ $^ -lcmocka $(LDLIBS)
$(B)/tests/plan_check: $(B)/tests/plan_check.o
	$(CC) $(CFLAGS) -o $@ $^
# The CUDA driver's place in tests: chosen by LD_LIBRARY_PATH. Lanes of a warp are loops for vector instructions.
$(B)/tests/cudasim/%.o: OPT := $(if $(SAN),-O2,-O3) -march=native
$(B)/tests/cudasim/alu.o: OPT := -O3 -march=native
$(B)/tests/cudasim/alu.o: CFLAGS += $(if $(SAN),-fno-sanitize=all)
$(SIM): $(SIM_SRC:%.c=$(B)/%.o)
	$(CC) $(CFLAGS) -shared -Wl,-soname,libcuda.so.1 -o $@ $^ -lm -lpthread
$(B)/tests/cudasim/libcublasLt.so.13: $(B)/tests/cudasim/libraries/cublaslt.o
$(B)/tests/cudasim/libcudnn.so.9: $(B)/tests/cudasim/libraries/cudnn.o
$(SIM_LIBS): $(B)/tests/cudasim/libraries/number.o $(SIM)
	$(CC) $(CFLAGS) -shared -Wl,-soname,$(@F) -o $@ $(filter %.o,$^) $(SIM) -lopenblas -lm
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/tests/bench/peers/onednn.o $(B)/tools/peak.o $(B)/libkiln.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
$(B)/tests/bench/ptx_check.o: CFLAGS += -isystem $(CUDA)/include
$(B)/peers/%: $(B)/tests/peers/%.o $(B)/libkiln.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
# The plug-in's source is also part of the example that uses its operator.
$(B)/examples/seed: frontend/examples/custom_relu.c
$(B)/examples/%.so: frontend/examples/%.c frontend/kiln.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Ifrontend -shared -o $@ $<
$(B)/examples/%: frontend/examples/%.c $(B)/libkiln.so frontend/kiln.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Ifrontend -o $@ $(filter %.c,$^) -L$(B) -lkiln -Wl,-rpath,'$$ORIGIN/..'

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man1
	install $(B)/kiln $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(B)/libkiln.a $(DESTDIR)$(PREFIX)/lib/
	install $(B)/libkiln.so.0 $(B)/libkiln-codegen.so $(DESTDIR)$(PREFIX)/lib/
	ln -sf libkiln.so.0 $(DESTDIR)$(PREFIX)/lib/libkiln.so
	install -m 644 frontend/kiln.h $(DESTDIR)$(PREFIX)/include/
	sed 's|@PREFIX@|$(PREFIX)|;s|@VERSION@|$(VERSION)|' frontend/kiln.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/kiln.pc
	install -m 644 docs/kiln.1 $(DESTDIR)$(PREFIX)/share/man/man1/

clean:
	rm -rf build

-include $(shell find $(B) -name '*.d' 2>/dev/null)
