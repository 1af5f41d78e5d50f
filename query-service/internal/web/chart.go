package web

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/projection"
)

// Charts are drawn on a canvas of this size, which the page stretches to the room there is.
const (
	chartWidth  = 600
	chartHeight = 100
	chartSpan   = 2 * time.Minute
)

// chart is one curve over the last two minutes, as paths of an SVG.
type chart struct {
	Name       string
	Line, Area string // empty while there are fewer than two moments
	Now, Most  string
	Since      string // how far back it goes
}

// Words tell the chart to whoever cannot see it.
func (c chart) Words() string {
	if c.Line == "" {
		return c.Name + ": not measured for long enough yet"
	}
	return fmt.Sprintf("%s over the last %s: %s now, %s at most", c.Name, c.Since, c.Now, c.Most)
}

func lagChart(moments []projection.Moment) chart {
	return draw("Lag", moments, func(m projection.Moment) float64 { return float64(m.Lag) })
}

func rateChart(moments []projection.Moment) chart {
	return draw("Records a second", moments, func(m projection.Moment) float64 { return m.Rate })
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
