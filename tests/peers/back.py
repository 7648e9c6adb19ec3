"""The other way: programs that Kiln's builder wrote, run by PaddlePaddle.

For each network of nets.c and of the example lenet: PaddlePaddle runs the startup program and STEPS steps of the main
program, `kiln train` the same steps from the same values; then both run the test program on the trained values, and
PaddlePaddle loads the inference model that Kiln saved. Where a net draws random numbers in training, only the mean of its
losses is compared.
"""
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
    e_var = worst_variable(after, last, lambda n: n in FREE)
    if "random" in base:
        e_loss, e_var = abs(got.mean() / want.mean() - 1), (0.0, "")
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


def cases(build, folder):
    """{name: path of its files without an extension}"""
    for tool in ("peers/nets", "examples/lenet"):
        subprocess.run([f"{build}/{tool}", folder], check=True, stdout=subprocess.DEVNULL)
    ends = sorted(glob.glob(f"{folder}/*_main.pdmodel"))
    return {os.path.basename(p)[:-len("_main.pdmodel")]: p[:-len("_main.pdmodel")] for p in ends}


def compare(build, name, base, folder):
    with static.scope_guard(static.Scope()):
        e_loss, (e_var, who), e_test, part = trained(build, base, folder)
    with static.scope_guard(static.Scope()):
        e_use = inference(build, base, folder, part) if os.path.exists(base + ".pdmodel") else 0.0
    losses = {"mean of losses": (e_loss, 0.03)} if "random" in name else {"losses": (e_loss, TOLERANCE)}
    return Outcome({**losses, "variables": (e_var, TOLERANCE), "test program": (e_test, 1e-4), "inference model": (e_use, 1e-4)}, who and [f"worst: {who}"])
