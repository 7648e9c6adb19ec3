"""Training steps of Kiln and torch, interleaved in one run.

usage: train_step.py BUILD OUT_DIR [ROUNDS]

For each network: ROUNDS times, in turn, Kiln and torch with 1 and 2 threads (each measurement is the median step of one
process), then the median over the rounds. Writes OUT_DIR/train_step.md and .json; "best torch" is the faster of torch
with 1 and 2 threads.
"""
import json, os, statistics, subprocess, sys, tempfile, time

TORCH_STEP = r"""
import json, sys, time, torch
name, threads, batch, reps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
nn = torch.nn
nets = {
  "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)),
  "lenet": lambda: nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
                                 nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
}
net = nets[name]()
x = torch.rand(batch, 1, 28, 28) * 2 - 1
y = torch.randint(0, 2, (batch,))
opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
loss_fn = nn.CrossEntropyLoss()
ms = []
for i in range(reps + 10):
    t = time.perf_counter()
    opt.zero_grad(set_to_none=True)
    loss = loss_fn(net(x), y)
    loss.backward()
    opt.step()
    if i >= 10: ms.append((time.perf_counter() - t) * 1e3)
ms.sort()
print(json.dumps({"min_ms": ms[0], "median_ms": ms[len(ms) // 2], "version": torch.__version__}))
"""

SHAPES = {"mlp": "{}x784", "lenet": "{}x1x28x28"}
WORK = [("mlp", 64, 300), ("mlp", 1, 1000), ("lenet", 64, 60)]


def run(cmd):
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    r = subprocess.run(cmd, capture_output=True, text=True, env=env)
    if r.returncode:
        sys.exit(f"{' '.join(cmd[:3])} failed:\n{r.stderr}")
    return json.loads(r.stdout)


def kiln(build, models, name, threads, batch, reps):
    return run([f"{build}/kiln", "bench", f"{models}/{name}.main.pdmodel", "--startup", f"{models}/{name}.startup.pdmodel",
                "--feed-shape", "x=" + SHAPES[name].format(batch), "--feed-shape", f"label={batch}x1",
                "--threads", str(threads), "--reps", str(reps), "--json"])


def torch_step(name, threads, batch, reps):
    return run([sys.executable, "-c", TORCH_STEP, name, str(threads), str(batch), str(reps)])


def main():
    build, out = sys.argv[1], sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    os.makedirs(out, exist_ok=True)
    models = tempfile.mkdtemp()
    subprocess.run([f"{build}/bench/nets", models] + sorted({w[0] for w in WORK}), check=True)
    rows, results = [], []
    for name, batch, reps in WORK:
        times = {}
        for r in range(rounds):
            print(f"{name} batch {batch}: round {r + 1}/{rounds}", file=sys.stderr)
            for t in (1, 2):
                times.setdefault(f"kiln{t}", []).append(kiln(build, models, name, t, batch, reps))
                times.setdefault(f"torch{t}", []).append(torch_step(name, t, batch, reps))
        med = {k: statistics.median(x["median_ms"] for x in v) for k, v in times.items()}
        spread = {k: (min(x["median_ms"] for x in v), max(x["median_ms"] for x in v)) for k, v in times.items()}
        best = min(med["torch1"], med["torch2"])
        ours = min(med["kiln1"], med["kiln2"])
        plan = times["kiln2"][0]
        results.append({"net": name, "batch": batch, "median_ms": med, "spread_ms": spread, "best_torch_over_kiln": best / ours,
                        "torch": times["torch1"][0]["version"], "kernels": plan["kernels"], "arena": plan["arena"],
                        "lower_bound": plan["lower_bound"], "arena_ratio": plan["ratio"]})
        cells = " | ".join(f"{med[k]:.3f} ({spread[k][0]:.3f}-{spread[k][1]:.3f})" for k in ("kiln1", "kiln2", "torch1", "torch2"))
        rows.append(f"| {name} b{batch} | {cells} | {best / ours:.2f} | {plan['kernels']} | {plan['ratio']:.4f} |")
    table = ("| training step, ms: median (min-max of rounds) | Kiln 1T | Kiln 2T | torch 1T | torch 2T | best torch / Kiln | kernels | arena / bound |\n"
             "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + f"\n\ntorch {results[0]['torch']}; "
             f"{time.strftime('%Y-%m-%d')}; {os.cpu_count()} cores\n")
    print(table)
    with open(f"{out}/train_step.md", "w") as f:
        f.write(table)
    with open(f"{out}/train_step.json", "w") as f:
        json.dump(results, f, indent=1)


main()
