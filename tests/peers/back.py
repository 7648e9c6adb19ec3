"""The other way: programs that Kiln's builder wrote, run by PaddlePaddle.

usage: back.py BUILD [--keep DIR] [--only NET ...]

For each network of nets.c and of the example lenet: PaddlePaddle runs the startup program and STEPS steps of the main
program, `kiln train` the same steps from the same values; then both run the test program on the trained values, and
PaddlePaddle loads the inference model that Kiln saved.
"""
import glob
from train import *


def program(path):
    with open(path, "rb") as f:
        return static.Program.parse_from_string(f.read())


def trained(build, base, folder):
    """Worst error of losses, variables, and outputs of the test program."""
    paddle.seed(7)
    main, test = program(f"{base}_main.pdmodel"), program(f"{base}_test.pdmodel")
    exe = static.Executor(paddle.CPUPlace())
    exe.run(program(f"{base}_startup.pdmodel"))
    first, d, want, last, _ = peer_run(exe, main, "loss", STEPS)
    write_params(f"{folder}/first.pdiparams", first)
    os.system(f"cp {base}_main.pdmodel {folder}/main.pdmodel")
    got, where = kiln_train(build, folder, "loss", d, ["--params", f"{folder}/first.pdiparams"])
    after = read_params(f"{where}/tensors.pdiparams", list(first))
    e_loss = np.abs(got - want).max() / np.abs(want).max() if len(got) == STEPS else float("inf")
    e_var = worst_variable(after, last)
    names = ["loss", *[n for n in ("out", "scores") if test.global_block().has_var(n)]]
    part = {n: v[:BATCH] for n, v in d.items()}
    peer = dict(zip(names, exe.run(test, feed=part, fetch_list=names)))
    write_params(f"{folder}/test.pdiparams", values(test))
    mine = run(build, f"{base}_test.pdmodel", folder, part, names, "--params", f"{folder}/test.pdiparams")
    e_test = max(error(mine[n], peer[n]) for n in names)
    return e_loss, e_var, e_test, part


def inference(build, base, folder, part):
    """Error of the results of the inference model."""
    exe = static.Executor(paddle.CPUPlace())
    model, feed, fetch = static.load_inference_model(base, exe)
    part = {n: part[n] for n in feed}
    want = exe.run(model, feed=part, fetch_list=fetch)
    got = run(build, base + ".pdmodel", folder, part, [v.name for v in fetch])
    return max(error(got[v.name], w) for v, w in zip(fetch, want))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--keep")
    p.add_argument("--only", nargs="*", default=[])
    a = p.parse_args()
    paddle.enable_static()
    failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        folder = a.keep or tmp
        os.makedirs(folder + "/run", exist_ok=True)
        for tool in ("peers/nets", "examples/lenet"):
            subprocess.run([f"{a.build}/{tool}", folder], check=True)
        for path in sorted(glob.glob(f"{folder}/*_main.pdmodel")):
            base = path[:-len("_main.pdmodel")]
            name = os.path.basename(base)
            if a.only and not any(n in name for n in a.only):
                continue
            try:
                with static.scope_guard(static.Scope()):
                    e_loss, (e_var, who), e_test, part = trained(a.build, base, folder + "/run")
                with static.scope_guard(static.Scope()):
                    e_use = inference(a.build, base, folder + "/run", part) if os.path.exists(base + ".pdmodel") else 0.0
                bad = not max(e_loss, e_var, e_test, e_use) <= TOLERANCE
                print(f"{name:24} losses {e_loss:8.1e}  variables {e_var:8.1e} ({who})  test {e_test:8.1e}  "
                      f"inference {e_use:8.1e}{'  FAILED' if bad else ''}", flush=True)
            except Exception as e:
                bad = True
                print(f"{name:24} FAILED: {e if isinstance(e, KilnError) else traceback.format_exc()}", flush=True)
            failed += bad
    print(f"{failed} failed" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
