// Package future has messages as a later version may send them: with fields nobody knows yet.
package future

import (
	"net"
	"time"
)

type Inner struct {
	Any  interface{}
	List []interface{}
}

type Leaf struct{ Text string }

type Number int

type GetVmInfoRequest struct {
	Float     float64
	Complex   complex128
	Array     [3]int
	Matrix    [][]float32
	Map       map[string]map[int]bool
	Time      time.Time
	Interface interface{}
	IpAddress net.IP
	Many      []interface{}
	Last      *Inner
}
