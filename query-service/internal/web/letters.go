package web

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/limits"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/topic"
)

const (
	mostInBulk   = limits.Letters
	mostEditable = 25 // payloads that one page shows to be edited one by one
)

// letterFilter is the search above the list, as it stands in the address.
type letterFilter struct {
	State      deadletter.State
	Projection string
	Text       string
	Reason     string
	Partition  string // empty or a number
}

var letterStates = []deadletter.State{deadletter.Open, deadletter.Redriven, deadletter.Discarded, deadletter.All}

// readFilter leaves out what no letter can match by its form, as a byte that no text has.
func readFilter(get func(string) string) letterFilter {
	f := letterFilter{
		State: deadletter.State(get("state")), Projection: get("projection"), Text: get("q"),
		Reason: strings.TrimSpace(get("reason_code")), Partition: strings.TrimSpace(get("partition")),
	}
	if !slices.Contains(letterStates, f.State) {
		f.State = deadletter.Open
	}
	f.Text = strings.ToValidUTF8(strings.ReplaceAll(f.Text, "\x00", ""), "")
	f.Reason = strings.ToValidUTF8(strings.ReplaceAll(f.Reason, "\x00", ""), "")
	if _, err := strconv.ParseUint(f.Partition, 10, 31); err != nil {
		f.Partition = ""
	}
	return f
}

func (f letterFilter) filter(order deadletter.Order) deadletter.Filter {
	wanted := deadletter.Filter{Order: order, State: f.State, Projection: f.Projection, Text: f.Text, ReasonCode: f.Reason}
	if n, err := strconv.ParseInt(f.Partition, 10, 32); err == nil { // readFilter has seen to it, where there is any
		partition := int32(n)
		wanted.Partition = &partition
	}
	return wanted
}

func (f letterFilter) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"projection": f.Projection, "q": f.Text, "reason_code": f.Reason, "partition": f.Partition} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.State != deadletter.Open {
		q.Set("state", string(f.State))
	}
	return q
}

// Searching reports whether anything but the state narrows the list.
func (f letterFilter) Searching() bool {
	return f.Projection != "" || f.Text != "" || f.Reason != "" || f.Partition != ""
}

// Clear is the address of the list without the search.
func (f letterFilter) Clear() string { return letterFilter{State: f.State}.With(f.State) }

// With is the address of the list with another state.
func (f letterFilter) With(state deadletter.State) string {
	f.State = state
	return lettersPath(f.query())
}

// WithReason is the address of the list with another reason; the one that is searched for is taken out of the search.
func (f letterFilter) WithReason(code string) string {
	if f.Reason == code {
		code = ""
	}
	f.Reason = code
	return lettersPath(f.query())
}

func lettersPath(q url.Values) string {
	if len(q) == 0 {
		return "/dead-letters"
	}
	return "/dead-letters?" + readable.Replace(q.Encode())
}

// readable keeps positions as people know them: a query may hold these characters as they are.
var readable = strings.NewReplacer("%2F", "/", "%40", "@", "%2C", ",")

type letterView struct {
	deadletter.DeadLetter
	Shown    string
	Encoding string // text or base64
	Size     int64
}

// Open reports whether nothing was decided yet.
func (l letterView) Open() bool { return l.Decision == nil }

// Path is that of the letter's own page.
func (l letterView) Path() string { return "/dead-letters/" + l.Position.String() }

// Overrides reports whether a redriven command wins over later ones of the same thing: it is applied where
// it is written, and an endpoint is as its last command says.
func (l letterView) Overrides() bool { return l.Position.Topic == topic.EndpointCommand.Name }

// Example is what a payload looks like.
func (l letterView) Example() string {
	switch l.Position.Topic {
	case topic.TimestampCommand.Name:
		return `{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","event_timestamp":"2009-09-28T19:03:12Z"}`
	case topic.EndpointCommand.Name:
		return `{"command_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","endpoint_id":"01920b5c-7d4e-7cc3-98c4-dc0c0c07398f","kind":"delete","sent_by":""}`
	}
	return ""
}

// Editable reports whether what is shown is the whole payload, as text.
func (l letterView) Editable() bool { return l.Encoding == "text" && !l.Truncated() }

// corrected is the payload after a replacement; empty where the old one is not shown as it is, which
// command-service refuses: it has to be written anew.
func (l letterView) corrected(find, replace string) string {
	switch {
	case !l.Editable():
		return ""
	default:
		return replaceIn(l.Shown, find, replace)
	}
}

func replaceIn(text, find, replace string) string {
	if find == "" {
		return text
	}
	return strings.ReplaceAll(text, find, replace)
}

func viewLetter(l deadletter.DeadLetter) letterView {
	v := letterView{DeadLetter: l, Encoding: "text", Size: int64(l.PayloadBytes)}
	var isText bool
	if v.Shown, isText = l.Text(); !isText {
		v.Shown, v.Encoding = base64.StdEncoding.EncodeToString(l.Payload), "base64"
	}
	return v
}

type deadLettersView struct {
	viewer
	Filter  letterFilter
	Names   []string // of all projections
	States  []deadletter.State
	Letters []letterView
	Counts  letterCounts
	First   bool
	Next    string
	Done    string
	Left    bool // the search found more than was decided on
	Refused *peer.Refusal
	Picked  []string // positions that were ticked in a form that was refused
	All     bool     // it was ticked there
	Note    string   // what was typed there
}

// IsPicked reports whether the letter at the position is ticked.
func (v deadLettersView) IsPicked(at string) bool { return slices.Contains(v.Picked, at) }

// Choosing reports whether one of those shown is open.
func (v deadLettersView) Choosing() bool { return slices.ContainsFunc(v.Letters, letterView.Open) }

// Redriving reports whether one of those shown can be redriven.
func (v deadLettersView) Redriving() bool {
	return slices.ContainsFunc(v.Letters, func(l letterView) bool { return l.Open() && l.Redrivable() })
}

func (p *Pages) deadLetters(c *gin.Context) {
	v := deadLettersView{}
	v.Left = c.Query("left") != ""
	if n, err := strconv.ParseInt(c.Query("count"), 10, 32); err == nil && n > 0 {
		switch c.Query("done") {
		case "redriven":
			v.Done = plural(n, "dead letter was redriven", "dead letters were redriven")
		case "discarded":
			v.Done = plural(n, "dead letter was discarded", "dead letters were discarded")
		}
	}
	p.showLetters(c, http.StatusOK, v)
}

func (p *Pages) showLetters(c *gin.Context, status int, v deadLettersView) {
	v.viewer, v.Filter, v.States = p.viewer(c), readFilter(c.Query), letterStates
	if c.Request.Method == http.MethodPost {
		v.Filter = readFilter(func(name string) string { return c.PostForm("search_" + name) })
	}
	var after position.Position
	if text := c.Query("after"); text != "" {
		var err error
		if after, err = position.Parse(text); err != nil {
			p.refuse(c, err.Error())
			return
		}
	}
	want, err := p.awaitDecisions(c)
	if p.failed(c, err) {
		return
	}
	var letters []deadletter.DeadLetter
	var next *position.Position
	var counted deadletter.Summary
	err = p.Reader.Read(c.Request.Context(), want, v.Filter.filter(deadletter.Newest).Scope(), func(ctx context.Context, s *projection.Snapshot) (err error) {
		if letters, next, err = deadletter.Search(ctx, s, v.Filter.filter(deadletter.Newest), after, pageLimit); err != nil {
			return err
		}
		anyReason := v.Filter
		anyReason.Reason = ""
		counted, err = deadletter.Summarise(ctx, s, anyReason.filter(deadletter.Newest))
		return err
	})
	if p.failed(c, err) {
		return
	}
	v.Counts = countLetters(counted, v.Filter)
	v.First, v.Names = after.Topic == "", p.names(c.Request.Context())
	for _, l := range letters {
		v.Letters = append(v.Letters, viewLetter(l))
	}
	if next != nil {
		q := v.Filter.query()
		q.Set("after", next.String())
		v.Next = lettersPath(q)
	}
	l := layout{Title: "Dead letters", Here: "/dead-letters", Body: v}
	if v.First { // an older page is for reading, and stands still
		l.Events, l.Self = projectionEvents, v.Filter.With(v.Filter.State)
		if v.Filter.Projection != "" {
			l.Events += "&projection=" + url.QueryEscape(v.Filter.Projection)
		}
	}
	p.render(c, status, "deadletters", l)
}

type deadLetterView struct {
	viewer
	Letter  letterView
	Payload string // to be redriven, as it was sent where that was refused
	Note    string
	Refused *peer.Refusal
}

func (p *Pages) deadLetter(c *gin.Context) {
	p.showLetter(c, http.StatusOK, c.Param("topic")+"/"+c.Param("place"), deadLetterView{})
}

func (p *Pages) showLetter(c *gin.Context, status int, at string, v deadLetterView) {
	v.viewer = p.viewer(c)
	place, err := position.Parse(at)
	if err != nil {
		p.refuse(c, err.Error())
		return
	}
	want, err := p.awaitDecisions(c)
	if p.failed(c, err) {
		return
	}
	letter, err := p.readLetter(c.Request.Context(), want, place)
	var unknown *projection.UnknownError
	if errors.Is(err, deadletter.ErrNotFound) || errors.As(err, &unknown) {
		p.fail(c, problem.Problem{Status: http.StatusNotFound, Title: "No dead letter is there", Detail: fmt.Sprintf("the record at %s was not rejected, or has not been read yet; the list of dead letters has all that were", place)})
		return
	}
	if p.failed(c, err) {
		return
	}
	v.Letter = viewLetter(letter)
	if v.Refused == nil && v.Letter.Editable() {
		v.Payload = v.Letter.Shown
	}
	p.render(c, status, "deadletter", layout{Title: "Dead letter " + at, Here: "/dead-letters", Body: v})
}

// wantPosition is the position that the address names, and how long to wait for it.
func (p *Pages) wantPosition(c *gin.Context) projection.Want {
	want, err := p.Reader.Want(c.Request.Context(), "", c.Query("position"), "", projection.DefaultWait)
	if err != nil {
		return projection.Want{} // the page then shows what there is now
	}
	return want
}

func (p *Pages) readLetter(ctx context.Context, want projection.Want, at position.Position) (letter deadletter.DeadLetter, err error) {
	err = p.Reader.Read(ctx, want, projection.OfTopic(at.Topic), func(ctx context.Context, s *projection.Snapshot) (err error) {
		letter, err = deadletter.At(ctx, s, at)
		return err
	})
	return letter, err
}
