"""CreateVm, and its end: AcknowledgeVm."""

from collections.abc import Mapping

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.checks import announced_bytes
from smallstack.hypervisor.create import Creation, new_journal
from smallstack.hypervisor.methods.base import Methods, answering, log, refusal
from smallstack.hypervisor.upload import Upload
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.srpc.server import Call, Handler
from smallstack.steps import PointHook
from smallstack.telemetry.timeline import Timeline


class Creating(Methods):
    """The methods; every step of every create is told to ``on_point``, see `steps.run`."""

    def __init__(self, agent: Agent, on_point: PointHook | None = None) -> None:
        super().__init__(agent)
        self._on_point = on_point

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {"AcknowledgeVm": answering(self._acknowledge), "CreateVm": self._create}

    async def _create(self, call: Call) -> None:
        conn = call.conn
        timeline = Timeline()
        request = await conn.decode(proto.OwnCreateVmRequest)
        timeline.add("receive request", timeline.created_ns, timeline.now())
        upload = Upload(conn, announced_bytes(request))
        creation = Creation(self._agent, new_journal(self._agent.parts.store.journals), timeline)

        async def progress(message: str, ip: str) -> None:
            conn.encode(proto.CreateVmResponse(progress_message=message, ip_address=ip))
            await conn.flush()

        work = creation.run(request, call.peer, upload, progress, self._on_point)
        try:
            vm = await conn.while_connected(work)
        except (ConnectionClosedError, PeerStalledError) as error:
            log.info("CreateVm(%s) given up: %s", call.peer, error)
            self._agent.creates["failed"] += 1
            raise
        except Exception as error:
            self._agent.creates["failed"] += 1
            conn.encode(refusal(call, error))
            await conn.flush()
            # Told at once, so that a client that listens need not send the rest; others do.
            await upload.drain()
            return
        self._agent.creates["created"] += 1
        conn.encode(
            proto.CreateVmResponse(
                dhcp_timed_out=creation.dhcp_timed_out,
                final=True,
                ip_address=vm.ip,
                timeline=as_phases(timeline),
            )
        )
        await conn.flush()
        log.info("CreateVm(%s) finished, IP=%s", call.peer, vm.ip)

    async def _acknowledge(
        self, call: Call, request: proto.AcknowledgeVmRequest
    ) -> proto.AcknowledgeVmResponse:
        await self._mine(call, request.ip_address).acknowledge()
        return proto.AcknowledgeVmResponse()


def as_phases(timeline: Timeline) -> list[proto.TimelinePhase]:
    """A timeline as it travels."""
    return [
        proto.TimelinePhase(
            name=phase.name,
            start_nanoseconds=phase.start_ns,
            duration_nanoseconds=phase.duration_ns,
        )
        for phase in sorted(timeline.phases, key=lambda phase: phase.start_ns)
    ]
