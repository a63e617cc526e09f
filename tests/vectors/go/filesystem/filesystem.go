// Package filesystem has the shapes of file-system trees on the wire, with this project's fields.
package filesystem

import "vectors/hash"

type FileMode uint32
type Filename string
type InodeNumber uint64
type GenericInode interface{}
type InodeTable map[uint64]GenericInode

type FileSystem struct {
	InodeTable                                       InodeTable
	NumRegularInodes, TotalDataBytes, DirectoryCount uint64
	DirectoryInode
}

type DirectoryEntry struct {
	Name        string
	InodeNumber uint64
}

type DirectoryInode struct {
	EntryList        []*DirectoryEntry
	EntriesByName    map[string]*DirectoryEntry
	Mode             FileMode
	Uid, Gid         uint32
	MtimeNanoSeconds int32
	MtimeSeconds     int64
	Xattrs           map[string][]byte
}

type RegularInode struct {
	Mode             FileMode
	Uid, Gid         uint32
	MtimeNanoSeconds int32
	MtimeSeconds     int64
	Size             uint64
	Hash             hash.Hash
	Xattrs           map[string][]byte
}

type ComputedRegularInode struct {
	Mode     FileMode
	Uid, Gid uint32
	Source   string
	Xattrs   map[string][]byte
}

type SymlinkInode struct {
	Uid, Gid         uint32
	Symlink          string
	MtimeNanoSeconds int32
	MtimeSeconds     int64
	Xattrs           map[string][]byte
}

type SpecialInode struct {
	Mode             FileMode
	Uid, Gid         uint32
	MtimeNanoSeconds int32
	MtimeSeconds     int64
	Rdev             uint64
	Xattrs           map[string][]byte
}
