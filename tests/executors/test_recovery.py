"""What is done about failures: the policy by itself, without a cluster."""

import pytest

from flowgrad.errors import ClusterError, FeedError
from flowgrad.scheduler.executors import LocalExecutor, Lost, recovery
from flowgrad.scheduler.executors.base import TaskFailed
from flowgrad.scheduler.executors.recovery import Recovery


def failed(worker, error=None):
    return TaskFailed(error or OSError("disk full"), worker)


def test_lost_values_are_asked_for_again_with_growing_pauses():
    policy = Recovery()
    pauses = [policy.judge(Lost("gone"), 2) for _ in range(8)]
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.1
    assert pauses[-1] == recovery.LONGEST_PAUSE
    policy.progress()
    assert policy.judge(Lost("gone"), 2) == pauses[0]


def test_a_run_whose_workers_never_last_a_step_ends():
    policy = Recovery()
    for _ in range(recovery.MAX_LOSSES):
        policy.judge(Lost("gone"), 2)
    with pytest.raises(ClusterError, match="31 times"):
        policy.judge(Lost("gone"), 2)


def test_a_task_that_workers_die_of_ends_the_run():
    policy = Recovery()
    for _ in range(recovery.MAX_KILLS):
        policy.judge(Lost("died", killed="gradient-12"), 2)
    with pytest.raises(ClusterError, match=r"while they ran gradient-12: .*memory"):
        policy.judge(Lost("died", killed="gradient-12"), 2)


def test_a_task_that_is_lost_with_its_worker_every_time_ends_the_run():
    policy = Recovery()
    for _ in range(recovery.MAX_DEATHS):
        policy.judge(Lost("gone", task="evaluate-12"), 2)
    policy.judge(Lost("values were lost on their way"), 2)
    with pytest.raises(ClusterError, match=r"while they ran evaluate-12: .*memory"):
        policy.judge(Lost("gone", task="evaluate-12"), 2)


def test_who_waits_for_workers_in_vain_is_told_why_they_were_needed():
    class Two(LocalExecutor):
        left = 2

        def workers(self, avoid=()):
            self.left -= 1
            if self.left < 0:
                raise ClusterError("no worker has been there for 60 s")
            return super().workers(avoid)

    def work(*failures):
        failing = iter(failures)
        Recovery().persist(lambda: (_ for _ in ()).throw(next(failing)), Two(threads=False), lambda failure: None)

    lost, sent = Lost("gone", task="evaluate-12"), Lost("a worker went away while values were sent to it")
    with pytest.raises(ClusterError, match=r"died .* while they ran evaluate-12: .*, and no worker has been there"):
        work(lost, sent, sent)
    with pytest.raises(ClusterError, match=r"^a worker went away while .*, and no worker has been there"):
        work(sent, sent, sent)


def test_a_worker_on_which_a_task_raises_is_avoided():
    policy = Recovery()
    policy.judge(failed("a"), 3)
    assert policy.avoid == {"a"}
    policy.progress()
    policy.judge(failed("b"), 2)
    assert policy.avoid == {"a", "b"}


def test_what_raises_on_two_workers_ends_the_run_with_the_first_exception():
    policy, first = Recovery(), OSError("first")
    policy.judge(failed("a", first), 3)
    with pytest.raises(OSError, match="first") as caught:
        policy.judge(failed("b", OSError("second")), 2)
    assert caught.value is first


def test_the_same_worker_again_is_no_proof():
    policy = Recovery()
    for _ in range(recovery.MAX_FAILURES - 1):
        policy.judge(failed("a"), 3)
    with pytest.raises(OSError, match="disk full"):
        policy.judge(failed("a"), 3)


@pytest.mark.parametrize(
    "failure", [(failed("a"), 1), (failed(""), 3), (failed("a", FeedError("sample 3 holds nan")), 3)]
)
def test_what_another_worker_cannot_mend_ends_the_run_at_once(failure):
    with pytest.raises((OSError, FeedError)):
        Recovery().judge(*failure)
