"""Ours and theirs in turn: starts a worker (worker.py) for each, checks that results agree, and measures in rounds.

A measurement is the median of one worker's calls in one round; a peer's figure is the median over the rounds with the
least and the greatest. The spread of a ratio is that over the rounds.
"""
import json, os, subprocess, statistics, sys, tempfile, time
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def environment(extra={}):
    """Without what chooses a kernel of OpenBLAS, for all alike."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    env.update(extra)
    return env


def onednn():
    """Where oneDNN's library is, and the driver of the processor that it asks for."""
    lib = os.path.join(sys.prefix, "lib")
    return {"LD_LIBRARY_PATH": lib, "OCL_ICD_FILENAMES": f"{lib}/libintelocl.so"}


def progress(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Worker:
    def __init__(self, peer, net, batch, threads, mode, build):
        self.peer, self.rounds, self.error, self.log = peer, [], None, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, f"{HERE}/worker.py", peer, net, str(batch), str(threads), mode, os.path.abspath(build)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment())

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            self.error = self.error or f"the process ended: {self.log.read()[-300:].strip()}"
            return {}
        answer = json.loads(line)
        self.error = self.error or answer.get("error")
        return answer

    def ask(self, command):
        if self.error:
            return {}
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def disagreement(ours, theirs):
    """Largest difference, relative to the largest magnitude."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    if a.size != b.size or not np.isfinite(b).all() or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


def figures(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(build, net, batch, threads, mode, peers, rounds, seconds, least):
    """{peer: {median, min, max, rounds, error (of its results to ours)} or {failure}}, milliseconds."""
    progress(f"{mode} {net} batch {batch}, {threads} threads: starting {' '.join(peers)}")
    workers = [Worker(p, net, batch, threads, mode, build) for p in peers]
    out = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for w in workers:
                w.answer()
                w.ask(f"output {folder}/{w.peer}.npy")
            results = {w.peer: np.load(f"{folder}/{w.peer}.npy") for w in workers if not w.error}
        for r in range(rounds):
            for w in workers:
                time.sleep(0.02)  # threads of the one before stop waiting
                ms = w.ask(f"time {seconds} {least}").get("ms")
                if ms:
                    w.rounds.append(statistics.median(ms))
            progress(f"  round {r + 1}/{rounds}: " +
                     "  ".join(f"{w.peer} {w.rounds[-1]:.3f}" for w in workers if w.rounds))
        for w in workers:
            out[w.peer] = {"failure": w.error} if w.error else {
                **figures(w.rounds), "rounds": w.rounds, "rss_kb": w.ask("rss").get("kb"),
                "error": disagreement(results["kiln"], results[w.peer]) if "kiln" in results else float("inf")}
            if w.error:
                progress(f"  {w.peer}: {w.error}")
    finally:
        for w in workers:
            w.close()
    return out


def best_of(results, limit):
    """(name, figures) of the fastest peer whose results are right, or None."""
    there = [(v["median"], k) for k, v in results.items() if not k.startswith("kiln") and "median" in v and v["error"] <= limit]
    return (min(there)[1], results[min(there)[1]]) if there else None


def ratio(numerator, denominator):
    """Of the medians, with the spread over the rounds; of measurements in different runs, of the medians' spreads."""
    n, d = numerator["rounds"], denominator["rounds"]
    each = [a / b for a, b in zip(n, d)]
    return {"median": numerator["median"] / denominator["median"], "min": min(each), "max": max(each)}


def kiln(build, *args):
    """The JSON that a command of kiln prints."""
    r = subprocess.run([f"{build}/kiln", *map(str, args)], capture_output=True, text=True, env=environment())
    if r.returncode:
        sys.exit(f"kiln {' '.join(map(str, args[:2]))} failed:\n{r.stderr}")
    return json.loads(r.stdout)
