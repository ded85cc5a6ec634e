"""The benchmarks run, and compare what is equal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def run(*options):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_table_and_chart_of_one_workload(tmp_path):
    lines, picture = tmp_path / "one.jsonl", tmp_path / "one.png"
    only = ("--no-torch", "--only", "^elementwise: l1_loss", "--seconds", 0.1)
    table = run(*only, "--json", lines, "--plot", picture)
    (record,) = map(json.loads, lines.read_text().splitlines())
    ours, peer = record["contenders"]
    assert (ours["name"], peer["name"]) == ("jaxloss", "plain")
    assert ours["ratio"] == 1
    assert peer["spread"][0] <= peer["ratio"] <= peer["spread"][1]
    assert record["floor_bytes"] == 3 * 2**22 * 4
    assert ours["bytes_accessed"] < 2.5 * record["floor_bytes"]
    assert f"{peer['ratio']:.2f}" in table
    gigabytes, unit = record["machine"]["copy"].split()
    assert unit == "GB/s"
    share = record["floor_bytes"] / 1e9 / ours["seconds"] / float(gigabytes)
    assert f"| {share:.0%} " in table
    assert matplotlib.image.imread(picture).shape[1] > 800
    assert run("--read", lines) == run("--read", lines, "--no-torch")


def test_the_workloads_are_listed():
    listed = run("--list").splitlines()
    assert len(listed) == len(set(listed)) > 30
    assert {line.split(":")[0] for line in listed} == {
        "elementwise", "classes", "embeddings", "ctc", "linear", "rnnt", "alignment", "calls",
    }  # fmt: skip


FOLDER = ROOT / "benchmarks/results"
RESULTS = sorted(
    file for file in FOLDER.glob("*.jsonl") if not file.stem.startswith(("chips", "here"))
)


def recorded(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("file", RESULTS, ids=str)
def test_recorded_results_are_those_of_whole_groups(file):
    from benchmarks.workloads import WORKLOADS

    names, groups = ([record[key] for record in recorded(file)] for key in ("workload", "group"))
    assert names == [w.name for w in WORKLOADS if w.group in groups]


def test_all_workloads_have_been_recorded():
    from benchmarks.workloads import WORKLOADS

    assert {r["workload"] for file in RESULTS for r in recorded(file)} == {
        w.name for w in WORKLOADS
    }


def test_pages_have_the_recorded_ratios():
    from benchmarks import report

    page = (ROOT / "benchmarks/README.md").read_text()
    for name in ("amd-epyc-2-cores-torchaudio", "h100"):
        assert report.brief(recorded(FOLDER / f"{name}.jsonl")) in page
    records = recorded(FOLDER / "amd-epyc-2-cores.jsonl")
    assert report.brief(records) in page
    for mean in re.findall(r"takes ([\d.]+) of", report.summary(records)):
        assert f"{mean} of" in (ROOT / "README.md").read_text()


def test_smallest_workloads_agree_with_their_peers():
    from benchmarks.workloads import WORKLOADS

    for workload in WORKLOADS:
        if re.match(
            r"ctc_loss, \w+ 64x|multilabel_margin|rnnt_loss 8x|forced_align", workload.name
        ):
            arrays = workload.arrays()
            value, peer = (jax.jit(f)(*arrays) for f in (workload.jaxloss, workload.peer))
            np.testing.assert_allclose(value, peer, rtol=1e-5)
