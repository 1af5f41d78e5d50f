package web

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	command "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/topic"
)

const (
	mostInBulk   = 1000 // what command-service takes in one request
	mostEditable = 25   // payloads that one page shows to be edited one by one
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

func (f letterFilter) filter() deadletter.Filter {
	wanted := deadletter.Filter{State: f.State, Projection: f.Projection, Text: f.Text, ReasonCode: f.Reason}
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

func lettersPath(q url.Values) string {
	if len(q) == 0 {
		return "/dead-letters"
	}
	return "/dead-letters?" + readable.Replace(q.Encode())
}

// readable keeps positions as people know them: a query may hold both characters as they are.
var readable = strings.NewReplacer("%2F", "/", "%40", "@")

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
	case find == "":
		return l.Shown
	default:
		return strings.ReplaceAll(l.Shown, find, replace)
	}
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
	Filter  letterFilter
	Names   []string // of all projections
	States  []deadletter.State
	Letters []letterView
	First   bool
	Next    string
	Done    string
	Refused *peer.Refusal
}

// Choosing reports whether one of those shown is open.
func (v deadLettersView) Choosing() bool { return slices.ContainsFunc(v.Letters, letterView.Open) }

// Redriving reports whether one of those shown can be redriven.
func (v deadLettersView) Redriving() bool {
	return slices.ContainsFunc(v.Letters, func(l letterView) bool { return l.Open() && l.Redrivable() })
}

func (p *Pages) deadLetters(c *gin.Context) {
	v := deadLettersView{}
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
	v.Filter, v.States = readFilter(c.Query), letterStates
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
	letters, next, err := p.listLetters(c.Request.Context(), want, v.Filter, after, pageLimit)
	if p.failed(c, err) {
		return
	}
	v.First, v.Names = after.Topic == "", p.names(c.Request.Context())
	for _, l := range letters {
		v.Letters = append(v.Letters, viewLetter(l))
	}
	if next != nil {
		q := v.Filter.query()
		q.Set("after", next.String())
		v.Next = lettersPath(q)
	}
	p.render(c, status, "deadletters", layout{Title: "Dead letters", Here: "/dead-letters", Body: v})
}

type deadLetterView struct {
	Letter  letterView
	Payload string // to be redriven, as it was sent where that was refused
	Note    string
	Refused *peer.Refusal
}

func (p *Pages) deadLetter(c *gin.Context) {
	p.showLetter(c, http.StatusOK, c.Param("topic")+"/"+c.Param("place"), deadLetterView{})
}

func (p *Pages) showLetter(c *gin.Context, status int, at string, v deadLetterView) {
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

type reviewView struct {
	Letters       []reviewLetter // the first of them, with their payloads
	Positions     []string       // of all
	Find, Replace string         // applied to what is shown
	Note          string
	Each          bool // each payload can be edited
	Changed       int  // payloads that the replacement changes
	Unseen        bool // it was sent with a replacement that had not been shown
	Overrides     bool // one is of a kind whose redriven command wins over later ones
	LeftOut       int  // letters that were chosen and can only be discarded
	Refused       *peer.Refusal
}

type reviewLetter struct {
	letterView
	New   string
	Wrong string // why command-service refused it
}

// More is how many are not shown.
func (v reviewView) More() int { return len(v.Positions) - len(v.Letters) }

// review shows what was chosen in the list with what it would be redriven as: a form of its own, since
// a thousand payloads are not edited on a list.
func (p *Pages) review(c *gin.Context) {
	positions, ok := p.chosen(c)
	if !ok {
		return
	}
	p.showReview(c, http.StatusOK, reviewView{
		Positions: positions, Find: c.PostForm("find"), Replace: c.PostForm("replace"), Note: c.PostForm("note"),
	}, nil)
}

// showReview fills v with the letters; edited has payloads that were sent already.
func (p *Pages) showReview(c *gin.Context, status int, v reviewView, edited map[string]string) {
	letters, ok := p.read(c, v.Positions)
	if !ok {
		return
	}
	redrivable := slices.DeleteFunc(slices.Clone(letters), func(l letterView) bool { return !l.Redrivable() })
	if v.LeftOut = len(letters) - len(redrivable); v.LeftOut > 0 {
		if letters, v.Positions = redrivable, nil; len(letters) == 0 {
			p.refuse(c, "what is chosen can only be discarded: its topic is not written by command-service, so there is no command to redrive")
			return
		}
		for _, l := range letters {
			v.Positions = append(v.Positions, l.Position.String())
		}
	}
	wrong := map[string]string{}
	if v.Refused != nil {
		for _, e := range v.Refused.Letters {
			wrong[e.Position] = e.Reason
		}
	}
	v.Each = len(letters) <= mostEditable
	for _, l := range letters {
		v.Overrides = v.Overrides || l.Overrides()
		r := reviewLetter{letterView: l, New: l.corrected(v.Find, v.Replace), Wrong: wrong[l.Position.String()]}
		if l.Editable() && r.New != l.Shown {
			v.Changed++
		}
		if sent, was := edited[l.Position.String()]; was {
			r.New = sent
		}
		if len(v.Letters) < mostEditable && (v.Each || len(wrong) == 0 || r.Wrong != "") {
			v.Letters = append(v.Letters, r)
		}
	}
	p.render(c, status, "review", layout{Title: "Redrive dead letters", Here: "/dead-letters", Body: v})
}

// chosen are the positions that the form names: those that were ticked, or all that the search finds.
func (p *Pages) chosen(c *gin.Context) ([]string, bool) {
	positions := c.PostFormArray("position")
	if c.PostForm("all") != "" {
		f := readFilter(func(name string) string { return c.PostForm("search_" + name) })
		letters, _, err := p.listLetters(c.Request.Context(), projection.Want{}, f, position.Position{}, mostInBulk)
		if p.failed(c, err) {
			return nil, false
		}
		positions = positions[:0]
		for _, l := range letters {
			positions = append(positions, l.Position.String())
		}
	}
	switch {
	case len(positions) == 0:
		p.refuse(c, "no dead letter is chosen: tick some in the list and send it again")
	case len(positions) > mostInBulk:
		p.refuse(c, fmt.Sprintf("%d dead letters are chosen: at most %d are taken at once", len(positions), mostInBulk))
	default:
		return positions, true
	}
	return nil, false
}

// read reads the letters at these positions, in their order, in one snapshot.
func (p *Pages) read(c *gin.Context, positions []string) ([]letterView, bool) {
	views := make([]letterView, 0, len(positions))
	places := make([]position.Position, len(positions))
	for i, text := range positions {
		var err error
		if places[i], err = position.Parse(text); err != nil {
			p.refuse(c, err.Error())
			return nil, false
		}
	}
	var missing position.Position
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, projection.Every(), func(ctx context.Context, s *projection.Snapshot) error {
		for _, place := range places {
			l, err := deadletter.At(ctx, s, place)
			if err != nil {
				missing = place
				return err
			}
			views = append(views, viewLetter(l))
		}
		return nil
	})
	if errors.Is(err, deadletter.ErrNotFound) {
		p.refuse(c, fmt.Sprintf("there is no dead letter at %s: load the list anew", missing))
		return nil, false
	}
	return views, !p.failed(c, err)
}

// redrive writes new commands in the place of dead letters, with the payloads of the form or, where it has none
// for a position, the letter's own after the replacement. One letter leads to its ticket, several to
// the list.
func (p *Pages) redrive(c *gin.Context) {
	ctx := c.Request.Context()
	positions, ok := p.chosen(c)
	if !ok {
		return
	}
	payloads := c.PostFormArray("payload") // one for each position, where each can be edited
	edited := map[string]string{}
	if len(payloads) == len(positions) {
		for i, at := range positions {
			edited[at] = strings.ReplaceAll(payloads[i], "\r\n", "\n") // a form sends line ends as CRLF
		}
	}
	find, replace, note := c.PostForm("find"), c.PostForm("replace"), strings.TrimSpace(c.PostForm("note"))
	single := c.PostForm("single") != ""
	if find != c.PostForm("applied_find") || replace != c.PostForm("applied_replace") {
		p.showReview(c, http.StatusOK, reviewView{Positions: positions, Find: find, Replace: replace, Note: note, Unseen: true}, nil)
		return // nothing is redriven that was not shown before
	}
	letters := make([]command.Letter, 0, len(positions))
	if len(edited) == 0 {
		views, ok := p.read(c, positions)
		if !ok {
			return
		}
		for _, l := range views {
			letters = append(letters, command.Letter{Position: l.Position.String(), Payload: l.corrected(find, replace)})
		}
	} else {
		for _, at := range positions {
			letters = append(letters, command.Letter{Position: at, Payload: edited[at]})
		}
	}
	key, err := retryKey(c)
	var done peer.Decision
	if err == nil {
		done, err = p.Peers.Redrive(ctx, letters, note, key)
	}
	if refused := p.refusal(ctx, err); refused != nil {
		if single {
			p.showLetter(c, refused.Status, positions[0], deadLetterView{Payload: letters[0].Payload, Note: note, Refused: refused})
			return
		}
		p.showReview(c, refused.Status, reviewView{Positions: positions, Find: find, Replace: replace, Note: note, Refused: refused}, edited)
		return
	}
	if len(done.Results) == 1 && done.Results[0].Ticket != nil && done.Results[0].Command != nil {
		r := done.Results[0]
		c.Redirect(http.StatusSeeOther, "/tickets/"+url.PathEscape(*r.Ticket)+"?position="+*r.Command)
		return
	}
	c.Redirect(http.StatusSeeOther, afterDecision("redriven", done.Results))
}

// discard closes dead letters without a command.
func (p *Pages) discard(c *gin.Context) {
	ctx := c.Request.Context()
	positions, ok := p.chosen(c)
	if !ok {
		return
	}
	note := strings.TrimSpace(c.PostForm("note"))
	key, err := retryKey(c)
	var done peer.Decision
	if err == nil {
		done, err = p.Peers.Discard(ctx, positions, note, key)
	}
	if refused := p.refusal(ctx, err); refused != nil {
		if c.PostForm("single") != "" {
			p.showLetter(c, refused.Status, positions[0], deadLetterView{Note: note, Refused: refused})
			return
		}
		p.showLetters(c, refused.Status, deadLettersView{Refused: refused})
		return
	}
	c.Redirect(http.StatusSeeOther, afterDecision("discarded", done.Results))
}

// lettersAgain shows what was refused on the page that the form was on.
func (p *Pages) lettersAgain(c *gin.Context, refused *peer.Refusal) {
	if at := c.PostForm("position"); c.PostForm("single") != "" {
		p.showLetter(c, refused.Status, at, deadLetterView{Payload: c.PostForm("payload"), Note: c.PostForm("note"), Refused: refused})
		return
	}
	p.showLetters(c, refused.Status, deadLettersView{Refused: refused})
}

// afterDecision is the list, once it has every one of the decisions in it. They lie in several partitions: the last one of each
// says enough.
func afterDecision(done string, decided []command.DecisionResult) string {
	last := map[int32]position.Position{}
	for _, d := range decided {
		if at, err := position.Parse(d.Decision); err == nil && at.Offset >= last[at.Partition].Offset {
			last[at.Partition] = at
		}
	}
	q := url.Values{"done": {done}, "count": {strconv.Itoa(len(decided))}}
	for _, partition := range slices.Sorted(maps.Keys(last)) {
		q.Add("position", last[partition].String())
	}
	return lettersPath(q)
}

// awaitDecisions waits until readers see every decision that the address names, and returns the last one as what the page itself
// waits for. What is no position is passed over: the page then shows what there is now.
func (p *Pages) awaitDecisions(c *gin.Context) (want projection.Want, err error) {
	ctx := c.Request.Context()
	until := time.Now().Add(projection.DefaultWait)
	for _, at := range c.QueryArray("position") {
		if want.Asked() {
			if err := p.Reader.Read(ctx, want, projection.Scope{}, func(context.Context, *projection.Snapshot) error { return nil }); err != nil {
				return want, err
			}
		}
		if want, err = p.Reader.Want(ctx, "", at, "", max(0, time.Until(until))); err != nil {
			want = projection.Want{}
		}
	}
	return want, nil
}

// wantPosition is the position that the address names, and how long to wait for it.
func (p *Pages) wantPosition(c *gin.Context) projection.Want {
	want, err := p.Reader.Want(c.Request.Context(), "", c.Query("position"), "", projection.DefaultWait)
	if err != nil {
		return projection.Want{} // the page then shows what there is now
	}
	return want
}

func (p *Pages) listLetters(ctx context.Context, want projection.Want, f letterFilter, after position.Position, limit int) (letters []deadletter.DeadLetter, next *position.Position, err error) {
	err = p.Reader.Read(ctx, want, f.filter().Scope(), func(ctx context.Context, s *projection.Snapshot) (err error) {
		letters, next, err = deadletter.Search(ctx, s, f.filter(), after, limit)
		return err
	})
	return letters, next, err
}

func (p *Pages) readLetter(ctx context.Context, want projection.Want, at position.Position) (letter deadletter.DeadLetter, err error) {
	err = p.Reader.Read(ctx, want, projection.OfTopic(at.Topic), func(ctx context.Context, s *projection.Snapshot) (err error) {
		letter, err = deadletter.At(ctx, s, at)
		return err
	})
	return letter, err
}
