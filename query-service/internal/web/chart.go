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
	return draw("Consumer lag", moments, func(m projection.Moment) float64 { return float64(m.Lag) })
}

func rateChart(moments []projection.Moment) chart {
	return draw("Records a second", moments, func(m projection.Moment) float64 { return m.Rate })
}

// coarse takes means of neighbouring moments, so that at most points are left.
func coarse(moments []projection.Moment, points int) []projection.Moment {
	each := (len(moments) + points - 1) / points
	if each < 2 {
		return moments
	}
	var out []projection.Moment
	for end := len(moments); end > 0; end -= each { // from the newest, which stays where it is
		group := moments[max(0, end-each):end]
		m := projection.Moment{At: group[len(group)-1].At}
		for _, g := range group {
			m.Lag += g.Lag
			m.Rate += g.Rate / float64(len(group))
		}
		m.Lag /= int64(len(group))
		out = append(out, m)
	}
	slices.Reverse(out)
	return out
}

func draw(name string, moments []projection.Moment, value func(projection.Moment) float64) chart {
	c := chart{Name: name}
	if len(moments) < 2 {
		return c
	}
	last := moments[len(moments)-1]
	most := 0.0
	for _, m := range moments {
		most = max(most, value(m))
	}
	scale := max(most, 1) // a flat nothing stays at the bottom
	var line strings.Builder
	var left float64
	for i, m := range moments {
		x := chartWidth * (1 - last.At.Sub(m.At).Seconds()/chartSpan.Seconds())
		y := chartHeight - (chartHeight-4)*value(m)/scale - 2
		verb := "L"
		if i == 0 {
			verb, left = "M", x
		}
		fmt.Fprintf(&line, "%s%.1f %.1f", verb, x, y)
	}
	c.Line = line.String()
	c.Area = fmt.Sprintf("%sL%d %dL%.1f %dZ", c.Line, chartWidth, chartHeight, left, chartHeight)
	c.Now, c.Most = number(int64(math.Round(value(last)))), number(int64(math.Round(most)))
	c.Since = span(last.At.Sub(moments[0].At))
	return c
}
