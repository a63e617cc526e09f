"""Every message of the Hypervisor service: for the daemon and for the table of methods."""

# ruff: noqa: F403 - to gather the parts is all there is to do here

from smallstack.proto.hypervisor.access import *
from smallstack.proto.hypervisor.change import *
from smallstack.proto.hypervisor.create import *
from smallstack.proto.hypervisor.host import *
from smallstack.proto.hypervisor.image import *
from smallstack.proto.hypervisor.info import *
from smallstack.proto.hypervisor.migrate import *
from smallstack.proto.hypervisor.network import *
from smallstack.proto.hypervisor.power import *
from smallstack.proto.hypervisor.reach import *
from smallstack.proto.hypervisor.user_data import *
from smallstack.proto.hypervisor.volumes import *
