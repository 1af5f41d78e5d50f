package web

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
)

const (
	mostBars      = 48 // of the picture of letters over time
	leastBars     = 12 // so that a single hour does not fill it; those before it are empty
	mostProducers = 6  // that are listed; the others are counted together
)

// letterCounts is what a search finds, counted by reason, producer and hour.
type letterCounts struct {
	Letters   int64
	Bounded   bool
	Reasons   []letterCount // of every reason, whichever is searched for
	Producers []letterCount
	Others    letterCount // the producers that are not listed; Count is 0 where all are
	Bars      []letterBar
	Each      string // the time of one bar
	From, To  time.Time
	Peak      int64
}

type letterCount struct {
	Name  string
	Count int64
}

// letterBar is a rectangle on a canvas of chartWidth by chartHeight.
type letterBar struct {
	X, Y, Width, Height float64
	Words               string
}

// Words describe the picture for screen readers.
func (l letterCounts) Words() string {
	return fmt.Sprintf("Dead letters over time, each bar %s, from %s to %s: peak %s", l.Each, l.From.Format(dayAndHour), l.To.Format(dayAndHour), number(l.Peak))
}

const dayAndHour = "2006-01-02 15:04 UTC"

// countLetters sums what was counted without regard to a reason; all but the reasons' own counts are of the one searched for.
func countLetters(sum deadletter.Summary, f letterFilter) letterCounts {
	l := letterCounts{Bounded: sum.Bounded}
	reasons, producers, hours := map[string]int64{}, map[string]int64{}, map[time.Time]int64{}
	for _, code := range deadletter.ReasonCodes {
		reasons[code] = 0
	}
	if f.Reason != "" {
		reasons[f.Reason] = 0
	}
	for _, g := range sum.Groups {
		reasons[g.ReasonCode] += g.Letters
		if f.Reason != "" && g.ReasonCode != f.Reason {
			continue
		}
		l.Letters += g.Letters
		producers[g.Producer] += g.Letters
		hours[g.Hour.UTC()] += g.Letters
	}
	l.Reasons, l.Producers = byCount(reasons), byCount(producers)
	if len(l.Producers) > mostProducers+1 {
		l.Others.Name = plural(int64(len(l.Producers)-mostProducers), "other", "others")
		for _, p := range l.Producers[mostProducers:] {
			l.Others.Count += p.Count
		}
		l.Producers = l.Producers[:mostProducers]
	}
	l.draw(hours)
	return l
}

func byCount(of map[string]int64) []letterCount {
	list := make([]letterCount, 0, len(of))
	for _, name := range slices.Sorted(maps.Keys(of)) {
		list = append(list, letterCount{name, of[name]})
	}
	slices.SortStableFunc(list, func(a, b letterCount) int { return cmp.Compare(b.Count, a.Count) })
	return list
}

// draw makes a bar of so many whole hours that all of them fit.
func (l *letterCounts) draw(hours map[time.Time]int64) {
	if len(hours) == 0 {
		return
	}
	at := slices.SortedFunc(maps.Keys(hours), time.Time.Compare)
	first, last := at[0], at[len(at)-1]
	inAll := int64(last.Sub(first)/time.Hour) + 1
	each := (inAll + mostBars - 1) / mostBars
	bars := max((inAll+each-1)/each, leastBars)
	l.Each = plural(each, "hour", "hours")
	l.To = last.Add(time.Hour)
	l.From = l.To.Add(-time.Duration(bars*each) * time.Hour) // the newest bar is a whole one
	counts := make([]int64, bars)
	for hour, n := range hours {
		i := int64(hour.Sub(l.From)/time.Hour) / each
		counts[i] += n
		l.Peak = max(l.Peak, counts[i])
	}
	width := float64(chartWidth) / float64(bars)
	for i, n := range counts {
		if n == 0 {
			continue
		}
		height := max((chartHeight-4)*float64(n)/float64(l.Peak), 2)
		begin := l.From.Add(time.Duration(int64(i)*each) * time.Hour)
		l.Bars = append(l.Bars, letterBar{
			X: float64(i)*width + width*.1, Y: chartHeight - height, Width: width * .8, Height: height,
			Words: fmt.Sprintf("%s: %s", begin.Format(dayAndHour), number(n)),
		})
	}
}
