"""When a running process counts as hung, and when it has been silent for too long."""

from __future__ import annotations

import pytest

from embedshare.supervise.liveness import ANSWER_S, ASK_EVERY_S, HUNG_S, SLACK_S, Liveness

#: The time that one unanswered probe takes.
MISS_S = ASK_EVERY_S + ANSWER_S


def test_silence_is_told_after_two_questions_and_ends_after_too_many() -> None:
    known, seen = Liveness(stuck_s=60.0), []
    for _ in range(int(60 / MISS_S)):
        known.note(False, ANSWER_S)
        seen.append((known.is_hung, known.is_stuck))
    assert seen[0] == (False, False)
    assert seen[1] == (True, False)
    assert seen[-2] == (True, False)
    assert seen[-1] == (True, True)
    assert known.silent_s == pytest.approx(60.0)


def test_one_answer_makes_it_well() -> None:
    known = Liveness(stuck_s=60.0)
    for _ in range(15):
        known.note(False, ANSWER_S)
    known.note(True, 1.9)
    assert (known.silent_s, known.is_hung) == (0.0, False)


def test_a_question_that_is_refused_at_once_counts_as_the_time_between_two() -> None:
    known = Liveness(stuck_s=60.0)
    for _ in range(5):
        known.note(False, 0.0)
    assert known.silent_s == pytest.approx(5 * ASK_EVERY_S)


@pytest.mark.parametrize("away_s", [ANSWER_S + SLACK_S + 0.01, 3600.0, 1e6])
def test_time_in_which_the_asking_process_was_stopped_does_not_count(away_s: float) -> None:
    known = Liveness(stuck_s=60.0)
    for _ in range(1000):  # a laptop that is suspended repeatedly
        known.note(False, away_s)
    assert not known.is_hung


def test_no_setting_kills_what_has_missed_a_single_question() -> None:
    known = Liveness(stuck_s=1.0)
    known.note(False, ANSWER_S)
    assert not known.is_stuck
    known.note(False, ANSWER_S)
    assert known.is_stuck
    assert known.silent_s >= HUNG_S
