// Package problem writes errors as RFC 9457 problem details (application/problem+json). It decides the
// form only; which error is which problem is a table of each service.
package problem

import (
	"encoding/json"
	"net/http"
)

// ContentType of every problem.
const ContentType = "application/problem+json"

// Problem is one answer that is no success. Detail is read by people: it says what was wrong and what
// to do, and never carries an internal error's text.
type Problem struct {
	Type     string            // a stable name, such as "/problems/bad-instant"; about:blank unless given
	Title    string            // the same for every problem of the type; the status text unless given
	Status   int               // HTTP status
	Detail   string            // what was wrong and what to do, for people
	Instance string            // the correlation id of the request, as urn:correlation:<id>, where known
	Extra    map[string]string // further members, such as ticket and retry_key
	Errors   any               // a list of what was wrong with each part of a request, where it has parts
}

func (p Problem) Error() string { return p.Title + ": " + p.Detail }

// MarshalJSON writes the members of RFC 9457, section 3, and the extensions.
func (p Problem) MarshalJSON() ([]byte, error) {
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	members := map[string]any{}
	for k, v := range p.Extra {
		members[k] = v
	}
	members["type"], members["title"], members["status"] = p.Type, p.Title, p.Status
	if p.Detail != "" {
		members["detail"] = p.Detail
	}
	if p.Instance != "" {
		members["instance"] = p.Instance
	}
	if p.Errors != nil {
		members["errors"] = p.Errors
	}
	return json.Marshal(members)
}

// Write sends p. Headers such as Retry-After are set by the caller, before.
func Write(w http.ResponseWriter, p Problem) {
	if p.Status == 0 {
		p.Status = http.StatusInternalServerError
	}
	body, err := json.Marshal(p)
	if err != nil { // a map of strings always marshals
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", ContentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // it fails where the client has gone
}
