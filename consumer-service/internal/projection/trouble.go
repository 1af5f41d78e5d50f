package projection

import (
	"errors"
	"strings"

	"github.com/tidemark/tidemark/shared/postgres"
)

// remedy is what an error of the database asks for.
type remedy int

const (
	waitForDatabase remedy = iota // the database cannot work now: hold the assignment, back off, try again
	decideRows                    // a row with that key is there: the slow way decides
	findRecord                    // this data will never be taken: find the record, make it a dead letter
	repeatAtOnce                  // a serialization failure or deadlock
	rereadState                   // tables moved or locked, as in a swap: read the generation's state again
	makeDay                       // the table has no partition for a row's day
)

var (
	errFenced       = errors.New("the progress row is not where this batch begins")
	errTakesRow     = errors.New("a row must be taken from another partition")
	errRowVanished  = errors.New("a row vanished between two statements")
	errBrokenDeploy = errors.New("too many of the last records were refused by Postgres: this is a broken deploy, not poison")
	errUndelivered  = errors.New("the log delivered records with committed ones left out between them")
)

// remedyFor maps an error to what it asks for. Only data exceptions, integrity violations and limits of the server can be a
// record's own fault: never a unique violation, and never a check without a name, which is how Postgres reports a
// missing partition.
func remedyFor(err error) remedy {
	if errors.Is(err, errRowVanished) {
		return repeatAtOnce
	}
	switch state := postgres.State(err); {
	case state == "23505":
		return decideRows
	case state == "23514" && postgres.Constraint(err) == "":
		return makeDay
	case strings.HasPrefix(state, "22"), strings.HasPrefix(state, "23"), state == "54000", state == "54001":
		return findRecord
	case state == "40001", state == "40P01":
		return repeatAtOnce
	case state == "42P01", state == "0A000", state == "55P03":
		return rereadState
	}
	return waitForDatabase
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
