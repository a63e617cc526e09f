// Package hash has the shape of an object's digest on the wire.
package hash

type Hash [64]byte
