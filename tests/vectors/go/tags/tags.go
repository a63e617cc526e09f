// Package tags has the shapes of tags on the wire.
package tags

type Tags map[string]string
type MatchTags map[string][]string
