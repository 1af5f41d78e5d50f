// Package pace says how fast something goes that is counted, and when it will be done, from readings taken about once a
// second.
//
// A rate is measured over the last seconds (Window), from where the work last began: what stood still before it would
// make the rate too low, and an estimate many times too long. Until it was measured for WarmUp there is none. An
// estimate takes the speed at which the lag shrinks, since what comes in meanwhile has to be done as well.
package pace

import (
	"math"
	"time"
)

const (
	// Window is how far back a rate is measured.
	Window = 10 * time.Second
	// WarmUp is the shortest time over which one is.
	WarmUp = 4 * time.Second
	// recently is the end of the window in which a lag that has grown before may have begun to shrink.
	recently = 3 * time.Second
	// longest bounds an estimate: whatever takes longer is no matter of seconds.
	longest = 1e9 // seconds
)

// Reading is one look at what is counted.
type Reading struct {
	At   time.Time
	Done int64  // counted so far; it does not fall from one reading to the next
	Lag  *int64 // what is left to do; nil where that is not known
}

// Measure is what readings say.
type Measure struct {
	Rate  *float64       // a second; nil during the warm-up
	ETA   *time.Duration // until nothing is left, 0 where nothing is; nil where that is not known
	Stuck bool           // something is left, and it became no less over the window nor at its end
}

// Of measures readings, the oldest first.
func Of(readings []Reading) Measure {
	var m Measure
	if len(readings) == 0 {
		return m
	}
	newest := readings[len(readings)-1]
	if newest.Lag != nil && *newest.Lag == 0 {
		m.ETA = new(time.Duration)
	}
	readings = atWork(readings)
	oldest := readings[0]
	seconds := newest.At.Sub(oldest.At).Seconds()
	if seconds < WarmUp.Seconds() {
		return m
	}
	rate := float64(newest.Done-oldest.Done) / seconds
	m.Rate = &rate
	for oldest.Lag == nil && len(readings) > 1 { // where the lag was not known yet
		readings = readings[1:]
		oldest = readings[0]
	}
	seconds = newest.At.Sub(oldest.At).Seconds()
	if newest.Lag == nil || *newest.Lag == 0 || seconds < WarmUp.Seconds() {
		return m
	}
	shrinks := float64(*oldest.Lag-*newest.Lag) / seconds
	if shrinks > 0 {
		eta := time.Duration(min(math.Ceil(float64(*newest.Lag)/shrinks), longest) * float64(time.Second))
		m.ETA = &eta
		return m
	}
	m.Stuck = true
	for _, r := range readings {
		if newest.At.Sub(r.At) <= recently && (r.Lag == nil || *r.Lag > *newest.Lag) {
			m.Stuck = false
		}
	}
	return m
}

// atWork is the readings of the window from the last one before the work began: the last without a lag, and the last
// before the count moved, where it moved at all.
func atWork(readings []Reading) []Reading {
	last := len(readings) - 1
	newest := readings[last]
	from := 0
	for from < last && newest.At.Sub(readings[from].At) > Window {
		from++
	}
	if newest.Lag != nil && *newest.Lag > 0 {
		for i := last - 1; i >= from; i-- {
			if lag := readings[i].Lag; lag != nil && *lag == 0 {
				from = i
				break
			}
		}
	}
	if start := readings[from].Done; newest.Done != start {
		for readings[from+1].Done == start {
			from++
		}
	}
	return readings[from:]
}
