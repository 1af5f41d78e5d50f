package httpapi

import (
	"errors"
	"io"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/tidemark/tidemark/command-service/internal/door"
	"github.com/tidemark/tidemark/command-service/internal/endpoint"
	api "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/event"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/problem"
	"github.com/tidemark/tidemark/shared/ticket"
)

// The one name of each route, for the rule of keys.
const (
	postEndpoints  = "POST /api/v1/endpoints"
	putEndpoint    = "PUT /api/v1/endpoints/{id}"
	deleteEndpoint = "DELETE /api/v1/endpoints/{id}"
)

// PostEndpoints accepts new endpoints, one or many.
func (s *Server) PostEndpoints(c *gin.Context, p api.PostEndpointsParams) {
	body, ok := s.readJSON(c)
	if !ok {
		return
	}
	items, list, err := endpoint.Parse(body)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	commands, attempts, err := s.newEndpoints(c, items, list, keyOf(p.IdempotencyKey))
	if err != nil {
		s.fail(c, err, attempt{key: keyOf(p.IdempotencyKey)})
		return
	}
	if !list {
		s.acceptEndpoint(c, commands[0], attempts[0])
		return
	}
	records := make([]door.Command, len(commands))
	for i, command := range commands {
		records[i] = recordOf(command)
	}
	s.answerList(c, commands, attempts, s.doors.Endpoints.Accept(c.Request.Context(), records...))
}

// newEndpoints gives each item its ticket, and with it its endpoint's id.
func (s *Server) newEndpoints(c *gin.Context, items []endpoint.Item, list bool, key string) ([]event.EndpointCommand, []attempt, error) {
	caller, _ := auth.FromContext(c.Request.Context())
	commands, attempts := make([]event.EndpointCommand, len(items)), make([]attempt, len(items))
	places := map[uuid.UUID]int{}
	var twice []event.FieldError
	for i, item := range items {
		b := door.Binding{Caller: caller.ID, Route: postEndpoints, Wanted: endpoint.Canonical(item.Document)}
		var id uuid.UUID
		var err error
		switch {
		case item.ID != "":
			id, err = door.KeyTicket(item.ID, b, s.now())
			attempts[i].key = item.ID
		case list && key != "":
			id, err = door.PlaceTicket(key, b, i, s.now())
			attempts[i].key = key
		case key != "":
			id, err = door.KeyTicket(key, b, s.now())
			attempts[i].key = key
		default:
			id, err = ticket.New()
		}
		if err != nil {
			return nil, nil, err
		}
		if first, there := places[id]; there { // the log would take the second for a repeat of the first
			twice = append(twice, event.FieldError{Path: endpoint.Place(i) + ".id", Message: "expected another id than that of " + endpoint.Place(first)})
		}
		places[id] = i
		attempts[i].ticket = id.String()
		commands[i] = event.EndpointCommand{
			CommandID: id, EndpointID: endpoint.Of(id), Kind: event.EndpointPut, SentBy: caller.Name, Document: item.Document,
		}
	}
	if twice != nil {
		return nil, nil, &endpoint.InvalidError{Fields: twice}
	}
	return commands, attempts, nil
}

// PutEndpoint accepts how an endpoint shall be.
func (s *Server) PutEndpoint(c *gin.Context, id string, p api.PutEndpointParams) {
	of, err := endpoint.ParseID(id)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	body, ok := s.readJSON(c)
	if !ok {
		return
	}
	document, err := endpoint.ParsePut(body, of)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	s.changeEndpoint(c, event.EndpointCommand{EndpointID: of, Kind: event.EndpointPut, Document: document}, putEndpoint, keyOf(p.IdempotencyKey))
}

// DeleteEndpoint accepts that an endpoint shall be no more.
func (s *Server) DeleteEndpoint(c *gin.Context, id string, p api.DeleteEndpointParams) {
	of, err := endpoint.ParseID(id)
	if err != nil {
		s.fail(c, err, attempt{})
		return
	}
	s.changeEndpoint(c, event.EndpointCommand{EndpointID: of, Kind: event.EndpointDelete}, deleteEndpoint, keyOf(p.IdempotencyKey))
}

// changeEndpoint gives the command its ticket and its sender.
func (s *Server) changeEndpoint(c *gin.Context, command event.EndpointCommand, route, key string) {
	caller, _ := auth.FromContext(c.Request.Context())
	a := attempt{key: key}
	var err error
	if key == "" {
		command.CommandID, err = ticket.New()
	} else {
		wanted := command.EndpointID.String()
		if command.Kind == event.EndpointPut {
			wanted += " " + endpoint.Canonical(command.Document)
		}
		command.CommandID, err = door.KeyTicket(key, door.Binding{Caller: caller.ID, Route: route, Wanted: wanted}, s.now())
	}
	if err != nil {
		s.fail(c, err, a)
		return
	}
	command.SentBy, a.ticket = caller.Name, command.CommandID.String()
	s.acceptEndpoint(c, command, a)
}

func recordOf(c event.EndpointCommand) door.Command {
	return door.Command{Key: c.EndpointID.String(), Value: event.AppendEndpointCommand(nil, c)}
}

// acceptEndpoint writes one command and answers with its ticket.
func (s *Server) acceptEndpoint(c *gin.Context, command event.EndpointCommand, a attempt) {
	o := s.doors.Endpoints.Accept(c.Request.Context(), recordOf(command))[0]
	if o.Err != nil {
		s.fail(c, o.Err, a)
		return
	}
	s.located(c, a, o.Position)
	c.PureJSON(http.StatusAccepted, api.EndpointTicket{Id: a.ticket, EndpointId: command.EndpointID.String()})
}

// answerList answers each command of a list. Where nothing was written, and nothing may have been, one problem says so.
func (s *Server) answerList(c *gin.Context, commands []event.EndpointCommand, attempts []attempt, outcomes []door.Outcome) {
	status, written := http.StatusAccepted, false
	for _, o := range outcomes {
		if o.Err != nil {
			status = http.StatusMultiStatus
		}
		written = written || o.Err == nil || errors.Is(o.Err, door.ErrUnknown)
	}
	if !written || c.Request.Context().Err() != nil {
		s.fail(c, errors.Join(c.Request.Context().Err(), outcomes[0].Err), attempt{})
		return
	}
	answer := make([]endpointResult, len(commands))
	for i, o := range outcomes {
		answer[i] = endpointResult{ID: attempts[i].ticket, EndpointID: commands[i].EndpointID.String()}
		if o.Err == nil {
			answer[i].Position = o.Position.String()
			continue
		}
		p := s.failures.answer(c.Request.Context(), o.Err, attempts[i]).Problem
		answer[i].Error = &p
	}
	c.Header("Cache-Control", "no-store")
	c.PureJSON(status, answer)
}

// endpointResult is api.EndpointResult with a problem that knows how it is written.
type endpointResult struct {
	ID         string           `json:"id"`
	EndpointID string           `json:"endpoint_id"`
	Position   string           `json:"position,omitempty"`
	Error      *problem.Problem `json:"error,omitempty"`
}

// readJSON returns the body as JSON, also where it came as YAML.
func (s *Server) readJSON(c *gin.Context) (body []byte, ok bool) {
	kind := c.ContentType()
	if kind != "" && kind != jsonType && kind != yamlType {
		sharedhttp.Fail(c, problem.Problem{
			Status: http.StatusUnsupportedMediaType, Detail: "the Content-Type is " + kind + ": this takes " + jsonType + " and " + yamlType,
		})
		return nil, false
	}
	body, err := io.ReadAll(c.Request.Body)
	if err != nil {
		sharedhttp.FailBody(c, err)
		return nil, false
	}
	if kind == yamlType {
		if body, err = endpoint.FromYAML(body); err != nil {
			s.fail(c, err, attempt{})
			return nil, false
		}
	}
	return body, true
}

const (
	jsonType = "application/json"
	yamlType = "application/yaml"
)
