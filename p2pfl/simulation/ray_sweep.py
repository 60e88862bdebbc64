"""The runs of a sweep as tasks on Ray: one task a run, each on one core of the cluster."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from p2pfl.simulation.ray_cluster import cluster

_Job = TypeVar("_Job")
_Outcome = TypeVar("_Outcome")


def run_on_ray(
    jobs: Sequence[_Job],
    run_job: Callable[[_Job], _Outcome],
    address: str | None,
    done: Callable[[_Job, _Outcome], None],
    cpus: int = 0,
) -> None:
    """Run every job, as many at once as the cluster has cores, and hand over each outcome as it comes.

    An error or Ctrl-C breaks off what is under way and takes back the rest; what was handed over stays.

    Args:
        jobs: in the order in which they are begun; each must be able to travel.
        run_job: called on a node of the cluster, in a process of its own; its files are that node's.
        address: of a cluster; None starts one here.
        done: called here, in the order in which jobs end.
        cpus: jobs at once where the cluster is started here; 0 for one a core.

    Raises:
        UsageError: Ray is not installed.
        NetworkError: the cluster was lost, or a job failed with an error that is none of ours.
        P2pflError: what a job raised.
    """
    with cluster(address, cpus) as ray:
        task = ray.remote(num_cpus=1, max_retries=0)(_alone)
        under_way = {task.remote(run_job, job): job for job in jobs}
        try:
            while under_way:
                (ended, *_), _ = ray.wait(list(under_way), num_returns=1)
                job = under_way.pop(ended)
                done(job, ray.get(ended))
        finally:
            for waiting in under_way:
                # Not by force: Ray 2.60 ends this process where that meets a task that just ended.
                ray.cancel(waiting)


def _alone(run_job: Callable[[_Job], _Outcome], job: _Job) -> _Outcome:
    """A job on one thread: as many jobs run beside it as there are cores."""
    import torch

    torch.set_num_threads(1)
    return run_job(job)
