package a

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func ask() error { return nil }

func mustAsk(t *testing.T) bool { // want mustAsk:"endsTest"
	require.NoError(t, ask())
	return true
}

type stage struct{ t *testing.T }

func (s stage) there() bool { return mustAsk(s.t) } // want there:"endsTest"

func TestPolled(t *testing.T) {
	s := stage{t}
	require.Eventually(t, func() bool {
		require.NoError(t, ask()) // want `this may end the test from a polled closure`
		return true
	}, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return mustAsk(t) }, time.Minute, time.Millisecond) // want `a polled closure`
	require.Eventually(t, s.there, time.Minute, time.Millisecond)                           // want `a polled closure`
	look := func() bool { t.Fatal("no"); return true }
	require.Eventually(t, look, time.Minute, time.Millisecond)                          // want `a polled closure`
	require.Eventually(t, func() bool { return look() }, time.Minute, time.Millisecond) // want `a polled closure`

	require.EventuallyWithT(t, func(c *assert.CollectT) { require.NoError(c, ask()) }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return ask() == nil }, time.Minute, time.Millisecond)
}

func TestGoroutines(t *testing.T) {
	go func() {
		require.NoError(t, ask()) // want `a go statement`
	}()
	go mustAsk(t) // want `a go statement`
	var all sync.WaitGroup
	all.Go(func() { t.FailNow() }) // want `a group's goroutine`
	all.Go(func() { t.Error("says it, and goes on") })
	_ = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		mustAsk(t) // want `an HTTP handler`
	})
	t.Run("a subtest", func(t *testing.T) { require.NoError(t, ask()) })
}
