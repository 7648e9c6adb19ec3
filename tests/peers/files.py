"""Program and parameter files between PaddlePaddle and Kiln.

Each network is saved by PaddlePaddle in every form that it has: static.save in protocols 2 to 4, save_inference_model as two
files, save_combine and save_vars beside __model__, SelectedRows by the `save` operator. Kiln runs each and must give what
PaddlePaddle gives. Then the files of tests/fixtures go through Kiln: `kiln convert` once gives what PaddlePaddle loads and
runs with the same results, and once more the same bytes. `python files.py FOLDER` makes the files of tests/data/static.
"""
import glob, pickle, shutil, sys, tempfile
from common import *
import paddle
import paddle.static as static

F = paddle.nn.functional


def network():
    x = static.data("x", [-1, 6], "float32")
    y = static.data("y", [-1, 1], "int64")
    h = static.nn.batch_norm(static.nn.fc(x, 5, activation="relu", name="enc/one"))
    out = F.softmax(static.nn.fc(F.dropout(h, 0.3), 3))
    loss = paddle.mean(F.cross_entropy(out, y, use_softmax=False))
    return x, y, out, loss


def build():
    paddle.seed(3)
    main, startup = static.Program(), static.Program()
    with static.program_guard(main, startup), paddle.utils.unique_name.guard():
        x, y, out, loss = network()
        paddle.optimizer.Adam(0.01).minimize(loss)
    exe = static.Executor(paddle.CPUPlace())
    exe.run(startup)
    rng = np.random.RandomState(5)
    d = {"x": rng.randn(8, 6).astype("float32"), "y": rng.randint(0, 3, (8, 1)).astype("int64")}
    exe.run(main, feed=d)
    return main, startup, exe, d, x, out, loss


def values(program):
    names = [v.name for v in program.list_vars() if v.persistable and v.name not in ("feed", "fetch")]
    return {n: np.array(static.global_scope().find_var(n).get_tensor()) for n in names}


def save_forms(folder, main, exe, x, out):
    """{form: (model, flags of kiln run)}"""
    forms = {}
    for protocol in (2, 3, 4):
        static.save(main, f"{folder}/p{protocol}/net", protocol=protocol)
        forms[f"static.save protocol {protocol}"] = (f"{folder}/p{protocol}/net.pdmodel", [])
    static.save_inference_model(f"{folder}/inf/net", [x], [out], exe, program=main)
    forms["save_inference_model"] = (f"{folder}/inf/net.pdmodel", [])
    model, _, _ = static.load_inference_model(f"{folder}/inf/net", exe)
    for form, arguments in ("__params__", {"filename": "__params__"}), ("files of variables", {}):
        where = f"{folder}/{form.split()[0]}"
        os.makedirs(where)
        static.io.save_vars(exe, where, model, predicate=static.io.is_persistable, **arguments)
        shutil.copy(f"{folder}/inf/net.pdmodel", f"{where}/__model__")
        forms[form] = (where, [])
    paddle.save(paddle.static.Program.parse_from_string(main.desc.serialize_to_string()), f"{folder}/raw.pdmodel")
    write_params(f"{folder}/all.pdiparams", values(main))
    forms["paddle.save of a program"] = (f"{folder}/raw.pdmodel", ["--params", f"{folder}/all.pdiparams"])
    return forms


def round_trip(build_folder, path, folder):
    """The path without extension of the program that Kiln writes, and of the parameters beside it if there are some at path."""
    first, files = f"{path}/first.pdiparams", [f"{path}/main.pdmodel", *(f"{folder}/{n}.pdmodel" for n in ("once", "twice"))]
    for i in range(2):
        kiln(build_folder, "convert", files[i], "-o", files[i + 1], *(["--params", first] if i == 0 and os.path.exists(first) else []))
    for kind in ("pdmodel", "pdiparams") if os.path.exists(first) else ("pdmodel",):
        once, twice = (open(f"{folder}/{n}.{kind}", "rb").read() for n in ("once", "twice"))
        if once != twice:
            raise KilnError(f"the second round trip gives other bytes of .{kind}")
    return f"{folder}/once"


def fed(name, feeds):
    """The first run's value, with its sequences if it has some: NAME@LOD has the innermost offsets, NAME@LOD@LOD those around."""
    levels, suffix = [], "@LOD"
    while name + suffix in feeds:
        levels.insert(0, feeds[name + suffix][0].tolist())
        suffix += "@LOD"
    return tensor(feeds[name][0], levels) if levels else feeds[name][0]


def tensor(value, levels):
    t = paddle.base.core.LoDTensor()
    t.set(value, paddle.CPUPlace())
    t.set_lod(levels)
    return t


def fixture(build_folder, path, folder):
    """Worst differences of the outputs that PaddlePaddle computes: from the fixture's, and after a round trip from those before it."""
    read = lambda p: static.Program.parse_from_string(open(p, "rb").read())
    columns = lambda kind: {os.path.basename(f)[len(kind) + 1:-4].replace("%", "/"): np.load(f) for f in glob.glob(f"{path}/{kind}-*.npy")}
    feeds, fetched = columns("feed"), columns("fetch")
    names, results = [n for n in fetched if "@LOD" not in n], []
    after = round_trip(build_folder, path, folder)
    for model, params in (f"{path}/main", f"{path}/first"), (after, after):
        p = read(model + ".pdmodel")
        with static.scope_guard(static.Scope()):
            exe = static.Executor(paddle.CPUPlace())
            if os.path.exists(f"{path}/startup.pdmodel"):
                paddle.seed(1)
                exe.run(read(f"{path}/startup.pdmodel"))
            else:
                wanted = [v.name for v in p.list_vars() if v.persistable and v.name not in ("feed", "fetch")]
                for n, (v, levels) in read_tensors(params + ".pdiparams", wanted).items():
                    t = static.global_scope().var(n).get_tensor()
                    t.set(v, paddle.CPUPlace())
                    t.set_lod(levels)
            fetch = [p.global_block().var(n) for n in names]
            results.append(exe.run(p, feed={n: fed(n, feeds) for n in feeds if "@LOD" not in n}, fetch_list=fetch, return_numpy=False))
    lods = [[v.lod() for v in r] for r in results]
    before, after = ([np.array(v) for v in r] for r in results)
    known = max(error(v, fetched[n][0]) for n, v in zip(names, before))
    return known, float("inf") if lods[0] != lods[1] else max(map(error, after, before))


def edited(build_folder, folder, d):
    """Kiln cuts the middle out of an inference model and renames; PaddlePaddle runs it as Kiln does."""
    path = f"{folder}/edited"
    kiln(build_folder, "edit", f"{folder}/inf/net.pdmodel", "--outputs", "fc_0.tmp_0", "--rename", "fc_0.tmp_0=logits",
         "--rename", "enc/one.w_0=first", "--drop", "relu", "--feed-shape", "x=8x6", "-o", path + ".pdmodel")
    with static.scope_guard(static.Scope()):
        exe = static.Executor(paddle.CPUPlace())
        model, feed, fetch = static.load_inference_model(path, exe)
        want = exe.run(model, feed={"x": d["x"]}, fetch_list=fetch)[0]
    return error(run(build_folder, path + ".pdmodel", folder, {"x": d["x"]}, ["logits"])["logits"], want)


def saved_forms(build_folder, folder, d):
    """What `kiln convert` writes of a .pdparams file, in each form, as PaddlePaddle loads it."""
    worst, want = 0.0, None
    kiln(build_folder, "edit", f"{folder}/p4/net.pdmodel", "--for-test", "--outputs", "softmax_0.tmp_0", "-o", f"{folder}/test.kl")
    for form, flags in ("one", []), ("each", ["--separate"]):
        where = f"{folder}/{form}"
        os.makedirs(where)
        kiln(build_folder, "convert", f"{folder}/test.kl", "-o", f"{where}/__model__", *flags)
        with open(f"{where}/__model__", "rb") as f:
            model = static.Program.parse_from_string(f.read())
        with static.scope_guard(static.Scope()):
            exe = static.Executor(paddle.CPUPlace())
            static.io.load_vars(exe, where, model, predicate=static.io.is_persistable, filename=None if flags else "__params__")
            got = exe.run(model, feed={"x": d["x"]}, fetch_list=["softmax_0.tmp_0"])[0]
        mine = run(build_folder, where, folder, {"x": d["x"]}, ["softmax_0.tmp_0"])["softmax_0.tmp_0"]
        worst = max(worst, error(mine, got))
    return worst


def write(folder):
    main, startup, exe, d, x, out, loss = build()
    for block in main.blocks:
        for op in block.ops:
            if op.has_attr("op_callstack"):
                op._set_attr("op_callstack", [])
    with tempfile.TemporaryDirectory() as tmp:
        for protocol in (2, 4):
            static.save(main, f"{tmp}/net", protocol=protocol)
            for kind in ("pdparams", "pdopt"):
                shutil.copy(f"{tmp}/net.{kind}", f"{folder}/p{protocol}.{kind}")
        shutil.copy(f"{tmp}/net.pdmodel", f"{folder}/net.pdmodel")
        whole = pickle.load(open(f"{tmp}/net.pdparams", "rb"))
    name = sorted(whole)[-1]  # as PaddlePaddle cuts what is larger than 2^30 bytes
    flat, slices = whole.pop(name), {}
    shape, flat = flat.shape, flat.flatten()
    for i in range(3):
        whole[f"{name}@@.{i}"] = flat[i * (len(flat) // 3 + 1):(i + 1) * (len(flat) // 3 + 1)]
        slices.setdefault("slices", []).append(f"{name}@@.{i}")
    whole["UnpackBigParamInfor@@"] = {name: {"OriginShape": shape, **slices}}
    column = sorted(whole)[1]
    whole[column] = np.asfortranarray(whole[column])
    with open(f"{folder}/sliced.pdparams", "wb") as f:
        pickle.dump(whole, f, protocol=2)
    write_params(f"{folder}/all.pdiparams", values(main))


def forms(build_folder, folder):
    """Every form that PaddlePaddle saves, `kiln edit` of one, what `kiln convert` writes of another."""
    with static.scope_guard(static.Scope()):
        net, startup, exe, d, x, out, loss = build()
        want = exe.run(net.clone(for_test=True), feed=d, fetch_list=[out])[0]
        saved = save_forms(folder, net, exe, x, out)
    figures = {form: (error(run(build_folder, model, folder, {"x": d["x"]}, [out.name], *flags)[out.name], want), 1e-5) for form, (model, flags) in saved.items()}
    figures["kiln edit"] = edited(build_folder, folder, d), 1e-5
    figures["kiln convert"] = saved_forms(build_folder, folder, d), 1e-5
    return Outcome(figures, cases=len(figures))


def cases(build, folder):
    return {"forms": None, **{f"round trip of {p}": p for p in sorted(glob.glob("tests/fixtures/*"))}}


def compare(build, name, path, folder):
    if not path:
        return forms(build, folder)
    known, after = fixture(build, path, folder)
    return Outcome({"the fixture's values": (known, 1e-4), "after a round trip": (after, 0)})


if __name__ == "__main__":
    paddle.enable_static()
    write(sys.argv[1])
