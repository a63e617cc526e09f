// Package objectserver has the shapes of some messages of the object server.
package objectserver

import "vectors/hash"

type AddObjectRequest struct {
	Length       uint64
	ExpectedHash *hash.Hash
}

type AddObjectResponse struct {
	ErrorString string
	Hash        hash.Hash
	Added       bool
}

type CheckObjectsRequest struct{ Hashes []hash.Hash }
