package telemetry

import (
	"log/slog"
	"regexp"
	"slices"
	"strings"
)

// hider keeps secrets out of a log. Nothing logs one on purpose, but a library's error may quote the URL that it was
// given. The hider recognises secrets by their form (API keys, passwords in URLs and connection strings), and those that
// it was given.
type hider struct{ known *strings.Replacer }

const hidden = "***"

// shortestKnown is the length below which a secret is not looked for: hiding "a" would black out every word.
const shortestKnown = 4

func newHider(secrets []string) hider {
	var pairs []string
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // one may hold another
	for _, s := range secrets {
		if len(s) >= shortestKnown {
			pairs = append(pairs, s, hidden)
		}
	}
	return hider{strings.NewReplacer(pairs...)}
}

var (
	apiKey      = regexp.MustCompile(`(tmk_[a-z0-9]{1,32}_)[A-Za-z0-9]+`)
	urlPassword = regexp.MustCompile(`(://[^/\s:@"']*:)[^/\s"']+@`)
	setPassword = regexp.MustCompile(`((?i:password)=)('[^']*'|[^&\s"']+)`)
)

func (h hider) text(s string) string {
	s = h.known.Replace(s)
	if strings.Contains(s, "tmk_") {
		s = apiKey.ReplaceAllString(s, "${1}"+hidden)
	}
	if strings.Contains(s, "://") {
		s = urlPassword.ReplaceAllString(s, "${1}"+hidden+"@")
	}
	if strings.Contains(s, "=") {
		s = setPassword.ReplaceAllString(s, "${1}"+hidden)
	}
	return s
}

// attribute is for slog's ReplaceAttr: the message is an attribute there too.
func (h hider) attribute(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		if s := a.Value.String(); s != "" {
			a.Value = slog.StringValue(h.text(s))
		}
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			a.Value = slog.StringValue(h.text(v.Error()))
		case []string:
			shown := make([]string, len(v))
			for i, s := range v {
				shown[i] = h.text(s)
			}
			a.Value = slog.AnyValue(shown)
		}
	}
	return a
}
