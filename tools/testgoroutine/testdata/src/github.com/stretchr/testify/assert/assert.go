// Package assert stands in for testify's.
package assert

type CollectT struct{}

func (*CollectT) FailNow() {}
