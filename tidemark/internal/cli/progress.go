package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
)

// linesEvery is how often a pipe is told how far long work is.
const linesEvery = 5 * time.Second

// progress shows how far long work is, on the standard error output, so that what is printed stays clean: a bar on a
// terminal, else a line now and then.
type progress struct {
	out    io.Writer
	bar    *progressbar.ProgressBar // nil in a pipe
	title  string
	said   time.Time
	closed bool
}

// progress begins to show work whose total is in any unit; below 1 it is not known.
func (c *command) progress(title string, total int64) *progress {
	p := &progress{out: c.Err, title: title, said: time.Now()}
	if !c.Terminal {
		return p
	}
	if total < 1 {
		total = -1
	}
	p.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(c.Err),
		progressbar.OptionSetDescription(title),
		progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetPredictTime(false), // whoever knows the work says more about its end
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionClearOnFinish(),
	)
	return p
}

// at says that done of total are done, and words about it. A pipe hears of a title that changed at once.
func (p *progress) at(done, total int64, title, note string) {
	if p.bar != nil {
		p.bar.Describe(title + "  " + note)
		if total > 0 && p.bar.GetMax64() != total {
			p.bar.ChangeMax64(total)
		}
		if total > 0 {
			done = min(done, total-1) // the bar would end itself
		}
		_ = p.bar.Set64(max(done, 0)) // a terminal that is gone is no reason to stop
		return
	}
	if title == p.title && time.Since(p.said) < linesEvery {
		return
	}
	p.said, p.title = time.Now(), title
	line := []string{title}
	if total > 0 {
		line = append(line, fmt.Sprintf("%.1f%%", 100*float64(done)/float64(total)))
	}
	if note != "" {
		line = append(line, note)
	}
	fmt.Fprintln(p.out, strings.Join(line, "  "))
}

// end takes the bar away.
func (p *progress) end() {
	if p.closed {
		return
	}
	p.closed = true
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
