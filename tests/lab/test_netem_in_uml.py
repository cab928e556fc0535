"""Netem and the relay agree on a kernel that has netem, though this machine's own may have none.

Debian's User Mode Linux has sch_netem and veth as modules. It boots with this machine's files as its root, read-only,
and runs the tests of test_netem.py inside, in network namespaces of its own. What runs there has a slow processor and
the same clock: those tests compare counts, shares and medians.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.experiment.capabilities import missing
from testbed.hosts.kernel.catalogue import images
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.uml import memory_directory
from testbed.hosts.server_program import OWN_PIDS
from tests.hosts.kernel.booting import boot
from tests.lab import test_netem

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

AGREEMENTS = sorted(
    name
    for name, test in inspect.getmembers(test_netem, inspect.isfunction)
    if name.startswith("test_") and "netem" in inspect.signature(test).parameters
)
MODULES = ("kernel/drivers/net/veth.ko", "kernel/net/sched/sch_netem.ko")
RESULTS = "results.xml"
MEMORY = 512 << 20
SECONDS = 240
ROOT = Path(__file__).parents[2]
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /dev/shm /run/results
mount -t tmpfs shm /dev/shm
mount -t hostfs results /run/results -o {results}
export HOME=/run TMPDIR=/run HYPOTHESIS_STORAGE_DIRECTORY=/run/hypothesis PYTHONDONTWRITEBYTECODE=1
cd {root}
{python} -m tests.lab.load_modules {modules}
{python} -m pytest -p no:cacheprovider --junitxml=/run/results/{junit} {tests}
echo o >/proc/sysrq-trigger
sleep 60
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What came of each test in the guest: why it did not pass, for each of its parameters that did not."""
    if missing("netem") is None:
        pytest.skip("this kernel has sch_netem: test_netem.py has run here")
    image = next((image for image in images() if has_modules(image)), None)
    if image is None:
        pytest.skip("needs netem: neither this kernel nor a User Mode Linux has sch_netem: apt install user-mode-linux")
    directory = tmp_path_factory.mktemp("guest")
    said = run_agreements(image, directory)
    assert (directory / RESULTS).exists(), said
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(directory / RESULTS).iter("testcase"):
        why = [f"{case.get('name')} {each.tag}: {each.get('message')}" for each in case if each.get("message")]
        found.setdefault(case.get("name", "").partition("[")[0], []).extend(why)
    return found


def has_modules(image: KernelImage) -> bool:
    return image.modules is not None and all((image.modules / each).exists() for each in MODULES)


def run_agreements(image: KernelImage, directory: Path) -> str:
    """What a guest prints that runs the tests and leaves their results in `directory`."""
    assert image.modules is not None
    init = directory / "init"
    init.write_text(
        INIT.format(
            results=directory,
            root=ROOT,
            python=sys.executable,
            modules=" ".join(str(image.modules / each) for each in MODULES),
            junit=RESULTS,
            tests=" ".join(f"tests/lab/test_netem.py::{name}" for name in AGREEMENTS),
        )
    )
    init.chmod(0o755)
    words = [f"mem={MEMORY >> 20}M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "panic=-1"]
    return boot([*OWN_PIDS, image.path, *words], directory, memory=memory_directory(MEMORY), seconds=SECONDS)


@pytest.mark.parametrize("name", AGREEMENTS)
def test_on_a_kernel_that_has_netem(outcomes: dict[str, list[str]], name: str) -> None:
    assert outcomes[name] == []
