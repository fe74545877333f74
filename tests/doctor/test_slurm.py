"""What Slurm has against what is asked of it; ``sinfo`` and ``sacctmgr`` are scripts in the real ones' words."""

import re
from pathlib import Path

import pytest

from tests.doctor.conftest import context
from tsd.doctor.cluster import gpus_of, minutes

A100 = "gpu|up|2-00:00:00|4|mixed|128|1000000|a100,ib|gpu:a100:8(S:0-1)"
DOWN = "gpu|up|2-00:00:00|4|down*|128|1000000|a100,ib|gpu:a100:8(S:0-1)"
CPU = "cpu*|up|infinite|100|idle|64|250000|(null)|(null)"
ASSOC = "echo lab; echo lab; echo other"
NO_ACCOUNTING = (
    "echo 'You are not running a supported accounting_storage plugin' >&2; "
    "echo \"Only 'accounting_storage/slurmdbd' is supported.\" >&2; exit 1"
)


@pytest.fixture
def cluster(project, program):
    """A cluster with those groups of nodes, and a profile that asks for its partition ``gpu``."""

    def build(*groups, accounts=ASSOC):
        program("sinfo", "cat <<'END'\n" + "\n".join(groups) + "\nEND")
        program("sacctmgr", accounts)
        profile("slurm_partition: gpu")

    return build


def profile(*resources, more=""):
    lines = "".join(f"  {line}\n" for line in resources)
    Path("slurm/profile.yaml").write_text(f"executor: slurm\ndefault-resources:\n  mem_mb: 8000\n{lines}{more}\n")


def training(**changes):
    return context("tiny", **({"gpu": 16, "nodes": 2, "threads": 32, "mem_mb": 200000, "runtime": 2880} | changes))


def partition(answer):
    """The line of the partition; the other one is the account's."""
    found = [line for line in answer.lines if line.name == "Slurm"]
    assert len(found) == 1, answer.lines
    assert bool(found[0].remedy) == (found[0].state != "ok")
    assert answer.status == int(found[0].state == "error")
    return found[0]


def test_where_there_is_no_slurm_it_is_said(examined, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examined("Slurm", context()).only("ok").finding == "no Slurm here"


def test_a_cluster_that_has_what_is_asked(examined, cluster):
    cluster(CPU, A100)
    line = partition(examined("Slurm", training()))
    assert line.state == "ok"
    assert (
        "partition gpu is up; 4 nodes have the 8 GPUs, 32 CPUs and 200000 MB that a training asks of 2" in line.finding
    )
    assert "time limit 2880 minutes, 2880 asked for" in line.finding


def test_the_projects_own_profile_has_no_partition_and_says_where(examined, program, project):
    program("sinfo", f"echo '{CPU}'")
    program("sacctmgr", ASSOC)
    warning, found, account = examined("Slurm", context()).lines
    number = int(re.search(r"slurm/profile.yaml: line (\d+): slurm_partition is not set", warning.finding)[1])
    assert "slurm_partition" in Path("slurm/profile.yaml").read_text().splitlines()[number - 1]
    assert warning.state == "warning"
    assert "Slurm's default, cpu, is taken" in warning.finding
    assert (found.state, account.state) == ("ok", "ok")
    assert "no time limit" in found.finding


def test_no_partition_and_no_default_is_an_error(examined, cluster):
    cluster(A100)
    profile()
    assert "Slurm has no default" in partition(examined("Slurm", training())).finding


def test_a_partition_that_is_not_there(examined, cluster):
    cluster(CPU)
    line = partition(examined("Slurm", training()))
    assert line.state == "error"
    assert line.finding == "no partition gpu; there are: cpu"
    assert "slurm/profile.yaml" in line.remedy


def test_a_partition_that_is_down(examined, cluster):
    cluster(A100.replace("|up|", "|down|"))
    assert partition(examined("Slurm", training())).finding == "partition gpu is not up"


@pytest.mark.parametrize(
    ("group", "lacking"),
    [
        (A100.replace("a100:8", "a100:4"), "8 GPUs: it has 4 × (4 a100"),
        (A100.replace("|128|", "|16|"), "32 CPUs"),
        (A100.replace("1000000", "128000"), "200000 MB of memory"),
        (A100.replace("|4|", "|1|"), "has not 2 nodes: it has 1 × (8 a100"),
        ("gpu|up|infinite|8|idle|64|250000|(null)|(null)", "8 GPUs: it has 8 × (no GPU"),
    ],
)
def test_nodes_that_have_too_little(examined, cluster, group, lacking):
    cluster(group)
    line = partition(examined("Slurm", training()))
    assert line.state == "error"
    assert lacking in line.finding
    assert "params/suites/tiny.yaml" in line.remedy


def test_the_kind_of_gpu_and_the_feature_that_the_profile_names(examined, cluster):
    cluster(A100)
    profile("slurm_partition: gpu", "gpu_model: h100")
    assert "8 GPUs of type h100" in partition(examined("Slurm", training())).finding
    profile("slurm_partition: gpu", "constraint: h100")
    assert "the feature h100" in partition(examined("Slurm", training())).finding
    profile("slurm_partition: gpu", "gpu_model: a100", "constraint: ib")
    assert partition(examined("Slurm", training())).state == "ok"


def test_gres_of_the_training_rule_goes_before_the_suites_number(examined, cluster):
    cluster(A100.replace("a100:8", "a100:4"))
    more = 'set-resources:\n  train_detector:\n    gpu: 0\n    gres: "gpu:a100:4"'
    profile("slurm_partition: gpu", more=more)
    assert partition(examined("Slurm", training())).state == "ok"


def test_one_of_several_partitions_will_do(examined, cluster):
    small = A100.replace("gpu|", "gpu2|", 1).replace("a100:8", "a100:4")
    cluster(A100, small)
    profile("slurm_partition: gpu2,gpu")
    assert partition(examined("Slurm", training())).finding.startswith("partition gpu is up")
    cluster(small, CPU)
    profile("slurm_partition: gpu2,cpu")
    line = partition(examined("Slurm", training()))
    assert line.state == "error"
    assert "partition gpu2 has not" in line.finding
    assert "partition cpu has not" in line.finding
    profile("slurm_partition: cpu,nope")
    assert partition(examined("Slurm", training())).finding == "no partition nope; there are: gpu2, cpu"


@pytest.mark.parametrize("text", ["a: [", "- a", "\x00"])
def test_a_broken_profile_is_to_be_mended(examined, cluster, text):
    cluster(A100)
    Path("slurm/profile.yaml").write_text(text)
    line = examined("Slurm", training()).only("error")
    assert "slurm/profile.yaml" in line.finding
    assert line.remedy == "Mend that file, or take the repository's: `git checkout HEAD slurm/profile.yaml`."


def test_garbage_of_slurms_programs_is_shown(examined, cluster, program):
    cluster(A100.replace("|4|", "|four|"))
    assert "sinfo printed 'gpu|up|2-00:00:00|four" in examined("Slurm", training()).only("error").finding
    program("sinfo", "printf '\\377\\376\\n'")
    assert "sinfo printed" in examined("Slurm", training()).only("error").finding
    cluster(A100, accounts="printf 'lab\\n\\377\\n'")
    assert account(examined("Slurm", training())).state == "ok"


def test_a_time_limit_below_what_a_training_asks(examined, cluster):
    cluster(A100.replace("2-00:00:00", "1-00:00:00"))
    line = partition(examined("Slurm", training()))
    assert line.state == "error"
    assert "ends jobs after 1440 minutes, and a training asks for 2880" in line.finding
    assert "`runtime: 1440` of resources in params/suites/tiny.yaml" in line.remedy


def test_nodes_that_are_out_of_use_are_a_warning(examined, cluster):
    cluster(DOWN, A100.replace("|4|mixed", "|1|idle"))
    line = partition(examined("Slurm", training()))
    assert line.state == "warning"
    assert "only 1 of the 2 nodes" in line.finding


def test_a_controller_that_does_not_answer(examined, cluster, program):
    cluster(A100)
    program("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    line = examined("Slurm", training()).only("error")
    assert "Unable to contact slurm controller" in line.finding
    assert "`scontrol ping`" in line.remedy
    examined("Slurm", context()).only("warning")  # a suite without GPUs may well run here
    examined("Slurm", context("tiny", gpu=1)).only("warning")  # and one that asks for one, too


def test_a_controller_that_hangs_costs_seconds(examined, cluster, program, monkeypatch):
    monkeypatch.setattr("tsd.doctor.checks.PATIENCE", 0.5)
    cluster(A100)
    program("sinfo", "exec sleep 30")
    assert "sinfo did not answer within 0.5 s" in examined("Slurm", training()).only("error").finding


def account(answer):
    found = [line for line in answer.lines if line.name == "Slurm account"]
    assert len(found) == 1, answer.lines
    return found[0]


def test_an_account_of_ones_own_and_one_that_is_not(examined, cluster):
    cluster(A100)
    assert account(examined("Slurm", training())).finding == "your default one; yours are: lab, other"
    profile("slurm_partition: gpu", "slurm_account: lab")
    assert account(examined("Slurm", training())).finding == "lab is yours"
    profile("slurm_partition: gpu", "slurm_account: my_account")
    answer = examined("Slurm", training())
    assert answer.status == 1
    line = account(answer)
    assert line.state == "error"
    assert line.finding == "slurm/profile.yaml: line 5: my_account is not among yours: lab, other"
    assert "sacctmgr show assoc" in line.remedy


def test_a_cluster_without_accounting_would_make_snakemake_wait(examined, cluster):
    cluster(A100, accounts=NO_ACCOUNTING)
    line = account(examined("Slurm", training()))
    assert line.state == "warning"
    assert "not running a supported accounting_storage plugin" in line.finding
    assert "`slurm-status-command: squeue`" in line.remedy
    profile("slurm_partition: gpu", more="slurm-status-command: squeue")
    assert account(examined("Slurm", training())).state == "ok"
    profile("slurm_partition: gpu", "slurm_account: lab", more="slurm-status-command: squeue")
    line = account(examined("Slurm", training()))
    assert line.state == "warning"
    assert "account lab could not be looked up" in line.finding


def test_resources_of_a_profile_may_be_a_list(examined, cluster):
    cluster(A100)
    Path("slurm/profile.yaml").write_text('default-resources: ["slurm_partition=gpu", "mem_mb=8000"]\n')
    assert partition(examined("Slurm", training())).state == "ok"


def test_how_slurm_writes_time_and_gpus():
    assert minutes("2-00:00:00") == 2880
    assert minutes("12:30:00") == 750
    assert minutes("30:00") == 30
    assert minutes("infinite") == float("inf")
    assert gpus_of("gpu:8") == {"": 8}
    assert gpus_of("gpu:a100:4(S:0-1),gpu:v100:2(S:1),fs:1") == {"a100": 4, "v100": 2}
    assert gpus_of("gpu:1g.5gb:7") == {"1g.5gb": 7}
    assert gpus_of("(null)") == {}
