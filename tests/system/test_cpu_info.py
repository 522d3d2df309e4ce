from __future__ import annotations

import os

import pytest

from ocp_mamba.system.cpu_info import CORE_TYPE, NEEDED, widen_openblas


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setenv(CORE_TYPE, "")  # so that it is put back
    monkeypatch.delenv(CORE_TYPE)

    def write(vendor: str, flags: set[str]):
        path = tmp_path / "cpuinfo"
        path.write_text(
            f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {' '.join(flags)}\n\n" * 2
        )
        return path

    return write


def told() -> str | None:
    return os.environ.get(CORE_TYPE)


def test_amd_with_avx512_is_told(cpuinfo):
    widen_openblas(cpuinfo("AuthenticAMD", NEEDED | {"avx2"}))
    assert told() == "SkylakeX"


@pytest.mark.parametrize(
    ("vendor", "flags"), [("AuthenticAMD", {"avx2"}), ("GenuineIntel", NEEDED), ("", set())]
)
def test_others_find_out_by_themselves(cpuinfo, vendor, flags):
    widen_openblas(cpuinfo(vendor, flags))
    assert told() is None


def test_what_the_environment_says_stays(cpuinfo, monkeypatch):
    monkeypatch.setenv(CORE_TYPE, "Zen")
    widen_openblas(cpuinfo("AuthenticAMD", NEEDED))
    assert told() == "Zen"


def test_a_system_without_cpuinfo_is_left_alone(cpuinfo, tmp_path):
    widen_openblas(tmp_path / "none")
    assert told() is None
