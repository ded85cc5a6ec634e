"""What is read of programs for TPUs and GPUs, and what is shown of the results."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import matplotlib.image
import pytest

from benchmarks.chips import __main__ as command
from benchmarks.chips import compiled, report, topology, workloads
from benchmarks.chips.loops import Program

FOLDER = Path(__file__).parent.parent / "benchmarks/results"
RESULTS = sorted(FOLDER.glob("chips-*.jsonl"))
README = "chips-v5e.jsonl", "chips-v6e.jsonl", "chips-h100.jsonl"

COUNTED = """
HloModule counted

%inner_body (p: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %p = (s32[], s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %limit = s32[] get-tuple-element(%p), index=1
  %x = f32[8] get-tuple-element(%p), index=2
  %sine = f32[8] sine(%x), backend_config={"estimated_cycles":"7"}
  ROOT %out = (s32[], s32[], f32[8]) tuple(%next, %limit, %sine)
}

%inner_condition (q: (s32[], s32[], f32[8])) -> pred[] {
  %q = (s32[], s32[], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

%outer_body (r: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %r = (s32[], s32[], f32[8]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %one = s32[] constant(1)
  %less_one = s32[] subtract(%k, %one)
  %five = s32[] get-tuple-element(%r), index=1
  %y = f32[8] get-tuple-element(%r), index=2
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %inner_init = (s32[], s32[], f32[8]) tuple(%start, %five, %y)
  %inner = (s32[], s32[], f32[8]) while(%inner_init), condition=%inner_condition, body=%inner_body
  %z = f32[8] get-tuple-element(%inner), index=2
  ROOT %outer_out = (s32[], s32[], f32[8]) tuple(%less_one, %five, %z)
}

%outer_condition (s: (s32[], s32[], f32[8])) -> pred[] {
  %s = (s32[], s32[], f32[8]) parameter(0)
  %l = s32[] get-tuple-element(%s), index=0
  %last = s32[] constant(-1)
  ROOT %more = pred[] compare(%l, %last), direction=GE
}

ENTRY %main (a: f32[8], b: s32[]) -> f32[8] {
  %a = f32[8] parameter(0)
  %b = s32[] parameter(1)
  %three = s32[] constant(3)
  %bounds = s32[] constant(5)
  %init = (s32[], s32[], f32[8]) tuple(%three, %bounds, %a)
  %outer = (s32[], s32[], f32[8]) while(%init), condition=%outer_condition, body=%outer_body
  ROOT %result = f32[8] get-tuple-element(%outer), index=2
}
"""


def total_cycles(text):
    program = Program(text)
    runs = program.runs(compiled.cycles)
    return sum(run.times * compiled.cycles(run.instruction) for run in runs), program.uncounted


def test_turns_are_counted_where_no_note_tells_them():
    # 3, 2, 1, 0, -1 outside; 0, 2, 4 inside, whose limit comes from two loops further out.
    assert total_cycles(COUNTED) == (5 * 3 * 7, set())
    assert total_cycles(COUNTED.replace("constant(5)", "constant(6)")) == (5 * 3 * 7, set())
    assert total_cycles(COUNTED.replace("constant(5)", "constant(7)")) == (5 * 4 * 7, set())
    assert total_cycles(COUNTED.replace("constant(5)", "constant(0)")) == (0, set())
    assert total_cycles(COUNTED.replace("direction=GE", "direction=GT")) == (4 * 3 * 7, set())
    assert total_cycles(COUNTED.replace("direction=GE", "direction=NE")) == (4 * 3 * 7, set())


def test_a_loop_that_nobody_can_count_is_named():
    unknown = COUNTED.replace("tuple(%three, %bounds, %a)", "tuple(%b, %bounds, %a)")
    assert total_cycles(unknown) == (3 * 7, {"outer"})
    assert total_cycles(COUNTED.replace("subtract(%k", "add(%k"))[1] == {"outer"}  # It overflows.
    assert total_cycles(COUNTED.replace("subtract(%k", "multiply(%k"))[1] == {"outer"}
    changing = COUNTED.replace("tuple(%less_one, %five", "tuple(%less_one, %k")
    assert total_cycles(changing) == (5 * 7, {"inner"})


def test_what_has_no_estimate_is_counted():
    program = Program(COUNTED.replace(':"7"', f':"{2**63 - 1}"'))
    runs = program.runs(compiled.cycles)
    assert sum(run.times * compiled.cycles(run.instruction) for run in runs) == 0
    assert sum(run.times for run in runs if compiled.unpriced(run.instruction)) == 5 * 3


FUSED = """
HloModule fused

%sliced (p0: f32[64,256], p1: f32[256], i: s32[]) -> f32[256] {
  %p0 = f32[64,256] parameter(0)
  %p1 = f32[256] parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %wide = f32[64,256] cosine(%p0)
  %row = f32[1,256] dynamic-slice(%wide, %i, %zero), dynamic_slice_sizes={1,256}
  %flat = f32[256] bitcast(%row)
  ROOT %sum = f32[256] add(%flat, %p1)
}

%put (q0: f32[64,256], q1: f32[256], j: s32[]) -> f32[64,256] {
  %q0 = f32[64,256] parameter(0)
  %q1 = f32[256] parameter(1)
  %line = f32[1,256] bitcast(%q1)
  %j = s32[] parameter(2)
  %nil = s32[] constant(0)
  ROOT %all = f32[64,256] dynamic-update-slice(%q0, %line, %j, %nil)
}

%whole (w: f32[64,256]) -> f32[] {
  %w = f32[64,256] parameter(0)
  %none = f32[] constant(0)
  ROOT %total = f32[] reduce(%w, %none), dimensions={0,1}, to_apply=%add
}

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %plus = f32[] add(%l, %r)
}

%low (v: f32[64,256]) -> f32[] {
  %v = f32[64,256] parameter(0)
  ROOT %v_sum = f32[] fusion(%v), kind=kInput, calls=%whole
}

%high (u: f32[64,256]) -> f32[] {
  %u = f32[64,256] parameter(0)
  %u_copy = f32[64,256] copy(%u)
  ROOT %u_sum = f32[] fusion(%u_copy), kind=kInput, calls=%whole
}

ENTRY %main (x: f32[64,256], y: f32[256], k: s32[], c: pred[]) -> (f32[64,256], f32[]) {
  %x = f32[64,256] parameter(0)
  %y = f32[256] parameter(1)
  %k = s32[] parameter(2)
  %c = pred[] parameter(3)
  %slice_fusion = f32[256] fusion(%x, %y, %k), kind=kLoop, calls=%sliced
  %put_fusion = f32[64,256] fusion(%x, %slice_fusion, %k), kind=kLoop, calls=%put
  %branch = f32[] conditional(%c, %x, %x), true_computation=%low, false_computation=%high
  ROOT %results = (f32[64,256], f32[]) tuple(%put_fusion, %branch)
}
"""
ANY_GPU = topology.Gpu("any", bandwidth=1e12, halves=1e15, doubles=1e14)


def test_bytes_of_kernels():
    text = Program(FUSED)
    gpu = compiled.Kernels(text, ANY_GPU)
    runs = {run.instruction.name: run for run in text.runs(gpu.seconds)}
    row, array = 256 * 4, 64 * 256 * 4
    assert gpu.moved(runs["slice_fusion"].instruction) == 3 * row + 4  # Two read, one written.
    assert gpu.moved(runs["put_fusion"].instruction) == 2 * row + 4
    # The dearer branch, with its copy.
    assert gpu.moved(runs["u_copy"].instruction) == 2 * array
    assert gpu.moved(runs["u_sum"].instruction) == array + 4
    assert "v_sum" not in runs
    assert sum(compiled.launched(run.instruction) for run in runs.values()) == 4
    # Two rows of one array are two.
    two = FUSED.replace("add(%flat, %p1)", "add(%flat, %last)").replace(
        "  ROOT %sum",
        "  %second = f32[1,256] dynamic-slice(%wide, %zero, %zero), dynamic_slice_sizes={1,256}\n"
        "  %last = f32[256] bitcast(%second)\n  ROOT %sum",
    )
    text = Program(two)
    twice = text.computations["main"]["slice_fusion"]
    assert compiled.Kernels(text, ANY_GPU).moved(twice) == 3 * row + 4
    # What is written into an array that the fusion makes itself is that array, whole.
    made = FUSED.replace("dynamic-update-slice(%q0", "dynamic-update-slice(%fresh").replace(
        "  %q1 = f32", "  %fresh = f32[64,256] sine(%q0)\n  %q1 = f32"
    )
    text = Program(made)
    put = text.computations["main"]["put_fusion"]
    assert compiled.Kernels(text, ANY_GPU).moved(put) == 2 * array + row + 4


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for chip in topology.CHIPS:
        with pytest.raises(topology.NotInstalledError, match=rf"^{chip}: .*pip install .*chips"):
            topology.chip(chip)
    with pytest.raises(ValueError, match="no such chip"):
        topology.chip("abacus")
    monkeypatch.setattr(sys, "argv", ["chips", "--chip", "v5e"])
    with pytest.raises(SystemExit, match=r"libtpu.*pip install"):
        command.main()


def test_a_chip_that_is_here_is_run(monkeypatch, capsys, tmp_path):
    with pytest.raises(topology.NotInstalledError, match=r"--here: .* a100, .* is a 'cpu'"):
        topology.here()
    chip = topology.Chip("h100", "cpu", jax.devices(), topology.GPUS["h100"])
    monkeypatch.setattr(topology, "here", lambda: chip)
    file = tmp_path / "here.jsonl"
    command_line = [
        "chips",
        "--here",
        "--seconds",
        "0.1",
        "--json",
        str(file),
        "classes: nll_loss$",
    ]
    monkeypatch.setattr(sys, "argv", command_line)
    command.main()
    (record,) = (json.loads(line) for line in file.read_text().splitlines())
    ours, peer = record["contenders"]
    assert ours["measured"] == 1
    assert ours["seconds"] > 0
    assert peer["spread"][0] <= peer["measured"] <= peer["spread"][1]
    assert peer["ratio"] == pytest.approx(ours["cost"] / peer["cost"])
    shown = capsys.readouterr().out
    assert f"| {peer['seconds'] * 1e3:.3g} ms" in shown
    assert f"h100, run: jaxloss costs {peer['measured']:.2f} of" in shown


def test_what_does_not_run_is_told(monkeypatch):
    def failing(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    (case,) = (case for case in workloads.CASES if case.name == "nll_loss")
    ours, peer = case.contenders
    contenders = {ours: case.contenders[ours], peer: workloads.Contender(failing)}
    chip = topology.Chip("h100", "cpu", jax.devices(), topology.GPUS["h100"])
    record = command.record_here(dataclasses.replace(case, contenders=contenders), chip, 0.1)
    assert record["contenders"][0]["seconds"] > 0
    assert record["contenders"][1]["error"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert "RuntimeError" in report.table([record])
    contenders = {ours: workloads.Contender(failing), peer: case.contenders[peer]}
    record = command.record_here(dataclasses.replace(case, contenders=contenders), chip, 0.1)
    assert record["contenders"][1]["seconds"] > 0
    assert "no ratio for nll_loss" in report.summary([record])


def test_the_cases_are_listed(monkeypatch, capsys):
    for mesh in ("", "4x4"):
        monkeypatch.setattr(sys, "argv", ["chips", "--list", "--mesh", mesh])
        command.main()
        names = capsys.readouterr().out.splitlines()
        assert len(names) == len(set(names)) == len(command.cases(mesh))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_recorded_results_belong_to_cases(file):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    ((chip, mesh),) = {(record["chip"], record["mesh"]) for record in records}
    assert file.stem == "-".join(filter(None, ("chips", chip, mesh)))
    names = [record["workload"] for record in records]
    known = [case.name for case in command.cases(mesh)]
    assert names == ([name for name in known if name in names] if mesh else known)
    for record in records:
        first, *others = record["contenders"]
        assert first["name"] == "jaxloss"
        for other in others:
            if other["ratio"] is not None:
                assert other["ratio"] * other["cost"] == pytest.approx(first["cost"])


def test_what_was_run_is_in_the_readme():
    records = [json.loads(line) for line in (FOLDER / "here-h100.jsonl").read_text().splitlines()]
    assert [record["workload"] for record in records] == [case.name for case in workloads.CASES]
    assert all(c["seconds"] > 0 for record in records for c in record["contenders"])
    text = (FOLDER.parent / "README.md").read_text()
    assert report.brief(records) in text
    assert report.table(records) in (FOLDER / "here-h100.md").read_text()


def test_the_readme_has_the_recorded_means():
    lines = [line for name in README for line in (FOLDER / name).read_text().splitlines()]
    text = (FOLDER.parent.parent / "README.md").read_text()
    assert report.brief([json.loads(line) for line in lines]) in text


def test_tables_and_a_chart_of_what_was_recorded(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "chart.png"
    given = ["chips", "--read", *map(str, RESULTS), "--plot", str(picture), "mse_loss|, smoothed"]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    shown = capsys.readouterr().out
    assert "| mse_loss" in shown
    assert "| l1_loss" not in shown
    assert re.search(r"v5e: jaxloss costs 0\.\d\d of optax or the plain formula", shown)
    assert matplotlib.image.imread(picture).shape[1] > 800
