"""Tables of single kernels on one core, as parts of the multiply-add peak: sgemm and the layers of convolution networks."""
import json, math, os, subprocess
from peers import environment, onednn, progress


def lines(o, *command):
    """What a benchmark prints, pinned to one core, a line of JSON each."""
    r = subprocess.run(["taskset", "-c", "0", *map(str, command)], stdout=subprocess.PIPE, text=True, env=environment(onednn()))
    if r.returncode:
        raise SystemExit(f"{command[0]} failed")
    return [json.loads(l) for l in r.stdout.splitlines()]


def mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def parts(row):
    """{who: part of the peak, median with the spread of its times}"""
    out = {}
    for who in ("kiln", "openblas", "onednn"):
        if f"{who}_us" in row:
            peak = row["peak_gflops"]["median"] * 1e3
            out[who] = {k: row["flops"] / row[f"{who}_us"][f] / peak
                        for k, f in (("median", "median"), ("min", "max"), ("max", "min"))}
    return out


def goal(value, target):
    """In bold if it is less."""
    return f"**{value:.3f}**" if value < target else f"{value:.3f}"


def show(p, missed=False):
    if p is None:
        return "-"
    text = f"{p['median']:.2f} ({p['min']:.2f}-{p['max']:.2f})"
    return f"**{text}**" if missed else text


def ahead(row, who):
    p = row["parts"]
    return p["kiln"]["median"] / p[who]["median"] if who in p else None


def over(row, who):
    r = ahead(row, who)
    return "-" if r is None else f"**{r:.2f}**" if r < 1 and row["targets"].get(who) else f"{r:.2f}"


def sgemm(o, write):
    rows = lines(o, f"{o.build}/bench/contract_bench", 1, "sgemm", "json")
    for r in rows:
        r["parts"], r["targets"] = parts(r), {"least": 0.75, "onednn": 1, "openblas": 1}
    write("sgemm, one core: part of the multiply-add peak, median (least-greatest)", rows, [
        ("M N K", lambda r: r["name"].removeprefix("sgemm ")),
        ("us", lambda r: f"{r['kiln_us']['median']:.1f}"),
        ("Kiln", lambda r: show(r["parts"]["kiln"], r["parts"]["kiln"]["median"] < 0.75)),
        ("oneDNN", lambda r: show(r["parts"].get("onednn"))), ("OpenBLAS", lambda r: show(r["parts"].get("openblas"))),
        ("Kiln / oneDNN", lambda r: over(r, "onednn")), ("Kiln / OpenBLAS", lambda r: over(r, "openblas")),
        ("peak GFLOP/s", lambda r: f"{r['peak_gflops']['median']:.0f}")],
        [f"- geometric mean {goal(mean(r['parts']['kiln']['median'] for r in rows), 0.88)} of the peak (target >= 0.88, each >= 0.75, "
         "and none behind oneDNN or OpenBLAS)"])


def conv(o, write):
    rows = lines(o, f"{o.build}/bench/layer_bench")
    for r in rows:
        r["parts"] = parts(r)
        r["targets"] = {"least": 0.55 if "depthwise" in r["name"] and r["part"] == "forward" else 0}
    dense = {p: [r for r in rows if r["part"] == p] for p in ("forward", "input", "filter")}
    peer = [r for r in dense["forward"] if ahead(r, "onednn")]
    backward = dense["input"] + dense["filter"]
    write("Convolution layers, batch 1, one core: part of the multiply-add peak, median (least-greatest)", rows, [
        ("layer", lambda r: f"{r['name']}, " + {"forward": "forward", "input": "gradient of the input", "filter": "gradient of the filter"}[r["part"]]),
        ("us", lambda r: f"{r['kiln_us']['median']:.1f}"),
        ("Kiln", lambda r: show(r["parts"]["kiln"], r["parts"]["kiln"]["median"] < r["targets"]["least"])),
        ("oneDNN", lambda r: show(r["parts"].get("onednn"))), ("Kiln / oneDNN", lambda r: over(r, "onednn")),
        ("kernels", lambda r: str(r["kernels"]))],
        [f"- forward: geometric mean of Kiln / oneDNN {goal(mean(ahead(r, 'onednn') for r in peer), 1)} (target >= 1); depthwise: target >= 0.55 of the peak",
         f"- gradients: geometric mean {goal(mean(r['parts']['kiln']['median'] for r in backward), 0.75)} of the peak over all (target >= 0.75), "
         f"{mean(r['parts']['kiln']['median'] for r in backward if 'depthwise' not in r['name']):.3f} without depthwise; "
         f"oneDNN {mean(r['parts']['onednn']['median'] for r in backward if 'onednn' in r['parts']):.3f}"])


TABLES = {"sgemm": sgemm, "conv": conv}
