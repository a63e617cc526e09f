package main

import (
	"fmt"
	"math"
	"math/rand"
	"net"
	"reflect"
	"sort"
	"time"

	"exchange/filesystem"
)

var (
	addressType = reflect.TypeOf(net.IP{})
	inodeType   = reflect.TypeOf((*filesystem.GenericInode)(nil)).Elem()
	treeType    = reflect.TypeOf(filesystem.FileSystem{})
)

// number makes one of the width in bits; the smallest and largest, and short ones, come often.
func number(random *rand.Rand, bits int) uint64 {
	all := uint64(math.MaxUint64) >> (64 - bits)
	switch random.Intn(4) {
	case 0:
		return []uint64{0, 1, all, all >> 1, all>>1 + 1}[random.Intn(5)]
	case 1:
		return uint64(random.Intn(300)) & all
	}
	return random.Uint64() >> random.Intn(64) & all
}

func bytesOf(random *rand.Rand, length int) []byte {
	made := make([]byte, length)
	random.Read(made)
	return made
}

// text is a file name, a text in several alphabets, or bytes that are no text.
func text(random *rand.Rand) string {
	switch random.Intn(4) {
	case 0:
		return ""
	case 1:
		return string(bytesOf(random, 1+random.Intn(12)))
	case 2:
		return "Größe, размер, 大小 🙂"[:random.Intn(20)]
	}
	return fmt.Sprintf("name-%d", random.Intn(1000))
}

func moment(random *rand.Rand) time.Time {
	when := time.Unix(random.Int63n(1<<38)-1<<36, random.Int63n(1e9))
	switch random.Intn(4) {
	case 0:
		return time.Time{}
	case 1:
		return when.UTC()
	}
	// A minute west of Greenwich is how UTC travels.
	minutes := random.Intn(1560) - 720
	if minutes == -1 {
		minutes = 0
	}
	return when.In(time.FixedZone("", 60*minutes))
}

func address(random *rand.Rand) net.IP {
	return bytesOf(random, []int{0, 4, 16}[random.Intn(3)])
}

func fill(random *rand.Rand, value reflect.Value) {
	switch value.Type() {
	case timeType:
		value.Set(reflect.ValueOf(moment(random)))
		return
	case addressType:
		value.Set(reflect.ValueOf(address(random)))
		return
	case inodeType:
		if inode := anyInode(random); inode != nil {
			value.Set(reflect.ValueOf(inode))
		}
		return
	case treeType:
		value.Set(reflect.ValueOf(tree(random)))
		return
	}
	switch value.Kind() {
	case reflect.Bool:
		value.SetBool(random.Intn(2) == 1)
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
		bits := value.Type().Bits()
		value.SetInt(int64(number(random, bits)<<(64-bits)) >> (64 - bits))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		value.SetUint(number(random, value.Type().Bits()))
	case reflect.String:
		value.SetString(text(random))
	case reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
		fill(random, value.Elem())
	case reflect.Struct:
		for i := 0; i < value.NumField(); i++ {
			field := value.Field(i)
			if field.Kind() == reflect.Pointer && random.Intn(3) == 0 {
				continue
			}
			fill(random, field)
		}
	case reflect.Array:
		for i := 0; i < value.Len(); i++ {
			fill(random, value.Index(i))
		}
	case reflect.Slice:
		length := random.Intn(4)
		if value.Type().Elem().Kind() == reflect.Uint8 {
			length = random.Intn(300)
		}
		value.Set(reflect.MakeSlice(value.Type(), length, length))
		for i := 0; i < length; i++ {
			fill(random, value.Index(i))
		}
	case reflect.Map:
		value.Set(reflect.MakeMap(value.Type()))
		for i := random.Intn(4); i > 0; i-- {
			key := reflect.New(value.Type().Key()).Elem()
			element := reflect.New(value.Type().Elem()).Elem()
			fill(random, key)
			fill(random, element)
			value.SetMapIndex(key, element)
		}
	default:
		panic("nothing is made for a " + value.Kind().String())
	}
}

func anyInode(random *rand.Rand) filesystem.GenericInode {
	inodes := []filesystem.GenericInode{
		nil, &filesystem.DirectoryInode{}, &filesystem.RegularInode{},
		&filesystem.ComputedRegularInode{}, &filesystem.SymlinkInode{}, &filesystem.SpecialInode{}}
	inode := inodes[random.Intn(len(inodes))]
	if inode != nil {
		fill(random, reflect.ValueOf(inode).Elem())
	}
	return inode
}

func mode(random *rand.Rand, kind uint32) filesystem.FileMode {
	return filesystem.FileMode(kind | uint32(random.Intn(0o10000)))
}

func xattrs(random *rand.Rand) map[string][]byte {
	made := map[string][]byte{}
	for i := random.Intn(3); i > 0; i-- {
		made[fmt.Sprintf("user.%d", random.Intn(1000))] = bytesOf(random, random.Intn(20))
	}
	return made
}

// tree makes one that a kernel could have: kinds that fit their modes, names that can be, no loop.
func tree(random *rand.Rand) filesystem.FileSystem {
	seconds := func() int64 { return 1 + random.Int63n(1<<32) }
	nanoseconds := func() int32 { return random.Int31n(1e9) }
	made := filesystem.FileSystem{
		InodeTable: filesystem.InodeTable{}, NumRegularInodes: number(random, 64),
		TotalDataBytes: number(random, 64), DirectoryCount: number(random, 64)}
	made.Mode, made.Uid, made.Gid = mode(random, 0o40000), random.Uint32(), random.Uint32()
	directories := []*filesystem.DirectoryInode{&made.DirectoryInode}
	last := uint64(0)
	for i := random.Intn(12); i > 0; i-- {
		last += 1 + uint64(random.Intn(300))
		links := 1 + random.Intn(2)
		uid, gid := random.Uint32(), random.Uint32()
		switch random.Intn(5) {
		case 0:
			directory := &filesystem.DirectoryInode{
				Mode: mode(random, 0o40000), Uid: uid, Gid: gid, MtimeSeconds: seconds(),
				MtimeNanoSeconds: nanoseconds(), Xattrs: xattrs(random)}
			made.InodeTable[last] = directory
			link(random, directories, last, 1)
			directories = append(directories, directory)
			continue
		case 1:
			file := &filesystem.RegularInode{
				Mode: mode(random, 0o100000), Uid: uid, Gid: gid, MtimeSeconds: seconds(),
				MtimeNanoSeconds: nanoseconds(), Xattrs: xattrs(random)}
			if random.Intn(4) != 0 {
				file.Size = 1 + uint64(random.Int63())
				random.Read(file.Hash[:])
			}
			made.InodeTable[last] = file
		case 2:
			made.InodeTable[last] = &filesystem.SymlinkInode{
				Uid: uid, Gid: gid, Symlink: "to/" + text(random), Xattrs: xattrs(random)}
		case 3:
			made.InodeTable[last] = &filesystem.SpecialInode{
				Mode: mode(random, []uint32{0o10000, 0o20000, 0o60000}[random.Intn(3)]), Uid: uid,
				Gid: gid, MtimeSeconds: seconds(), Rdev: uint64(random.Uint32()),
				Xattrs: xattrs(random)}
		case 4:
			made.InodeTable[last] = &filesystem.ComputedRegularInode{
				Mode: mode(random, 0o100000), Uid: uid, Gid: gid, Source: text(random),
				Xattrs: xattrs(random)}
		}
		link(random, directories, last, links)
	}
	for _, directory := range directories {
		sort.Slice(directory.EntryList, func(i, j int) bool {
			return directory.EntryList[i].Name < directory.EntryList[j].Name
		})
	}
	return made
}

func link(random *rand.Rand, directories []*filesystem.DirectoryInode, inode uint64, links int) {
	for i := 0; i < links; i++ {
		directory := directories[random.Intn(len(directories))]
		name := fmt.Sprintf("%x-%d", bytesOf(random, random.Intn(4)), len(directory.EntryList))
		directory.EntryList = append(
			directory.EntryList, &filesystem.DirectoryEntry{Name: name, InodeNumber: inode})
	}
}
