// Package auth identifies who calls a service: API keys, the scopes that they carry, the file that holds their
// hashes, and the caller in a request's context.
//
// A key is tmk_<id>_<secret>. The secret has at least 128 random bits, so nobody can guess it, however fast a
// guess is. Therefore a plain SHA-256 of it is kept: a slow password hash would cost every request
// milliseconds and protect nothing. Hashes are compared in constant time, and an unknown id takes as long as
// a wrong secret.
//
// Which scope a route needs stands in its specification, and the HTTP engine words the refusals: see
// shared/httpapi.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

// Scope is what a route needs and what a key may do.
type Scope string

// The scopes. Admin includes the other two; none needs no key at all.
const (
	None  Scope = "none"
	Read  Scope = "read"
	Write Scope = "write"
	Admin Scope = "admin"
)

// ParseScope reads the scope of a route: none, read, write or admin.
func ParseScope(s string) (Scope, error) {
	switch Scope(s) {
	case None, Read, Write, Admin:
		return Scope(s), nil
	}
	return "", fmt.Errorf("%q is no scope: none, read, write or admin", s)
}

// Caller is who sent a request with a right key. The zero Caller may do nothing.
type Caller struct {
	ID     string  // the key's id, which never changes
	Name   string  // the key's name, which says what it was made for
	Scopes []Scope // what the key may do

	key string
}

// May reports whether the caller's scopes cover s.
func (c Caller) May(s Scope) bool {
	return s == None || slices.Contains(c.Scopes, s) || slices.Contains(c.Scopes, Admin)
}

// ScopeWords names the scopes of the caller, such as "scope read" and "scopes read and write".
func (c Caller) ScopeWords() string {
	words := make([]string, len(c.Scopes))
	for i, s := range c.Scopes {
		words[i] = string(s)
	}
	if len(words) == 1 {
		return "scope " + words[0]
	}
	return "scopes " + strings.Join(words, " and ")
}

// Lacks says that the caller may not do what needs s.
func (c Caller) Lacks(s Scope) string {
	return fmt.Sprintf("this key has %s, %s is needed", c.ScopeWords(), s)
}

type callerKey struct{}

// WithCaller returns a context that carries c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// FromContext returns the caller of the request that ctx belongs to. There is none where keys are off, and
// on routes that need no key.
func FromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// PassOn gives a request to another service the key of the caller on whose behalf it is sent: the other
// service then judges the caller, and this one needs no key of its own. Without a caller it does nothing.
func PassOn(r *http.Request) {
	if c, ok := FromContext(r.Context()); ok && c.key != "" {
		r.Header.Set("Authorization", "Bearer "+c.key)
	}
}

// Bearer returns the key of a request's Authorization header, or "".
func Bearer(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

const (
	prefix    = "tmk_"
	idLength  = 10
	hashName  = "sha256:"
	maxSecret = 256 // bytes of a key that are looked at at all
)

// newKey returns a fresh id and the whole key. rand.Text has at least 128 random bits and, in base32, no
// character that a shell, a URL or a double click would trip over.
func newKey() (id, key string) {
	id = strings.ToLower(rand.Text()[:idLength])
	return id, prefix + id + "_" + strings.ToLower(rand.Text())
}

// idOf returns the id of a key that has the form of one, or "".
func idOf(key string) string {
	if len(key) > maxSecret || !strings.HasPrefix(key, prefix) {
		return ""
	}
	id, secret, ok := strings.Cut(key[len(prefix):], "_")
	if !ok || secret == "" || !isID(id) {
		return ""
	}
	return id
}

func isID(id string) bool {
	for _, b := range []byte(id) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') {
			return false
		}
	}
	return id != "" && len(id) <= 32
}

// hashOf is what the file keeps of a key.
func hashOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hashName + hex.EncodeToString(sum[:])
}

func sameHash(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// nobodysHash is compared where no entry has the id, so that an unknown id takes as long as a wrong secret.
var nobodysHash = hashName + strings.Repeat("0", 2*sha256.Size)

// parseScopes reads the scopes of a key, which carries at least one, none of them twice.
func parseScopes(texts []string) ([]Scope, error) {
	var scopes []Scope
	for _, t := range texts {
		s, err := ParseScope(t)
		if err == nil && s == None {
			err = errors.New(`"none" is what a route needs that needs no key: a key carries read, write or admin`)
		}
		if err != nil {
			return nil, err
		}
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	if len(scopes) == 0 {
		return nil, errors.New("a key carries at least one scope: read, write or admin")
	}
	return scopes, nil
}

// String is the id: a caller that is printed does not print its key.
func (c Caller) String() string { return c.ID }

// GoString is String, for %#v.
func (c Caller) GoString() string { return c.ID }

// LogValue is String, for logs.
func (c Caller) LogValue() slog.Value { return slog.StringValue(c.ID) }
