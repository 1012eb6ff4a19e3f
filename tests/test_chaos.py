"""Short versions of tests/chaos.py: a run that was killed, stopped, or met a failing disk equals one that was not."""

from __future__ import annotations

import random
import signal

import pytest
from chaos import STOPPED_IN, boundaries, commit_boundaries, failing_operations, orphans, random_kills, stops
from forge import Forge
from lab import SLOW, Figures, Lab, lasting, one_training, quickstart, scripted, smallest


@pytest.fixture(scope="module")
def forge():
    return Forge()


@pytest.fixture(scope="module")
def small(tmp_path_factory, forge) -> Lab:
    return smallest(tmp_path_factory.mktemp("small"), forge)


def sample(numbers: range, count: int) -> list[int]:
    return sorted(random.Random(0).sample(numbers, count))


def test_a_run_that_is_killed_again_and_again_equals_one_that_never_was(tmp_path, forge):
    figures = random_kills(scripted(tmp_path, forge, SLOW), 5, 0, Figures("random kills"))
    assert figures.faults.total() == 5
    assert figures.good, figures


def test_a_run_that_is_killed_at_a_commit_equals_one_that_never_was(small):
    figures = commit_boundaries(small, sample(boundaries(small), 4), Figures("boundaries"))
    assert figures.faults.total() == 8
    assert figures.good, figures


def test_a_disk_that_fails_ends_the_command_by_name_and_costs_nothing_that_was_finished(small):
    numbers = range(1, 1 + len(small.operations))
    figures = failing_operations(small, sample(numbers, 12), 0, Figures("failing operations"))
    assert figures.ends["exit status 74"] > 6
    assert figures.good, figures


def test_a_run_with_vllm_that_is_killed_equals_one_that_never_was(tmp_path, forge):
    figures = random_kills(quickstart(tmp_path, forge, "iterations=1"), 2, 0, Figures("random kills"))
    assert figures.faults.total() == 2
    assert figures.good, figures


def test_a_run_that_is_asked_to_stop_keeps_what_was_finished_and_goes_on_from_there(tmp_path, forge):
    folders = [folder for folder in STOPPED_IN if folder.startswith("iter_1")]
    figures = stops(lasting(tmp_path, forge), folders[:2], [signal.SIGTERM, signal.SIGINT], Figures("stops"))
    assert figures.good, figures


def test_a_training_in_a_process_of_its_own_ends_with_its_parent(tmp_path, forge):
    figures = orphans(one_training(tmp_path, forge), [signal.SIGTERM, signal.SIGKILL], Figures("orphans"))
    assert figures.good, figures
