"""Forked gloo ranks that stay and answer one question after the other, so that Hypothesis can ask them many."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Failure(str):
    """The traceback of a rank."""


LIMIT = 60.0  # seconds that an answer may take


def serve(rank: int, num_ranks: int, meeting: Path, answer: Callable[..., Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=LIMIT),
    )
    while (question := pipe.recv()) is not None:
        try:
            pipe.send(answer(rank, *question))
        except BaseException:
            pipe.send(Failure(traceback.format_exc()))
    os._exit(0)


class Ranks:
    """``num_ranks`` processes; each calls ``answer(rank, *question)`` for every question."""

    def __init__(self, num_ranks: int, folder: Path, answer: Callable[..., Any]) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        context = multiprocessing.get_context("fork")
        self.pipes, self.processes = [], []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            arguments = (rank, num_ranks, folder / f"meeting{num_ranks}", answer, theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, *question: Any) -> list[Any]:
        """The answers of all ranks, in their order."""
        for pipe in self.pipes:
            pipe.send(question)
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(LIMIT), "a rank does not answer"
            answers.append(pipe.recv())
        failures = [
            f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if isinstance(answer, Failure)
        ]
        assert not failures, "\n".join(failures)
        return answers

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(5)
            process.kill()
