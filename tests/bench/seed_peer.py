"""The network of frontend/examples/seed.c in Kiln and torch from the same initial parameters, over the same batches.

usage: seed_peer.py BUILD [EPOCHS]

Prints loss and test accuracy per epoch of both, and fails if Kiln's loss does not fall every epoch or an accuracy differs
by more than 0.01.
"""
import gzip, re, struct, subprocess, sys, tempfile
import numpy as np, torch
import params

DATA = "/usr/share/datasets/fashion-mnist/"
FILES = [DATA + f for f in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                            "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")]


def idx(path):
    b = gzip.open(path).read()
    rank = b[3]
    return np.frombuffer(b, np.uint8, offset=4 + 4 * rank).reshape(struct.unpack(f">{rank}I", b[4:4 + 4 * rank]))


def main():
    build, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folder = tempfile.mkdtemp()
    text = subprocess.run([f"{build}/examples/seed", *FILES, str(epochs), folder], check=True, capture_output=True, text=True).stdout
    ours = [(float(l), float(a)) for l, a in re.findall(r"loss (\S+) acc (\S+)", text)]
    b0, w0, b1, w1 = params.read(folder + "/initial.pdiparams")  # names sorted: fc_0.b_0 fc_0.w_0 fc_1.b_0 fc_1.w_0
    x, y, tx, ty = (torch.from_numpy(idx(f).copy()) for f in FILES)
    x, tx, y, ty = x.reshape(-1, 784).float() / 255, tx.reshape(-1, 784).float() / 255, y.long(), ty.long()
    ps = [torch.from_numpy(p.copy()).requires_grad_() for p in (w0, b0, w1, b1)]
    net = lambda v: torch.softmax(torch.relu(v @ ps[0] + ps[1]) @ ps[2] + ps[3], 1)
    bad = len(ours) != epochs
    print("epoch   Kiln loss   torch loss   Kiln acc   torch acc")
    for e in range(epochs):
        total = 0.0
        for i in range(0, len(x), 256):
            loss = -torch.log(net(x[i:i + 256]).gather(1, y[i:i + 256, None])).mean()
            grads = torch.autograd.grad(loss, ps)
            with torch.no_grad():
                for p, g in zip(ps, grads): p -= 0.01 * g
            total += loss.item() * len(x[i:i + 256])
        with torch.no_grad():
            acc = (net(tx).argmax(1) == ty).float().mean().item()
        l, a = ours[e]
        print(f"{e + 1:5} {l:11.6f} {total / len(x):12.6f} {a:10.4f} {acc:11.4f}")
        bad |= abs(a - acc) > 0.01 or (e > 0 and l >= ours[e - 1][0])
    print("FAILED" if bad else "ok: the loss falls every epoch, accuracies agree within 0.01")
    return bad


sys.exit(main())
