"""Balancers as files: bit for bit, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import ArgumentError, Balancer, EquipoiseError, FileAccessError, FormatError, Robust, Topology


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    balancer = Balancer(Topology(2, 3), 1, 4)
    balancer.commit(eq.contiguous_placement(1, 4, 2, 6))
    balancer.observe([[8, 4, 2, 2]])
    path = tmp_path_factory.mktemp("saved") / "balancer.safetensors"
    balancer.save(path)
    return path


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_is_refused(saved, tmp_path_factory, place, bit, cut):
    data = bytearray(saved.read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "balancer.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        Balancer.restore(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_named_for_what_they_are(tmp_path):
    eq.save_trace(eq.LoadTrace([[[1, 2]]]), tmp_path / "trace.safetensors")
    with pytest.raises(FormatError, match="kind 'load'"):
        Balancer.restore(tmp_path / "trace.safetensors")
    with pytest.raises(FileAccessError):
        Balancer.restore(tmp_path / "missing.safetensors")
    with pytest.raises(EquipoiseError):
        Balancer.restore(tmp_path)


def test_settings_of_a_policy_are_not_lost_in_silence(tmp_path):
    path = tmp_path / "balancer.safetensors"
    policy = Robust(groups="global", min_gain=0.5)
    Balancer(Topology(2, 3), 1, 4, policy=policy).save(path)
    with pytest.raises(ArgumentError, match=r"Robust\(groups='global'.*policy="):
        Balancer.restore(path)
    assert Balancer.restore(path, policy=policy).policy == policy


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    path = tmp_path / "balancer.safetensors"
    Balancer(Topology(2, 3), 1, 4, max_moves=np.float32(0.25), seed=np.int64(7)).save(path)
    again = Balancer.restore(path)
    assert (again.max_moves, again.seed) == (0.25, 7)


def test_a_full_folder_is_one_line(tmp_path):
    with pytest.raises(FileAccessError, match="does not exist"):
        Balancer(Topology(2, 3), 1, 4).save(tmp_path / "no" / "balancer.safetensors")
