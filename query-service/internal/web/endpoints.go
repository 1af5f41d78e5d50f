package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/tidemark/tidemark/query-service/internal/endpoint"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/problem"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

const historyLimit = 20

// endpointForm is the fields of an endpoint as they are typed, and what is wrong with them.
type endpointForm struct {
	URL, Name, Group, Tags, Interval string
	Enabled                          bool
	Version                          string // ticket of the command whose endpoint is edited
	Wrong                            map[string]string
	Refused                          *peer.Refusal
}

func readEndpointForm(c *gin.Context) endpointForm {
	field := func(name string) string { return strings.TrimSpace(c.PostForm(name)) }
	return endpointForm{
		URL: field("url"), Name: field("name"), Group: field("group"), Tags: field("tags"), Interval: field("interval"),
		Enabled: c.PostForm("enabled") != "", Version: field("version"),
	}
}

// document writes the form over the members of base: those that the form does not know stay. An empty field
// is left out, and gets command-service's default.
func (f endpointForm) document(base json.RawMessage) ([]byte, error) {
	members := map[string]any{}
	if base != nil {
		var kept map[string]json.RawMessage
		if err := json.Unmarshal(base, &kept); err != nil {
			return nil, fmt.Errorf("read an endpoint: %w", err)
		}
		for name, value := range kept {
			members[name] = value
		}
	}
	for name, value := range map[string]string{"url": f.URL, "name": f.Name, "group": f.Group, "interval": f.Interval} {
		if value == "" {
			delete(members, name)
		} else {
			members[name] = value
		}
	}
	tags := []string{}
	for tag := range strings.SplitSeq(f.Tags, ",") {
		if tag = strings.TrimSpace(tag); tag != "" {
			tags = append(tags, tag)
		}
	}
	members["tags"], members["enabled"] = tags, f.Enabled
	return json.Marshal(members)
}

// refuse puts what command-service did not accept at the fields; what belongs to none is shown above them.
func (f *endpointForm) refuse(r *peer.Refusal) {
	f.Wrong, f.Refused = map[string]string{}, r
	var rest []string
	for _, e := range r.Fields {
		name, _, _ := strings.Cut(e.Path, "[")
		if slices.Contains([]string{"url", "name", "group", "tags", "interval"}, name) && f.Wrong[name] == "" {
			f.Wrong[name] = e.Message
		} else {
			rest = append(rest, strings.TrimPrefix(e.Path+": "+e.Message, ": "))
		}
	}
	if len(f.Wrong) > 0 { // else the detail says it
		r.Detail = strings.Join(rest, "; ")
	}
}

type endpointsView struct {
	viewer
	Rebuilding string // why no list is shown
	Endpoints  []endpoint.Endpoint
	Filter     endpoint.Filter
	First      bool
	Next       string
	Form       endpointForm
}

// Searching reports whether the list is narrowed.
func (v endpointsView) Searching() bool { return v.Filter != endpoint.Filter{} }

func (p *Pages) endpoints(c *gin.Context) {
	p.showEndpoints(c, http.StatusOK, endpointForm{Enabled: true})
}

func (p *Pages) showEndpoints(c *gin.Context, status int, form endpointForm) {
	clean := func(name string) string {
		return strings.ToValidUTF8(strings.ReplaceAll(strings.TrimSpace(c.Query(name)), "\x00", ""), "")
	}
	v := endpointsView{viewer: p.viewer(c), Filter: endpoint.Filter{Group: clean("group"), Tag: clean("tag"), Text: clean("q")}, First: true, Form: form}
	l := layout{Title: "Endpoints", Here: "/endpoints"}
	var after endpoint.Cursor
	if text := c.Query("after"); text != "" {
		var err error
		if after, err = endpoint.ParseCursor(text); err != nil {
			p.refuse(c, err.Error())
			return
		}
		v.First = false
	}
	var next *endpoint.Cursor
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, projection.Of(endpoint.Projection), func(ctx context.Context, s *projection.Snapshot) (err error) {
		v.Endpoints, next, err = endpoint.List(ctx, s, v.Filter, after, pageLimit)
		return err
	})
	var rebuilding *projection.RebuildingError
	switch {
	case errors.As(err, &rebuilding):
		v.Rebuilding, l.Refresh = p.Problem(c.Request.Context(), err).Detail, 3
		if status == http.StatusOK {
			status = http.StatusServiceUnavailable
		}
	case p.failed(c, err):
		return
	}
	if next != nil {
		q := url.Values{"after": {next.String()}}
		for name, value := range map[string]string{"group": v.Filter.Group, "tag": v.Filter.Tag, "q": v.Filter.Text} {
			if value != "" {
				q.Set(name, value)
			}
		}
		v.Next = "/endpoints?" + q.Encode()
	}
	l.Body = v
	p.render(c, status, "endpoints", l)
}

// addEndpoint posts a new endpoint and leads to its page.
func (p *Pages) addEndpoint(c *gin.Context) {
	ctx := c.Request.Context()
	f := readEndpointForm(c)
	document, err := f.document(nil)
	if p.failed(c, err) {
		return
	}
	got, err := p.send(c, func(key uuid.UUID) (peer.Accepted, error) { return p.Peers.AddEndpoint(ctx, document, key) })
	if refused := p.refusal(ctx, err); refused != nil {
		p.addEndpointAgain(c, refused)
		return
	}
	c.Redirect(http.StatusSeeOther, endpointPath(got.Endpoint, "added", got))
}

func (p *Pages) addEndpointAgain(c *gin.Context, refused *peer.Refusal) {
	f := readEndpointForm(c)
	f.refuse(refused)
	p.showEndpoints(c, refused.Status, f)
}

// send gives a command its key.
func (p *Pages) send(c *gin.Context, do func(key uuid.UUID) (peer.Accepted, error)) (peer.Accepted, error) {
	key, err := retryKey(c)
	if err != nil {
		return peer.Accepted{}, err
	}
	return do(key)
}

// retryKey is the key of the attempt before, where the form has it, so that nothing ends up twice; else a fresh one. The error is
// a *peer.Refusal.
func retryKey(c *gin.Context) (uuid.UUID, error) {
	key, err := ids.New()
	if retry := c.PostForm("key"); retry != "" {
		key, err = ids.Parse(retry)
	}
	if err != nil {
		return uuid.Nil, &peer.Refusal{Status: http.StatusBadRequest, Detail: err.Error()}
	}
	return key, nil
}

// endpointPath is the endpoint's page once the command is in it.
func endpointPath(id, done string, got peer.Accepted) string {
	q := "?done=" + done + "&ticket=" + got.ID.String()
	if got.Position != "" {
		q += "&position=" + readable.Replace(url.QueryEscape(got.Position))
	}
	return "/endpoints/" + url.PathEscape(id) + q
}

type endpointView struct {
	viewer
	endpoint.Endpoint
	Others  []endpoint.Member // members that this release does not know
	History []changeView
	Older   string // link to older changes; empty where there are none
	Form    endpointForm
	Done    string
	Ticket  string // of the command that led here
	Pending bool   // that command is not in what is shown
	// DeleteRefused is why the endpoint was not deleted; nil where nobody was refused.
	DeleteRefused *peer.Refusal
}

type changeView struct {
	endpoint.Change
	First bool // nothing was there before
}

// What says in one word what a change did.
func (v changeView) What() string {
	switch {
	case v.Kind == event.EndpointDelete:
		return "deleted"
	case v.First:
		return "added"
	case len(v.Members) == 0:
		return "put without a change"
	}
	return "changed"
}

func (p *Pages) endpoint(c *gin.Context) {
	p.showEndpoint(c, http.StatusOK, endpointView{Done: map[string]string{"added": "The endpoint was added.", "saved": "The change was saved.", "deleted": "The endpoint was deleted."}[c.Query("done")]}, nil)
}

// showEndpoint renders one endpoint; v has what is known of a form that was sent. The form that edits it is filled as it
// was sent, where that was refused, and else as the endpoint is.
func (p *Pages) showEndpoint(c *gin.Context, status int, v endpointView, form *endpointForm) {
	ctx := c.Request.Context()
	id, ok := p.endpointID(c)
	if !ok {
		return
	}
	want := p.wantPosition(c)
	below := int64(math.MaxInt64)
	if n, err := strconv.ParseInt(c.Query("before"), 10, 64); err == nil {
		below = n
	}
	v.viewer = p.viewer(c)
	var changes []endpoint.Change
	var more bool
	read := func(ctx context.Context, s *projection.Snapshot) (err error) {
		if v.Endpoint, err = endpoint.ByID(ctx, s, id); err != nil {
			return err
		}
		changes, more, err = endpoint.History(ctx, s, id, below, historyLimit)
		return err
	}
	err := p.Reader.Read(ctx, want, projection.Of(endpoint.Projection), read)
	var behind *projection.NotReachedError
	if errors.As(err, &behind) { // what there is, and that it is not all
		v.Pending = true
		err = p.Reader.Read(ctx, projection.Want{}, projection.Of(endpoint.Projection), read)
	}
	if errors.Is(err, endpoint.ErrNotFound) {
		detail := "nothing was ever put under this id"
		if v.Pending {
			detail = fmt.Sprintf("the command at %s is accepted and in the log, and not in the tables yet: load this page again", behind.Want.Position)
		}
		p.fail(c, problem.Problem{Status: http.StatusNotFound, Title: "No such endpoint", Detail: detail})
		return
	}
	if p.failed(c, err) {
		return
	}
	if v.Deleted && form != nil { // its page has no form any more
		form.refuse(&peer.Refusal{Status: http.StatusConflict, Detail: "the endpoint was deleted since you opened its page: what you typed is here, and would add another one"})
		p.showEndpoints(c, http.StatusConflict, *form)
		return
	}
	if given, err := ids.Parse(c.Query("ticket")); err == nil {
		v.Ticket = ticketPath(given, c.Query("position"))
	}
	for i, change := range changes {
		first := i+1 == len(changes) && !more || i+1 < len(changes) && changes[i+1].Kind == event.EndpointDelete
		v.History = append(v.History, changeView{change, first})
	}
	if more {
		v.Older = "/endpoints/" + id.String() + "?before=" + strconv.FormatInt(changes[len(changes)-1].Position.Offset, 10)
	}
	if v.Others, err = others(v.Document); p.failed(c, err) {
		return
	}
	if form != nil {
		v.Form = *form
	} else {
		v.Form = endpointForm{
			URL: v.URL, Name: v.Name, Group: v.Group, Tags: strings.Join(v.Tags, ", "), Interval: endpoint.FormatInterval(v.Interval), Enabled: v.Enabled,
			Version: v.Endpoint.Ticket.String(),
		}
	}
	title := v.Name
	if v.Deleted {
		title = "Deleted endpoint"
	}
	p.render(c, status, "endpoint", layout{Title: title, Here: "/endpoints", Body: v})
}

func (p *Pages) endpointID(c *gin.Context) (uuid.UUID, bool) {
	id, err := ids.Parse(c.Param("id"))
	if err != nil {
		p.refuse(c, fmt.Sprintf("%q is no id of an endpoint: it is a UUID", c.Param("id")))
	}
	return id, err == nil
}

// others are the members of a document that this release does not know.
func others(document json.RawMessage) ([]endpoint.Member, error) {
	if document == nil {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return nil, fmt.Errorf("read an endpoint: %w", err)
	}
	var out []endpoint.Member
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if !slices.Contains([]string{"url", "name", "group", "tags", "interval", "enabled"}, name) {
			out = append(out, endpoint.Member{Name: name, After: members[name]})
		}
	}
	return out, nil
}

// putEndpoint saves what was edited. Members that the form does not know are kept as they are; a change that
// came between is shown before it is overwritten.
func (p *Pages) putEndpoint(c *gin.Context) {
	ctx := c.Request.Context()
	id, ok := p.endpointID(c)
	if !ok {
		return
	}
	f := readEndpointForm(c)
	var now endpoint.Endpoint
	err := p.Reader.Read(ctx, projection.Want{}, projection.Of(endpoint.Projection), func(ctx context.Context, s *projection.Snapshot) (err error) {
		now, err = endpoint.ByID(ctx, s, id)
		return err
	})
	if p.failed(c, err) {
		return
	}
	if version := now.Ticket.String(); f.Version != version && c.PostForm("key") == "" {
		f.Version = version
		f.refuse(&peer.Refusal{Status: http.StatusConflict, Detail: "it was changed since you opened this page, as its history below says; send the form again to overwrite that"})
		p.showEndpoint(c, http.StatusConflict, endpointView{}, &f)
		return
	}
	document, err := f.document(now.Document)
	if p.failed(c, err) {
		return
	}
	got, err := p.send(c, func(key uuid.UUID) (peer.Accepted, error) { return p.Peers.PutEndpoint(ctx, id, document, key) })
	if refused := p.refusal(ctx, err); refused != nil {
		p.putEndpointAgain(c, refused)
		return
	}
	c.Redirect(http.StatusSeeOther, endpointPath(id.String(), "saved", got))
}

func (p *Pages) putEndpointAgain(c *gin.Context, refused *peer.Refusal) {
	f := readEndpointForm(c)
	f.refuse(refused)
	p.showEndpoint(c, refused.Status, endpointView{}, &f)
}

func (p *Pages) deleteEndpoint(c *gin.Context) {
	ctx := c.Request.Context()
	id, ok := p.endpointID(c)
	if !ok {
		return
	}
	got, err := p.send(c, func(key uuid.UUID) (peer.Accepted, error) { return p.Peers.DeleteEndpoint(ctx, id, key) })
	if refused := p.refusal(ctx, err); refused != nil {
		p.deleteEndpointAgain(c, refused)
		return
	}
	c.Redirect(http.StatusSeeOther, endpointPath(id.String(), "deleted", got))
}

func (p *Pages) deleteEndpointAgain(c *gin.Context, refused *peer.Refusal) {
	p.showEndpoint(c, refused.Status, endpointView{DeleteRefused: refused}, nil)
}
