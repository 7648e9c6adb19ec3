"""make peers-test: compares Kiln with PaddlePaddle, part by part; two processes at a time.

usage: run.sh BUILD [PART ...] [--only TEXT ...] [--share I/N] [--resume] [--workers N] [--seconds N] [--keep DIR]

A part is a module with cases(build folder, folder to write to) -> {name: case} and compare(build folder, name, case, folder) ->
Outcome. This process imports PaddlePaddle and runs nothing in it; each case is a fork of it, so that a case costs no start-up and
none can harm another. What a case gave is kept in BUILD/peers/results.jsonl as long as Kiln is the same: --resume leaves out what has
agreed already, and the table at the end has all that is known of the parts.
"""
import argparse, hashlib, importlib, json, os, pickle, selectors, signal, sys, tempfile, time, traceback

PARTS = {  # name: what it compares
    "deep": "training, deep and recurrent networks", "models": "paddle.vision: inference, one step", "infer": "inference, other networks",
    "quant": "inference, quantised, half precision", "users": "inference, networks of users", "exports": "exports of paddle.jit, functions", "train": "training, optimisers", "kinds": "training, other kinds",
    "back": "programs that Kiln built", "files": "forms of files, round trips", "distribution": "random numbers", "ocr": "PP-OCR",
    "start": "start of ResNet-50", "ops": "operators and gradients",
}


def arguments():
    p = argparse.ArgumentParser(prog="run.sh")
    p.add_argument("build")
    p.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    p.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="cases whose names contain one of these")
    p.add_argument("--share", default="1/1", metavar="I/N", help="the I-th of N shares of the cases")
    p.add_argument("--resume", action="store_true", help="leave out what has agreed before, with this Kiln")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--seconds", type=float, default=600, help="after which a case has failed")
    p.add_argument("--keep", metavar="DIR", help="for the files that are made")
    a = p.parse_args()
    unknown = [n for n in a.parts if n not in PARTS]
    if unknown:
        p.error(f"no part {unknown[0]}; the parts: {', '.join(PARTS)}")
    a.parts = a.parts or list(PARTS)
    a.share = [int(n) for n in a.share.split("/")]
    return a


def identity(build):
    """A hash of Kiln's programs."""
    h = hashlib.sha1()
    for name in "kiln", "libkiln-codegen.so":
        with open(f"{build}/{name}", "rb") as f:
            h.update(f.read())
    return h.hexdigest()


class Records:
    """What is known of each (part, case), in a file to which lines are added."""

    def __init__(self, build):
        self.path, self.kiln, self.known = f"{build}/peers/results.jsonl", identity(build), {}
        os.makedirs(f"{build}/peers", exist_ok=True)
        if os.path.exists(self.path):
            with open(self.path) as f:
                lines = [json.loads(l) for l in f if l.endswith("\n")]
            self.known = {(r["part"], r["name"]): r for r in lines if r["kiln"] == self.kiln}
        with open(self.path, "w") as f:
            f.writelines(json.dumps(r) + "\n" for r in self.known.values())

    def add(self, part, name, **r):
        r = {"part": part, "name": name, "kiln": self.kiln, **r}
        self.known[part, name] = r
        with open(self.path, "a") as f:
            f.write(json.dumps(r) + "\n")


def agreed(r):
    return not r["error"] and all(v <= limit for v, limit in r["figures"].values())


def child(module, build, name, case, folder, pipe):
    """Runs a case and writes its record to the pipe."""
    os.setsid()
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for fd in (1, 2):
        os.dup2(log, fd)
    from common import KilnError
    out = {"figures": {}, "notes": [], "cases": 1, "error": ""}
    try:
        o = module.compare(build, name, case, folder)
        out.update(figures={k: (float(v), limit) for k, (v, limit) in o.figures.items()}, notes=o.notes, cases=o.cases)
    except KilnError as e:
        out["error"] = str(e)
    except BaseException:
        out["error"] = traceback.format_exc()
    with os.fdopen(pipe, "wb") as p:
        pickle.dump(out, p)
    os._exit(0)


def start(job, build, folder):
    part, module, name, case = job
    where = f"{folder}/{part}-{''.join(c if c.isalnum() else '_' for c in name)[:80]}"
    os.makedirs(where, exist_ok=True)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        child(module, build, name, case, where, w)
    os.close(w)
    return r, {"pid": pid, "job": job, "begun": time.monotonic(), "data": b"", "log": f"{where}/log"}


def finished(run, late):
    """The record of a case whose pipe has closed, or that is killed."""
    try:
        os.killpg(run["pid"], signal.SIGKILL)  # with what it has started
    except ProcessLookupError:
        os.kill(run["pid"], signal.SIGKILL)
    os.waitpid(run["pid"], 0)
    seconds = time.monotonic() - run["begun"]
    if run["data"] and not late:
        return {**pickle.loads(run["data"]), "seconds": seconds}
    with open(run["log"], errors="replace") as f:
        last = f.read()[-2000:]
    why = f"still running after {seconds:.0f} s" if late else f"the process died\n{last}"
    return {"figures": {}, "notes": [], "cases": 1, "error": why, "seconds": seconds}


def run_all(jobs, a, folder, done):
    """Runs the jobs, a.workers at a time; done(job, record)."""
    waiting, running, ready = list(reversed(jobs)), {}, selectors.DefaultSelector()
    while waiting or running:
        while waiting and len(running) < a.workers:
            r, run = start(waiting.pop(), a.build, folder)
            running[r] = run
            ready.register(r, selectors.EVENT_READ)
        for key, _ in ready.select(1.0):
            data = os.read(key.fd, 1 << 20)
            running[key.fd]["data"] += data
            running[key.fd]["closed"] = not data
        for r, run in list(running.items()):
            late = time.monotonic() - run["begun"] > a.seconds
            if run.get("closed") or late:
                ready.unregister(r)
                os.close(r)
                del running[r]
                done(run["job"], finished(run, late))


def show(job, r, n, total):
    part, _, name, _ = job
    figures = "  ".join(f"{k} {v:.1e}" for k, (v, _) in r["figures"].items())
    print(f"[{n:4}/{total}] {part:12} {name:40} {r['seconds']:6.1f} s  {figures}{'' if agreed(r) else '  FAILED'}", flush=True)
    for line in [*r["notes"], *r["error"].strip().splitlines()]:
        print(f"                {line}", flush=True)


def table(jobs, known):
    """One row for each figure of a part; the number of failed cases."""
    print(f"\n{'part':13}{'':38} {'cases':>6} {'failed':>6} {'seconds':>8}  {'greatest':24}{'error':>8} {'limit':>8}")
    failed = 0
    for part, text in PARTS.items():
        chosen = [known.get((part, name)) for p, _, name, _ in jobs if p == part]
        if not chosen:
            continue
        rows = [r for r in chosen if r]
        bad = [r for r in rows if not agreed(r)]
        failed += len(bad)
        worst = {}
        for r in rows:
            for k, (v, limit) in r["figures"].items():
                w = worst.setdefault((k, limit), v)
                worst[k, limit] = v if not v <= w else w
        head = f"{part:13}{text:38} {sum(r['cases'] for r in rows):6} {len(bad):6} {sum(r['seconds'] for r in rows):8.1f}"
        for (k, limit), v in worst.items() or {("", 0): 0}.items():
            print(f"{head}  {k:24}{v:8.1e} {limit:8.0e}")
            head = " " * len(head)
        if len(rows) < len(chosen):
            print(f"{'':13}{len(chosen) - len(rows)} not run")
    for p, _, name, _ in jobs:
        if (p, name) in known and not agreed(known[p, name]):
            print(f"failed: {p}, {name}")
    return failed


def main():
    a = arguments()
    import paddle
    paddle.enable_static()
    records, jobs, begun, count = Records(a.build), [], time.monotonic(), 0
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.abspath(a.keep or tmp)
        os.makedirs(folder, exist_ok=True)
        for part in a.parts:
            module = importlib.import_module(part)
            jobs += [(part, module, n, c) for n, c in module.cases(a.build, folder).items() if not a.only or any(t in n for t in a.only)]
        chosen = jobs[a.share[0] - 1::a.share[1]]
        if a.resume:
            chosen = [j for j in chosen if not ((j[0], j[2]) in records.known and agreed(records.known[j[0], j[2]]))]

        def done(job, r):
            nonlocal count
            count += 1
            records.add(job[0], job[2], **r)
            show(job, r, count, len(chosen))

        timed = [j for j in chosen if j[0] == "start"]  # with nothing beside it
        for j in timed:
            run_all([j], a, folder, done)
        run_all([j for j in chosen if j not in timed], a, folder, done)
    failed = table(jobs, records.known)
    print(f"{f'{failed} failed' if failed else 'all agree'}; {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
