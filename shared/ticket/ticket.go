// Package ticket makes and reads the ids of accepted commands, which are UUIDs. Those that the door draws are of
// version 7, which is ordered by time: so an index of them grows at one end, whose pages stay in memory.
package ticket

import (
	"crypto/sha256"
	"encoding/binary"
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

// Derived returns the UUIDv8 (RFC 9562, section 5.8) of a list of parts: equal lists give the same one. Each part is
// hashed with its length, so that no two lists are hashed as the same bytes.
func Derived(parts ...string) uuid.UUID {
	h := sha256.New()
	for _, part := range parts {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	var id uuid.UUID
	copy(id[:], h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
