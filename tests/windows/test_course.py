"""The course of windows, without any worker: what happened goes in, what to do comes out."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrad.errors import ClusterError, FeedError
from flowgrad.scheduler.executors import Lost, TaskFailed
from flowgrad.scheduler.feeds.order import Batches, Epoch
from flowgrad.scheduler.windows.course import (
    Asked,
    Await,
    Course,
    Done,
    Ended,
    Failed,
    Fetch,
    Man,
    Manned,
    Place,
    Recover,
    Release,
    Report,
    Submit,
)


def steps_of(first, stop, epoch=1):
    return Batches(Epoch(10_000, 10, True, 5, epoch), first, stop, 4)


def names(instructions):
    return [type(i).__name__ for i in instructions]


def test_a_window_is_submitted_ahead_and_reported_piece_by_piece():
    course, window = Course(most=100, ahead=2), steps_of(0, 10)
    assert course.handle(Asked(window)) == [Man(frozenset())]
    assert course.handle(Manned("crew", 2, False)) == [
        Release(),
        Place(),
        Submit(window[0:2], False),
        Submit(window[2:4], False),
        Submit(window[4:6], False),
        Await(),
    ]
    assert course.handle(Done([0.5, 0.4])) == [Report(window[0:2], [0.5, 0.4]), Submit(window[6:8], False), Await()]
    assert course.handle(Done([0.3, 0.2]))[1:] == [Submit(window[8:10], True), Await()]
    course.handle(Done([0, 0]))
    assert course.handle(Done([0, 0]))[1:] == [Fetch()]
    assert course.handle(Ended([0.1, 0.1])) == [Report(window[8:10], [0.1, 0.1])]


def test_a_gang_has_one_piece_under_way():
    course, window = Course(most=100, ahead=0), steps_of(0, 5)
    course.handle(Asked(window))
    assert course.handle(Manned("crew", 3, False))[2:] == [Submit(window[0:3], False), Await()]
    assert course.handle(Done([0, 0, 0]))[1:] == [Submit(window[3:5], True), Fetch()]


@pytest.mark.parametrize(
    ("crew", "there", "goes_on"), [("crew", True, True), ("crew", False, False), ("others", True, False)]
)
def test_the_next_window_goes_on_where_the_state_is(crew, there, goes_on):
    course = Course(most=100, ahead=2)
    for window, found, there_now in ((steps_of(0, 10), "crew", False), (steps_of(0, 10, epoch=2), crew, there)):
        course.handle(Asked(window))
        begun = course.handle(Manned(found, 10, there_now))
        assert course.handle(Ended([0.0] * 10)) == [Report(window, [0.0] * 10)]
    assert begun == [*([] if goes_on else [Release(), Place()]), Submit(window, True), Fetch()]
    assert course.since == (20 if goes_on else 10)


def test_no_more_steps_than_the_bound_follow_from_one_state():
    course, placed = Course(most=25, ahead=2), []
    for epoch in range(1, 6):
        course.handle(Asked(steps_of(0, 10, epoch)))
        placed.append(Place() in course.handle(Manned("crew", 10, True)))
        course.handle(Ended([0.0] * 10))
        assert course.since <= 25
    assert placed == [True, False, True, False, True]


def test_after_a_loss_the_window_begins_anew_and_tells_nothing_twice():
    course, window = Course(most=100, ahead=1), steps_of(0, 6)
    course.handle(Asked(window))
    course.handle(Manned("crew", 2, False))
    course.handle(Done([1, 2]))
    release, recover, man = course.handle(Failed(Lost("a worker is gone"), 1))
    assert (release, man) == (Release(), Man(frozenset()))
    assert recover == Recover(2, "a worker is gone", recover.pause)
    assert recover.pause > 0
    # Of another size: the same steps, in other pieces; the crew is the same again, its state is not.
    assert course.handle(Manned("crew", 3, True))[:3] == [Release(), Place(), Submit(window[0:3], False)]
    assert course.handle(Done([1, 2, 3]))[0] == Report(window[2:3], [3])


def test_a_worker_on_which_a_task_raised_is_avoided_and_a_second_one_ends_it():
    course = Course(most=100, ahead=1)
    course.handle(Asked(steps_of(0, 4)))
    course.handle(Manned("crew", 2, False))
    error = ValueError("no")
    assert course.handle(Failed(TaskFailed(error, "a"), 2))[-1] == Man(frozenset({"a"}))
    course.handle(Manned("other", 2, False))
    with pytest.raises(ValueError, match="no"):
        course.handle(Failed(TaskFailed(error, "b"), 2))


def test_bad_feeds_are_not_tried_again():
    course = Course(most=100, ahead=1)
    course.handle(Asked(steps_of(0, 4)))
    course.handle(Manned("crew", 2, False))
    with pytest.raises(FeedError):
        course.handle(Failed(TaskFailed(FeedError("bad"), "a"), 2))


def test_losses_without_a_step_in_between_end_it():
    course = Course(most=100, ahead=1)
    course.handle(Asked(steps_of(0, 4)))
    for _ in range(30):
        course.handle(Manned("crew", 2, False))
        course.handle(Failed(Lost("gone"), 1))
    with pytest.raises(ClusterError, match="went away 31 times"):
        course.handle(Failed(Lost("gone"), 1))


class Workers:
    """Does what it is told, in a list; what goes wrong is drawn. Checks that what it is told makes sense."""

    def __init__(self, draw):
        self.draw, self.state, self.placed, self.sent, self.reported = draw, 0, None, deque(), []
        self.crew = 0
        self.losses = 0

    def do(self, instruction):
        if isinstance(instruction, (Man, Await, Fetch)) and self.losses < 20 and self.draw(st.integers(0, 9)) == 0:
            self.losses += 1
            return Failed(Lost("gone"), 1)
        match instruction:
            case Man():
                self.crew += self.draw(st.booleans())
                there = self.placed is not None and self.draw(st.booleans())
                return Manned(self.crew, self.draw(st.integers(1, 7)), there)
            case Release():
                self.placed = None
                self.sent.clear()
            case Place():
                assert self.placed is None
                assert not self.sent
                self.placed = self.state
            case Submit(piece, _):
                assert self.placed is not None
                assert piece.first == self.placed % STEPS  # each step on the state after the one before
                self.placed += len(piece)
                self.sent.append(instruction)
            case Await():
                sent = self.sent.popleft()
                assert not sent.last
                piece = sent.batches
                return Done(list(range(piece.first, piece.stop)))
            case Fetch():
                sent = self.sent.popleft()
                assert sent.last
                piece = sent.batches
                assert not self.sent
                self.state = self.placed
                return Ended(list(range(piece.first, piece.stop)))
            case Report(piece, losses):
                assert list(losses) == list(range(piece.first, piece.stop))
                self.reported += losses
        return None


STEPS = 23


@given(st.data(), st.integers(1, 30), st.integers(0, 3), st.integers(1, STEPS))
def test_whatever_happens_each_step_is_done_on_the_one_before_and_told_once(data, most, ahead, size):
    course, workers = Course(most, ahead), Workers(data.draw)
    for epoch in (1, 2):
        for first in range(0, STEPS, size):
            todo = deque(course.handle(Asked(steps_of(first, min(first + size, STEPS), epoch))))
            while todo:
                event = workers.do(todo.popleft())
                if isinstance(event, Failed):
                    todo.clear()
                if event is not None:
                    todo += course.handle(event)
            assert len(workers.sent) == 0
            assert course.since <= max(most, size)
    assert workers.reported == 2 * list(range(STEPS))
    assert workers.state == 2 * STEPS
