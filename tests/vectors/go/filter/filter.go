// Package filter has the shape of a filter on the wire.
package filter

type Filter struct{ FilterLines []string }
