// Package image has the shapes of images on the wire.
package image

import (
	"time"

	"vectors/filesystem"
	"vectors/filter"
	"vectors/hash"
	"vectors/tags"
	"vectors/triggers"
)

type Annotation struct {
	Object *hash.Hash
	URL    string
}

type Package struct {
	Name    string
	Size    uint64
	Version string
}

type Image struct {
	BuildBranch, BuildCommitId, BuildGitUrl string
	CreatedBy, CreatedFor                   string
	Filter                                  *filter.Filter
	FileSystem                              *filesystem.FileSystem
	Triggers                                *triggers.Triggers
	ReleaseNotes, BuildLog                  *Annotation
	CreatedOn, ExpiresAt                    time.Time
	OwnerGroups, OwnerUsers                 []string
	Packages                                []Package
	SourceImage                             string
	Tags                                    tags.Tags
}
