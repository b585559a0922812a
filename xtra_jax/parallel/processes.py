"""Start-up of a run that several processes share, one or more per host.

The same command is started once for every process, and finds its place by itself:

    TPU pods        the metadata of the machines (GCE), or what GKE sets in TPU pods
    Slurm           inside `srun` with more than one task; every task takes the GPU of its number
                    on the host (SLURM_LOCALID) unless JAX_LOCAL_DEVICE_IDS says otherwise
    Open MPI        inside `mpirun`, as far as jax knows its version
    anywhere        the flags --coordinator HOST:PORT --num_processes N --process_id I, or the
                    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
    Kubernetes      those variables in the manifest of an Indexed Job or a JobSet, which numbers
                    its pods by itself: JOB_COMPLETION_INDEX stands in for JAX_PROCESS_ID. Neither
                    the `kubernetes` package nor a right to ask the cluster is needed. (TPU pods
                    of GKE need none of these.)

A flag is taken before its variable, and what neither names comes from the cluster. One process is
a run like any other: nothing is started for it.

Before jax hears of the others the processes call their roll (`xtra_jax.parallel.referee`), so that
one that is missing is named. From then on each ends when another has (`xtra_jax.parallel.watch`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping

from xtra_jax.errors import UserError
from xtra_jax.parallel.relay import Relay
from xtra_jax.parallel.watch import Group, Place

START_SECONDS = 300.0

# jax waits for a process that is late at the end; all have said before that they are there.
_SHUTDOWN_SECONDS = 30


def find_place(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    variables: Mapping[str, str] = os.environ,
) -> Place | None:
    """This process's place in a run of several; None if it is the only one.

    Args:
        coordinator, num_processes, process_id: the flags, None where not given.

    Raises:
        UserError: they, the variables and the cluster don't make a place.
    """
    coordinator = coordinator or variables.get("JAX_COORDINATOR_ADDRESS") or None
    if num_processes is None:
        num_processes = _whole(variables, "JAX_NUM_PROCESSES")
    if process_id is None:
        process_id = _whole(variables, "JAX_PROCESS_ID")
    if process_id is None and coordinator and num_processes:
        process_id = _whole(variables, "JOB_COMPLETION_INDEX")
    if num_processes == 1 and not process_id:
        return None
    cluster = _Cluster.find(variables)
    missing = None in (coordinator, num_processes, process_id)
    if missing and cluster is not None:
        _check_agreement(cluster, num_processes, process_id)
        coordinator = cluster.coordinator(coordinator)
        num_processes, process_id = cluster.num_processes, cluster.process_id
    elif missing and (coordinator, num_processes, process_id) == (None, None, None):
        return None
    elif missing:
        raise UserError(_what_is_missing(coordinator, num_processes, process_id))
    _check_range(num_processes, process_id)
    _check_address(coordinator)
    devices = None
    if cluster is not None and not variables.get("JAX_LOCAL_DEVICE_IDS"):
        devices = cluster.local_device_ids
    return Place(coordinator, num_processes, process_id, devices)


@contextlib.contextmanager
def joined(
    place: Place | None,
    described: Callable[[BaseException], tuple[int, str] | None],
    timeout: float = START_SECONDS,
) -> Iterator[Group | None]:
    """Runs its body as one of several processes, and ends this process when one of them has.

    On the way out it waits until all have come so far. When the body raises, this process leaves
    from here with an exit code, because threads of jax would wait for the others for minutes.

    Args:
        place: of this process. With None nothing happens, neither here nor to exceptions.
        described: an exception to the exit code and the sentence that it means; None for one
            that nobody foresaw, of which the traceback is printed.
        timeout: seconds to wait for the others at the start.

    Raises:
        UserError, RunFailed: not all processes came together (see `Group`).
    """
    if place is None:
        yield None
        return
    import jax  # first, because the others wait for it

    group = Group(place, timeout)
    try:
        _initialise(jax, group, timeout)
        yield group
        group.finish()
        jax.distributed.shutdown()
    except BaseException as error:
        _fail(group, error, described(error), jax.errors.JaxRuntimeError)


def _initialise(jax, group: Group, timeout: float) -> None:
    """Starts `jax.distributed`, with a connection whose end is not this process's end."""
    place = group.place
    address = f"127.0.0.1:{group.service_port}"
    bind = address if place.is_local else f"[::]:{group.service_port}"
    if place.process_id:
        address = Relay(place.address[0], group.service_port, timeout).address
    # Near or far, jax only talks to this host now: proxies, which it warns of, are not asked.
    name = "no_grpc_proxy"
    no_proxy = os.environ.get(name, os.environ.get("no_proxy", ""))
    os.environ[name] = ",".join(filter(None, [no_proxy, "127.0.0.1"]))
    jax.config.update("jax_check_proxy_envs", False)
    # Stopping is agreed on in xtra_jax.training.stopping; jax's service would take SIGTERM over.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        coordinator_bind_address=bind,
        initialization_timeout=round(timeout),
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def _fail(group: Group, error: BaseException, described, broken: type[Exception]) -> None:
    with contextlib.suppress(ValueError):  # elsewhere than in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C, as it waits for the others
    if described is None:
        code, shown = 1, "".join(traceback.format_exception(error)).rstrip()
        message = (str(error).strip().splitlines() or [""])[0]
        sentence = f"{type(error).__name__}: {message}"
    else:
        code, shown = described
        sentence = shown.strip().removeprefix("xtra: ")
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    perhaps_another = any(
        isinstance(cause, broken) and "RESOURCE_EXHAUSTED" not in str(cause) for cause in causes
    )
    group.fail(code, sentence, shown, perhaps_another=perhaps_another)


class _Cluster:
    """What jax finds out about the scheduler that started this process.

    Its own names for it are private, but `jax.distributed.initialize` tells the place only to
    itself, and asks for one even where there is a single process.
    """

    def __init__(self, environment, variables: Mapping[str, str]):
        self._environment = environment
        self._name = environment.__name__.removesuffix("Cluster")
        self._is_tpu = "Tpu" in self._name
        self._variables = variables
        self.num_processes, self.process_id = 1, 0
        if self._asked(environment.is_env_present):
            self.num_processes = self._asked(environment.get_process_count)
            self.process_id = self._asked(environment.get_process_id)

    @classmethod
    def find(cls, variables: Mapping[str, str]) -> _Cluster | None:
        """The cluster, if it started more than one process."""
        import jax._src.clusters as clusters

        for environment in clusters.ClusterEnv._cluster_types:
            # jax's way in Kubernetes needs a package and rights, and fails in a lone pod.
            if environment.opt_in_only_method or environment is clusters.K8sCluster:
                continue
            # Within a Slurm job of many tasks, a step of one is a process like any other.
            alone = variables.get("SLURM_STEP_NUM_TASKS") == "1"
            if environment is clusters.SlurmCluster and alone:
                continue
            cluster = cls(environment, variables)
            if cluster.num_processes > 1:
                return cluster
        return None

    def coordinator(self, given: str | None) -> str:
        port = self._variables.get("JAX_COORDINATOR_PORT")
        return given or self._asked(
            lambda: self._environment.get_coordinator_address(
                timeout_secs=round(START_SECONDS), override_coordinator_port=port
            )
        )

    @property
    def local_device_ids(self) -> tuple[int, ...] | None:
        if self._is_tpu:
            return None
        number = self._asked(self._environment.get_local_process_id)
        return None if number is None else (number,)

    def __str__(self) -> str:
        return {"Ompi": "Open MPI", "GceTpu": "the TPU pod", "GkeTpu": "the TPU pod"}.get(
            self._name, self._name
        )

    def _asked(self, question: Callable):
        try:
            return question()
        except Exception as error:  # what a half-set environment makes of jax's parsing
            raise UserError(
                f"this process was started by {self}, whose description of the run cannot be "
                f"read ({type(error).__name__}: {error}): give --num_processes=1, or of a run of "
                "several --coordinator and --process_id too"
            ) from error


def _whole(variables: Mapping[str, str], name: str) -> int | None:
    value = variables.get(name)
    if not value:
        return None
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value} in the environment is not a whole number") from None


def _check_agreement(cluster: _Cluster, num_processes: int | None, process_id: int | None) -> None:
    for name, given, there in (
        ("--num_processes", num_processes, cluster.num_processes),
        ("--process_id", process_id, cluster.process_id),
    ):
        if given not in (None, there):
            raise UserError(
                f"{name}={given} contradicts {cluster}, where it is {there}: give none of the "
                "flags, or all of --coordinator, --num_processes and --process_id"
            )


def _what_is_missing(coordinator, num_processes, process_id) -> str:
    flags = {
        "--coordinator (JAX_COORDINATOR_ADDRESS)": coordinator,
        "--num_processes (JAX_NUM_PROCESSES)": num_processes,
        "--process_id (JAX_PROCESS_ID)": process_id,
    }
    given = [name.split()[0] for name, value in flags.items() if value is not None]
    missing = [name for name, value in flags.items() if value is None]
    return (
        f"{' and '.join(given)} without {' and '.join(missing)}: outside of Slurm and TPU pods a "
        "run of several processes needs all three, and a run of one needs none"
    )


def _check_range(num_processes: int, process_id: int) -> None:
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not one of {num_processes} processes, whose numbers "
            f"are 0 to {num_processes - 1}"
        )


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(
            f"--coordinator={coordinator} is not HOST:PORT: give the host of process 0 and a free "
            f"port on it, e.g. {coordinator.partition(':')[0] or 'localhost'}:1234"
        )
