// Package imageserver has the shapes of some messages of the image server.
package imageserver

import (
	"vectors/filesystem"
	"vectors/image"
	"vectors/tags"
)

type AddImageRequest struct {
	ImageName string
	Image     *image.Image
}

type FindLatestImageRequest struct {
	BuildCommitId, DirectoryName string
	IgnoreExpiringImages         bool
	TagsToMatch                  tags.MatchTags
}

type GetImageInodesResponse struct {
	Error        string
	ImageExists  bool
	InodeNumbers map[filesystem.Filename]filesystem.InodeNumber
	Inodes       map[filesystem.InodeNumber]filesystem.GenericInode
	NumLinks     map[filesystem.InodeNumber]uint
}

type GetImageResponse struct {
	Image                  *image.Image
	InformationDatabaseURL string
}
