"""Who a VM is: credentials, or a role whose credentials are renewed."""

from collections.abc import Mapping

from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler


class Identity(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "GetIdentityProvider": answering(self._provider),
            "ReplaceVmCredentials": answering(self._credentials),
            "ReplaceVmIdentity": answering(self._identity),
        }

    async def _provider(
        self, _call: Call, _request: proto.GetIdentityProviderRequest
    ) -> proto.GetIdentityProviderResponse:
        return proto.GetIdentityProviderResponse(base_url=self._agent.parts.identities.url)

    async def _credentials(
        self, call: Call, request: proto.ReplaceVmCredentialsRequest
    ) -> proto.ReplaceVmCredentialsResponse:
        vm = self._mine(call, request.ip_address)
        await self._agent.parts.identities.give(
            vm, request.identity_certificate, request.identity_key, call.peer
        )
        return proto.ReplaceVmCredentialsResponse()

    async def _identity(
        self, call: Call, request: proto.ReplaceVmIdentityRequest
    ) -> proto.ReplaceVmIdentityResponse:
        vm = self._mine(call, request.ip_address)
        await self._agent.parts.identities.assign(
            vm, request.identity_requestor_certificate, call.peer
        )
        return proto.ReplaceVmIdentityResponse()
