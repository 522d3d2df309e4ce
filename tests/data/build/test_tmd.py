from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba.data.build import tmd
from ocp_mamba.data.build.tmd import Codes, codes, dense

any_codes = st.tuples(st.integers(0, 15), st.integers(0, 31), st.integers(0, 63))


def bits_of(domain: int, task: int, modifier: int) -> list[int]:
    return [int(b) for b in f"{domain:04b}{task:05b}{modifier:06b}"]


@given(any_codes)
def test_dense_is_the_projection_of_the_bits(row):
    projection = np.random.default_rng(1337).standard_normal((16, 15)).astype(np.float32)
    wanted = projection.astype(np.float64) @ bits_of(*row)
    if any(row):
        wanted /= np.linalg.norm(wanted)
    found = dense(np.array([row]))
    assert found.shape == (1, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


def test_all_codes_have_different_vectors():
    grid = np.stack(np.meshgrid(range(16), range(32), range(64)), axis=-1).reshape(-1, 3)
    assert len(np.unique(dense(grid).round(5), axis=0)) == 16 * 32 * 64


@pytest.mark.parametrize("row", [(16, 0, 0), (0, 32, 0), (0, 0, 64), (-1, 0, 0)])
def test_codes_outside_their_range(row):
    with pytest.raises(ValueError, match="codes must be from 0 to"):
        dense(np.array([row]))


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"codes \(3,\) found, \(n, 3\) wanted"):
        dense(np.array([1, 2, 3]))


def test_every_lexicographer_file_has_one_domain_and_its_own_modifier():
    listed = [file for files in tmd.DOMAINS.values() for file in files.split()]
    assert sorted(listed) == sorted(tmd.LEXICOGRAPHER_FILES)
    assert len(tmd.DOMAINS) == 16
    assert len(tmd.LEXICOGRAPHER_FILES) == 45
    found = [codes(file, None) for file in tmd.LEXICOGRAPHER_FILES]
    assert [c.modifier for c in found] == list(range(1, 46))
    assert all(0 <= c.domain < 16 for c in found)


def test_every_frame_has_a_named_task():
    for frame in range(1, 36):
        task = codes("verb.motion", "v", [frame]).task
        assert "verb" in tmd.TASKS[task]
        assert task != 8


def test_known_synsets():
    assert codes("noun.animal", "n") == Codes(1, 1, 6)
    assert codes("verb.communication", "v", [2, 26]) == Codes(10, 12, 33)  # says that ...
    assert codes("verb.possession", "v", [8, 15]) == Codes(7, 11, 41)  # gives ... to ...
    assert codes("verb.contact", "v", [2, 8]) == Codes(15, 10, 36)
    assert codes("verb.weather", "v", [3]) == Codes(5, 9, 44)
    assert codes(None, "v") == Codes(0, 8, 0)
    assert codes(None, None) == tmd.UNKNOWN


def test_unknown_names():
    with pytest.raises(ValueError, match=r"lexicographer file 'noun\.zoo' is unknown"):
        codes("noun.zoo", "n")
    with pytest.raises(ValueError, match="part of speech 'x' is unknown"):
        codes("noun.animal", "x")
    with pytest.raises(ValueError, match=r"sentence frames \[36\] are unknown"):
        codes("verb.motion", "v", [36])


def test_the_documentation_shows_these_tables():
    page = Path(__file__).resolve().parents[3] / "docs" / "dataset.md"
    assert tmd.tables_markdown() in page.read_text(encoding="utf-8")
