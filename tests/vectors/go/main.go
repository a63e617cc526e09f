// The generator of the gob vectors beside this directory: every value in a process of its own, so
// that type ids start anew. Run: go run . ..
package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vectors/filesystem"
	"vectors/filter"
	"vectors/future"
	"vectors/hash"
	"vectors/hypervisor"
	"vectors/image"
	"vectors/imageserver"
	"vectors/objectserver"
	"vectors/tags"
	"vectors/triggers"
)

func digest(seed byte) (value hash.Hash) {
	for i := range value {
		value[i] = seed + 7*byte(i)
	}
	return value
}

func digestPointer(seed byte) *hash.Hash {
	value := digest(seed)
	return &value
}

func number(value uint64) *uint64 { return &value }
func cpus(value uint) *uint       { return &value }

var (
	utc   = time.Date(2026, 2, 3, 4, 5, 6, 123456789, time.UTC)
	east  = time.Date(2026, 2, 3, 4, 5, 6, 0, time.FixedZone("", 5*3600+45*60))
	west  = time.Date(1969, 12, 31, 23, 59, 59, 999999999, time.FixedZone("", -8*3600))
	early = time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC)
)

func fullVM() hypervisor.VmInfo {
	return hypervisor.VmInfo{
		Address: hypervisor.Address{
			IpAddress: net.IPv4(198, 51, 100, 7).To4(), MacAddress: "52:54:c6:33:64:07"},
		ArchitectureType:    1,
		ChangedStateOn:      utc,
		ConsoleType:         2,
		CreatedOn:           east,
		CpuPriority:         -20,
		DestroyOnPowerdown:  true,
		DestroyProtection:   true,
		DisableVirtIO:       true,
		ExtraKernelOptions:  "quiet",
		FirmwareType:        2,
		Hostname:            "vm-ü",
		IdentityExpires:     west,
		IdentityName:        "robot",
		ImageName:           "debian/2026",
		ImageURL:            "https://example.com/image.raw",
		MachineType:         1,
		MemoryInMiB:         1 << 20,
		MilliCPUs:           250,
		NetworkEntries:      []hypervisor.NetworkEntry{{NumQueues: 4}, {}},
		OwnerGroups:         []string{"team-a", ""},
		OwnerUsers:          []string{"alice", "bob"},
		RootFileSystemLabel: "rootfs@c6336407",
		SpreadVolumes:       true,
		State:               4,
		SecondaryAddresses: []hypervisor.Address{
			{IpAddress: net.ParseIP("2001:db8::7"), MacAddress: "52:54:00:00:00:01"}, {}},
		SecondarySubnetIDs:   []string{"storage"},
		SubnetId:             "net0",
		Tags:                 tags.Tags{"Name": "vm"},
		Uncommitted:          true,
		VirtualCPUs:          3,
		VirtualiserImageName: "qemu/8",
		Volumes: []hypervisor.Volume{
			{Format: 1, Interface: 2, Size: 1 << 33, Snapshots: map[string]uint64{"s1": 1 << 30},
				VirtualSize: 1 << 34},
			{DFM: hypervisor.DfmParams{NvramSize: 64 << 10, Profile: "fast"}, Interface: 3, Type: 1},
		},
		WatchdogAction: 3,
		WatchdogModel:  2,
	}
}

func tree() *filesystem.FileSystem {
	return &filesystem.FileSystem{
		InodeTable: filesystem.InodeTable{
			10: &filesystem.DirectoryInode{
				EntryList: []*filesystem.DirectoryEntry{
					{Name: "passwd", InodeNumber: 20}, {Name: "shadow", InodeNumber: 70000}},
				Mode: 0o40755, Uid: 1, Gid: 2, MtimeNanoSeconds: 5, MtimeSeconds: 1700000000,
				Xattrs: map[string][]byte{"user.dir": {1, 2, 3}}},
			20: &filesystem.RegularInode{
				Mode: 0o104755, Uid: 1000, Gid: 100, MtimeNanoSeconds: 999999999, MtimeSeconds: -1,
				Size: 1 << 40, Hash: digest(3), Xattrs: map[string][]byte{"security.capability": {}}},
			30: &filesystem.SymlinkInode{Uid: 3, Symlink: "etc/passwd", MtimeSeconds: 1600000000},
			40: &filesystem.SpecialInode{
				Mode: 0o20666, MtimeNanoSeconds: 1, MtimeSeconds: 2, Rdev: 0x103},
			50:    &filesystem.ComputedRegularInode{Mode: 0o100600, Uid: 4, Source: "generator"},
			70000: &filesystem.RegularInode{Mode: 0o100000},
		},
		NumRegularInodes: 2,
		TotalDataBytes:   1 << 40,
		DirectoryCount:   2,
		DirectoryInode: filesystem.DirectoryInode{
			EntryList: []*filesystem.DirectoryEntry{
				{Name: "etc", InodeNumber: 10}, {Name: "hard", InodeNumber: 20},
				{Name: "link", InodeNumber: 30}, {Name: "null", InodeNumber: 40},
				{Name: "made", InodeNumber: 50}},
			Mode: 0o41777},
	}
}

func oneInode(inode filesystem.GenericInode) imageserver.GetImageInodesResponse {
	return imageserver.GetImageInodesResponse{
		ImageExists:  true,
		InodeNumbers: map[filesystem.Filename]filesystem.InodeNumber{"/file": 7},
		Inodes:       map[filesystem.InodeNumber]filesystem.GenericInode{7: inode},
		NumLinks:     map[filesystem.InodeNumber]uint{7: 2},
	}
}

// Every vector is a stream of one or more values.
var vectors = map[string]func() []interface{}{
	"create-vm": func() []interface{} {
		return []interface{}{hypervisor.CreateVmRequest{
			DhcpTimeout: -time.Second, DoNotStart: true, EnableNetboot: true,
			IdentityCertificate: []byte("-----BEGIN"), IdentityKey: []byte{0, 255},
			ImageDataSize: math.MaxUint64, ImageTimeout: math.MaxInt64, MinimumFreeBytes: 1,
			OverlayDirectories: []string{"/a", "/b"},
			OverlayFiles:       map[string][]byte{"/etc/motd": []byte("hello\n")}, RoundupPower: 24,
			SecondaryVolumes: []hypervisor.Volume{{Size: 128}}, SecondaryVolumesData: true,
			SecondaryVolumesInit: []hypervisor.VolumeInitialisationInfo{
				{BytesPerInode: 16384, Label: "data", ReservedBlocksPercentage: 65535,
					RootGroupId: math.MaxUint32, RootUserId: 1}},
			SkipBootloader: true, SkipMemoryCheck: true, StorageIndices: []uint{0, 127, 128, 256},
			UserDataSize: 65536, VmInfo: fullVM()}}
	},
	"create-vm-empty": func() []interface{} { return []interface{}{hypervisor.CreateVmRequest{}} },
	"create-vm-replies": func() []interface{} {
		return []interface{}{
			hypervisor.CreateVmResponse{ProgressMessage: "getting image"},
			hypervisor.CreateVmResponse{
				IpAddress: net.ParseIP("198.51.100.7"), ProgressMessage: "starting VM 198.51.100.7"},
			hypervisor.CreateVmResponse{Final: true, IpAddress: net.IP{198, 51, 100, 7},
				Timeline: []hypervisor.TimelinePhase{
					{Name: "image", StartNanoseconds: 5, DurationNanoseconds: 1 << 40}}},
			hypervisor.CreateVmResponse{DhcpTimedOut: true, Error: "an error"}}
	},
	"get-vm-infos": func() []interface{} {
		return []interface{}{hypervisor.GetVmInfosRequest{
			IgnoreStateMask: 1 << 63, VmTagsToMatch: tags.MatchTags{"Type": {"a", "b"}}}}
	},
	"update": func() []interface{} {
		return []interface{}{hypervisor.Update{
			HaveAddressPool: true, AddressPool: []hypervisor.Address{{MacAddress: "m"}},
			AvailableMemoryInMiB: number(1), MemoryInMiB: number(2), NumCPUs: cpus(3),
			NumFreeAddresses: map[string]uint{"net0": 0}, HealthStatus: "healthy",
			HaveSubnets: true, Subnets: []hypervisor.Subnet{{
				Id: "net0", IpGateway: net.IP{198, 51, 100, 1}, IpMask: net.IP{255, 255, 255, 0},
				DomainNameServers: []net.IP{{198, 51, 100, 1}, {203, 0, 113, 1}}, VlanId: 7,
				FirstDynamicIP: net.IP{198, 51, 100, 2}, LastDynamicIP: net.IP{198, 51, 100, 254}}},
			TotalVolumeBytes: number(1 << 50), HaveVMs: true,
			VMs: map[string]*hypervisor.VmInfo{"198.51.100.7": {}}}}
	},
	"image": func() []interface{} {
		return []interface{}{imageserver.GetImageResponse{Image: &image.Image{
			BuildBranch: "main", CreatedBy: "alice",
			Filter: &filter.Filter{FilterLines: []string{"/tmp/.*", "!"}}, FileSystem: tree(),
			Triggers: &triggers.Triggers{Triggers: []*triggers.Trigger{
				{MatchLines: []string{"/etc/ssh/.*"}, Service: "ssh", DoReload: true}, {}}},
			ReleaseNotes: &image.Annotation{Object: digestPointer(9)},
			BuildLog:     &image.Annotation{URL: "https://example.com/log"},
			CreatedOn:    utc, ExpiresAt: early,
			Packages:    []image.Package{{Name: "libc6", Size: 13 << 20, Version: "2.36-9"}},
			SourceImage: "base", Tags: tags.Tags{"a": ""}}}}
	},
	"image-without-tree": func() []interface{} {
		return []interface{}{imageserver.AddImageRequest{
			ImageName: "x/y", Image: &image.Image{OwnerUsers: []string{"u"}}}}
	},
	"no-image": func() []interface{} { return []interface{}{imageserver.GetImageResponse{}} },
	"inode-directory": func() []interface{} {
		return []interface{}{oneInode(tree().InodeTable[10])}
	},
	"inode-regular":  func() []interface{} { return []interface{}{oneInode(tree().InodeTable[20])} },
	"inode-symlink":  func() []interface{} { return []interface{}{oneInode(tree().InodeTable[30])} },
	"inode-special":  func() []interface{} { return []interface{}{oneInode(tree().InodeTable[40])} },
	"inode-computed": func() []interface{} { return []interface{}{oneInode(tree().InodeTable[50])} },
	"inode-none":     func() []interface{} { return []interface{}{oneInode(nil)} },
	"inodes-twice": func() []interface{} {
		return []interface{}{
			oneInode(tree().InodeTable[20]), oneInode(tree().InodeTable[20]),
			oneInode(tree().InodeTable[30])}
	},
	"check-objects": func() []interface{} {
		return []interface{}{objectserver.CheckObjectsRequest{
			Hashes: []hash.Hash{digest(0), {}, digest(200)}}}
	},
	"add-objects": func() []interface{} {
		return []interface{}{
			objectserver.AddObjectRequest{Length: 12, ExpectedHash: digestPointer(1)},
			objectserver.AddObjectRequest{Length: 300}, objectserver.AddObjectRequest{}}
	},
	"add-objects-replies": func() []interface{} {
		return []interface{}{
			objectserver.AddObjectResponse{Hash: digest(1), Added: true},
			objectserver.AddObjectResponse{ErrorString: "no"}}
	},
	"find-latest": func() []interface{} {
		return []interface{}{imageserver.FindLatestImageRequest{
			DirectoryName: "d", TagsToMatch: tags.MatchTags{"k": nil}}}
	},
	"digest": func() []interface{} { return []interface{}{digest(77)} },
	"text":   func() []interface{} { return []interface{}{"small/v1", ""} },
	"list":   func() []interface{} { return []interface{}{[]uint64{0, 1, math.MaxUint64}} },
	"from-the-future": func() []interface{} {
		return []interface{}{future.GetVmInfoRequest{
			Float: math.Pi, Complex: complex(1, -2), Array: [3]int{-1, 0, 1},
			Matrix: [][]float32{{1, 2}, {}}, Map: map[string]map[int]bool{"a": {1: true}},
			Time: east, Interface: &future.Inner{
				Any: &future.Leaf{Text: "deep"},
				List: []interface{}{future.Number(5), &future.Leaf{}, nil, &future.Inner{
					Any: future.Number(-1)}}},
			IpAddress: net.IP{198, 51, 100, 7},
			Many:      []interface{}{future.Number(1), []string{"x"}, &future.Leaf{Text: "last"}},
			Last:      &future.Inner{List: []interface{}{&future.Inner{}}}}}
	},
}

func generate(name string) error {
	gob.Register(&filesystem.RegularInode{})
	gob.Register(&filesystem.ComputedRegularInode{})
	gob.Register(&filesystem.SymlinkInode{})
	gob.Register(&filesystem.SpecialInode{})
	gob.Register(&filesystem.DirectoryInode{})
	gob.Register(&future.Inner{})
	gob.Register(&future.Leaf{})
	gob.Register(future.Number(0))
	var out bytes.Buffer
	encoder := gob.NewEncoder(&out)
	for _, value := range vectors[name]() {
		if err := encoder.Encode(value); err != nil {
			return err
		}
	}
	_, err := os.Stdout.Write(out.Bytes())
	return err
}

func main() {
	if len(os.Args) == 3 {
		if err := generate(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for name := range vectors {
		data, err := exec.Command(os.Args[0], "-", name).Output()
		if err == nil {
			err = os.WriteFile(filepath.Join(os.Args[1], name+".bin"), data, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
	}
}
