// Package await waits, in tests, for what must come sooner or later.
//
// The condition is asked on the test's own goroutine, so it may require; testify's Eventually asks on another one, where a
// require ends the wrong goroutine. There is one limit for everything, long enough for a machine that is busy or slow: it is
// waited for in full only where something is broken.
package await

import (
	"flag"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	limit    = 90 * time.Second
	tick     = 10 * time.Millisecond
	longTick = 50 * time.Millisecond
)

// SideBySide lets eight of a package's parallel tests run at once, however few processors there are: for tests that wait for
// servers most of the time. TestMain calls it first; -parallel overrides it.
func SideBySide() {
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err) // the flag is the testing package's own
	}
}

// Until returns once ready does so with true, and fails the test where it has not in a minute and a half. what says what is
// waited for, as testify's messages do.
func Until(t testing.TB, ready func() bool, what ...any) {
	t.Helper()
	until(t, limit, tick, ready, what...)
}

// UntilWithin is Until with another limit, for what takes minutes by its nature. It asks less often, so that asking costs a
// benchmark nothing that shows.
func UntilWithin(t testing.TB, limit time.Duration, ready func() bool, what ...any) {
	t.Helper()
	until(t, limit, longTick, ready, what...)
}

func until(t testing.TB, limit, tick time.Duration, ready func() bool, what ...any) {
	t.Helper()
	for end := time.Now().Add(limit); !ready(); time.Sleep(tick) {
		if time.Now().After(end) {
			require.Fail(t, "it has not come in "+limit.String(), what...)
		}
	}
}

// NoError returns once try does so without an error, and fails the test with the last one where none has in a minute and a
// half.
func NoError(t testing.TB, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); ; time.Sleep(tick) {
		if err = try(); err == nil {
			return
		}
		if time.Now().After(end) {
			require.NoError(t, err, "it has not come in "+limit.String())
		}
	}
}
