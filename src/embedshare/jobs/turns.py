"""Chooses the job of the next part, so that a long job does not keep other callers waiting. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from embedshare.jobs.spec import JobSpec


def next_job(waiting: Collection[JobSpec], turns: Mapping[str, int]) -> JobSpec | None:
    """The oldest job of the owner whose last turn was longest ago; None if none waits.

    `turns`: the number of each owner's last part, which grows from part to part.
    """
    return min(waiting, key=lambda job: (turns.get(job.owner, -1), job.created, job.id), default=None)
