"""The tables of `make bench`: bench.py BUILD [TABLE...] [--nets A,B] [--peers A,B] [--rounds N] [--threads 1,2]

Writes BUILD/bench/TABLE.json and .md, and BUILD/bench/bench.md of all tables that are there; `--page FILE` puts them
into a page of the documentation. With --nets, --peers, --rounds or --threads a table is but a part: it goes to
TABLE.part.json and .md, and the whole one stays.
"""
import argparse, json, os, platform, subprocess, sys, time
import tables_kernels, tables_nets, tables_state
from peers import progress
from shapes import NETS

HERE = os.path.dirname(os.path.abspath(__file__))
TABLES = {**tables_kernels.TABLES, **tables_nets.TABLES, **tables_state.TABLES}


def machine():
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    from importlib.metadata import version
    peers = ", ".join(f"{p} {version(p)}" for p in ("torch", "onnxruntime", "openvino", "ncnn", "onednn"))
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"cpu": f"{model}, {os.cpu_count()} cores", "peers": peers, "revision": revision,
            "date": time.strftime("%Y-%m-%d")}


def prepare(o):
    """The program files, and what the peers read."""
    folder = f"{o.build}/bench/models"
    os.makedirs(folder, exist_ok=True)
    writer = os.path.getmtime(f"{HERE}/nets.c")
    for n in o.nets:
        path = f"{folder}/{n}.pdiparams"
        if not os.path.exists(path) or os.path.getmtime(path) < writer:
            progress(f"writing {n}")
            subprocess.run([f"{o.build}/bench/nets", folder, n], check=True)
    subprocess.run([sys.executable, f"{HERE}/export.py", o.build, *o.nets], check=True)


def write(o, name, title, rows, columns, notes):
    """columns: [(heading, row -> text)]. A row's cell in bold missed its target."""
    lines = ["| " + " | ".join(h for h, _ in columns) + " |", "|" + "---|" * len(columns)]
    for r in rows:
        lines.append("| " + " | ".join(cell(r) for _, cell in columns) + " |")
    text = f"### {title}\n\n" + "\n".join(lines) + "\n\n" + "".join(f"{n}\n" for n in notes)
    part = ".part" if o.part else ""
    with open(f"{o.build}/bench/{name}{part}.md", "w") as f:
        f.write(text)
    with open(f"{o.build}/bench/{name}{part}.json", "w") as f:
        json.dump({"table": name, "title": title, "machine": o.machine, "rows": rows, "notes": notes}, f, indent=1)
    print(text, flush=True)


def collect(o):
    """All tables that are there, in order, and the page's part between its marks."""
    there = [n for n in TABLES if os.path.exists(f"{o.build}/bench/{n}.md")]
    m = o.machine
    text = f"{m['cpu']}; {m['peers']}; revision {m['revision']}, {m['date']}. **Bold**: misses its target.\n\n"
    text += "\n".join(open(f"{o.build}/bench/{n}.md").read() for n in there)
    with open(f"{o.build}/bench/bench.md", "w") as f:
        f.write(text)
    with open(f"{o.build}/bench/bench.json", "w") as f:
        json.dump([json.load(open(f"{o.build}/bench/{n}.json")) for n in there], f, indent=1)
    if o.page:
        page, begin, end = open(o.page).read(), "<!-- tables -->\n", "<!-- end of tables -->\n"
        head, tail = page.split(begin)[0], page.split(end)[1]
        with open(o.page, "w") as f:
            f.write(head + begin + "\n" + text.strip() + "\n\n" + end + tail)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda s: s.split(",")
    p.add_argument("build")
    p.add_argument("tables", nargs="*", help=" ".join(TABLES))
    p.add_argument("--nets", type=listed)
    p.add_argument("--peers", type=listed, help="besides kiln")
    p.add_argument("--rounds", type=int)
    p.add_argument("--threads", type=lambda s: [int(v) for v in s.split(",")])
    p.add_argument("--page", help="a Markdown file with marks between which the tables go")
    o = p.parse_args()
    peers = dict.fromkeys(tables_nets.INFER + tables_nets.TRAIN)
    for what, given, known in ("table", o.tables, TABLES), ("network", o.nets, NETS), ("peer", o.peers, peers):
        for n in given or ():
            if n not in known:
                p.error(f"no {what} {n}; there are {' '.join(known)}")
    o.part = any((o.nets, o.peers, o.rounds, o.threads))
    o.nets = o.nets or NETS
    o.machine = machine()
    if not (o.page and not o.tables):
        prepare(o)
    for n in o.tables or ([] if o.page else TABLES):
        begin = time.time()
        TABLES[n](o, lambda *args: write(o, n, *args))
        progress(f"{n}: {time.time() - begin:.0f} s")
    collect(o)


main()
