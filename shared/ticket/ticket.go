// Package ticket makes and reads the ids of accepted commands: UUIDs, version 7 where the door makes
// them (time-ordered keys keep the table's index warm at its right edge).
package ticket

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// New returns a fresh ticket, a UUIDv7. It fails only when the system has no randomness to give.
func New() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("make a ticket: %w", err)
	}
	return id, nil
}

// Parse reads a UUID in its usual form of 36 characters, in either case, and no other form.
func Parse(s string) (uuid.UUID, error) {
	if len(s) == 36 {
		if id, err := uuid.Parse(s); err == nil {
			return id, nil
		}
	}
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return uuid.Nil, fmt.Errorf("%q is no ticket: a ticket is a UUID such as 01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", s)
}

// Time returns the instant, in milliseconds, that a UUIDv7 carries, and whether id is one.
func Time(id uuid.UUID) (time.Time, bool) {
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		return time.Time{}, false
	}
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms).UTC(), true
}
