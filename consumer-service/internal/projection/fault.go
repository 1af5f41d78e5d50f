package projection

import (
	"errors"
	"strings"

	"github.com/tidemark/tidemark/shared/postgres"
)

// fault is what an error of the database asks for.
type fault int

const (
	away     fault = iota // the database cannot work now: hold the claim, back off, try again
	conflict              // a row with that id is there: the slow way decides
	refused               // this data will never be taken: find the record, make it a dead letter
	again                 // a serialization failure or deadlock: repeat at once
	fence                 // tables moved or locked, as in a swap: read the generation's state again
)

var (
	errFenced  = errors.New("the progress row is not where this batch begins")
	errTakes   = errors.New("a row must be taken from another partition")
	errVanish  = errors.New("a row vanished between two statements")
	errBroken  = errors.New("too many of the last records were refused by Postgres: this is a broken deploy, not poison")
	errSkipped = errors.New("the log delivered records with committed ones left out between them")
)

// sorted maps an error to what it asks for. Only data exceptions and integrity violations can be a
// record's own fault: never a unique violation, and never a check without a name, which is how Postgres
// reports a missing partition.
func sorted(err error) fault {
	if errors.Is(err, errVanish) {
		return again
	}
	switch state := postgres.State(err); {
	case state == "23505":
		return conflict
	case state == "23514" && postgres.Constraint(err) == "":
		return away
	case strings.HasPrefix(state, "22"), strings.HasPrefix(state, "23"):
		return refused
	case state == "40001", state == "40P01":
		return again
	case state == "42P01", state == "0A000", state == "55P03":
		return fence
	}
	return away
}

// window remembers which of the last records of a partition Postgres refused.
type window struct {
	ring  [windowSize]bool
	at    int
	count int
}

const (
	windowSize = 1000
	windowMost = windowSize / 10
)

// add notes one record and reports whether more than a tenth of the last ones was refused.
func (w *window) add(refused bool) (broken bool) {
	if w.ring[w.at] {
		w.count--
	}
	if w.ring[w.at] = refused; refused {
		w.count++
	}
	w.at = (w.at + 1) % windowSize
	return w.count > windowMost
}
