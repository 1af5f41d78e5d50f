package door

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/shared/ticket"
)

// Now stands for the wanted instant where a command names none.
const Now = "now"

// maxAhead is how far in the future a UUIDv7 may lie: clocks differ, but a ticket from next year would
// stand at the end of every list.
const maxAhead = 5 * time.Minute

// KeyError says why an Idempotency-Key is not taken.
type KeyError struct{ Key, Rule string }

func (e *KeyError) Error() string {
	key := e.Key
	if len(key) > 64 {
		key = key[:64] + "…"
	}
	return fmt.Sprintf("the Idempotency-Key %q is not taken: %s; an example of one that is: 6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", key, e.Rule)
}

// longestKey is how many bytes a key that is no UUID may have.
const longestKey = 255

// Binding is what an Idempotency-Key is bound to: the same key with another binding is another command.
type Binding struct {
	Caller string // id of the API key; "" without authentication
	Route  string // one name for all spellings of a route
	Wanted string // what the command asks for, in canonical form: an instant as the log prints it, or Now; an endpoint's document
}

// KeyTicket returns the ticket of a command that came with key, without any state at the door:
//
//   - a UUIDv7: the key itself, "this very command";
//   - any other UUID, and from a caller who is known any text of 1 to 255 printable ASCII characters: a
//     UUIDv8 (RFC 9562, section 5.8) of the SHA-256 of the binding and the key.
//
// A UUIDv8 is refused: it is a ticket that the door made of another key, and taking it for a key would
// make a second command of a retry. So are values that are no identity (nil, max, no RFC 9562 variant)
// and, without authentication, everything that is no UUID: two callers could choose the same word.
// The error is a *KeyError.
func KeyTicket(key string, b Binding, now time.Time) (uuid.UUID, error) {
	bare, id, err := checkKey(key, b.Caller, now)
	if err != nil || id.Version() == 7 {
		return id, err
	}
	return ticket.Derived("tidemark ticket 1", b.Caller, bare, b.Route, b.Wanted), nil
}

// PlaceTicket returns the ticket of one of the commands of a request that came with key: a UUIDv8 of the SHA-256 of the
// binding, the key and the place, for a UUIDv7 too, since it cannot be the ticket of all. Which keys are taken is said by
// KeyTicket. The error is a *KeyError.
func PlaceTicket(key string, b Binding, place int, now time.Time) (uuid.UUID, error) {
	bare, _, err := checkKey(key, b.Caller, now)
	if err != nil {
		return uuid.Nil, err
	}
	return ticket.Derived("tidemark ticket of a list 1", b.Caller, bare, b.Route, strconv.Itoa(place), b.Wanted), nil
}

// checkKey returns the one spelling of a key that is taken, and the UUID that it is, if it is one.
func checkKey(key, caller string, now time.Time) (bare string, id uuid.UUID, err error) {
	// The header's draft (draft-ietf-httpapi-idempotency-key-header) makes it a string in quotes.
	bare = key
	if len(bare) > 1 && strings.HasPrefix(bare, `"`) && strings.HasSuffix(bare, `"`) {
		bare = bare[1 : len(bare)-1]
	}
	refuse := func(rule string) (string, uuid.UUID, error) { return "", uuid.Nil, &KeyError{Key: key, Rule: rule} }
	id, err = ticket.Parse(bare)
	switch {
	case err == nil:
	case caller == "":
		return refuse("without authentication a key is a UUID")
	case !printable(bare):
		return refuse(fmt.Sprintf("a key has 1 to %d printable ASCII characters", longestKey))
	default:
		return bare, uuid.Nil, nil
	}
	if id == uuid.Nil || id == uuid.Max {
		return refuse("it is the same for everybody")
	}
	if v := id.Version(); id.Variant() != uuid.RFC4122 || v < 1 || v > 8 {
		return refuse("it is no UUID of a known version (RFC 9562)")
	}
	switch id.Version() {
	case 7:
		if at, _ := ticket.Time(id); at.Sub(now) > maxAhead {
			return refuse(fmt.Sprintf("it is a UUIDv7 of %s, more than %s ahead of this clock", at.Format(time.RFC3339), maxAhead))
		}
	case 8:
		return refuse("it is a ticket that was made of a key: send that key again, the retry_key of the answer")
	}
	return id.String(), id, nil
}

func printable(key string) bool {
	for _, b := range []byte(key) {
		if b < 0x20 || b > 0x7e {
			return false
		}
	}
	return key != "" && len(key) <= longestKey
}
