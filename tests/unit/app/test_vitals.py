"""What a process may use, as control groups of both versions and a bare machine tell it."""

import resource

import pytest

from gateway.app.vitals import Machine

PAGE = resource.getpagesize()


@pytest.fixture
def root(tmp_path):
    """A machine half of whose memory this process has."""
    write(tmp_path, "proc/meminfo", "MemTotal:       100000 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/self/statm", f"9999 {50_000 * 1024 // PAGE} 1 1 0 1 0\n")
    return tmp_path


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def second(root, path, limit, used, cache=0):
    write(root, f"sys/fs/cgroup{path}/memory.max", f"{limit}\n")
    write(root, f"sys/fs/cgroup{path}/memory.current", f"{used}\n")
    write(root, f"sys/fs/cgroup{path}/memory.stat", f"anon 5\ninactive_file {cache}\n")


def test_without_a_control_group_it_is_our_own_memory_against_our_share_of_the_machines(root):
    assert Machine(root=root).vitals().memory == pytest.approx(0.5, abs=0.001)
    assert Machine(2, root=root).vitals().memory == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize("shown", ["0::/\n", "0::/kubepods/pod1\n", "0::/../../elsewhere\n"])
def test_in_a_container_it_is_the_groups_whatever_path_is_shown(root, shown):
    write(root, "proc/self/cgroup", shown)
    second(root, "", 1000, 700)
    assert Machine(root=root).vitals().memory == 0.7


def test_the_tightest_group_counts_and_max_is_no_limit(root):
    write(root, "proc/self/cgroup", "0::/a/b\n")
    second(root, "/a", 1000, 900, cache=0)
    second(root, "/a/b", "max", 100)
    assert Machine(root=root).vitals().memory == 0.9


def test_cache_that_can_be_dropped_is_no_use(root):
    write(root, "proc/self/cgroup", "0::/a\n")
    second(root, "/a", 1000, 990, cache=600)
    assert Machine(root=root).vitals().memory == 0.39


def test_version_one_has_other_files(root):
    write(root, "proc/self/cgroup", "3:cpu:/x\n4:memory:/docker/c1\n0::/\n")
    folder = "sys/fs/cgroup/memory"  # what a container is shown of /docker/c1
    write(root, f"{folder}/memory.limit_in_bytes", "2000\n")
    write(root, f"{folder}/memory.usage_in_bytes", "1900\n")
    write(root, f"{folder}/memory.stat", "inactive_file 1\ntotal_inactive_file 900\n")
    assert Machine(root=root).vitals().memory == 0.5
    write(root, f"{folder}/memory.limit_in_bytes", "9223372036854771712\n")
    assert Machine(root=root).vitals().memory == pytest.approx(0.5, abs=0.001)  # the machine's


def test_a_limit_that_is_raised_while_we_run_counts(root):
    write(root, "proc/self/cgroup", "0::/a\n")
    second(root, "/a", 1000, 800)
    machine = Machine(root=root)
    second(root, "/a", 2000, 800)
    assert machine.vitals().memory == 0.4


def test_a_system_that_tells_nothing_sheds_nobody(tmp_path):
    machine = Machine(root=tmp_path)
    assert (machine.vitals().memory, machine.vitals().files) == (0.0, 0.0)


def test_open_files_are_counted_against_the_limit(tmp_path):
    before = Machine().vitals().files
    assert 0 < before < 1
    opened = [(tmp_path / str(n)).open("w") for n in range(20)]
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Machine().vitals().files >= before + 20 / soft - 0.5 / soft
    for one in opened:
        one.close()
