// Package triggers has the shapes of triggers on the wire.
package triggers

type Trigger struct {
	MatchLines                     []string
	Service, SortName              string
	DoReboot, DoReload, HighImpact bool
}

type Triggers struct{ Triggers []*Trigger }
