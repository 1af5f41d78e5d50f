package web

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
)

// Charts are drawn on a canvas of this size, which the page stretches to the room there is.
const (
	chartWidth  = 600
	chartHeight = 100
	chartSpan   = 2 * time.Minute
	sparkPoints = 24 // what a curve in a table's cell can show
)

// chart is one curve over the last two minutes, as paths of an SVG.
type chart struct {
	Name       string
	Line, Area string // empty while there are fewer than two moments
	Now, Most  string
	Since      string // how far back it goes
}

// Words describe the chart for screen readers.
func (c chart) Words() string {
	if c.Line == "" {
		return c.Name + ": not measured for long enough yet"
	}
	return fmt.Sprintf("%s over the last %s: %s now, peak %s", c.Name, c.Since, c.Now, c.Most)
}

func lagChart(moments []projection.Moment) chart {
	return draw("Consumer lag", moments, func(m projection.Moment) (float64, bool) {
		if m.Lag == nil {
			return 0, false
		}
		return float64(*m.Lag), true
	})
}

func rateChart(moments []projection.Moment) chart {
	return draw("Records a second", moments, func(m projection.Moment) (float64, bool) { return m.Rate, true })
}

// coarse takes means of neighbouring moments, so that at most points are left. Where the lag of one is not known, that of
// the group is not.
func coarse(moments []projection.Moment, points int) []projection.Moment {
	each := (len(moments) + points - 1) / points
	if each < 2 {
		return moments
	}
	var out []projection.Moment
	for end := len(moments); end > 0; end -= each { // from the newest, which stays where it is
		group := moments[max(0, end-each):end]
		m := projection.Moment{At: group[len(group)-1].At}
		lag, known := int64(0), true
		for _, g := range group {
			if g.Lag != nil {
				lag += *g.Lag
			} else {
				known = false
			}
			m.Rate += g.Rate / float64(len(group))
		}
		if known {
			lag /= int64(len(group))
			m.Lag = &lag
		}
		out = append(out, m)
	}
	slices.Reverse(out)
	return out
}

// draw leaves a gap where a value is not known.
func draw(name string, moments []projection.Moment, value func(projection.Moment) (float64, bool)) chart {
	c := chart{Name: name}
	if len(moments) < 2 {
		return c
	}
	last := moments[len(moments)-1]
	most, known := 0.0, 0
	for _, m := range moments {
		if v, ok := value(m); ok {
			most = max(most, v)
			known++
		}
	}
	if known < 2 {
		return c
	}
	scale := max(most, 1) // a flat nothing stays at the bottom
	var line, area strings.Builder
	left, right := -1.0, 0.0 // of the stretch that is being drawn; left is below 0 in a gap
	end := func() {
		if left >= 0 {
			fmt.Fprintf(&area, "L%.1f %dL%.1f %dZ", right, chartHeight, left, chartHeight)
		}
		left = -1
	}
	for _, m := range moments {
		v, ok := value(m)
		if !ok {
			end()
			continue
		}
		verb := "L"
		right = max(chartWidth*(1-last.At.Sub(m.At).Seconds()/chartSpan.Seconds()), 0)
		if left < 0 {
			verb, left = "M", right
		}
		point := fmt.Sprintf("%s%.1f %.1f", verb, right, chartHeight-(chartHeight-4)*v/scale-2)
		line.WriteString(point)
		area.WriteString(point)
	}
	end()
	c.Line, c.Area = line.String(), area.String()
	c.Now, c.Most = "unknown", number(int64(math.Round(most)))
	if v, ok := value(last); ok {
		c.Now = number(int64(math.Round(v)))
	}
	c.Since = span(last.At.Sub(moments[0].At))
	return c
}
