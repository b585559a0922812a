"""Every test runs on eight simulated CPU devices, whatever the machine holds."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def caches_of_these_tests_alone(tmp_path_factory):
    """Compiled programs of a user's are neither used nor added to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Starts tiny runs as commands of their own, and ends those that a test leaves behind."""
    from tests.runs import Runs

    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def compiled_once(runs):
    """The same program is compiled for one test of a file only."""
    with runs.cache_here():
        yield
