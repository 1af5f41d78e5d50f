// Package limits is the one table of how large a request may be. The services refuse by it, the client cuts what it sends
// by it, and tests compare the front's configuration, the specifications and docs/security.md with it. So no part of a
// request's way takes less than the part before it sends.
//
// What a request may ask for (rates, waits, how many items a list shows) is left to the services.
package limits

// Sizes are in bytes, of a body as it is sent.
const (
	Header        = 64 << 10 // all headers of a request together
	Body          = 64 << 10 // a body, where the route has no limit of its own
	EndpointsBody = 8 << 20  // a list of endpoints
	RedriveBody   = 8 << 20  // dead letters with their new payloads, by the API or by a page's form
	DiscardBody   = 1 << 20  // positions of dead letters
	FormBody      = 1 << 20  // any other form of the pages, which may name every letter of a bulk action

	// LargestBody is the most that any route takes, so that a front which takes as much leaves every refusal to the services.
	LargestBody = 8 << 20

	// ClientBody is the most that the command line puts into one request. It is less than the services take: 1 MiB is also
	// what nginx takes unless it is configured, so a bulk action passes a front that is not ours.
	ClientBody = 1 << 20

	// ProxiedStream and Stream are how much of a stream of timestamps a client may have sent without an answer, behind a proxy and
	// without one. nginx does not go on with a request whose answer has begun, once the service has not taken at once what it
	// has: so behind a proxy no more may be under way than the connection to the service holds by itself.
	ProxiedStream = 48 << 10
	Stream        = 4 << 20

	Line    = 4 << 10  // one line of a stream of timestamps, without its end
	Payload = 64 << 10 // characters of the payload that a dead letter gets
)

// Numbers of items in one request.
const (
	Letters   = 1000 // dead letters that are redriven or discarded
	Endpoints = 1000
)

// Bodies are the limits of command-service's routes that do not take Body, by their paths.
var Bodies = map[string]int64{
	"/api/v1/deadletters/redrive": RedriveBody,
	"/api/v1/deadletters/discard": DiscardBody,
	"/api/v1/endpoints":           EndpointsBody,
}

// Forms are the limits of query-service's routes that do not take FormBody, by their paths.
var Forms = map[string]int64{
	"/dead-letters/review":  RedriveBody,
	"/dead-letters/redrive": RedriveBody,
}
