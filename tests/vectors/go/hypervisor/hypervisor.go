// Package hypervisor has the shapes of some messages of the Hypervisor.
package hypervisor

import (
	"net"
	"time"

	"vectors/tags"
)

type (
	ArchitectureType uint
	ConsoleType      uint
	FirmwareType     uint
	MachineType      uint
	State            uint
	VolumeFormat     uint
	VolumeInterface  uint
	VolumeType       uint
	WatchdogAction   uint
	WatchdogModel    uint
)

type Address struct {
	IpAddress  net.IP
	MacAddress string
}

type NetworkEntry struct{ NumQueues uint }

type DfmParams struct {
	NvramSize uint64
	Profile   string
}

type Volume struct {
	DFM         DfmParams
	Format      VolumeFormat
	Interface   VolumeInterface
	Size        uint64
	Snapshots   map[string]uint64
	Type        VolumeType
	VirtualSize uint64
}

type VolumeInitialisationInfo struct {
	BytesPerInode            uint64
	Label                    string
	ReservedBlocksPercentage uint16
	RootGroupId, RootUserId  uint32
}

type VmInfo struct {
	Address              Address
	ArchitectureType     ArchitectureType
	ChangedStateOn       time.Time
	ConsoleType          ConsoleType
	CreatedOn            time.Time
	CpuPriority          int
	DestroyOnPowerdown   bool
	DestroyProtection    bool
	DisableVirtIO        bool
	ExtraKernelOptions   string
	FirmwareType         FirmwareType
	Hostname             string
	IdentityExpires      time.Time
	IdentityName         string
	ImageName            string
	ImageURL             string
	MachineType          MachineType
	MemoryInMiB          uint64
	MilliCPUs            uint
	NetworkEntries       []NetworkEntry
	OwnerGroups          []string
	OwnerUsers           []string
	RootFileSystemLabel  string
	SpreadVolumes        bool
	State                State
	SecondaryAddresses   []Address
	SecondarySubnetIDs   []string
	SubnetId             string
	Tags                 tags.Tags
	Uncommitted          bool
	VirtualCPUs          uint
	VirtualiserImageName string
	Volumes              []Volume
	WatchdogAction       WatchdogAction
	WatchdogModel        WatchdogModel
}

type CreateVmRequest struct {
	DhcpTimeout          time.Duration
	DoNotStart           bool
	EnableNetboot        bool
	IdentityCertificate  []byte
	IdentityKey          []byte
	ImageDataSize        uint64
	ImageTimeout         time.Duration
	MinimumFreeBytes     uint64
	OverlayDirectories   []string
	OverlayFiles         map[string][]byte
	RoundupPower         uint64
	SecondaryVolumes     []Volume
	SecondaryVolumesData bool
	SecondaryVolumesInit []VolumeInitialisationInfo
	SkipBootloader       bool
	SkipMemoryCheck      bool
	StorageIndices       []uint
	UserDataSize         uint64
	VmInfo
}

type CreateVmResponse struct {
	DhcpTimedOut    bool
	Final           bool
	IpAddress       net.IP
	ProgressMessage string
	Error           string
	Timeline        []TimelinePhase // this project's own
}

type TimelinePhase struct {
	Name                string
	StartNanoseconds    int64
	DurationNanoseconds int64
}

type GetVmInfoRequest struct{ IpAddress net.IP }

type GetVmInfosRequest struct {
	IgnoreStateMask         uint64
	OwnerGroups, OwnerUsers []string
	VmTagsToMatch           tags.MatchTags
}

type Subnet struct {
	Id                            string
	IpGateway, IpMask             net.IP
	DomainName                    string
	DomainNameServers             []net.IP
	DisableMetadata, Manage       bool
	VlanId                        uint
	AllowedGroups, AllowedUsers   []string
	FirstDynamicIP, LastDynamicIP net.IP
	Tags                          tags.Tags
}

type Update struct {
	HaveAddressPool      bool
	AddressPool          []Address
	ArchitectureType     ArchitectureType
	AvailableMemoryInMiB *uint64
	HaveDisabled         bool
	Disabled             bool
	MemoryInMiB          *uint64
	NumCPUs              *uint
	NumFreeAddresses     map[string]uint
	HealthStatus         string
	HaveSerialNumber     bool
	SerialNumber         string
	HaveSubnets          bool
	Subnets              []Subnet
	TotalVolumeBytes     *uint64
	HaveVMs              bool
	VMs                  map[string]*VmInfo
}
