"""How a trial ends that an error ends on one of its hosts."""

from algoperf import failures
from algoperf.errors import UserError
from algoperf.hosts import Hosts
from algoperf.records import Status


class OneOfTwo(Hosts):
    """A host whose other one ends the trial with an error that can be mended."""

    told: BaseException | None = None

    def failure(self, error, text):
        self.told = error
        raise UserError("on host 0: asked to stop")


def test_a_host_that_is_asked_to_stop_tells_the_others_that_they_can_go_on(make_config):
    hosts = OneOfTwo(1, 2)
    status, message = failures.outcome(make_config(), EOFError("gone"), hosts, True)
    assert status is Status.PREEMPTED
    assert message == "asked to stop; go on with --resume (EOFError: gone)"
    assert isinstance(hosts.told, UserError)


def test_an_error_that_nobody_asked_for_is_a_failure(make_config):
    found = failures.outcome(make_config(), EOFError("gone"), Hosts(), False)
    assert found == (Status.FAILED, "EOFError: gone")
